"""Mul, Div, Add and Sub by constants fold into the linear operator before them.

A constant that varies by output channel at most (a scalar, [C, 1, 1], [1, C, 1, 1], or [C] where the channel
axis is the last) makes each of these an affine map per channel::

    y * c = c * y          y / c = (1/c) * y
    y + c = y + c          y - c = y + (-c)          c - y = -1 * y + c

A constant with spatial extent, or with more axes than the output has (broadcasting would then grow the
result), is left alone; so is a divisor that the operator computes. What precedes the operator is never
folded: zeros padded by a Conv must not be shifted, and no scale is known per input channel.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, describe
from graphopt.passes.fusion.linear import FLOAT_TYPES, Affine, Linear, may_be_constant, per_channel
from graphopt.rewrite import Context, Rule, producer, why_not_constant

__all__ = ["ConvAdd", "ConvMul", "GemmAdd", "GemmMul"]

Array = np.ndarray[Any, np.dtype[Any]]


class Match(NamedTuple):
    """A linear node, the elementwise node behind it, and the latter's other operand."""

    linear: Linear
    node: ir.Node
    constant: ir.Value
    linear_is_left: bool


class _Affine(Rule[Match]):
    op_types: ClassVar[tuple[str, ...]]

    def match(self, node: ir.Node) -> Match | None:
        """The output of one of ``op_types`` on one side, an initializer or Constant on the other."""
        if len(node.inputs) != 2:
            return None
        for side in (0, 1):
            before, other = producer(node.inputs[side], node, *self.op_types), node.inputs[1 - side]
            if before is not None and other is not None and may_be_constant(other):
                linear = Linear(before)
                return Match(linear, node, other, side == 0) if may_be_constant(linear.weight) else None
        return None

    def check(self, match: Match, context: Context) -> str | None:
        """Everything constant, the operand per channel, finite results."""
        if match.node.op_type == "Div" and not match.linear_is_left:
            return f"the output of {describe(match.linear.node)} is the divisor"
        reason = match.linear.refuse(context) or why_not_constant(match.constant, "the constant")
        if reason is not None:
            return reason
        affine = _affine(match, context)
        if affine is None:
            return f"the constant '{match.constant.name}' does not vary by output channel alone"
        return match.linear.refuse_affine(affine, context)

    def rewrite(self, match: Match, context: Context) -> None:
        """Fold the constant into the linear node."""
        affine = _affine(match, context)
        assert affine is not None
        match.linear.absorb(affine, match.node.outputs[0], context, bias_from=match.constant)


class ConvMul(_Affine):
    """Conv or ConvTranspose, then Mul or Div by a constant: one Conv or ConvTranspose."""

    name = "conv-mul"
    roots = ("Mul", "Div")
    op_types = ("Conv", "ConvTranspose")


class ConvAdd(_Affine):
    """Conv or ConvTranspose, then Add of or Sub with a constant: one Conv or ConvTranspose."""

    name = "conv-add"
    roots = ("Add", "Sub")
    op_types = ("Conv", "ConvTranspose")


class GemmMul(_Affine):
    """Gemm or MatMul by a constant weight, then Mul or Div by a constant: one Gemm or MatMul."""

    name = "gemm-mul"
    roots = ("Mul", "Div")
    op_types = ("Gemm", "MatMul")


class GemmAdd(_Affine):
    """Gemm, then Add of or Sub with a constant: one Gemm."""

    name = "gemm-add"
    roots = ("Add", "Sub")
    op_types = ("Gemm",)


def _affine(match: Match, context: Context) -> Affine | None:
    """The elementwise node as a map of the linear node's output; None where it is not one per channel."""
    linear, tensor = match.linear, constant_of(match.constant)
    if tensor is None or tensor.dtype not in FLOAT_TYPES:
        return None
    rank = linear.output_rank(context)
    c = per_channel(tensor.numpy(), rank, linear.channel_axis, linear.channels)
    if c is None:
        return None
    with np.errstate(divide="ignore"):  # what is not finite is refused later
        return {
            "Mul": lambda: Affine(scale=c),
            "Div": lambda: Affine(scale=1.0 / c),
            "Add": lambda: Affine(shift=c),
            "Sub": lambda: Affine(shift=-c) if match.linear_is_left else Affine(np.full_like(c, -1.0), c),
        }[match.node.op_type]()
