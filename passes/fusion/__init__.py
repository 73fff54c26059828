"""Fusions: one file of rules per family, and the pass that applies them."""
