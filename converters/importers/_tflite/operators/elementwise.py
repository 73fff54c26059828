"""Operators that work on each element by itself, or on pairs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context, onnx_type
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import finish, output_name
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

_UNARY = {
    "ABS": "Abs",
    "CEIL": "Ceil",
    "COS": "Cos",
    "EXP": "Exp",
    "FLOOR": "Floor",
    "LOG": "Log",
    "LOGICAL_NOT": "Not",
    "NEG": "Neg",
    "ROUND": "Round",  # both: halves to even
    "SIGN": "Sign",
    "SIN": "Sin",
    "SQRT": "Sqrt",
}
_BINARY = {
    "ADD": "Add",
    "DIV": "Div",
    "MAXIMUM": "Max",
    "MINIMUM": "Min",
    "MUL": "Mul",
    "POW": "Pow",
    "SUB": "Sub",
}
_COMPARISONS = {
    "EQUAL": ("Equal", False),
    "GREATER": ("Greater", False),
    "GREATER_EQUAL": ("GreaterOrEqual", False),
    "LESS": ("Less", False),
    "LESS_EQUAL": ("LessOrEqual", False),
    "NOT_EQUAL": ("Equal", True),
}
_LOGICAL = {"LOGICAL_AND": "And", "LOGICAL_OR": "Or"}


@converter(*_UNARY)
def _unary(ctx: Context, op: Operator) -> None:
    finish(ctx, op, ctx.build.op(_UNARY[op.name], ctx.real(op.inputs[0]), name=output_name(ctx, op)))


@converter(*_BINARY)
def _binary(ctx: Context, op: Operator) -> None:
    first, second = ctx.real(op.inputs[0]), ctx.real(op.inputs[1])
    finish(ctx, op, ctx.build.op(_BINARY[op.name], first, second, name=output_name(ctx, op)))


@converter(*_COMPARISONS)
def _comparison(ctx: Context, op: Operator) -> None:
    op_type, negated = _COMPARISONS[op.name]
    name = output_name(ctx, op)
    made = ctx.build.op(op_type, ctx.real(op.inputs[0]), ctx.real(op.inputs[1]), name=name)
    ctx.set(op.outputs[0], ctx.build.op("Not", made, name=name) if negated else made)


@converter(*_LOGICAL)
def _logical(ctx: Context, op: Operator) -> None:
    first, second = ctx.stored(op.inputs[0]), ctx.stored(op.inputs[1])
    ctx.set(op.outputs[0], ctx.build.op(_LOGICAL[op.name], first, second, name=output_name(ctx, op)))


@converter("SQUARE")
def _square(ctx: Context, op: Operator) -> None:
    data = ctx.real(op.inputs[0])
    finish(ctx, op, ctx.build.op("Mul", data, data, name=output_name(ctx, op)))


@converter("RSQRT")
def _rsqrt(ctx: Context, op: Operator) -> None:
    name = output_name(ctx, op)
    root = ctx.build.op("Sqrt", ctx.real(op.inputs[0]), name=name)
    finish(ctx, op, ctx.build.op("Reciprocal", root, name=name))


@converter("SQUARED_DIFFERENCE")
def _squared_difference(ctx: Context, op: Operator) -> None:
    difference = ctx.build.op("Sub", ctx.real(op.inputs[0]), ctx.real(op.inputs[1]))
    finish(ctx, op, ctx.build.op("Mul", difference, difference, name=output_name(ctx, op)))


@converter("FLOOR_DIV")
def _floor_div(ctx: Context, op: Operator) -> None:
    """Of integers ``(a - (a mod b)) / b``, since ONNX rounds quotients towards zero."""
    first, second = ctx.real(op.inputs[0]), ctx.real(op.inputs[1])
    name = output_name(ctx, op)
    if ctx.tensor(op.inputs[0]).floating:
        finish(ctx, op, ctx.build.op("Floor", ctx.build.op("Div", first, second), name=name))
        return
    whole = ctx.build.op("Sub", first, ctx.build.op("Mod", first, second))
    finish(ctx, op, ctx.build.op("Div", whole, second, name=name))


@converter("FLOOR_MOD")
def _floor_mod(ctx: Context, op: Operator) -> None:
    """With the sign of the divisor; ONNX has that for integers only."""
    first, second = ctx.real(op.inputs[0]), ctx.real(op.inputs[1])
    name = output_name(ctx, op)
    if not ctx.tensor(op.inputs[0]).floating:
        finish(ctx, op, ctx.build.op("Mod", first, second, name=name))
        return
    zero = ctx.build.constant(np.zeros((), ctx.tensor(op.inputs[0]).array_dtype))
    rest = ctx.build.op("Mod", first, second, fmod=1)
    signs = ctx.build.op("Xor", ctx.build.op("Less", rest, zero), ctx.build.op("Less", second, zero))
    wrong = ctx.build.op("And", ctx.build.op("Not", ctx.build.op("Equal", rest, zero)), signs)
    finish(ctx, op, ctx.build.op("Where", wrong, ctx.build.op("Add", rest, second), rest, name=name))


@converter("ADD_N")
def _add_n(ctx: Context, op: Operator) -> None:
    total = ctx.real(op.inputs[0])
    for index in op.inputs[1:]:
        total = ctx.build.op("Add", total, ctx.real(index), name=output_name(ctx, op))
    finish(ctx, op, total)


@converter("SELECT", "SELECT_V2")
def _select(ctx: Context, op: Operator) -> None:
    """Where; a vector of conditions chooses whole rows in the first version of the operator."""
    condition, first, second = op.inputs
    chosen = ctx.stored(condition)
    rank = ctx.tensor(first).rank
    if op.name == "SELECT" and ctx.tensor(condition).rank == 1 and rank > 1:
        chosen = ctx.build.op("Unsqueeze", chosen, ctx.build.ints(list(range(1, rank))))
    finish(
        ctx, op, ctx.build.op("Where", chosen, ctx.real(first), ctx.real(second), name=output_name(ctx, op))
    )


@converter("CAST")
def _cast(ctx: Context, op: Operator) -> None:
    target = ctx.tensor(op.outputs[0])
    ctx.set(op.outputs[0], ctx.build.cast(ctx.stored(op.inputs[0]), onnx_type(target), target.name))


@converter("ZEROS_LIKE")
def _zeros_like(ctx: Context, op: Operator) -> None:
    shape = ctx.build.op("Shape", ctx.stored(op.inputs[0]))
    zero = ir.tensor(np.zeros(1, ctx.tensor(op.outputs[0]).array_dtype))
    ctx.set(op.outputs[0], ctx.build.op("ConstantOfShape", shape, value=zero, name=output_name(ctx, op)))


@converter("BITWISE_XOR")
def _bitwise_xor(ctx: Context, op: Operator) -> None:
    first, second = ctx.stored(op.inputs[0]), ctx.stored(op.inputs[1])
    op_type = "Xor" if ctx.tensor(op.inputs[0]).type == "BOOL" else "BitwiseXor"
    ctx.set(op.outputs[0], ctx.build.op(op_type, first, second, name=output_name(ctx, op)))


@converter("RIGHT_SHIFT")
def _right_shift(ctx: Context, op: Operator) -> None:
    if not ctx.tensor(op.inputs[0]).type.startswith("UINT"):
        raise UnsupportedError(f"{op.place}: of signed integers, which ONNX cannot shift")
    first, second = ctx.stored(op.inputs[0]), ctx.stored(op.inputs[1])
    ctx.set(op.outputs[0], ctx.build.op("BitShift", first, second, direction="RIGHT"))


@converter("ATAN2")
def _atan2(ctx: Context, op: Operator) -> None:
    """The angle of (x, y): Atan of y / x, turned by pi to the left of zero; on the axis a quarter turn."""
    y, x = ctx.real(op.inputs[0]), ctx.real(op.inputs[1])
    zero, pi = (ctx.build.constant(np.float32(number)) for number in (0, np.pi))
    left, below = ctx.build.op("Less", x, zero), ctx.build.op("Less", y, zero)
    half = ctx.build.op("Where", below, ctx.build.op("Neg", pi), pi)
    turned = ctx.build.op("Where", left, half, zero)
    angle = ctx.build.op("Add", ctx.build.op("Atan", ctx.build.op("Div", y, x)), turned)
    origin = ctx.build.op("And", ctx.build.op("Equal", x, zero), ctx.build.op("Equal", y, zero))
    finish(ctx, op, ctx.build.op("Where", origin, zero, angle, name=output_name(ctx, op)))
