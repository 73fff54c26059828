"""Importers: one source format a file."""
