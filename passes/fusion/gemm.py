"""MatMul and an Add become one Gemm where that is legal.

``Gemm(A, B, C) = alpha * A B + beta * C`` with alpha = beta = 1 is ``MatMul(A, B) + C``, but Gemm takes
matrices only, float types only (in onnxruntime), and C must broadcast towards the product.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import onnx_ir as ir

from graphopt.graph import describe
from graphopt.rewrite import Context, Rule, is_exclusive, producer

__all__ = ["MatMulAdd"]

_TYPES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


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
        return _why_not_row(addend, matmul, context)

    def rewrite(self, match: Match, context: Context) -> None:
        """One Gemm."""
        matmul, add, addend = match
        context.replace(add.outputs[0], "Gemm", [*matmul.inputs, addend], like=matmul)


def _why_not_row(addend: ir.Value, matmul: ir.Node, context: Context) -> str | None:
    known = context.infer(addend)
    if known.dtype not in _TYPES:
        return f"the addend '{addend.name}' is {known.dtype.name if known.dtype else 'of unknown type'}"
    if known.shape is None:
        return f"the shape of the addend '{addend.name}' is unknown"
    weight = matmul.inputs[1]
    columns = context.infer(weight).shape if weight is not None else None
    size = known.shape[-1] if len(known.shape) else 1
    fits = size == 1 or (columns is not None and isinstance(size, int) and size == columns[1])
    if not fits or len(known.shape) > 2 or (len(known.shape) == 2 and known.shape[0] != 1):
        return f"the addend '{addend.name}' is not one number per column"
    return None
