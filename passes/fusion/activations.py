"""Activations written out become their operators.

::

    HardSigmoid(x) = max(0, min(1, x / 6 + 1 / 2)) = clip(x + 3, 0, 6) / 6
    HardSwish(x)   = x * HardSigmoid(x; 1/6, 1/2)
    Swish(x)       = x * sigmoid(alpha * x)
    Softplus(x)    = log(1 + exp(x))
    Mish(x)        = x * tanh(softplus(x))
    LeakyRelu(x)   = max(x, alpha * x)  for 0 < alpha < 1
    Softsign(x)    = x / (1 + |x|)

(Howard et al., https://arxiv.org/abs/1905.02244; Ramachandran et al., https://arxiv.org/abs/1710.05941;
Misra, https://arxiv.org/abs/1908.08681.) ``y * clip(x + 3, 0, 6) / 6`` is ``y * HardSigmoid(x)`` for every
``y``; for ``y = x``, HardSwish follows where the opset has it. ``log(1 + exp(x))`` overflows where Softplus
does not, above 88 in float and above 11 already in float16, so that float16 is left alone there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, NamedTuple

import onnx_ir as ir

from graphopt.graph import constant_of
from graphopt.passes.fusion._formula import (
    float_types,
    number,
    only_user,
    other_input,
    same_number,
    scalar_pairs,
    why_broadcast,
    why_shared,
)
from graphopt.rewrite import Context, Rule, input_at, producer

__all__ = ["HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Softplus", "Softsign", "Swish"]

_SIXTH: Final = 1 / 6


class Match(NamedTuple):
    """A formula: what it is a function of, its output, constants of one element, the new attributes."""

    x: ir.Value
    output: ir.Value
    numbers: tuple[ir.Value, ...] = ()
    attributes: tuple[tuple[str, float], ...] = ()
    #: What the function of ``x`` is multiplied with at the output; None for the function alone.
    factor: ir.Value | None = None


class _Activation(Rule[Match]):
    op_type: ClassVar[str]
    min_opset: ClassVar[int]
    #: Whether float16 computes the same.
    half: ClassVar[bool] = True

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists for the type, no constant adds axes, nothing in between is used elsewhere."""
        if context.opset < self.min_opset:
            return f"{self.op_type} needs opset {self.min_opset}, the model has {context.opset}"
        reason = float_types(match.x, context, self.op_type, half=self.half)
        reason = reason or why_broadcast(match.x, match.numbers, context)
        stops = [match.x] if match.factor is None else [match.x, match.factor]
        return reason or why_shared(match.output, stops)

    def rewrite(self, match: Match, context: Context) -> None:
        """One operator."""
        attributes = [ir.AttrFloat32(name, number) for name, number in match.attributes]
        like = match.output.producer()
        assert like is not None
        context.replace(match.output, self.op_type, [match.x], attributes, like=like)


class HardSigmoid(_Activation):
    """``clip(x + 3, 0, 6) / 6``, also times something: HardSigmoid."""

    name = "hard-sigmoid"
    roots = ("Clip", "Min", "Max")
    op_type = "HardSigmoid"
    min_opset = 7

    def match(self, node: ir.Node) -> Match | None:
        """Clip, or Min and Max, between x + 3 and a division by 6."""
        clip = _clipped(node)
        if clip is None:
            return None
        low, high, value, bounds = clip
        add = producer(value, node, "Add")
        for x, three, shift in () if add is None or low != 0.0 or high != 6.0 else scalar_pairs(add):
            found = _sixth(node.outputs[0])
            if shift != 3.0 or found is None:
                continue
            output, factor, by = found
            return Match(x, output, (*bounds, three, by), (("alpha", _SIXTH), ("beta", 0.5)), factor)
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """HardSigmoid, and the product with what else was multiplied."""
        if match.factor is None:
            super().rewrite(match, context)
            return
        last = match.output.producer()
        assert last is not None
        product = next(v for v in last.inputs if v is not None and constant_of(v) is None)
        mul = product.producer()
        assert mul is not None
        clipped = other_input(mul, match.factor)
        assert clipped is not None
        clip = clipped.producer()
        assert clip is not None
        attributes = [ir.AttrFloat32(name, number) for name, number in match.attributes]
        gate = context.replace(clipped, "HardSigmoid", [match.x], attributes, like=clip)
        context.replace(match.output, "Mul", [match.factor, gate.outputs[0]], like=mul)


class HardSwish(_Activation):
    """``x * HardSigmoid(x)`` with alpha 1/6 and beta 1/2: HardSwish (opset 14)."""

    name = "hard-swish"
    roots = ("HardSigmoid",)
    op_type = "HardSwish"
    min_opset = 14

    def match(self, node: ir.Node) -> Match | None:
        """The product of the node's input and output."""
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        x, output = input_at(node, 0), _times(node.outputs[0], input_at(node, 0))
        if x is None or output is None or beta != 0.5 or not same_number(alpha, _SIXTH):
            return None
        return Match(x, output)


class Swish(_Activation):
    """``x * Sigmoid(alpha * x)``: Swish (opset 24)."""

    name = "swish"
    roots = ("Sigmoid",)
    op_type = "Swish"
    min_opset = 24

    def match(self, node: ir.Node) -> Match | None:
        """The product of Sigmoid and its input, or of what its input is a multiple of."""
        inner = input_at(node, 0)
        output = _times(node.outputs[0], inner)
        if inner is not None and output is not None:
            return Match(inner, output)
        mul = producer(inner, node, "Mul")
        for x, constant, alpha in () if mul is None else scalar_pairs(mul):
            output = _times(node.outputs[0], x)
            if output is not None:
                return Match(x, output, (constant,), (("alpha", alpha),))
        return None


class Mish(_Activation):
    """``x * Tanh(Softplus(x))``: Mish (opset 18)."""

    name = "mish"
    roots = ("Softplus",)
    op_type = "Mish"
    min_opset = 18

    def match(self, node: ir.Node) -> Match | None:
        """The product of Tanh of the node and of its input."""
        x, tanh = input_at(node, 0), only_user(node.outputs[0], "Tanh")
        output = None if tanh is None else _times(tanh.outputs[0], x)
        return None if x is None or output is None else Match(x, output)


class Softplus(_Activation):
    """``Log(1 + Exp(x))``: Softplus."""

    name = "softplus"
    roots = ("Log",)
    op_type = "Softplus"
    min_opset = 7
    half = False

    def match(self, node: ir.Node) -> Match | None:
        """Log of one plus Exp."""
        add = producer(input_at(node, 0), node, "Add")
        for value, one, shift in () if add is None else scalar_pairs(add):
            exp = producer(value, node, "Exp")
            x = None if exp is None or shift != 1.0 else input_at(exp, 0)
            if x is not None:
                return Match(x, node.outputs[0], (one,))
        return None


class LeakyRelu(_Activation):
    """``Max(x, alpha * x)`` with a constant between 0 and 1: LeakyRelu."""

    name = "leaky-relu"
    roots = ("Max",)
    op_type = "LeakyRelu"
    min_opset = 7

    def match(self, node: ir.Node) -> Match | None:
        """Max of a value and of its multiple."""
        for side in (0, 1) if len(node.inputs) == 2 else ():
            x, mul = node.inputs[side], producer(node.inputs[1 - side], node, "Mul")
            for value, constant, alpha in () if mul is None or x is None else scalar_pairs(mul):
                if value is x and 0 < alpha < 1:
                    return Match(value, node.outputs[0], (constant,), (("alpha", alpha),))
        return None


class Softsign(_Activation):
    """``x / (1 + Abs(x))``: Softsign."""

    name = "softsign"
    roots = ("Abs",)
    op_type = "Softsign"
    min_opset = 9

    def match(self, node: ir.Node) -> Match | None:
        """The quotient of the node's input and of one plus its output."""
        x, add = input_at(node, 0), only_user(node.outputs[0], "Add")
        if x is None or add is None:
            return None
        for value, one, shift in scalar_pairs(add):
            div = only_user(add.outputs[0], "Div") if value is node.outputs[0] and shift == 1.0 else None
            if div is not None and div.inputs[0] is x and div.inputs[1] is add.outputs[0]:
                return Match(x, div.outputs[0], (one,))
        return None


def _times(value: ir.Value, x: ir.Value | None) -> ir.Value | None:
    """The product of ``value``, which has no other use, and ``x``."""
    mul = only_user(value, "Mul")
    return mul.outputs[0] if mul is not None and x is not None and other_input(mul, value) is x else None


def _clipped(node: ir.Node) -> tuple[float, float, ir.Value, tuple[ir.Value, ...]] | None:
    """Bounds, data and constants of one element of a Clip, a Min of a Max, or a Max of a Min."""
    if node.op_type == "Clip":
        return _clip(node)
    inner_type = "Max" if node.op_type == "Min" else "Min"
    for value, outer, bound in scalar_pairs(node):
        inner = producer(value, node, inner_type)
        for x, constant, other in () if inner is None else scalar_pairs(inner):
            low, high = (other, bound) if node.op_type == "Min" else (bound, other)
            return low, high, x, (outer, constant)
    return None


def _clip(node: ir.Node) -> tuple[float, float, ir.Value, tuple[ir.Value, ...]] | None:
    data = input_at(node, 0)
    bounds = [v for v in node.inputs[1:] if v is not None]
    if bounds:  # since opset 11
        low, high = number(input_at(node, 1)), number(input_at(node, 2))
    else:
        low, high = (
            node.attributes.get_float(name) if name in node.attributes else None for name in ("min", "max")
        )
    return None if data is None or low is None or high is None else (low, high, data, ())


def _sixth(value: ir.Value) -> tuple[ir.Value, ir.Value | None, ir.Value] | None:
    """``value / 6`` or ``factor * value / 6``: the output, the factor, the constant."""
    factor: ir.Value | None = None
    found = next(_by_six(value), None)
    if found is None:
        mul = only_user(value, "Mul")
        factor = None if mul is None else other_input(mul, value)
        if mul is None or factor is None or factor is value:
            return None
        found = next(_by_six(mul.outputs[0]), None)
    return None if found is None else (found[0], factor, found[1])


def _by_six(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    node = only_user(value, "Mul", "Div")
    for whole, constant, by in () if node is None else scalar_pairs(node):
        is_divided = node is not None and node.op_type == "Div" and node.inputs[0] is value and by == 6.0
        if (
            whole is value
            and node is not None
            and (is_divided or (node.op_type == "Mul" and same_number(by, _SIXTH, constant)))
        ):
            yield node.outputs[0], constant
