"""Attention of three axes, where heads are folded into the batch, becomes the operator Attention.

With batched products of matrices (bmm) there is one axis in front of sequence and size, ``batch * heads``. Q,
K and V come to it in one of two ways, and the result goes back likewise:

- *late*: ``[length, batch, heads * size]`` by Reshape to ``[length, batch * heads, size]`` and Transpose by
  (1, 0, 2), as torch.nn.MultiheadAttention and fairseq do;
- *by heads*: ``[batch, heads, length, size]`` by Reshape to ``[batch * heads, length, size]``, as in older
  models of Hugging Face. These add their mask to the scores between two Reshapes, with four axes; some take
  Softmax there as well.

Attention takes the four axes ``[batch, heads, length, size]``, which both have one step earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._attention_masks import Constants, Geometry, Mask, Sizes
from graphopt.passes.fusion._attention_parts import (
    behind,
    is_transpose,
    masks,
    refuse_operator,
    refuse_scale,
    scores_of,
    unscaled,
)
from graphopt.passes.fusion._formula import only_user
from graphopt.rewrite import Context, Rule, is_exclusive, is_op, producer

__all__ = ["AttentionFoldedHeads"]

_FOLD: Final = (1, 0, 2)
_TURN: Final = (0, 2, 1)
_FOLD_AND_TURN: Final = (1, 2, 0)
_LATE_TO_HEADS: Final = (1, 2, 0, 3)
_HEADS_TO_LATE: Final = (2, 0, 1, 3)


class Folded(NamedTuple):
    """Q, K or V: what it was before its heads were folded into the batch, and what the Reshape made of it."""

    source: ir.Value
    folded: ir.Value
    late: bool


class Match(NamedTuple):
    """An attention of three axes.

    Attributes:
        softmax: The Softmax.
        product: The product with V.
        operands: Q, K and V.
        scale: Of the product of Q and K.
        mask: What masks the scores, if something does.
        spread: The scores of four axes that the mask is put on, where there are such.
        weights: What Softmax made of them, folded again, where it is taken over four axes.
        end: The node that unfolds the heads of the result.
    """

    softmax: ir.Node
    product: ir.Node
    operands: tuple[Folded, Folded, Folded]
    scale: float
    mask: Mask | None
    spread: ir.Value | None
    weights: ir.Value | None
    end: ir.Node


class Sides(NamedTuple):
    """The axes of an operand: batch, heads, length and size."""

    batch: int | ir.SymbolicDim
    heads: int
    length: int | ir.SymbolicDim
    size: int


class AttentionFoldedHeads(Rule[Match]):
    """``Softmax(scale Q K^T + mask) V`` of three axes: one Attention (opset 23)."""

    name = "attention-folded-heads"
    roots = ("Softmax",)

    def __init__(self) -> None:
        self._constants = Constants()

    def match(self, node: ir.Node) -> Match | None:
        """From Softmax up to where heads were folded into the batch, and down to where they are unfolded."""
        after, last = behind(node), 2
        if after is None and (after := _behind_fold(node)) is not None:
            last = 3
        before = _before(node, guarded=after is not None and after[1], by_heads=last == 3)
        if after is None or before is None or node.attributes.get_int("axis", -1) not in (-1, last):
            return None
        scores, scale, mask, spread = before
        q, keys = unscaled(scores.inputs[0], scores), _keys(scores.inputs[1], scores)
        if q is None or keys is None or not is_exclusive(after[0].outputs[0]):
            return None
        operands = (_folded(q[0], scores), keys[0], _folded(after[0].inputs[1], after[0]))
        (end,) = after[0].outputs[0].consumers()
        found = [o for o in operands if o is not None]
        if len(found) != 3 or end.graph is not node.graph or len({o.late for o in found}) != 1:
            return None
        if not (is_transpose(end, _FOLD) if found[0].late else is_op(end, "Reshape")):
            return None
        weights = after[0].inputs[0] if last == 3 else None
        scale *= q[1] * keys[1]
        operands_found = (found[0], found[1], found[2])
        return Match(node, after[0], operands_found, scale, mask, spread, weights, end)

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists, and heads were folded, and are unfolded, as the rule takes it."""
        dtype = context.infer(match.operands[0].source).dtype
        geometry = refuse_operator(dtype, context) or _geometry(match, context)
        if isinstance(geometry, str):
            return geometry
        assert dtype is not None
        reason = refuse_scale(match.scale, dtype)
        if reason is None and match.mask is not None:
            reason = match.mask.refuse(context, geometry, dtype)
        return reason

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention of four axes."""
        geometry = _geometry(match, context)
        assert isinstance(geometry, Geometry)
        before, dtype = match.product, context.infer(match.operands[0].source).dtype
        assert dtype is not None
        inputs: list[ir.Value | None] = [self._by_heads(o, before, context) for o in match.operands]
        if match.mask is not None:
            q, keys = inputs[:2]
            assert q is not None
            assert keys is not None
            sizes = Sizes(self._constants, (q, 2), (keys, 2))
            inputs.append(match.mask.build(context, geometry, sizes, before, dtype))
        scale = [ir.AttrFloat32("scale", match.scale)]
        if not match.operands[0].late:
            context.replace(match.end.outputs[0], "Attention", inputs, scale, like=match.softmax)
            return
        sides = _sides(match.operands[2], context)
        assert isinstance(sides, Sides)
        shape = [geometry.batch, geometry.heads, geometry.queries, sides.size]
        like, name = match.softmax.outputs[0], match.softmax.name
        known = Inferred(dtype, ir.Shape(shape))
        value = context.add("Attention", inputs, scale, before=match.end, like=like, known=known, name=name)
        perm = [ir.AttrInt64s("perm", _HEADS_TO_LATE)]
        known = Inferred(dtype, ir.Shape([shape[axis] for axis in _HEADS_TO_LATE]))
        value = context.add("Transpose", [value], perm, before=match.end, like=value, known=known)
        self._unfold(match.end, value, sides.size, context)

    def _unfold(self, end: ir.Node, value: ir.Value, size: int, context: Context) -> None:
        """``[length, batch, heads, size]`` in place of ``[length, batch * heads, size]``."""
        users = list(end.outputs[0].consumers())
        user = users[0] if len(users) == 1 and is_exclusive(end.outputs[0]) else None
        if user is not None and is_op(user, "Reshape") and user.graph is end.graph and _reads_no_axes(user):
            kept = list(user.attributes.values())
            context.replace(user.outputs[0], "Reshape", [value, user.inputs[1]], kept, like=user)
            return
        target = self._constants.get(context, end, "folded", np.array([0, -1, size], np.int64))
        context.replace(end.outputs[0], "Reshape", [value, target], like=end)

    def _by_heads(self, operand: Folded, before: ir.Node, context: Context) -> ir.Value:
        """``[batch, heads, length, size]``."""
        if not operand.late:
            return operand.source
        sides = _sides(operand, context)
        assert isinstance(sides, Sides)
        batch, heads, length, size = sides
        dtype = context.infer(operand.source).dtype
        target = self._constants.get(context, before, "heads", np.array([0, 0, heads, size], np.int64))
        known = Inferred(dtype, ir.Shape([length, batch, heads, size]))
        inputs = [operand.source, target]
        value = context.add("Reshape", inputs, before=before, like=operand.folded, known=known)
        known = Inferred(dtype, ir.Shape([batch, heads, length, size]))
        perm = [ir.AttrInt64s("perm", _LATE_TO_HEADS)]
        return context.add("Transpose", [value], perm, before=before, like=value, known=known)


def _behind_fold(softmax: ir.Node) -> tuple[ir.Node, bool] | None:
    """The product with V behind a Reshape that folds the heads of the weights; nothing guards these."""
    fold = only_user(softmax.outputs[0], "Reshape")
    product = None if fold is None else only_user(fold.outputs[0], "MatMul")
    if fold is None or product is None or product.inputs[0] is not fold.outputs[0]:
        return None
    return product, False


def _before(
    softmax: ir.Node, *, guarded: bool, by_heads: bool
) -> tuple[ir.Node, float, Mask | None, ir.Value | None] | None:
    """The product of Q and K, the scale behind it, the mask, and scores of four axes that it is put on.

    With ``by_heads`` Softmax itself is taken over four axes.
    """
    top = softmax.inputs[0]
    first = producer(top, softmax, "Reshape") if by_heads else None
    plain = scores_of(top, softmax) if first is None else scores_of(first.inputs[0], first)
    if plain is not None and by_heads == (first is not None):
        return (*plain, None, None if first is None else top)
    back = None if by_heads else producer(top, softmax, "Reshape")
    inner = top if back is None else back.inputs[0]
    node = producer(inner, softmax, "Add", "Where")
    if node is None or top is None or inner is None or not (is_exclusive(top) and is_exclusive(inner)):
        return None
    for value, mask in masks(node, guarded=guarded):
        is_spread = by_heads or back is not None
        spread = producer(value, node, "Reshape") if is_spread else None
        if (spread is not None) != is_spread or not is_exclusive(value):
            continue
        found = scores_of(value, node) if spread is None else scores_of(spread.inputs[0], spread)
        if found is not None:
            return (*found, mask, None if spread is None else value)
    return None


def _folded(value: ir.Value | None, user: ir.Node) -> Folded | None:
    """Where the value comes from, if its heads were folded into the batch."""
    node = producer(value, user, "Transpose", "Reshape")
    if node is None or value is None:
        return None
    if node.op_type == "Reshape":
        source = node.inputs[0]
        return None if source is None else Folded(source, value, late=False)
    fold = producer(node.inputs[0], node, "Reshape")
    if not is_transpose(node, _FOLD) or fold is None or fold.inputs[0] is None:
        return None
    return Folded(fold.inputs[0], fold.outputs[0], late=True)


def _keys(value: ir.Value | None, user: ir.Node) -> tuple[Folded, float] | None:
    """K of a scaled K^T, and the scale."""
    found = unscaled(value, user)
    if found is None:
        return None
    turned, scale = found
    node = producer(turned, user, "Transpose")
    if node is None:
        return None
    if is_transpose(node, _FOLD_AND_TURN):
        fold = producer(node.inputs[0], node, "Reshape")
        if fold is None or fold.inputs[0] is None:
            return None
        return Folded(fold.inputs[0], fold.outputs[0], late=True), scale
    inner = unscaled(node.inputs[0], node) if is_transpose(node, _TURN) else None
    folded = None if inner is None else _folded(inner[0], node)
    return None if folded is None or inner is None else (folded, scale * inner[1])


def _sides(operand: Folded, context: Context) -> Sides | str:
    """The four axes of an operand, or why its heads may not be folded into the batch."""
    before, after = context.infer(operand.source).shape, context.infer(operand.folded).shape
    reason = f"'{operand.folded.name}' may fold something else than the heads of '{operand.source.name}'"
    if before is None or after is None or len(after) != 3 or len(before) != (3 if operand.late else 4):
        return reason
    size = after[2]
    if not isinstance(size, int) or size <= 0:
        return reason
    if operand.late:
        length, batch, whole = before
        if not same(length, after[0]) or not isinstance(whole, int) or whole % size:
            return reason
        return Sides(batch, whole // size, length, size)
    batch, heads, length, inner = before
    if not isinstance(heads, int) or not same(length, after[1]) or inner != size:
        return reason
    return Sides(batch, heads, length, size)


def _geometry(match: Match, context: Context) -> Geometry | str:
    """The axes of the scores, or why Attention does not take the operands."""
    sides = [_sides(o, context) for o in match.operands]
    for side in sides:
        if isinstance(side, str):
            return side
    q, k, v = (s for s in sides if isinstance(s, Sides))
    if not (q.heads == k.heads == v.heads and same(q.batch, k.batch) and same(q.batch, v.batch)):
        return f"batch or heads of the operands of {describe(match.softmax)} may differ"
    if not same(k.length, v.length) or q.size != k.size:
        return f"keys and values of {describe(match.softmax)} may differ in length"
    geometry = Geometry(q.batch, q.heads, q.length, k.length)
    spread = match.spread
    if spread is not None and not _is_shape(context.infer(spread).shape, geometry):
        return f"'{spread.name}' may be something else than the scores by heads"
    weights = match.weights
    if weights is not None and not _is_shape(context.infer(weights).shape, (None, *geometry[2:])):
        return f"'{weights.name}' may be something else than the weights with folded heads"
    result = (q.batch, q.heads, q.length, v.size)
    if not match.operands[0].late and not _is_shape(context.infer(match.end.outputs[0]).shape, result):
        return f"'{match.end.outputs[0].name}' may be something else than the result by heads"
    return geometry


def _is_shape(shape: ir.Shape | None, wanted: Sequence[int | ir.SymbolicDim | None]) -> bool:
    """Whether a shape is the one wanted; None stands for any axis."""
    if shape is None or len(shape) != len(wanted):
        return False
    return all(w is None or same(s, w) for s, w in zip(shape, wanted, strict=True))


def _reads_no_axes(reshape: ir.Node) -> bool:
    """Whether the target of a Reshape is constant and copies no axis of the input."""
    tensor = constant_of(reshape.inputs[1])
    return tensor is not None and not np.any(tensor.numpy() == 0)
