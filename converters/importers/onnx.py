"""ONNX files: binary protobuf and the text forms."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt import io
from graphopt.conversion import FileImporter, register_importer


@register_importer
class OnnxImporter(FileImporter):
    """Reads ONNX; weights in external data stay memory-mapped."""

    format = "ONNX"
    suffixes = (".onnx", ".pb", ".onnxtxt", ".textproto", ".json")

    def load(self, source: Path) -> ir.Model:
        """Read ``source`` through the safe loader."""
        return io.load(source)
