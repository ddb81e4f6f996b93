"""What XNNPACK computes sparsely, and models that it does."""
