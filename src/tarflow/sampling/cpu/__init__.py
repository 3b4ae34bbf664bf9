"""What stands in for a block's conditioner on a CPU: a step of few patches, in PyTorch's operations or in C."""
