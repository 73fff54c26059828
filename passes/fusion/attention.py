"""Attention written out becomes the operator Attention, which exists since opset 23.

::

    Attention(Q, K, V, mask) = Softmax(scale Q K^T + mask) V       (Vaswani et al., arXiv:1706.03762)

The scale may stand at Q, at K, at both or at their product, and multiply or divide. The mask may be added, or
select (Where). Newer exports set NaN behind Softmax to zero, which is what Attention does with a row that is
masked as a whole. NaN that comes in with Q or K comes out as NaN.

A second rule takes heads apart and puts them together inside the operator: where Q, K and V are ``[batch,
sequence, heads * size]`` split by Reshape and Transpose, and the result is merged likewise, Attention takes
and gives these three axes itself.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.graph import describe
from graphopt.passes.fusion._attention_masks import Constants, Geometry, Mask, Sizes, number_of, same
from graphopt.rewrite import Context, Rule, is_exclusive, is_op, producer

__all__ = ["Attention"]

_OPSET: Final = 23
_DTYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
#: What makes K^T: of K by heads, or of K before its heads were brought forward.
_BY_HEADS: Final = (0, 1, 3, 2)
_BEFORE_HEADS: Final = (0, 2, 3, 1)
_TO_HEADS: Final = (0, 2, 1, 3)


class Keys(NamedTuple):
    """Where K comes from: ``[batch, heads, keys, size]``, or ``[batch, keys, heads, size]`` if ``early``.

    ``through`` are the two Reshapes around a Transpose of three axes that some exporters write.
    """

    value: ir.Value
    early: bool
    through: tuple[ir.Node, ir.Node] | None = None


class Match(NamedTuple):
    """One attention: its operands, and the product with V, whose output is the result."""

    softmax: ir.Node
    product: ir.Node
    q: ir.Value
    keys: Keys
    v: ir.Value
    scale: float
    mask: Mask | None


class Attention(Rule[Match]):
    """``Softmax(scale Q K^T + mask) V`` of four axes: one Attention (opset 23)."""

    name = "attention"
    roots = ("Softmax",)

    def __init__(self) -> None:
        self._constants = Constants()

    def match(self, node: ir.Node) -> Match | None:
        """From Softmax up to the product of Q and K, and down to that with V."""
        if node.attributes.get_int("axis", -1) not in (-1, 3):
            return None
        behind = _behind(node)
        before = _before(node, guarded=behind is not None and behind[1])
        if behind is None or before is None:
            return None
        scores, scale, mask = before
        left, right = scores.inputs
        q = _unscaled(left, scores)
        keys = _keys(right, scores)
        v = behind[0].inputs[1]
        if q is None or keys is None or v is None:
            return None
        return Match(node, behind[0], q[0], keys[0], v, scale * q[1] * keys[1], mask)

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists, and its inputs have the shapes and types that it takes."""
        if context.opset < _OPSET:
            return f"Attention needs opset {_OPSET}, the model has {context.opset}"
        dtype = context.infer(match.q).dtype
        if dtype not in _DTYPES:
            return f"Attention in {'an unknown type' if dtype is None else dtype.name} has no kernel"
        geometry = _geometry(match, context)
        if isinstance(geometry, str):
            return geometry
        reason = _refuse_scale(match.scale, dtype) or _refuse_reshapes(match.keys, context)
        if reason is None and match.mask is not None:
            reason = match.mask.refuse(context, geometry, dtype)
        return reason

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention; a Transpose of K where its heads still lie behind, an Expand of a short mask."""
        geometry, dtype = _geometry(match, context), context.infer(match.q).dtype
        assert isinstance(geometry, Geometry)
        assert dtype is not None
        before, keys = match.product, match.keys.value
        sizes = Sizes(self._constants, (match.q, 2), (keys, 1 if match.keys.early else 2))
        inputs: list[ir.Value | None] = []
        if match.mask is not None:
            inputs = [match.mask.build(context, geometry, sizes, before, dtype)]
        if match.keys.early:
            shape = context.infer(keys).shape
            assert shape is not None
            known = Inferred(dtype, ir.Shape([shape[axis] for axis in _TO_HEADS]))
            perm = [ir.AttrInt64s("perm", _TO_HEADS)]
            keys = context.add("Transpose", [keys], perm, before=before, like=keys, known=known)
        inputs = [match.q, keys, match.v, *inputs]
        scale = [ir.AttrFloat32("scale", match.scale)]
        context.replace(match.product.outputs[0], "Attention", inputs, scale, like=match.softmax)


def _behind(softmax: ir.Node) -> tuple[ir.Node, bool] | None:
    """The product with V, and whether NaN is set to zero in front of it."""
    weights, guarded = softmax.outputs[0], False
    users = list(weights.consumers())
    if len(users) == 2 and len(weights.uses()) == 2 and not weights.is_graph_output():
        guard = _guard(weights, users)
        if guard is None:
            return None
        weights, guarded = guard.outputs[0], True
    if not is_exclusive(weights):
        return None
    (product,) = weights.consumers()
    fits = is_op(product, "MatMul") and product.inputs[0] is weights and product.graph is softmax.graph
    return (product, guarded) if fits else None


def _guard(weights: ir.Value, users: list[ir.Node]) -> ir.Node | None:
    """``Where(IsNaN(weights), 0, weights)``."""
    guards = [u for u in users if is_op(u, "Where")]
    if len(guards) != 1 or guards[0].inputs[2] is not weights or number_of(guards[0].inputs[1]) != 0:
        return None
    test = producer(guards[0].inputs[0], guards[0], "IsNaN")
    alone = test is not None and test.inputs[0] is weights and is_exclusive(test.outputs[0])
    return guards[0] if alone else None


def _before(softmax: ir.Node, *, guarded: bool) -> tuple[ir.Node, float, Mask | None] | None:
    """The product of Q and K, the scale behind it, and the mask."""
    top = softmax.inputs[0]
    plain = _scores(top, softmax)
    if plain is not None:
        return plain[0], plain[1], None
    node = producer(top, softmax, "Add", "Where")
    if node is None or top is None or not is_exclusive(top):
        return None
    for value, mask in _masks(node, guarded=guarded):
        found = _scores(value, node)
        if found is not None:
            return found[0], found[1], mask
    return None


def _masks(node: ir.Node, *, guarded: bool) -> list[tuple[ir.Value, Mask]]:
    """Ways to read the node: what may be the scores, and what masks them."""
    if node.op_type == "Add":
        left, right = node.inputs
        pairs = ((left, right), (right, left))
        return [(a, Mask(b, None, True, guarded)) for a, b in pairs if a is not None and b is not None]
    condition, yes, no = node.inputs
    found: list[tuple[ir.Value, Mask]] = []
    for scores, fill, keeps in ((yes, number_of(no), True), (no, number_of(yes), False)):
        if condition is not None and scores is not None and fill is not None:
            found.append((scores, Mask(condition, fill, keeps, guarded)))
    return found


def _scores(value: ir.Value | None, user: ir.Node) -> tuple[ir.Node, float] | None:
    """The MatMul behind a scaled value, all of it used here alone."""
    found = _unscaled(value, user)
    if found is None:
        return None
    product = producer(found[0], user, "MatMul")
    return (product, found[1]) if product is not None and is_exclusive(found[0]) else None


def _unscaled(value: ir.Value | None, user: ir.Node) -> tuple[ir.Value, float] | None:
    """The value without its multiplications by numbers, and their product."""
    scale = 1.0
    while value is not None:
        node = producer(value, user, "Mul", "Div")
        if node is None or not is_exclusive(value):
            return value, scale
        left, right = node.inputs
        number = number_of(right)
        if node.op_type == "Div":
            if number is None or number == 0:
                return value, scale
            value, scale = left, scale / number
        elif number is not None:
            value, scale = left, scale * number
        elif (number := number_of(left)) is not None:
            value, scale = right, scale * number
        else:
            return value, scale
    return None


def _keys(value: ir.Value | None, user: ir.Node) -> tuple[Keys, float] | None:
    """K of a scaled K^T, and the scale."""
    found = _unscaled(value, user)
    if found is None:
        return None
    source = _transposed(found[0], user)
    if source is None:
        return None
    if source.early:
        return source, found[1]
    inner = _unscaled(source.value, user)
    return None if inner is None else (source._replace(value=inner[0]), found[1] * inner[1])


def _transposed(value: ir.Value, user: ir.Node) -> Keys | None:
    """What the value is the Transpose of, directly or by way of three axes."""
    node = producer(value, user, "Transpose", "Reshape")
    if node is None:
        return None
    perm = tuple(node.attributes.get_ints("perm", ()))
    if node.op_type == "Transpose":
        data = node.inputs[0]
        fits = data is not None and perm in (_BY_HEADS, _BEFORE_HEADS)
        return Keys(data, perm == _BEFORE_HEADS) if fits and data is not None else None
    flipped = producer(node.inputs[0], user, "Transpose")
    if flipped is None or tuple(flipped.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    flattened = producer(flipped.inputs[0], user, "Reshape")
    if flattened is None or flattened.inputs[0] is None:
        return None
    return Keys(flattened.inputs[0], False, (flattened, node))


def _geometry(match: Match, context: Context) -> Geometry | str:
    """The axes of the scores, or why Attention does not take the operands."""
    shapes = [context.infer(v).shape for v in (match.q, match.keys.value, match.v)]
    for value, shape in zip((match.q, match.keys.value, match.v), shapes, strict=True):
        if shape is None or len(shape) != 4:
            rank = "an unknown rank" if shape is None else f"rank {len(shape)}"
            return f"'{value.name}' has {rank}; Attention needs 4"
    q, k, v = (list(s or ()) for s in shapes)
    if match.keys.early:
        k = [k[0], k[2], k[1], k[3]]
    for role, axis in (("batch", 0), ("heads", 1)):
        if not (same(q[axis], k[axis]) and same(q[axis], v[axis])):
            return f"{q[axis]}, {k[axis]} and {v[axis]} {role} of {describe(match.softmax)} may differ"
    if not same(k[2], v[2]):
        return f"the keys of {describe(match.softmax)} are {k[2]}, the values {v[2]}"
    return Geometry(q[0], q[1], q[2], k[2])


def _refuse_scale(scale: float, dtype: ir.DataType) -> str | None:
    if not 0 < scale < math.inf:
        return f"the scale {scale} is not above 0"
    rounded = float(np.float32(scale))
    if not 0 < rounded < math.inf or (dtype == ir.DataType.DOUBLE and rounded != scale):
        return f"the scale {scale} is no number of 32 bits"
    return None


def _refuse_reshapes(keys: Keys, context: Context) -> str | None:
    """Why the way by three axes does not swap the last two of four, and nothing else."""
    if keys.through is None:
        return None
    data = context.infer(keys.value).shape
    inner, outer = (context.infer(node.outputs[0]).shape for node in keys.through)
    fits = (
        data is not None
        and inner is not None
        and outer is not None
        and (len(data), len(inner), len(outer)) == (4, 3, 4)
        and all(map(same, inner[1:], data[2:]))
        and all(map(same, outer, (data[0], data[1], data[3], data[2])))
    )
    return None if fits else f"'{keys.through[1].outputs[0].name}' may be no Transpose of '{keys.value.name}'"
