"""What runs in the import's child: read a TFLite file, write ONNX, let LiteRT run the file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from graphopt import io
from graphopt.conversion import Exported
from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.reader import read
from graphopt.converters.importers._tflite.truth import Truth, truth
from graphopt.errors import DefectError
from graphopt.import_options import ImportOptions

__all__ = ["export"]


def export(source: str, options: ImportOptions, folder: Path) -> Exported:
    """Read ``source``, write ``folder/raw.onnx``.

    Raises:
        InputError: It is damaged.
        UnsupportedError: It holds what the reader does not know.
    """
    file = read(Path(source))
    converted = convert(file, options.signature)
    target = folder / "raw.onnx"
    io.save(converted.model, target)
    runs = truth(file, converted, Path(source).read_bytes()) if options.verify else Truth(_not_run)
    return Exported(
        target,
        runs.run,
        {"ai-edge-litert": metadata.version("ai-edge-litert")},
        others=runs.others,
        notes=[*converted.notes, *runs.notes],
        tolerance=runs.tolerance,
    )


def _not_run(feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    raise DefectError("an import that is not verified does not run LiteRT")
