"""The operators, one family a file; each registers its converters."""
