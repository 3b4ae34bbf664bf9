"""How likely are images? Scores in nats and bits, with their errors, a yardstick, and what follows from them."""
