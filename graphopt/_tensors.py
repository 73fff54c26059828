"""Tensors that came inside a model file, with what is asked of them most kept.

onnx_ir reads type, shape and numbers from the protobuf message anew each time; passes ask for them thousands
of times.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.graph import scopes

__all__ = ["LoadedTensor", "keep_facts"]

#: Arrays of more bytes are made anew: they would be in memory twice.
_KEPT_BYTES: Final = 1024


class LoadedTensor(ir.serde.TensorProtoTensor):
    """A tensor over the protobuf message it was loaded from, which nobody changes but for its name."""

    __slots__ = ("_array", "_dtype", "_shape", "_size")

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        self._dtype = ir.DataType(proto.data_type)
        self._size: int = math.prod(proto.dims)
        self._shape: ir.Shape | None = None
        self._array: np.ndarray | None = None

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Shape, frozen."""
        if self._shape is None:
            self._shape = super().shape
        return self._shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes, those below 8 bits packed."""
        return (self._dtype.bitwidth * self._size + 7) // 8

    def numpy(self) -> np.ndarray:
        """The numbers, read-only."""
        if self._array is not None:
            return self._array
        array = super().numpy()
        if array.nbytes <= _KEPT_BYTES:
            array.flags.writeable = False
            self._array = array
        return array


def keep_facts(model: ir.Model, *, in_attributes: bool) -> None:
    """Make the tensors of a model that was just loaded :class:`LoadedTensor`."""
    for graph, _ in scopes(model):
        for value in graph.initializers.values():
            if type(value.const_value) is ir.serde.TensorProtoTensor:
                value.const_value = LoadedTensor(value.const_value.raw)
        if in_attributes:
            for node in graph:
                _keep_in_attributes(node.attributes.data)


def _keep_in_attributes(attributes: dict[str, ir.Attr]) -> None:
    for name, attribute in attributes.items():
        if type(attribute.value) is ir.serde.TensorProtoTensor:
            tensor = LoadedTensor(attribute.value.raw)
            attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)
