"""Which number may we quote? Likelihoods with their errors and a yardstick, and what samples are worth."""
