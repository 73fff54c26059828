"""Passes that take out operators which only arrange numbers: order, shape, type, simple arithmetic."""
