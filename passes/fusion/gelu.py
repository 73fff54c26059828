"""The two formulas of GELU become the operator Gelu, which exists since opset 20.

Exact, with the Gaussian distribution function, and the approximation by tanh (Hendrycks and Gimpel,
https://arxiv.org/abs/1606.08415)::

    Gelu(x)                   = 0.5 x (1 + erf(x / sqrt(2)))
    Gelu(x, approximate=tanh) = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))

Exporters spell both in many ways. So the argument of Erf or Tanh, and the factors that multiply
``1 + erf(...)``, are read as polynomials in ``x``: what matters is their coefficients, not which of Mul, Div,
Pow and Add made them in which order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, describe
from graphopt.rewrite import Context, Rule, is_exclusive, is_op

__all__ = ["Gelu"]

#: Coefficients of x^0 ... x^3.
Polynomial = np.ndarray[Any, np.dtype[np.float64]]

_SCALE: Final = math.sqrt(2 / math.pi)
_ARGUMENTS: Final = {
    "Erf": np.array([0, 1 / math.sqrt(2), 0, 0]),
    "Tanh": np.array([0, _SCALE, 0, _SCALE * 0.044715]),
}
_FACTORS: Final = np.array([0, 0.5, 0, 0])
#: Constants of the formula may be off by the rounding of their type, not by a digit somebody left out.
_LOW_PRECISION: Final = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
_DEPTH: Final = 6
_OPSET: Final = 20


class Match(NamedTuple):
    """A whole GELU: its input, Erf or Tanh, its output, and the largest rank among its constants."""

    x: ir.Value
    curve: ir.Node
    output: ir.Value
    constant_rank: int


class Gelu(Rule[Match]):
    """``0.5 x (1 + erf(x / sqrt(2)))`` or its tanh form, in any spelling: one Gelu (opset 20)."""

    name = "gelu"
    roots = ("Erf", "Tanh")

    def match(self, node: ir.Node) -> Match | None:
        """Follow Erf or Tanh down to the product, try each operand met there as ``x``."""
        plus_one = _plus_one(node)
        if plus_one is None:
            return None
        with np.errstate(all="ignore"):  # strange constants agree with nothing
            return self._find(node, plus_one)

    def _find(self, node: ir.Node, plus_one: ir.Value) -> Match | None:
        for output, others in _products(plus_one):
            for x in _candidates(others):
                reader = _Reader(x)
                factors = reader.product(others)
                if _agree(factors, _FACTORS, x) and _agree(
                    reader.read(node.inputs[0]), _ARGUMENTS[node.op_type], x
                ):
                    return Match(x, node, output, max(reader.constant_rank, _rank_of_one(plus_one)))
        return None

    def check(self, match: Match, context: Context) -> str | None:
        """Gelu exists, and no constant broadcasts ``x`` to more axes."""
        if context.opset < _OPSET:
            return f"Gelu needs opset {_OPSET}, the model has {context.opset}"
        rank = context.rank(match.x)
        if match.constant_rank and (rank is None or rank < match.constant_rank):
            return f"'{match.x.name}' may have fewer axes than a constant around {describe(match.curve)}"
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """One Gelu."""
        form = "tanh" if match.curve.op_type == "Tanh" else "none"
        attributes = [ir.AttrString("approximate", form)] if form == "tanh" else []
        context.replace(match.output, "Gelu", [match.x], attributes, like=match.curve)


def _user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The only user of the value, where it is one of these operators in the same graph."""
    if not is_exclusive(value):
        return None
    node, _ = next(iter(value.uses()))
    return node if is_op(node, *op_types) and node.graph is value.graph else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _plus_one(curve: ir.Node) -> ir.Value | None:
    """``1 + curve``: the output of the Add."""
    add = _user(curve.outputs[0], "Add")
    if add is None or _number(_other(add, curve.outputs[0])) != 1.0:
        return None
    return add.outputs[0]


def _rank_of_one(plus_one: ir.Value) -> int:
    add = plus_one.producer()
    assert add is not None
    return max((len(t.shape) for v in add.inputs if (t := constant_of(v)) is not None), default=0)


def _products(value: ir.Value) -> Iterator[tuple[ir.Value, list[tuple[ir.Value, bool]]]]:
    """Ever longer products that start at ``value``: their outputs and other factors, each with "divides"."""
    others: list[tuple[ir.Value, bool]] = []
    while len(others) < _DEPTH:
        node = _user(value, "Mul", "Div")
        other = None if node is None else _other(node, value)
        if node is None or other is None or (node.op_type == "Div" and node.inputs[0] is not value):
            return
        others.append((other, node.op_type == "Div"))
        value = node.outputs[0]
        yield value, others


def _candidates(others: list[tuple[ir.Value, bool]]) -> Iterator[ir.Value]:
    """What ``x`` may be: a factor, or the other operand of a factor that is a multiple of something."""
    for factor, _ in others:
        if constant_of(factor) is not None:
            continue
        yield factor
        node = factor.producer()
        if node is not None and is_op(node, "Mul", "Div"):
            yield from (v for v in node.inputs if v is not None and constant_of(v) is None)


def _number(value: ir.Value | None) -> float | None:
    """The one number inside a small constant; None for anything else."""
    tensor = constant_of(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def _agree(found: Polynomial | None, wanted: Polynomial, x: ir.Value) -> bool:
    tolerance = _LOW_PRECISION.get(x.dtype) if x.dtype is not None else None
    return found is not None and np.allclose(found, wanted, rtol=tolerance or 1e-6, atol=0)


class _Reader:
    """Reads values as polynomials in ``x``; notes the largest rank of the constants met on the way."""

    def __init__(self, x: ir.Value) -> None:
        self.x = x
        self.constant_rank = 0

    def read(self, value: ir.Value | None, depth: int = _DEPTH) -> Polynomial | None:
        """The polynomial of degree <= 3; None where the value is none."""
        if value is self.x:
            return np.array([0.0, 1.0, 0.0, 0.0])
        number = _number(value)
        if number is not None:
            self.constant_rank = max(self.constant_rank, len(constant_of(value).shape))  # type: ignore[union-attr]
            return np.array([number, 0.0, 0.0, 0.0])
        node = None if value is None else value.producer()
        if node is None or depth == 0 or not is_op(node, "Mul", "Div", "Add", "Pow"):
            return None
        left, right = (self.read(v, depth - 1) for v in node.inputs)
        return None if left is None or right is None else _combine(node.op_type, left, right)

    def product(self, factors: list[tuple[ir.Value, bool]]) -> Polynomial | None:
        """The product of all factors."""
        result: Polynomial | None = np.array([1.0, 0.0, 0.0, 0.0])
        for value, is_divisor in factors:
            factor = self.read(value)
            if result is None or factor is None:
                return None
            result = _combine("Div" if is_divisor else "Mul", result, factor)
        return result


def _combine(op_type: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if op_type == "Add":
        return left + right
    if op_type == "Mul":
        return _multiply(left, right)
    if right[1:].any():
        return None
    if op_type == "Div":
        return left / right[0] if right[0] != 0 else None
    if right[0] not in (1.0, 2.0, 3.0):
        return None
    result: Polynomial | None = left
    for _ in range(int(right[0]) - 1):
        result = None if result is None else _multiply(result, left)
    return result


def _multiply(left: Polynomial, right: Polynomial) -> Polynomial | None:
    product = np.convolve(left, right)
    return None if product[4:].any() else product[:4]
