"""The passes: one file a pass, grouped by family. Import them as ``graphopt.passes``."""

if __name__ != "graphopt.passes":
    # `import passes` from the repository root would make a second copy of every pass, and so a second
    # registry that the pipeline never sees.
    raise ImportError(f"import graphopt.passes, not {__name__}")
