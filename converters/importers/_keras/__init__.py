"""What the child of a Keras import runs."""
