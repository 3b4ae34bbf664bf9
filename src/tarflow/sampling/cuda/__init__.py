"""What stands in for a block's conditioner on a GPU: a step that CUDA graphs can record, its kernels, its graphs."""
