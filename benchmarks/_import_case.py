"""One source that the benchmark of importers imports."""

from __future__ import annotations

from typing import NamedTuple

from graphopt.import_options import ImportOptions


class Case(NamedTuple):
    """A source, and what must hold of its import.

    Attributes:
        source: What a user would type as SOURCE.
        name: The model.
        format: ``.keras``, ``SavedModel``, ``.pt2``, ``factory``, ``.tflite`` …
        options: What else a user would say.
        bound: Largest difference from the framework's own outputs, relative to the largest element; 0 for a
            quantized model: one step of the output on average, and the same largest element.
    """

    source: str
    name: str
    format: str
    options: ImportOptions
    bound: float
