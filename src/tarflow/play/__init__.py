"""The page to play with a flow: what would somebody try first? What is computed, and the page that shows it."""
