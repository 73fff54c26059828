"""Operators that work element by element, with broadcasting where they have several operands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analyses.dims import broadcast
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Sizes, rule

__all__ = ["broadcast_all"]


def broadcast_all(shapes: Sequence[Sizes]) -> Sizes:
    """The shape that all of them broadcast to."""
    first = shapes[0]
    if all(other == first for other in shapes[1:]) or len(shapes) == 1:
        return first
    dims = []
    for meeting in itertools.zip_longest(*(reversed(s) for s in shapes), fillvalue=1):
        size = meeting[0]
        for other in meeting[1:]:
            size = broadcast(size, other)
        dims.append(size)
    return tuple(reversed(dims))


def like(known: Inferred) -> Inferred:
    """The same type and shape, other elements."""
    if known.elements is None and known.constant is None:
        return known
    return Inferred(known.dtype, known.dims)


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip"),
    *("Cos", "Cosh", "CumSum", "CumProd", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "ReverseSequence", "Round", "Scatter", "ScatterElements", "ScatterND"),
    *("Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt"),
    *("Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Trilu", "LRN", "LpNormalization"),
    *("MeanVarianceNormalization", "PRelu"),
)
def _like_first(op: Op) -> Inferred:
    """The operand's type and shape. (The slope of PRelu broadcasts to its operand, never the other way.)"""
    return like(op[0])


@rule("Add", "Sub", "Mul", "Div", "Mod", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
@rule("Max", "Min", "Mean", "Sum", "Pow")
def _arithmetic(op: Op) -> Inferred:
    return Inferred(op[0].dtype, _broadcast_inputs(op))


@rule("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def _comparison(op: Op) -> Inferred:
    return Inferred(ir.DataType.BOOL, _broadcast_inputs(op))


def _broadcast_inputs(op: Op) -> Sizes | None:
    shapes = [op[i].dims for i in range(len(op.inputs))]
    if any(dims is None for dims in shapes):
        return None
    if op.opset < 7 and len(shapes) == 2:  # the second operand was told where to stand
        return shapes[0]  # type: ignore[return-value]
    return broadcast_all(shapes)  # type: ignore[arg-type]


@rule("Where")
def _where(op: Op) -> Inferred:
    return Inferred(op[1].dtype, _broadcast_inputs(op))


@rule("IsInf", "IsNaN")
def _predicate(op: Op) -> Inferred:
    return Inferred(ir.DataType.BOOL, op[0].dims)


@rule("Cast", "BitCast")
def _cast(op: Op) -> Inferred:
    dtype = op.dtype("to")
    if dtype is None:
        raise LookupError("attribute 'to' is missing")
    return Inferred(dtype, op[0].dims)


@rule("CastLike")
def _cast_like(op: Op) -> Inferred:
    return Inferred(op[1].dtype, op[0].dims)


@rule("Dropout")
def _dropout(op: Op) -> list[Inferred]:
    mask = ir.DataType.BOOL if op.opset >= 10 else op[0].dtype
    return [like(op[0]), Inferred(mask, op[0].dims)]
