"""Passes that remove what does not contribute: dead code, duplicates, nodes that do nothing."""
