"""ONNX files: binary protobuf and the text forms."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt import io
from graphopt.conversion import Emitter, register_emitter


@register_emitter
class OnnxEmitter(Emitter):
    """Writes ONNX atomically, with external data where the model is too large for one file."""

    format = "onnx"
    suffixes = (".onnx", ".pb", ".onnxtxt", ".textproto", ".json")

    def write(self, model: ir.Model, target: Path) -> int:
        """Write ``target`` through the atomic saver."""
        return io.save(model, target)
