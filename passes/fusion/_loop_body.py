"""Read the body of a Loop as a formula of one step (see ``_recurrent_cells``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of
from graphopt.passes.fusion._formula import ints, number
from graphopt.passes.fusion._recurrent_cells import (
    Activation,
    Affine,
    Apply,
    Complement,
    Formula,
    Product,
    Source,
    Sum,
)
from graphopt.rewrite import input_at, is_op, origin

__all__ = ["Body"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Activations of the recurrent operators, with the defaults of the elementwise operators' attributes.
_ACTIVATIONS: Final[Mapping[str, Mapping[str, float]]] = {
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 1.0},
}


class Body:
    """The body of a Loop.

    Attributes:
        graph: The body.
        sequence: What a step is taken of, once a formula has used one; its first axis counts the steps.
    """

    def __init__(
        self, graph: ir.Graph, states: Mapping[ir.Value, int], counters: frozenset[ir.Value]
    ) -> None:
        self.graph = graph
        self.sequence: ir.Value | None = None
        self._step = Source(None)
        self._counters = counters
        self._known: dict[ir.Value, Formula | None] = {
            value: Source(number) for value, number in states.items()
        }

    def formula(self, value: ir.Value | None) -> Formula | None:
        """The formula of a value; None where it is something else."""
        if value is None:
            return None
        value = origin(value, "Identity")
        if value not in self._known:
            self._known[value] = None  # of what is not reached again: a graph has no cycles
            node = value.producer()
            if node is not None and node.graph is self.graph:
                self._known[value] = self._of(node, value)
        return self._known[value]

    def _of(self, node: ir.Node, value: ir.Value) -> Formula | None:
        if node.op_type in _ACTIVATIONS and is_op(node, node.op_type):
            argument = self.formula(node.inputs[0])
            return None if argument is None else Apply(_activation(node), argument)
        if is_op(node, "Gather"):
            return self._gather(node)
        if is_op(node, "MatMul", "Gemm"):
            return self._product(node)
        if is_op(node, "Split", "Slice"):
            return self._columns(node, value)
        if is_op(node, "Add"):
            return self._sum(node)
        if is_op(node, "Mul"):
            a, b = self.formula(node.inputs[0]), self.formula(node.inputs[1])
            return None if a is None or b is None else Product((a, b))
        if is_op(node, "Sub") and number(node.inputs[0]) == 1:
            argument = self.formula(node.inputs[1])
            return None if argument is None else Complement(argument)
        return None

    def _gather(self, node: ir.Node) -> Formula | None:
        """``sequence[t]``."""
        sequence, index = node.inputs
        if sequence is None or index is None or node.attributes.get_int("axis", 0) != 0:
            return None
        if origin(index, "Identity") not in self._counters or sequence.graph is self.graph:
            return None
        if self.sequence not in (None, sequence):
            return None
        self.sequence = sequence
        return self._step

    def _product(self, node: ir.Node) -> Formula | None:
        matrix, factor = array_of(node.inputs[1]), self.formula(node.inputs[0])
        if factor is None or matrix is None or matrix.ndim != 2:
            return None
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
            matrix = matrix.T
        product = Affine({factor: matrix.astype(np.float64)}, np.zeros(matrix.shape[1]))
        if node.op_type == "MatMul":
            return product
        plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1
        if not plain or node.attributes.get_int("transA", 0) != 0:
            return None
        bias = input_at(node, 2)
        return product if bias is None else _with_bias(product, array_of(bias))

    def _sum(self, node: ir.Node) -> Formula | None:
        for one, other in (node.inputs, node.inputs[::-1]):
            constant = array_of(one)
            if constant is not None:
                formula = self.formula(other)
                return _with_bias(formula, constant) if isinstance(formula, Affine) else None
        a, b = self.formula(node.inputs[0]), self.formula(node.inputs[1])
        if a is None or b is None:
            return None
        if isinstance(a, Affine) and isinstance(b, Affine):
            return a.plus(b) if len(a.bias) == len(b.bias) else None
        return Sum((a, b))

    def _columns(self, node: ir.Node, value: ir.Value) -> Formula | None:
        whole = self.formula(node.inputs[0])
        if not isinstance(whole, Affine):
            return None
        width = len(whole.bias)
        bounds = _part(node, value, width) if node.op_type == "Split" else _range(node, width)
        return None if bounds is None else whole.columns(*bounds)


def _activation(node: ir.Node) -> Activation:
    found = {n: node.attributes.get_float(n, default) for n, default in _ACTIVATIONS[node.op_type].items()}
    return Activation(node.op_type, found.get("alpha"), found.get("beta"))


def _with_bias(affine: Affine, constant: Array | None) -> Affine | None:
    """A row, or one number for all columns; None where the sum would have another shape."""
    width = len(affine.bias)
    if constant is None or constant.size not in (1, width) or constant.ndim > 2:
        return None
    if constant.ndim and constant.shape[-1] != constant.size:
        return None
    return Affine(affine.terms, affine.bias + constant.astype(np.float64).reshape(-1))


def _part(node: ir.Node, value: ir.Value, width: int) -> tuple[int, int] | None:
    """Which columns an output of Split is."""
    if node.attributes.get_int("axis", 0) not in (1, -1):
        return None
    count = len(node.outputs)
    sizes = list(node.attributes.get_ints("split", ())) or None
    given = input_at(node, 1)
    if given is not None:
        sizes = ints(given)
    elif sizes is None:
        sizes = [width // count] * count if width % count == 0 else None
    if sizes is None or sum(sizes) != width or len(sizes) != count:
        return None
    place = list(node.outputs).index(value)
    return sum(sizes[:place]), sum(sizes[: place + 1])


def _range(node: ir.Node, width: int) -> tuple[int, int] | None:
    """Which columns a Slice takes; None where it takes anything but whole columns in order."""
    if len(node.inputs) < 3:
        return None  # before opset 10
    starts, ends = (ints(node.inputs[place]) for place in (1, 2))
    if starts is None or ends is None:
        return None
    axes = ints(node.inputs[3]) if input_at(node, 3) is not None else list(range(len(starts)))
    steps = ints(node.inputs[4]) if input_at(node, 4) is not None else [1] * len(starts)
    if axes is None or steps is None or any(step != 1 for step in steps):
        return None
    bounds = (0, width)
    for axis, start, end in zip(axes, starts, ends, strict=True):
        if axis in (0, -2) and start == 0 and end >= 2**31 - 1:
            continue
        if axis not in (1, -1):
            return None
        first, last, _ = slice(start, end).indices(width)
        bounds = (first, max(first, last))
    return bounds
