"""How do the weights move? The objective, the optimizer, averaged weights, and the loop that survives being killed."""
