"""Rotary position embedding written out becomes the operator RotaryEmbedding, which exists since opset 23.

::

    y = x * cos + rotate(x) * sin                                  (Su et al., arXiv:2104.09864)
    rotate([a, b]) = [-b, a]             of the halves of a head
    rotate([a, b, c, d ...]) = [-b, a, -d, c ...]      interleaved

The operator takes every angle once, and cosines and sines for each element of the batch. Exporters compute
them twice along a head and often for no batch at all, where all positions start at 0: an Expand to the batch
then sees to that, one for all layers of the model.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._formula import ints, only_user, other_input, why_shared
from graphopt.passes.fusion._rotary_angles import Angles
from graphopt.rewrite import Context, Rule, input_at, is_op, producer

__all__ = ["PartialRotaryEmbedding", "RotaryEmbedding"]

_OPSET: Final = 23
_DTYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


class Match(NamedTuple):
    """``x cos + rotate(x) sin``, and how ``rotate`` takes the last axis of ``x`` apart."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    output: ir.Value
    low: ir.Value
    high: ir.Value
    rotated: ir.Value
    interleaved: bool


class RotaryEmbedding(Rule[Match]):
    """``x * cos + rotate(x) * sin`` of four axes: RotaryEmbedding (opset 23)."""

    name = "rotary-embedding"
    roots = ("Neg",)

    def __init__(self) -> None:
        self._angles = Angles()
        self._spread: dict[ir.Value, ir.Value] = {}

    def match(self, node: ir.Node) -> Match | None:
        """From the negated part down to the sum."""
        high = node.inputs[0]
        found = _rotated(node)
        if found is None or high is None:
            return None
        low, rotated, interleaved = found
        x = _source(low, node)
        by_sin = only_user(rotated, "Mul")
        add = None if by_sin is None else only_user(by_sin.outputs[0], "Add")
        if x is None or by_sin is None or add is None or _source(high, node) is not x:
            return None
        other = other_input(add, by_sin.outputs[0])
        by_cos = producer(other, add, "Mul")
        if by_cos is None or x not in by_cos.inputs:
            return None
        cos, sin = other_input(by_cos, x), other_input(by_sin, rotated)
        if cos is None or sin is None:
            return None
        return Match(x, cos, sin, add.outputs[0], low, high, rotated, interleaved)

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists for the type, and what it is given has the shapes that it takes."""
        if context.opset < _OPSET:
            return f"RotaryEmbedding needs opset {_OPSET}, the model has {context.opset}"
        known = context.infer(match.x)
        if known.dtype not in _DTYPES:
            kind = "an unknown type" if known.dtype is None else known.dtype.name
            return f"RotaryEmbedding in {kind} has no kernel"
        if known.shape is None or len(known.shape) != 4 or not isinstance(known.shape[3], int):
            return f"'{match.x.name}' is {known.shape}; batch, heads, sequence and a known size are wanted"
        reason = _refuse_parts(match, known.shape[3], context)
        for value in (match.cos, match.sin):
            reason = reason or self._refuse_angles(value, match, known.shape, context)
        return reason or why_shared(match.output, [match.x, match.cos, match.sin])

    def _refuse_angles(self, value: ir.Value, match: Match, x: ir.Shape, context: Context) -> str | None:
        shape = context.infer(value).shape
        if shape is None or not 2 <= len(shape) <= 4:
            return f"'{value.name}' is {shape}; cosines and sines of every position are wanted"
        batch, heads, length, size = [1] * (4 - len(shape)) + list(shape)
        if heads != 1 or size != x[3] or not same(length, x[2]) or not (batch == 1 or same(batch, x[0])):
            return f"'{value.name}' is {shape}, which differs by heads or may not fit '{match.x.name}', {x}"
        if context.infer(value).dtype != context.infer(match.x).dtype:
            return f"'{value.name}' is of another type than '{match.x.name}'"
        if not self._angles.knows(value, context, interleaved=match.interleaved):
            return f"'{value.name}' may be of more than one angle for both numbers of a pair"
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """RotaryEmbedding, and an Expand where the angles have no batch."""
        cos, sin = (self._cache(v, match, context) for v in (match.cos, match.sin))
        attributes = [ir.AttrInt64("interleaved", 1)] if match.interleaved else []
        like = match.output.producer()
        assert like is not None
        context.replace(match.output, "RotaryEmbedding", [match.x, cos, sin], attributes, like=like)

    def _cache(self, value: ir.Value, match: Match, context: Context) -> ir.Value:
        """``[batch, sequence, size / 2]`` of cosines or sines."""
        shape, x = context.infer(value).shape, context.infer(match.x).shape
        assert shape is not None
        assert x is not None
        inner = _without_heads(value, context)
        user = match.output.producer()
        assert user is not None
        once = self._angles.once(inner, context, interleaved=match.interleaved)
        size = shape[-1]
        assert isinstance(size, int)
        dims = [*list(context.infer(inner).shape or ())[:-1], size // 2]
        has_batch = len(shape) == 4 and (shape[0] != 1 or x[0] == 1)
        if has_batch and len(dims) == 3:
            return once
        made = self._spread.get(once)
        if made is not None and made.uses():
            return made
        maker = inner.producer() if constant_of(inner) is None else None
        source = _batch_of(x[0], context) if user.graph is context.model.graph else None
        is_shared = source is not None and maker is not None and maker.graph is user.graph
        before = maker if is_shared and maker is not None else user
        three = once
        if len(dims) == 4:
            three, dims = _squeezed(once, dims, before, context), [dims[0], *dims[2:]]
        if not has_batch:
            three = _to_batch(three, ir.Shape([x[0], *dims[-2:]]), source or (match.x, 0), before, context)
        if is_shared:  # so it stands in front of all who may ask for it
            self._spread[once] = three
        return three


class Partial(NamedTuple):
    """A RotaryEmbedding of the first part of each head, and the Concat with the rest."""

    node: ir.Node
    concat: ir.Node
    rest: ir.Value
    x: ir.Value


class PartialRotaryEmbedding(Rule[Partial]):
    """RotaryEmbedding of the first numbers of each head, put together with the others: the operator alone."""

    name = "partial-rotary-embedding"
    roots = ("RotaryEmbedding",)

    def match(self, node: ir.Node) -> Partial | None:
        """Between a Slice and a Concat."""
        concat, x = only_user(node.outputs[0], "Concat"), _source(node.inputs[0], node)
        if concat is None or x is None or len(concat.inputs) != 2 or "num_heads" in node.attributes:
            return None
        rest = concat.inputs[1]
        is_rest = concat.inputs[0] is node.outputs[0] and rest is not None and _source(rest, concat) is x
        return Partial(node, concat, rest, x) if is_rest and rest is not None else None

    def check(self, match: Partial, context: Context) -> str | None:
        """Both parts are all of the last of four axes."""
        shape = context.infer(match.x).shape
        size = shape[3] if shape is not None and len(shape) == 4 else None
        if not isinstance(size, int):
            return f"'{match.x.name}' is {shape}; four axes and a known size are wanted"
        if match.node.attributes.get_int("rotary_embedding_dim", 0) != 0:
            return f"{describe(match.node)} rotates a part of its input already"
        part = match.node.inputs[0]
        assert part is not None
        first, rest = _slice_bounds(part, size), _slice_bounds(match.rest, size)
        whole = first is not None and rest == (first[1], size, 1) and first[0] == 0 and first[2] == 1
        if not whole or match.concat.attributes.get_int("axis", 0) not in (-1, 3):
            return f"{describe(match.concat)} puts something else together than the heads of '{match.x.name}'"
        return None

    def rewrite(self, match: Partial, context: Context) -> None:
        """RotaryEmbedding of the whole heads, with the size of the part."""
        part, shape = match.node.inputs[0], context.infer(match.x).shape
        assert part is not None
        assert shape is not None
        bounds = _slice_bounds(part, shape[3]) if isinstance(shape[3], int) else None
        assert bounds is not None
        attributes = [a for a in match.node.attributes.values() if a.name != "rotary_embedding_dim"]
        attributes.append(ir.AttrInt64("rotary_embedding_dim", bounds[1]))
        inputs = [match.x, *match.node.inputs[1:]]
        context.replace(match.concat.outputs[0], "RotaryEmbedding", inputs, attributes, like=match.node)


def _rotated(neg: ir.Node) -> tuple[ir.Value, ir.Value, bool] | None:
    """What is not negated, the value put together of both, and whether it is interleaved."""
    concat = only_user(neg.outputs[0], "Concat")
    if concat is not None and len(concat.inputs) == 2 and concat.inputs[0] is neg.outputs[0]:
        low = concat.inputs[1]
        return None if low is None else (low, concat.outputs[0], False)
    apart = only_user(neg.outputs[0], "Unsqueeze", "Reshape")
    concat = None if apart is None else only_user(apart.outputs[0], "Concat")
    join = None if concat is None else only_user(concat.outputs[0], "Reshape")
    if concat is None or join is None or apart is None or len(concat.inputs) != 2:
        return None
    other = producer(concat.inputs[1], concat, apart.op_type)
    if concat.inputs[0] is not apart.outputs[0] or other is None or other.inputs[0] is None:
        return None
    return other.inputs[0], join.outputs[0], True


def _source(part: ir.Value | None, user: ir.Node) -> ir.Value | None:
    """What the value is a part of."""
    node = producer(part, user, "Slice", "Split")
    return None if node is None else node.inputs[0]


def _refuse_parts(match: Match, size: int, context: Context) -> str | None:
    """Why the parts are not the halves of the last axis, or its even and odd entries, put together again."""
    low, high = (_bounds(v, size) for v in (match.low, match.high))
    half, join = size // 2, match.rotated.producer()
    wanted = ((0, size, 2), (1, size, 2)) if match.interleaved else ((0, half, 1), (half, size, 1))
    if size % 2 or (low, high) != wanted:
        return f"'{match.low.name}' and '{match.high.name}' are not the parts of a head that are rotated"
    assert join is not None
    if match.interleaved:
        apart = join.inputs[0]
        inner, outer = (context.infer(v).shape if v else None for v in (apart, match.rotated))
        dims = context.infer(match.x).shape
        fits = (
            inner is not None
            and outer is not None
            and dims is not None
            and len(inner) == 5
            and len(outer) == 4
            and list(inner[3:]) == [half, 2]
            and outer[3] == size
            and all(map(same, inner[:3], dims[:3]))
            and all(map(same, outer[:3], dims[:3]))
        )
        concat = None if apart is None else apart.producer()
        if not fits or concat is None or concat.attributes.get_int("axis", 0) not in (-1, 4):
            return f"{describe(join)} may put the parts of a head together in another order"
    elif join.attributes.get_int("axis", 0) not in (-1, 3):
        return f"{describe(join)} joins another axis than the last"
    return None


def _bounds(part: ir.Value, size: int) -> tuple[int, int, int] | None:
    """Start, end and step of a part of the last of four axes."""
    node = part.producer()
    if node is not None and is_op(node, "Split"):
        if node.attributes.get_int("axis", 0) not in (-1, 3) or len(node.outputs) != 2:
            return None
        sizes = ints(input_at(node, 1)) if input_at(node, 1) is not None else [size // 2] * 2
        at = next(i for i, o in enumerate(node.outputs) if o is part)
        return None if sizes != [size // 2] * 2 else (at * size // 2, (at + 1) * size // 2, 1)
    return _slice_bounds(part, size)


def _slice_bounds(part: ir.Value, size: int) -> tuple[int, int, int] | None:
    """Start, end and step of a Slice of the last of four axes."""
    node = part.producer()
    if node is None or not is_op(node, "Slice"):
        return None
    start, end, axes, steps = (ints(input_at(node, i)) for i in range(1, 5))
    if input_at(node, 4) is None:
        steps = [1]
    if start is None or end is None or steps is None or axes not in ([-1], [3]) or not steps[0] > 0:
        return None
    first, last = (n + size if n < 0 else min(n, size) for n in (start[0], end[0]))
    return (first, last, steps[0])


def _without_heads(value: ir.Value, context: Context) -> ir.Value:
    """The value before it got an axis for the heads, where that is how it was made."""
    node = value.producer()
    if node is None or constant_of(value) is not None or not is_op(node, "Unsqueeze"):
        return value
    rank = context.rank(value)
    inner = node.inputs[0]
    axes = ints(input_at(node, 1))
    fits = rank == 4 and axes in ([1], [-3]) and inner is not None
    return inner if fits and inner is not None else value


def _batch_of(batch: int | ir.SymbolicDim, context: Context) -> tuple[ir.Value, int] | None:
    """A graph input with an axis of the size of the batch: it is there wherever a node stands."""
    for value in context.model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if same(dim, batch):
                return value, axis
    return None


def _squeezed(
    value: ir.Value, dims: list[int | ir.SymbolicDim], before: ir.Node, context: Context
) -> ir.Value:
    known = Inferred(context.infer(value).dtype, ir.Shape([dims[0], *dims[2:]]))
    axes = context.constant("heads_axis", np.array([1], np.int64))
    return context.add("Squeeze", [value, axes], before=before, like=value, known=known)


def _to_batch(
    value: ir.Value, shape: ir.Shape, batch: tuple[ir.Value, int], before: ir.Node, context: Context
) -> ir.Value:
    """The value repeated for every element of the batch."""
    source, axis = batch
    if isinstance(shape[0], int):
        target = context.constant("batch_shape", np.array([shape[0], 1, 1], np.int64))
    else:
        bounds = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
        known = Inferred(ir.DataType.INT64, ir.Shape([1]), (shape[0],))
        size = context.add("Shape", [source], bounds, before=before, like=value, known=known)
        ones = context.constant("ones", np.ones(2, np.int64))
        known = Inferred(ir.DataType.INT64, ir.Shape([3]))
        along = [ir.AttrInt64("axis", 0)]
        target = context.add("Concat", [size, ones], along, before=before, like=value, known=known)
    known = Inferred(context.infer(value).dtype, shape)
    return context.add("Expand", [value, target], before=before, like=value, known=known)
