"""Nodes and constants of the ONNX graph that is being made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.model import Array
from graphopt.errors import UnsupportedError
from graphopt.limits import EXPANDED_NODES

__all__ = ["OPSET", "OPSET_16_BITS", "Builder"]

#: 20 has Gelu. At 21 and above onnxruntime 1.31 cannot load some models with integers of 8 bits (its
#: optimizer copies the type of a QuantizeLinear that it has changed), so that is left to those that need it.
OPSET: Final = 20
#: The first with quantization to 16 bits.
OPSET_16_BITS: Final = 21
#: Control flow may call a subgraph many times over; no file holds as many operators.
_LARGEST: Final = EXPANDED_NODES // 100


class Builder:
    """Collects the nodes of one graph; constants and names are those of the whole model."""

    def __init__(self, parent: Builder | None = None) -> None:
        self.nodes: list[ir.Node] = []
        self.names: set[str] = parent.names if parent else set()
        self.initializers: dict[str, ir.Value] = parent.initializers if parent else {}
        self._known: dict[tuple[Any, ...], ir.Value] = parent._known if parent else {}
        self._numbers: dict[str, int] = parent._numbers if parent else {}
        self._total: list[int] = parent._total if parent else [0]

    def unique(self, wanted: str) -> str:
        """A name that nothing has yet, and that is taken now."""
        name = wanted
        while not name or name in self.names:
            self._numbers[wanted] = self._numbers.get(wanted, 0) + 1
            name = f"{wanted or 'value'}_{self._numbers[wanted]}"
        self.names.add(name)
        return name

    def constant(self, array: Any, name: str = "constant", dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer; equal ones are one."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        digest = hashlib.sha256(array.tobytes()).digest()
        key = (array.dtype.str, str(array.dtype), array.shape, dtype, digest)
        if key not in self._known:
            tensor = ir.Tensor(array, dtype=dtype or ir.DataType.from_numpy(array.dtype))
            value = ir.Value(
                name=self.unique(name),
                shape=tensor.shape,
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.initializers[str(value.name)] = value
            self._known[key] = value
        return self._known[key]

    def ints(self, numbers: Sequence[int] | Array, name: str = "constant") -> ir.Value:
        """An initializer of int64, as ONNX wants axes, sizes and bounds."""
        return self.constant(np.asarray(numbers, np.int64), name)

    def nodes_of(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
        name: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node; its outputs, named after ``name``."""
        self._total[0] += 1
        if self._total[0] > _LARGEST:
            raise UnsupportedError(
                f"more than {_LARGEST} nodes, its subgraphs written out where they are called"
            )
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = ir.node(op_type, list(inputs), attributes=dict(attributes or {}), num_outputs=outputs)
        node.name = self.unique(f"{name}/{op_type}" if name else op_type)
        for output in node.outputs:
            output.name = self.unique(name or op_type)
        self.nodes.append(node)
        return node.outputs

    def op(self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.nodes_of(op_type, inputs, attributes, 1, name)[0]

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str = "") -> ir.Value:
        """Convert to an element type."""
        return self.op("Cast", value, name=name, to=int(dtype))
