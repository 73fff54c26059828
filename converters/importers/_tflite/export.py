"""What runs in the import's child: read a TFLite file, write ONNX, let LiteRT run the file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from graphopt import io
from graphopt.conversion import Exported, Tolerance
from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.litert import LiteRT
from graphopt.converters.importers._tflite.reader import read
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
    plain = LiteRT(content, converted.inputs, converted.outputs, delegate=False)
    fast = LiteRT(content, converted.inputs, converted.outputs, delegate=True)
    return Exported(
        target,
        plain,
        {"ai-edge-litert": metadata.version("ai-edge-litert")},
        others={"LiteRT with XNNPACK": fast},
        notes=converted.notes,
        tolerance=Tolerance(),
    )
