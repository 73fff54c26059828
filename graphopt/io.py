"""Load and save models (being hardened; the names below are final)."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt._structure import IN_MEMORY, structure_proto

__all__ = ["IN_MEMORY", "check", "load", "save", "serialized_size", "structure_proto"]


def load(source: str | os.PathLike[str]) -> ir.Model:
    """Load a model."""
    return ir.load(Path(source).absolute())


def save(model: ir.Model, target: str | os.PathLike[str], *, external_data: bool | None = None) -> int:
    """Save a model; the bytes written."""
    path = Path(target).absolute()
    ir.save(model, path, external_data=path.name + ".data" if external_data else None)
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if external_data else 0)


def serialized_size(model: ir.Model) -> int:
    """Bytes that save would write."""
    return structure_proto(model).ByteSize() + sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )


def check(model: ir.Model) -> None:
    """Run the ONNX checker."""
    onnx.checker.check_model(ir.to_proto(model))
