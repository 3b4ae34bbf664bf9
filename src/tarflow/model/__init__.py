"""What is p(x)? The normalizing flow: patches, causal Transformer, one autoregressive step, and their stack."""
