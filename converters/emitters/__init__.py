"""Emitters: one target format a file."""
