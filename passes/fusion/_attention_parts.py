"""The parts of an attention that is written out: what rules about it find around its Softmax."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._attention_masks import Mask, number_of
from graphopt.rewrite import Context, input_at, is_exclusive, is_op, producer

__all__ = [
    "Head",
    "Keys",
    "behind",
    "dims_of",
    "head_of",
    "is_transpose",
    "keys_of",
    "masks",
    "operands_of",
    "refuse_operator",
    "refuse_reshapes",
    "refuse_scale",
    "refuse_split",
    "scores_of",
    "split_product",
    "to_heads",
    "transpose_behind",
    "unscaled",
]

_DTYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
#: What makes K^T: of K by heads, or of K before its heads were brought forward.
_BY_HEADS: Final = (0, 1, 3, 2)
_BEFORE_HEADS: Final = (0, 2, 3, 1)
_TO_HEADS: Final = (0, 2, 1, 3)
_PARTS_FIRST: Final = (2, 0, 3, 1, 4)
_PARTS: Final = 3
_OPSET: Final = 23


class Head(NamedTuple):
    """Where Q, K or V comes from.

    Attributes:
        split: The Reshape that splits heads.
        part: Which part of the product it is, -1 for all.
        rotary: The RotaryEmbedding behind the split, if there is one.
    """

    split: ir.Node
    part: int
    rotary: ir.Node | None = None


class Keys(NamedTuple):
    """Where K comes from: ``[batch, heads, keys, size]``, or ``[batch, keys, heads, size]`` if ``early``.

    ``through`` are the two Reshapes around a Transpose of three axes that some exporters write.
    """

    value: ir.Value
    early: bool
    through: tuple[ir.Node, ir.Node] | None = None


def behind(softmax: ir.Node) -> tuple[ir.Node, bool] | None:
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


def masks(node: ir.Node, *, guarded: bool) -> list[tuple[ir.Value, Mask]]:
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


def scores_of(value: ir.Value | None, user: ir.Node) -> tuple[ir.Node, float] | None:
    """The MatMul behind a scaled value, all of it used here alone."""
    found = unscaled(value, user)
    if found is None:
        return None
    product = producer(found[0], user, "MatMul")
    return (product, found[1]) if product is not None and is_exclusive(found[0]) else None


def unscaled(value: ir.Value | None, user: ir.Node) -> tuple[ir.Value, float] | None:
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


def keys_of(value: ir.Value | None, user: ir.Node) -> tuple[Keys, float] | None:
    """K of a scaled K^T, and the scale."""
    found = unscaled(value, user)
    if found is None:
        return None
    source = _transposed(found[0], user)
    if source is None:
        return None
    if source.early:
        return source, found[1]
    inner = unscaled(source.value, user)
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


def refuse_scale(scale: float, dtype: ir.DataType) -> str | None:
    if not 0 < scale < math.inf:
        return f"the scale {scale} is not above 0"
    rounded = float(np.float32(scale))
    if not 0 < rounded < math.inf or (dtype == ir.DataType.DOUBLE and rounded != scale):
        return f"the scale {scale} is no number of 32 bits"
    return None


def refuse_reshapes(keys: Keys, context: Context) -> str | None:
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


def is_transpose(node: ir.Node | None, perm: tuple[int, ...]) -> bool:
    return (
        node is not None and is_op(node, "Transpose") and tuple(node.attributes.get_ints("perm", ())) == perm
    )


def transpose_behind(node: ir.Node, perm: tuple[int, ...]) -> ir.Node | None:
    """The Transpose by ``perm`` that alone reads an Attention of four axes, one without past or outputs
    behind its first.
    """
    if (
        len(node.inputs) > 4
        or any(o.uses() for o in node.outputs[1:])
        or "q_num_heads" in node.attributes
        or not is_exclusive(node.outputs[0])
    ):
        return None
    (user,) = node.outputs[0].consumers()
    return user if is_transpose(user, perm) and user.graph is node.graph else None


def head_of(value: ir.Value | None, user: ir.Node) -> Head | None:
    """The Reshape behind one operand."""
    node = producer(value, user, "Transpose", "Squeeze", "Gather", "RotaryEmbedding")
    if node is None or value is None:
        return None
    if node.op_type == "RotaryEmbedding":
        inner = head_of(node.inputs[0], user)
        plain = len(node.inputs) == 3 and "num_heads" not in node.attributes and is_exclusive(value)
        return inner._replace(rotary=node) if plain and inner is not None and inner.rotary is None else None
    if node.op_type == "Transpose":
        split = producer(node.inputs[0], user, "Reshape")
        return Head(split, -1) if split is not None and is_transpose(node, _TO_HEADS) else None
    picked = _picked(node)
    parts = None if picked is None else producer(picked[0], user, "Transpose")
    if picked is None or parts is None or not is_transpose(parts, _PARTS_FIRST):
        return None
    split = producer(parts.inputs[0], user, "Reshape")
    return None if split is None else Head(split, picked[1])


def _picked(node: ir.Node) -> tuple[ir.Value, int] | None:
    """What the node takes one part of along axis 0, without keeping that axis, and which."""
    data = node.inputs[0]
    if node.op_type == "Gather":
        index, tensor = number_of(input_at(node, 1)), constant_of(input_at(node, 1))
        scalar = tensor is not None and len(tensor.shape) == 0 and node.attributes.get_int("axis", 0) == 0
        return (data, int(index)) if scalar and index is not None and data is not None else None
    if number_of(input_at(node, 1)) != 0:
        return None
    cut = producer(data, node, "Split", "Slice")
    if cut is None or cut.inputs[0] is None:
        return None
    return _split_part(cut, data) if cut.op_type == "Split" else _slice_part(cut)


def _split_part(cut: ir.Node, part: ir.Value | None) -> tuple[ir.Value, int] | None:
    """One of three outputs of a Split along axis 0; that each has size 1 follows from the Squeeze."""
    source = cut.inputs[0]
    if cut.attributes.get_int("axis", 0) != 0 or len(cut.outputs) != _PARTS or source is None:
        return None
    return source, next(i for i, o in enumerate(cut.outputs) if o is part)


def _slice_part(cut: ir.Node) -> tuple[ir.Value, int] | None:
    """One row of axis 0 by a Slice."""
    start, end, axes, steps = (input_at(cut, i) for i in range(1, 5))
    numbers = [number_of(v) for v in (start, end, axes)]
    source, first = cut.inputs[0], numbers[0]
    if source is None or first is None or numbers[1] != first + 1 or numbers[2] != 0 or first < 0:
        return None
    return (source, int(first)) if steps is None or number_of(steps) == 1 else None


def refuse_split(head: Head, context: Context) -> str | None:
    """Why the Reshape does something else than splitting the last of three axes."""
    source = head.split.inputs[0]
    before = None if source is None else context.infer(source).shape
    after = dims_of(head, context)
    parts = [] if head.part < 0 else [_PARTS]
    inner = after[2:]
    whole = len(after) == 4 + len(parts) and after[2 : 2 + len(parts)] == parts
    if (
        before is None
        or len(before) != 3
        or not whole
        or not all(isinstance(d, int) and d > 0 for d in inner)
    ):
        return f"{describe(head.split)} may do something else than splitting heads"
    size = math.prod(d for d in inner if isinstance(d, int))
    if not (same(before[0], after[0]) and same(before[1], after[1]) and before[2] == size):
        return f"{describe(head.split)} may change batch or sequence"
    return None


def dims_of(head: Head, context: Context) -> list[int | ir.SymbolicDim]:
    return list(context.infer(head.split.outputs[0]).shape or ())


def operands_of(scores: ir.Node, product: ir.Node) -> tuple[ir.Value, Keys, ir.Value, float] | None:
    """Q, K and V of the two products of an attention, and the scale that stands at Q and K."""
    left, right = scores.inputs
    q, keys, v = unscaled(left, scores), keys_of(right, scores), product.inputs[1]
    return None if q is None or keys is None or v is None else (q[0], keys[0], v, q[1] * keys[1])


def refuse_operator(dtype: ir.DataType | None, context: Context) -> str | None:
    """Why there is no Attention for the opset or the type; None where there is one."""
    if context.opset < _OPSET:
        return f"Attention needs opset {_OPSET}, the model has {context.opset}"
    if dtype not in _DTYPES:
        return f"Attention in {'an unknown type' if dtype is None else dtype.name} has no kernel"
    return None


def to_heads(keys: ir.Value, before: ir.Node, context: Context) -> ir.Value:
    """``[batch, length, heads, size]`` as ``[batch, heads, length, size]``, and the other way round."""
    dtype, shape = context.infer(keys).dtype, context.infer(keys).shape
    assert shape is not None
    known = Inferred(dtype, ir.Shape([shape[axis] for axis in _TO_HEADS]))
    perm = [ir.AttrInt64s("perm", _TO_HEADS)]
    return context.add("Transpose", [keys], perm, before=before, like=keys, known=known)


def split_product(
    source: ir.Value, axis: int, shape: ir.Shape, head: Head, before: ir.Node, context: Context
) -> list[ir.Value]:
    """Q, K and V: the outputs, each of this shape, of a new Split along ``axis`` in front of ``before``."""
    dtype = context.infer(source).dtype or ir.DataType.FLOAT
    names = [context.fresh_name(f"{source.name}_{role}") for role in "qkv"]
    outputs = [ir.Value(name=n, type=ir.TensorType(dtype), shape=shape) for n in names]
    attributes = [ir.AttrInt64("axis", axis), ir.AttrInt64("num_outputs", _PARTS)]
    metadata = dict(head.split.metadata_props)
    node = ir.Node("", "Split", [source], attributes, outputs=outputs, metadata_props=metadata)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return outputs
