"""The cosines and sines of a rotary embedding without the repetition that exporters write.

Both come for all numbers of a head, where each angle serves two of them: either the second half repeats the
first, or every number stands twice in a row. What makes them is followed up to where they were repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of
from graphopt.passes.fusion._formula import ints, number
from graphopt.rewrite import Context, input_at, is_op

__all__ = ["Angles"]

_UNARY: Final = ("Cos", "Sin", "Cast", "Identity", "Neg")
#: The first input is followed; the others choose entries along other axes than the last, or are numbers.
_FOLLOWED: Final = (*_UNARY, "Mul", "Div", "Unsqueeze", "Gather", "Slice")
_LARGEST: Final = 1 << 22
_DEPTH: Final = 16


class Angles:
    """Values of half the size, made once for all that ask for them."""

    def __init__(self) -> None:
        self._made: dict[tuple[ir.Value, bool], ir.Value] = {}

    def knows(
        self, value: ir.Value | None, context: Context, *, interleaved: bool, depth: int = _DEPTH
    ) -> bool:
        """Whether every number along the last axis is repeated, so that :meth:`once` has an answer."""
        if value is None or depth == 0 or _last(value, context) is None:
            return False
        tensor = constant_of(value)
        if tensor is not None:
            return _is_repeated(tensor, interleaved=interleaved)
        node = value.producer()
        if node is None:
            return False
        if _repeated(node, context, interleaved=interleaved) is not None:
            return True
        follows = is_op(node, *_FOLLOWED) and _keeps_last_axis(node, context)
        return follows and self.knows(node.inputs[0], context, interleaved=interleaved, depth=depth - 1)

    def once(self, value: ir.Value, context: Context, *, interleaved: bool) -> ir.Value:
        """The value without repetition; new nodes stand in front of those that repeat."""
        made = self._made.get((value, interleaved))
        if made is None or not (made.uses() or made.is_graph_output()):
            made = self._made[value, interleaved] = self._make(value, context, interleaved)
        return made

    def _make(self, value: ir.Value, context: Context, interleaved: bool) -> ir.Value:
        tensor, node = constant_of(value), value.producer()
        if tensor is not None:
            array = tensor.numpy()
            half = array.shape[-1] // 2
            part = array[..., ::2] if interleaved else array[..., :half]
            return context.constant(f"{value.name}_once", np.ascontiguousarray(part))
        assert node is not None
        source = _repeated(node, context, interleaved=interleaved)
        if source is not None:
            return source
        data = node.inputs[0]
        assert data is not None
        inner = self.once(data, context, interleaved=interleaved)
        known = context.infer(value)
        dims = list(known.shape or ())
        assert isinstance(dims[-1], int)
        known = Inferred(known.dtype, ir.Shape([*dims[:-1], dims[-1] // 2]))
        inputs, kept = [inner, *node.inputs[1:]], list(node.attributes.values())
        return context.add(node.op_type, inputs, kept, before=node, like=value, known=known)


def _last(value: ir.Value, context: Context) -> int | None:
    """The size of the last axis, where it is known and even."""
    shape = context.infer(value).shape
    last = shape[-1] if shape else None
    return last if isinstance(last, int) and last > 0 and last % 2 == 0 else None


def _is_repeated(tensor: ir.TensorProtocol, *, interleaved: bool) -> bool:
    if tensor.size > _LARGEST or tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy()
    half = array.shape[-1] // 2
    first, second = (
        (array[..., ::2], array[..., 1::2]) if interleaved else (array[..., :half], array[..., half:])
    )
    return bool(np.array_equal(first, second))


def _repeated(node: ir.Node, context: Context, *, interleaved: bool) -> ir.Value | None:
    """The value that the node repeats along the last axis."""
    if not interleaved:
        twice = is_op(node, "Concat") and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return (
            node.inputs[0] if twice and _is_last(node.attributes.get_int("axis", 0), node, context) else None
        )
    apart = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
    if apart is None or not is_op(apart, "Concat", "Expand"):
        return None
    new = [None if v is None else v.producer() for v in apart.inputs]
    if is_op(apart, "Concat") and (len(new) != 2 or apart.inputs[0] is not apart.inputs[1]):
        return None
    source = input_at(new[0], 0) if new[0] is not None and is_op(new[0], "Unsqueeze", "Reshape") else None
    if source is None or apart.inputs[0] is None:
        return None
    chain = [context.infer(v).shape for v in (source, apart.inputs[0], apart.outputs[0], node.outputs[0])]
    return source if _spreads(chain) else None


def _spreads(chain: Sequence[ir.Shape | None]) -> bool:
    """Whether ``[..., n]`` becomes ``[..., n, 1]``, ``[..., n, 2]`` and ``[..., 2 n]``."""
    source, apart, twice, joined = (list(s or ()) for s in chain)
    if not source or not isinstance(source[-1], int):
        return False
    return (
        list(map(str, apart)) == [*map(str, source), "1"]
        and list(map(str, twice)) == [*map(str, source), "2"]
        and list(map(str, joined)) == [*map(str, source[:-1]), str(2 * source[-1])]
        and "None" not in map(str, source)
    )


def _is_last(axis: int, node: ir.Node, context: Context) -> bool:
    rank = context.rank(node.outputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _keeps_last_axis(node: ir.Node, context: Context) -> bool:
    """Whether the node works along the last axis of its first input number by number."""
    data = node.inputs[0]
    rank = None if data is None else context.rank(data)
    if data is None or rank is None:
        return False
    if node.op_type in ("Mul", "Div"):
        return number(node.inputs[1]) is not None and context.rank(node.outputs[0]) == rank
    if node.op_type == "Unsqueeze":
        axes = ints(input_at(node, 1))
        return axes is not None and all(a not in (-1, rank + len(axes) - 1) for a in axes)
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) % rank != rank - 1
    if node.op_type == "Slice":
        axes = ints(input_at(node, 3))
        return axes is not None and all(a % rank != rank - 1 for a in axes)
    return node.op_type in _UNARY
