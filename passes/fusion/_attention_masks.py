"""What may be added to the scores of an attention, and how Attention of opset 23 can be given it.

A row of the mask that lets no key through is where spellings differ. Written out, a row of ``lowest`` (the
most negative number) leaves the mean of all values, since every score drowns in it; a row of ``-inf`` is NaN,
which newer exports replace by zero. Attention gives zero for ``-inf``, as its specification says, and
onnxruntime does so for ``lowest`` too. So ``lowest`` becomes half of it, which drowns the scores as well, and
``-inf`` is left alone only where the written form guards against NaN.

onnxruntime wants the last two axes of a mask whole, not broadcast; an Expand sees to that.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dim, same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of
from graphopt.rewrite import Context, is_op

__all__ = ["Constants", "Geometry", "Mask", "Sizes", "floor_of", "lowest_of", "number_of"]

#: A finite score set in place of another must lie so deep that no real score comes near.
_DEEP: Final = -1e8
_LOWEST: Final = {ir.DataType.FLOAT: -3.4028234663852886e38, ir.DataType.DOUBLE: -1.7976931348623157e308}
_LARGEST_READ: Final = 1 << 24
_SHAPING: Final = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Identity", "Gather")
_DEPTH: Final = 8
_UNBOUNDED: Final = (-math.inf, math.inf)


def number_of(value: ir.Value | None) -> float | None:
    """The one number inside a small constant of rank <= 4; None for anything else."""
    tensor = constant_of(value)
    if tensor is None or tensor.size != 1 or len(tensor.shape) > 4 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def lowest_of(dtype: ir.DataType) -> float:
    """The most negative number of a type that Attention takes."""
    return _LOWEST.get(dtype, -65504.0)


class Geometry(NamedTuple):
    """The four axes of the scores: batch, heads, queries, keys."""

    batch: Dim
    heads: Dim
    queries: Dim
    keys: Dim


class Mask(NamedTuple):
    """How the scores are masked.

    Attributes:
        value: What is added, or the condition that selects.
        fill: The number that stands in place of a score; None where ``value`` is added.
        keeps: Whether the condition selects the scores, and not ``fill``.
        guarded: Whether NaN behind Softmax becomes 0.
    """

    value: ir.Value
    fill: float | None
    keeps: bool
    guarded: bool

    def refuse(self, context: Context, geometry: Geometry, dtype: ir.DataType) -> str | None:
        """Why Attention cannot be given this mask; None where it can."""
        return self._refuse_shape(context, geometry) or self._refuse_rows(dtype)

    def _refuse_shape(self, context: Context, geometry: Geometry) -> str | None:
        shape = context.infer(self.value).shape
        if shape is None or len(shape) > 4:
            return f"the rank of the mask '{self.value.name}' is {'unknown' if shape is None else len(shape)}"
        dims = [1] * (4 - len(shape)) + list(shape)
        for have, want, role in zip(dims[:3], geometry, ("batch", "heads", "queries"), strict=False):
            if have != 1 and not same(have, want):
                return f"the mask '{self.value.name}' has {have} for {want} {role}"
        return None  # keys of another size than 1 would not fit the product with the values

    def _refuse_rows(self, dtype: ir.DataType) -> str | None:
        name = self.value.name
        if self.fill is not None:
            if math.isinf(self.fill) and self.fill < 0:
                return None if self.guarded or self._keeps_some() else f"a row that '{name}' masks is NaN"
            deep = self.fill <= _DEEP and dtype in _LOWEST
            return None if deep else f"{self.fill} is not deep enough to mask by"
        kind = self._additive_kind(dtype)
        if kind == "":
            return f"'{name}' may mask a whole row, of which Attention makes another thing"
        return None

    def _keeps_some(self) -> bool:
        """Whether a constant condition lets some key of every row through."""
        tensor = constant_of(self.value)
        if tensor is None or tensor.size > _LARGEST_READ or len(tensor.shape) == 0:
            return False
        kept = tensor.numpy().astype(bool) == self.keeps
        return bool(kept.any(axis=-1).all())

    def _additive_kind(self, dtype: ir.DataType) -> str:
        """``plain``: as it is; ``condition``: by the condition alone; ``halved``: with half of ``lowest``."""
        tensor = constant_of(self.value)
        lowest = lowest_of(dtype)
        if tensor is not None:
            return "plain" if _rows_let_through(tensor, lowest) else ""
        if floor_of(self.value) > lowest:
            return "plain"
        found = _selection(self.value)
        if found is None or floor_of(found.other) < lowest / 4:
            return ""
        if math.isinf(found.fill):
            if not self.guarded:
                return ""
            return "condition" if found.keeps and number_of(found.other) == 0 else "plain"
        return "halved" if dtype in _LOWEST else ""

    def build(
        self, context: Context, geometry: Geometry, sizes: Sizes, before: ir.Node, dtype: ir.DataType
    ) -> ir.Value:
        """The value for Attention's input ``attn_mask``; new nodes stand in front of ``before``."""
        value = self._values(context, sizes.constants, before, dtype)
        dims = context.infer(value).shape
        assert dims is not None
        wanted = (geometry.queries, geometry.keys)
        short = [i for i in (1, 2) if i > len(dims) or not same(dims[-i], wanted[2 - i])]
        return value if not short else sizes.expand(context, value, short, geometry, before)

    def _values(
        self, context: Context, constants: Constants, before: ir.Node, dtype: ir.DataType
    ) -> ir.Value:
        if self.fill is None:
            kind = self._additive_kind(dtype)
            if kind == "plain":
                return self.value
            found = _selection(self.value)
            assert found is not None
            if kind == "condition":
                return found.condition
            return _where(context, constants, found, self.value, before, dtype)
        if math.isfinite(self.fill):
            zero = constants.get(context, before, "zero", np.zeros((), dtype.numpy()))
            found = _Selection(self.value, zero, self.fill, self.keeps)
            return _where(context, constants, found, self.value, before, dtype)
        if self.keeps:
            return self.value
        known = Inferred(ir.DataType.BOOL, context.infer(self.value).shape)
        return context.add("Not", [self.value], before=before, like=self.value, known=known)


class Constants:
    """Small constants that all attentions of a graph share, so that equal nodes around them can be merged."""

    def __init__(self) -> None:
        self._known: dict[tuple[ir.Graph | ir.Function | None, str, bytes], ir.Value] = {}

    def get(self, context: Context, user: ir.Node, name: str, data: np.ndarray) -> ir.Value:
        """The constant, a new one where there is none yet or nothing used it any more."""
        key = (user.graph, f"{name}{data.dtype}", data.tobytes())
        value = self._known.get(key)
        if value is None or not value.uses():
            value = self._known[key] = context.constant(name, data)
        return value


class Sizes(NamedTuple):
    """Where the sizes of the scores can be read while the model runs: (value, axis) each."""

    constants: Constants
    queries: tuple[ir.Value, int]
    keys: tuple[ir.Value, int]

    def expand(
        self, context: Context, mask: ir.Value, short: list[int], geometry: Geometry, before: ir.Node
    ) -> ir.Value:
        """The mask with whole axes at ``short``, which counts from the end."""
        if all(isinstance((geometry.keys, geometry.queries)[i - 1], int) for i in short):
            wanted = [(geometry.keys, geometry.queries)[i - 1] if i in short else 1 for i in (2, 1)]
            target = self.constants.get(context, before, "mask_shape", np.array([1, 1, *wanted], np.int64))
            return self._expanded(context, mask, target, geometry, before)
        parts: list[ir.Value] = [self.constants.get(context, before, "ones", np.ones(2, np.int64))]
        for place, dim, (value, axis) in ((2, geometry.queries, self.queries), (1, geometry.keys, self.keys)):
            if place not in short or isinstance(dim, int):
                size = dim if place in short and isinstance(dim, int) else 1
                parts.append(self.constants.get(context, before, "size", np.array([size], np.int64)))
                continue
            source, at = _cheapest(context, mask, dim) or (value, axis)
            bounds = [ir.AttrInt64("start", at), ir.AttrInt64("end", at + 1)]
            known = Inferred(ir.DataType.INT64, ir.Shape([1]), (dim,))
            parts.append(context.add("Shape", [source], bounds, before=before, like=source, known=known))
        along = [ir.AttrInt64("axis", 0)]
        known = Inferred(ir.DataType.INT64, ir.Shape([4]))
        target = context.add("Concat", parts, along, before=before, like=parts[-1], known=known)
        return self._expanded(context, mask, target, geometry, before)

    def _expanded(
        self, context: Context, mask: ir.Value, target: ir.Value, geometry: Geometry, before: ir.Node
    ) -> ir.Value:
        shape = ir.Shape([ir.SymbolicDim(None), ir.SymbolicDim(None), geometry.queries, geometry.keys])
        known = Inferred(context.infer(mask).dtype, shape)
        return context.add("Expand", [mask, target], before=before, like=mask, known=known)


def _cheapest(context: Context, mask: ir.Value, dim: Dim) -> tuple[ir.Value, int] | None:
    """An axis of the mask itself that has the size: then all users of the mask need the same nodes."""
    shape = context.infer(mask).shape
    found = [i for i, d in enumerate(shape or ()) if same(d, dim)]
    return (mask, found[-1]) if found else None


class _Selection(NamedTuple):
    """``Where``: ``other`` or the number ``fill``; ``keeps`` where the condition selects ``other``."""

    condition: ir.Value
    other: ir.Value
    fill: float
    keeps: bool


def _selection(value: ir.Value) -> _Selection | None:
    node = value.producer()
    if node is None or not is_op(node, "Where"):
        return None
    condition, left, right = node.inputs
    if condition is None or left is None or right is None:
        return None
    for other, number, keeps in ((left, number_of(right), True), (right, number_of(left), False)):
        if number is not None and number < _DEEP:
            return _Selection(condition, other, number, keeps)
    return None


def _where(
    context: Context,
    constants: Constants,
    found: _Selection,
    like: ir.Value,
    before: ir.Node,
    dtype: ir.DataType,
) -> ir.Value:
    """``other`` or half of ``lowest``."""
    half = constants.get(context, before, "masked", np.array(_LOWEST[dtype] / 2, dtype.numpy()))
    branches = [found.other, half] if found.keeps else [half, found.other]
    known = Inferred(dtype, context.infer(like).shape)
    return context.add("Where", [found.condition, *branches], before=before, like=like, known=known)


def _rows_let_through(tensor: ir.TensorProtocol, lowest: float) -> bool:
    """Whether every row of a constant mask has a number above ``lowest``, and none is NaN."""
    if tensor.size == 0 or tensor.size > _LARGEST_READ or len(tensor.shape) == 0:
        return False
    rows = tensor.numpy().max(axis=-1)  # NaN stays NaN, and compares as not above
    return bool(np.all(rows > lowest))


def floor_of(value: ir.Value | None, depth: int = _DEPTH) -> float:
    """A number that no element of the value lies below; -inf where there is none known."""
    return _range(value, depth)[0]


def _range(value: ir.Value | None, depth: int) -> tuple[float, float]:
    """Numbers that no element of the value lies below and above; infinite where there are none known."""
    tensor = constant_of(value)
    if tensor is not None:
        return _extremes(tensor)
    node = None if value is None else value.producer()
    if node is None or depth == 0 or not is_op(node, *_SHAPING, "Where", "Add", "Sub"):
        return _UNBOUNDED
    if node.op_type in _SHAPING:
        return _range(node.inputs[0], depth - 1)
    (low, high), (other_low, other_high) = (_range(v, depth - 1) for v in node.inputs[-2:])
    if node.op_type == "Where":
        return min(low, other_low), max(high, other_high)
    if node.op_type == "Sub":
        other_low, other_high = -other_high, -other_low
    return low + other_low, high + other_high


def _extremes(tensor: ir.TensorProtocol) -> tuple[float, float]:
    if tensor.size == 0 or tensor.size > _LARGEST_READ or not tensor.dtype.is_floating_point():
        return _UNBOUNDED
    array = tensor.numpy()
    low, high = float(array.min()), float(array.max())
    return _UNBOUNDED if math.isnan(low) else (low, high)
