"""Importers and emitters. Import them as ``graphopt.converters``."""

if __name__ != "graphopt.converters":
    # See graphopt/passes/__init__.py: a second copy would be a second registry.
    raise ImportError(f"import graphopt.converters, not {__name__}")
