"""The TFLite files of a folder as cases; whether one is quantized shows in its outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from _import_case import Case

from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.reader import read
from graphopt.converters.importers._tflite.truth import quantized_steps
from graphopt.errors import GraphoptError
from graphopt.import_options import ImportOptions

#: Of the largest element of an output.
FLOAT = 1e-4


def cases(folder: Path, names: Collection[str] = ()) -> Iterator[Case]:
    """Every TFLite file below ``folder`` whose name contains one of ``names`` (all, if there are none)."""
    for path in sorted(folder.rglob("*.tflite")):
        if not names or any(name in path.name for name in names):
            bound = 0.0 if _quantized(path) else FLOAT
            yield Case(str(path), path.stem, path.suffix, ImportOptions(), bound)


def _quantized(path: Path) -> bool:
    try:
        return bool(quantized_steps(convert(read(path))))
    except GraphoptError:
        return False
