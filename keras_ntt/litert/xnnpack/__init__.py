"""What XNNPACK computes sparsely, and models for its sparse inference."""
