"""What runs in the import's child: read a TFLite file, write ONNX, let LiteRT run the file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from graphopt import io
from graphopt.conversion import Exported
from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.reader import read
from graphopt.converters.importers._tflite.truth import truth
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
    content = Path(source).read_bytes()
    runs = truth(file, converted, content)
    return Exported(
        target,
        runs.run,
        {"ai-edge-litert": metadata.version("ai-edge-litert")},
        others=runs.others,
        notes=[*converted.notes, *runs.notes],
        tolerance=runs.tolerance,
    )
