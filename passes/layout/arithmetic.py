"""Arithmetic that undoes, repeats or continues the operator before it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, describe
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, producer

__all__ = ["AddAdd", "ClipClip", "MatMulScales", "MulMul", "Repeated", "Undone"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Constants with more numbers are left alone: a product of two would have to be kept in memory.
_LARGEST: Final = 65536
_MIN_OPSET: Final = 7
_FLOATS: Final = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class Pair(NamedTuple):
    """A node and the one before it."""

    node: ir.Node
    before: ir.Node


def _pair(node: ir.Node, *op_types: str) -> Pair | None:
    before = producer(node.inputs[0], node, *op_types)
    return None if before is None else Pair(node, before)


class Undone(Rule[Pair]):
    """Neg of Neg, Not of Not: the value itself."""

    name = "undone"
    roots = ("Neg", "Not")

    def match(self, node: ir.Node) -> Pair | None:
        """The same operator twice."""
        return _pair(node, node.op_type)

    def check(self, match: Pair, context: Context) -> str | None:
        """Always right."""
        return None

    def rewrite(self, match: Pair, context: Context) -> None:
        """The input of the first one."""
        source = match.before.inputs[0]
        assert source is not None
        context.redirect(match.node.outputs[0], source, like=match.node)


class Repeated(Rule[Pair]):
    """Abs, Ceil, Floor, Relu, Round or Sign of what is the result of the same operator: once."""

    name = "repeated"
    roots = ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")

    def match(self, node: ir.Node) -> Pair | None:
        """The same operator twice."""
        return _pair(node, node.op_type)

    def check(self, match: Pair, context: Context) -> str | None:
        """Always right."""
        return None

    def rewrite(self, match: Pair, context: Context) -> None:
        """The first one."""
        context.redirect(match.node.outputs[0], match.before.outputs[0], like=match.node)


class ClipClip(Rule[Pair]):
    """Clip of Clip or of Relu: one Clip, with the bounds of both.

    Left alone: bounds that are not constant or in the wrong order, Clip before opset 11.
    """

    name = "clip-clip"
    roots = ("Clip",)

    def match(self, node: ir.Node) -> Pair | None:
        """A Clip behind a Clip or Relu."""
        return _pair(node, "Clip", "Relu")

    def check(self, match: Pair, context: Context) -> str | None:
        """Constant bounds."""
        if context.opset < 11:
            return f"opset {context.opset} has other bounds; convert to 11 or later"
        dtype = context.infer(match.node.outputs[0]).dtype
        if dtype is None or dtype.numpy() not in _FLOATS:
            return f"the type of {describe(match.node)} is unknown or no float"
        if not is_exclusive(match.before.outputs[0]):
            return (
                f"the output '{match.before.outputs[0].name}' of {describe(match.before)} is used elsewhere"
            )
        for node in match:
            bounds = _bounds(node)
            if bounds is None:
                return f"a bound of {describe(node)} is not constant"
            if not bounds[0] <= bounds[1]:
                return f"the bounds of {describe(node)} are in the wrong order"
        return None

    def rewrite(self, match: Pair, context: Context) -> None:
        """One Clip."""
        node, output = match.node, match.node.outputs[0]
        inner, outer = _bounds(match.before), _bounds(node)
        dtype = context.infer(output).dtype
        assert inner is not None
        assert outer is not None
        assert dtype is not None
        inputs: list[ir.Value | None] = [match.before.inputs[0]]
        for name, bound in zip(("min", "max"), inner, strict=True):
            number = np.array(min(max(bound, outer[0]), outer[1]), dtype.numpy())
            inputs.append(context.constant(f"{output.name}_{name}", number) if np.isfinite(number) else None)
        context.replace(output, "Clip", inputs, like=node)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = input_at(node, index)
        array = array_of(value)
        if value is not None and (array is None or array.size != 1):
            return None
        found.append(default if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]


class _Chain(Rule[Pair]):
    """Two operators of a family, each with a constant: one operator with one constant."""

    family: tuple[str, ...]

    def match(self, node: ir.Node) -> Pair | None:
        """Two of the family in a row; the constant of a commutative one may stand on either side."""
        for value in node.inputs:
            before = producer(value, node, *self.family)
            if before is not None and _operand(node) is not None and _operand(before) is not None:
                return Pair(node, before)
        return None

    def check(self, match: Pair, context: Context) -> str | None:
        """Constants that are joined to one of the size of the larger, without overflow or cancellation."""
        if context.opset < _MIN_OPSET:
            return f"opset {context.opset} broadcasts by other rules; convert to {_MIN_OPSET} or later"
        if not is_exclusive(match.before.outputs[0]):
            return (
                f"the output '{match.before.outputs[0].name}' of {describe(match.before)} is used elsewhere"
            )
        first, second = (_constant(node) for node in match)
        if max(first.size, second.size) > _LARGEST or not min(first.size, second.size):
            return f"a constant of {describe(match.node)} or {describe(match.before)} is too large, or empty"
        if not _broadcast_to_larger(first, second):
            return f"the constants of {describe(match.node)} and {describe(match.before)} have other shapes"
        if first.dtype != second.dtype or first.dtype not in _FLOATS:
            return f"the constants of {describe(match.node)} and {describe(match.before)} are no plain floats"
        return self.why_not(match)

    def why_not(self, match: Pair) -> str | None:
        """Why the two constants may not become one."""
        raise NotImplementedError

    def joined(self, match: Pair) -> Array:
        """The one constant, in float64."""
        raise NotImplementedError

    def rewrite(self, match: Pair, context: Context) -> None:
        """One operator."""
        constant = self.joined(match).astype(_constant(match.node).dtype)
        old = _operand(match.node)
        name = (old[1].name if old is not None else None) or "constant"
        source = _operand(match.before)
        assert source is not None
        inputs = [source[0], context.constant(name, constant, heir_of=old[1] if old is not None else None)]
        context.replace(match.node.outputs[0], self.family[0], inputs, like=match.node)


def _operand(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The input that is not constant and the one that is; None where there are not one of each."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    if array_of(second) is not None and array_of(first) is None:
        return first, second
    commutes = node.op_type in ("Add", "Mul")
    return (second, first) if commutes and array_of(first) is not None and array_of(second) is None else None


def _constant(node: ir.Node) -> Array:
    operand = _operand(node)
    array = array_of(operand[1]) if operand is not None else None
    assert array is not None
    return array


def _broadcast_to_larger(first: Array, second: Array) -> bool:
    try:
        shape = np.broadcast_shapes(first.shape, second.shape)
    except ValueError:
        return False
    return shape in (first.shape, second.shape)


class MulMul(_Chain):
    """Mul or Div by a constant twice: one Mul.

    Left alone: integers, products that are not finite or denormal, zeros and infinities.
    """

    name = "mul-mul"
    roots = ("Mul", "Div")
    family = ("Mul", "Div")

    def why_not(self, match: Pair) -> str | None:
        """Zeros, infinities and what leaves the range of normal numbers."""
        if not _are_normal(self.joined(match), _constant(match.node).dtype):
            return f"the joined factor of {describe(match.node)} is not a normal number"
        return None

    def joined(self, match: Pair) -> Array:
        """The product of the factors."""
        with np.errstate(all="ignore"):
            first, second = (_factor(node) for node in match)
            return np.asarray(first * second)


def _factor(node: ir.Node) -> Array:
    constant = _constant(node).astype(np.float64)
    return 1 / constant if node.op_type == "Div" else constant


def _are_normal(numbers: Array, dtype: np.dtype[Any]) -> bool:
    info = np.finfo(dtype)
    size = np.abs(numbers)
    return bool(np.all((size >= float(info.tiny)) & (size <= float(info.max))))


class AddAdd(_Chain):
    """Add or Sub of a constant twice: one Add.

    Left alone: integers, sums that are not finite, constants of different signs. Those cancel: to add and
    subtract a large number is a way to round.
    """

    name = "add-add"
    roots = ("Add", "Sub")
    family = ("Add", "Sub")

    def why_not(self, match: Pair) -> str | None:
        """Different signs, overflow."""
        first, second = (_addend(node) for node in match)
        if np.any(first * second < 0):
            return (
                f"the constants of {describe(match.node)} and {describe(match.before)} have different signs"
            )
        if not np.all(np.abs(first + second) <= float(np.finfo(_constant(match.node).dtype).max)):
            return f"the joined constant of {describe(match.node)} is not finite"
        return None

    def joined(self, match: Pair) -> Array:
        """The sum."""
        first, second = (_addend(node) for node in match)
        return np.asarray(first + second)


def _addend(node: ir.Node) -> Array:
    constant = _constant(node).astype(np.float64)
    return -constant if node.op_type == "Sub" else constant


class MatMulScales(Rule[ir.Node]):
    """MatMul of two products with scalar constants: one of them takes the scale of both.

    Exporters of attention scale queries and keys by the root of the scale each, for the range of float16.

    Left alone: scales above 1 (what they scale might overflow), constants that are no scalars, products that
    others use.
    """

    name = "matmul-scales"
    roots = ("MatMul",)

    def match(self, node: ir.Node) -> ir.Node | None:
        """A MatMul of two Muls by constants."""
        muls = [producer(value, node, "Mul") for value in node.inputs]
        return node if all(mul is not None and _operand(mul) is not None for mul in muls) else None

    def check(self, match: ir.Node, context: Context) -> str | None:
        """Scalars of at most 1, used here only."""
        if context.opset < _MIN_OPSET:
            return f"opset {context.opset} broadcasts by other rules; convert to {_MIN_OPSET} or later"
        left, right = _scales(match)
        for mul in (left, right):
            constant = _constant(mul)
            if constant.size != 1 or constant.ndim > 1 or constant.dtype not in _FLOATS:
                return f"the constant of {describe(mul)} is no scalar float"
            if not abs(float(constant.reshape(-1)[0])) <= 1:
                return f"the scale of {describe(mul)} is above 1"
            if not is_exclusive(mul.outputs[0]):
                return f"the output '{mul.outputs[0].name}' of {describe(mul)} is used elsewhere"
            source = _operand(mul)
            if constant.ndim and (source is None or not context.rank(source[0])):
                return f"the rank of the input of {describe(mul)} is unknown"
        if not _are_normal(_product(left, right), _constant(left).dtype):
            return f"the joined scale of {describe(left)} is not a normal number"
        return None

    def rewrite(self, match: ir.Node, context: Context) -> None:
        """One Mul before the MatMul, on the side of the first operand."""
        left, right = _scales(match)
        source, other = _operand(left), _operand(right)
        assert source is not None
        assert other is not None
        scale = context.constant(
            source[1].name or "scale", _product(left, right).astype(_constant(left).dtype), heir_of=source[1]
        )
        output = left.outputs[0]
        known = context.infer(output)
        scaled = context.add(
            "Mul", [source[0], scale], before=match, like=output, known=known, name=left.name
        )
        context.replace(match.outputs[0], "MatMul", [scaled, other[0]], like=match)


def _scales(node: ir.Node) -> tuple[ir.Node, ir.Node]:
    left, right = (value.producer() if value is not None else None for value in node.inputs)
    assert left is not None
    assert right is not None
    return left, right


def _product(left: ir.Node, right: ir.Node) -> Array:
    first, second = (_constant(mul).astype(np.float64).reshape(-1)[0] for mul in (left, right))
    return np.asarray(first * second)
