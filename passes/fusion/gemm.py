"""MatMul and an Add become one Gemm where that is legal, and a Gemm between Reshapes becomes both again.

``Gemm(A, B, C) = alpha * A B + beta * C`` with alpha = beta = 1 is ``MatMul(A, B) + C``, but Gemm takes
matrices only, float types only (in onnxruntime), and C must broadcast towards the product. Where A has more
axes, exporters flatten it in front of a Gemm and restore them behind it; MatMul and Add take it as it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import array_of, describe
from graphopt.passes.fusion._formula import only_user
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, is_op, producer, why_not_constant

__all__ = ["GemmReshapes", "MatMulAdd"]

_TYPES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


#: Weights of more numbers than this are not copied to transpose them.
_LARGEST_TRANSPOSED: Final = 1 << 22


class Match(NamedTuple):
    """A MatMul, the Add behind it, and the Add's other operand."""

    matmul: ir.Node
    add: ir.Node
    addend: ir.Value


class MatMulAdd(Rule[Match]):
    """MatMul of two matrices, then Add of a scalar, [N] or [1, N]: one Gemm.

    Left alone: products of more than two axes, addends of another shape (a residual [M, N]) or of an unknown
    one, integers.
    """

    name = "matmul-add"
    roots = ("Add",)

    def match(self, node: ir.Node) -> Match | None:
        """An Add with the output of a MatMul on one side."""
        for side in (0, 1):
            matmul, other = producer(node.inputs[side], node, "MatMul"), node.inputs[1 - side]
            if matmul is not None and other is not None:
                return Match(matmul, node, other)
        return None

    def check(self, match: Match, context: Context) -> str | None:
        """Matrices of float, an addend that is a row, a product that nobody else needs."""
        matmul, _, addend = match
        if context.opset < 7:
            return f"opset {context.opset} broadcasts by other rules; convert to 7 or later"
        if not is_exclusive(matmul.outputs[0]):
            return f"the output '{matmul.outputs[0].name}' of {describe(matmul)} is used elsewhere"
        for value in matmul.inputs:
            rank = None if value is None else context.rank(value)
            if rank != 2:
                return f"Gemm needs rank 2; an input of {describe(matmul)} has {rank or 'an unknown rank'}"
        return _why_not_row(addend, _columns(matmul.inputs[1], 1, context), context)

    def rewrite(self, match: Match, context: Context) -> None:
        """One Gemm."""
        matmul, add, addend = match
        context.replace(add.outputs[0], "Gemm", [*matmul.inputs, addend], like=matmul)


class Flattened(NamedTuple):
    """A Gemm between a Reshape that flattens its first operand and one that restores the axes."""

    flatten: ir.Node
    gemm: ir.Node
    restore: ir.Node


class GemmReshapes(Rule[Flattened]):
    """Reshape to a matrix, Gemm, and Reshape back: MatMul, and Add where there is a row to add.

    Left alone: a Reshape that does anything else, factors other than 1, transposed data, a transposed weight
    that is not constant, large, or used elsewhere, and a flattened operand that is used elsewhere.
    """

    name = "gemm-reshapes"
    roots = ("Gemm",)

    def match(self, node: ir.Node) -> Flattened | None:
        """A Reshape on either side."""
        flatten, restore = producer(node.inputs[0], node, "Reshape"), only_user(node.outputs[0], "Reshape")
        if flatten is None or restore is None or restore.inputs[0] is not node.outputs[0]:
            return None
        return Flattened(flatten, node, restore)

    def check(self, match: Flattened, context: Context) -> str | None:
        """The axes in front stay as they are, and the Gemm is no more than a product and a row."""
        flatten, gemm, _ = match
        attributes = gemm.attributes
        plain = attributes.get_float("alpha", 1.0) == 1 and attributes.get_float("beta", 1.0) == 1
        if context.opset < 7 or not plain or attributes.get_int("transA", 0) != 0:
            return f"{describe(gemm)} is more than a product and a sum"
        if any(not is_op(user, "Gemm") for user in flatten.outputs[0].consumers()):
            return f"the output '{flatten.outputs[0].name}' of {describe(flatten)} is used elsewhere"
        is_transposed, row = gemm.attributes.get_int("transB", 0), input_at(gemm, 2)
        columns = _columns(gemm.inputs[1], 0 if is_transposed else 1, context)
        reason = _why_not_axes(match, columns, context)
        if reason is None and row is not None:
            reason = _why_not_row(row, columns, context)
        return reason or (_why_not_transposed(gemm) if is_transposed else None)

    def rewrite(self, match: Flattened, context: Context) -> None:
        """MatMul of what was flattened, and an Add."""
        flatten, gemm, restore = match
        data, weight, row = flatten.inputs[0], gemm.inputs[1], input_at(gemm, 2)
        assert weight is not None
        if gemm.attributes.get_int("transB", 0):
            array = array_of(weight)
            assert array is not None
            turned = np.ascontiguousarray(array.T)
            weight = context.constant(f"{weight.name}_transposed", turned, heir_of=weight)
        output = restore.outputs[0]
        if row is None:
            context.replace(output, "MatMul", [data, weight], like=gemm)
            return
        known = Inferred(context.infer(output).dtype, context.infer(output).shape)
        like = gemm.outputs[0]
        product = context.add(
            "MatMul", [data, weight], before=restore, like=like, known=known, name=gemm.name
        )
        context.replace(output, "Add", [product, row], like=restore)


def _columns(weight: ir.Value | None, axis: int, context: Context) -> int | None:
    """The size of an axis of a matrix."""
    shape = None if weight is None else context.infer(weight).shape
    size = shape[axis] if shape is not None and len(shape) == 2 else None
    return size if isinstance(size, int) else None


def _why_not_axes(match: Flattened, columns: int | None, context: Context) -> str | None:
    """Why the Reshapes may do more than flatten the axes in front of the last, and restore them."""
    shapes = [
        context.infer(v).shape if v is not None else None
        for v in (match.flatten.inputs[0], match.flatten.outputs[0], match.restore.outputs[0])
    ]
    before, flat, after = (list(s or ()) for s in shapes)
    if len(before) < 3 or len(flat) != 2 or not isinstance(before[-1], int) or flat[1] != before[-1]:
        return f"{describe(match.flatten)} may do more than flatten the axes in front of the last"
    whole = len(after) == len(before) and after[-1] == columns and columns is not None
    if not whole or not all(map(same, before[:-1], after[:-1])):
        return f"{describe(match.restore)} may make other axes than {describe(match.flatten)} flattened"
    return None


def _why_not_transposed(gemm: ir.Node) -> str | None:
    """Why the weight of a Gemm should not be transposed."""
    weight = gemm.inputs[1]
    assert weight is not None
    reason = why_not_constant(weight, "the weight")
    if reason is None and not is_exclusive(weight):
        return f"the transposed weight '{weight.name}' is used elsewhere"
    array = None if reason is not None else array_of(weight)
    if array is not None and array.size > _LARGEST_TRANSPOSED:
        return f"the transposed weight '{weight.name}' is large"
    return reason


def _why_not_row(addend: ir.Value, columns: int | None, context: Context) -> str | None:
    known = context.infer(addend)
    if known.dtype not in _TYPES:
        return f"the addend '{addend.name}' is {known.dtype.name if known.dtype else 'of unknown type'}"
    if known.shape is None:
        return f"the shape of the addend '{addend.name}' is unknown"
    size = known.shape[-1] if len(known.shape) else 1
    fits = size == 1 or (columns is not None and size == columns)
    if not fits or len(known.shape) > 2 or (len(known.shape) == 2 and known.shape[0] != 1):
        return f"the addend '{addend.name}' is not one number per column"
    return None
