"""What the child of a PyTorch import runs."""
