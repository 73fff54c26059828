"""Softmax and LogSoftmax written out become their operators.

With the maximum and the sum over one axis, which is kept::

    z = x - max(x)
    Softmax(x)    = exp(z) / sum(exp(z))
    LogSoftmax(x) = z - log(sum(exp(z)))

Without the maximum the exponentials overflow where the operators do not, so that ``exp(x) / sum(exp(x))`` is
left alone; ``log(Softmax(x))`` is too, being minus infinity where LogSoftmax is not. Before opset 13 both
operators joined axes, so that is what they need.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import onnx_ir as ir

from graphopt.passes.fusion._formula import axes_of, float_types, why_shared
from graphopt.rewrite import Context, Rule, input_at, producer

__all__ = ["LogSoftmax", "Softmax"]

_OPSET: Final = 13


class Match(NamedTuple):
    """What is normalized, along which axis, and the result."""

    x: ir.Value
    axis: int
    output: ir.Value


class _Softmax(Rule[Match]):
    def check(self, match: Match, context: Context) -> str | None:
        """The operators work along one axis, and nothing in between is used elsewhere."""
        op_type = type(self).__name__
        if context.opset < _OPSET:
            return f"{op_type} along one axis needs opset {_OPSET}, the model has {context.opset}"
        return float_types(match.x, context, op_type) or why_shared(match.output, [match.x])

    def rewrite(self, match: Match, context: Context) -> None:
        """One operator."""
        like = match.output.producer()
        assert like is not None
        axis = ir.AttrInt64("axis", match.axis)
        context.replace(match.output, type(self).__name__, [match.x], [axis], like=like)


class Softmax(_Softmax):
    """``exp(x - max(x)) / sum(exp(x - max(x)))`` along one axis: Softmax (opset 13)."""

    name = "softmax"
    roots = ("Div",)

    def match(self, node: ir.Node) -> Match | None:
        """Exp over its sum."""
        exp = producer(node.inputs[0], node, "Exp")
        found = None if exp is None else _shifted(input_at(exp, 0), node)
        if exp is None or found is None or not _is_sum(node.inputs[1], exp, found[1]):
            return None
        return Match(*found, node.outputs[0])


class LogSoftmax(_Softmax):
    """``z - log(sum(exp(z)))`` with ``z = x - max(x)`` along one axis: LogSoftmax (opset 13)."""

    name = "log-softmax"
    roots = ("Sub",)

    def match(self, node: ir.Node) -> Match | None:
        """What is shifted, minus Log of the sum of its Exp."""
        found, log = _shifted(node.inputs[0], node), producer(node.inputs[1], node, "Log")
        total = None if log is None else input_at(log, 0)
        reduce = producer(total, node, "ReduceSum")
        exp = None if reduce is None else producer(reduce.inputs[0], node, "Exp")
        if found is None or exp is None or exp.inputs[0] is not node.inputs[0]:
            return None
        return Match(*found, node.outputs[0]) if _is_sum(total, exp, found[1]) else None


def _kept_axis(node: ir.Node | None) -> int | None:
    """The one axis that a Reduce node reduces and keeps."""
    axes = None if node is None or node.attributes.get_int("keepdims", 1) != 1 else axes_of(node)
    return axes[0] if axes is not None and len(axes) == 1 else None


def _shifted(value: ir.Value | None, user: ir.Node) -> tuple[ir.Value, int] | None:
    """``x`` and the axis where the value is ``x - max(x)``."""
    sub = producer(value, user, "Sub")
    largest = None if sub is None else producer(sub.inputs[1], user, "ReduceMax")
    axis = _kept_axis(largest)
    if sub is None or largest is None or axis is None or largest.inputs[0] is not sub.inputs[0]:
        return None
    x = sub.inputs[0]
    return None if x is None else (x, axis)


def _is_sum(value: ir.Value | None, exp: ir.Node, axis: int) -> bool:
    reduce = producer(value, exp, "ReduceSum")
    return reduce is not None and reduce.inputs[0] is exp.outputs[0] and _kept_axis(reduce) == axis
