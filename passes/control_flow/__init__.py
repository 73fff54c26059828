"""Passes that take control flow and function calls apart where their outcome is known."""
