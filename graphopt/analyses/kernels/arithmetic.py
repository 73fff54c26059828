"""Elementwise arithmetic, comparisons and logic, with ONNX's integer semantics as onnxruntime has them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from graphopt.analyses.kernels._call import (
    Array,
    Call,
    Refused,
    flags_of_broadcast,
    kernel,
    like_broadcast,
    like_first,
    require_kind,
)

#: Doubles hold every integer up to here.
_EXACT_IN_DOUBLE = 2**53


def _pair(call: Call, kinds: str = "iuf") -> tuple[Array, Array]:
    left, right = require_kind(call[0], kinds), require_kind(call[1], kinds)
    if left.dtype != right.dtype:
        raise Refused(f"inputs are of types {left.dtype} and {right.dtype}")
    if call.opset < 7 and left.shape != right.shape:
        raise Refused("broadcasting before opset 7 follows other rules")
    return left, right


def _binary(name: str, function: Callable[[Array, Array], Array], kinds: str = "iuf") -> None:
    def compute(call: Call) -> Array:
        left, right = _pair(call, kinds)
        return function(left, right)

    kernel(name, measure=like_broadcast)(compute)


def _compare(name: str, function: Callable[[Array, Array], Array], kinds: str = "iuf") -> None:
    def compute(call: Call) -> Array:
        return function(*_pair(call, kinds))

    kernel(name, measure=flags_of_broadcast)(compute)


_binary("Add", np.add)
_binary("Sub", np.subtract)
_binary("Mul", np.multiply)
_binary("BitwiseAnd", np.bitwise_and, "iu")
_binary("BitwiseOr", np.bitwise_or, "iu")
_binary("BitwiseXor", np.bitwise_xor, "iu")
_compare("Equal", np.equal, "biuf")
_compare("Less", np.less)
_compare("Greater", np.greater)
_compare("LessOrEqual", np.less_equal)
_compare("GreaterOrEqual", np.greater_equal)
_compare("And", np.logical_and, "b")
_compare("Or", np.logical_or, "b")
_compare("Xor", np.logical_xor, "b")


def _refuse_traps(left: Array, right: Array) -> None:
    """Integer division by zero, and of the least integer by -1, stop the process on some machines."""
    if np.any(right == 0):
        raise Refused("it divides an integer by zero")
    if left.dtype.kind == "i" and np.any(right == -1) and np.any(left == np.iinfo(left.dtype).min):
        raise Refused("it divides the least integer by -1")


@kernel("Div", measure=like_broadcast)
def divide(call: Call) -> Array:
    """Integers are truncated toward zero, as in C."""
    left, right = _pair(call)
    if left.dtype.kind == "f":
        return np.divide(left, right)
    _refuse_traps(left, right)
    quotient = np.floor_divide(left, right)
    rounded_down: Array = np.asarray((quotient * right != left) & ((left < 0) != (right < 0)))
    truncated: Array = np.add(quotient, rounded_down.astype(left.dtype))
    return truncated


@kernel("Mod", measure=like_broadcast)
def modulo(call: Call) -> Array:
    """The sign follows the divisor, or with fmod=1 the dividend; floats need fmod=1."""
    left, right = _pair(call)
    as_in_c = call.integer("fmod", 0) == 1
    if left.dtype.kind == "f":
        if not as_in_c:
            raise Refused("Mod of floats needs fmod=1")
        return np.fmod(left, right)
    _refuse_traps(left, right)
    return np.fmod(left, right) if as_in_c else np.mod(left, right)


@kernel("Pow", measure=like_broadcast)
def power(call: Call) -> Array:
    """The result has the type of the base; integers are refused where a double cannot hold the result."""
    base, exponent = require_kind(call[0], "iuf"), require_kind(call[1], "iuf")
    if base.dtype.kind == "f":
        wide: Array = np.power(base.astype(np.float64), exponent.astype(np.float64))
        return wide.astype(base.dtype)
    if np.any(exponent < 0) or exponent.dtype.kind == "f":
        raise Refused("an integer is raised to a power that is negative or no integer")
    result = np.power(base.astype(np.float64), exponent.astype(np.float64))
    limits = np.iinfo(base.dtype)
    if (
        np.any(np.abs(result) >= _EXACT_IN_DOUBLE)
        or np.any(result < limits.min)
        or np.any(result > limits.max)
    ):
        raise Refused("an integer power overflows")
    return result.astype(base.dtype)


@kernel("BitShift", measure=like_broadcast)
def shift(call: Call) -> Array:
    """Unsigned integers only; a shift by the width or more is undefined."""
    left, right = _pair(call, "u")
    if np.any(right >= left.dtype.itemsize * 8):
        raise Refused("it shifts by the width of the type or more")
    return np.left_shift(left, right) if call.text("direction", "") == "LEFT" else np.right_shift(left, right)


def _fold_inputs(name: str, function: Callable[[Array, Array], Array]) -> None:
    def compute(call: Call) -> Array:
        arrays = [require_kind(a, "iuf") for a in call.present()]
        if len({a.dtype for a in arrays}) != 1:
            raise Refused("inputs are of different types")
        return functools.reduce(function, arrays)

    kernel(name, measure=like_broadcast)(compute)


_fold_inputs("Min", np.minimum)
_fold_inputs("Max", np.maximum)
_fold_inputs("Sum", np.add)


def _without_nan(array: Array) -> Array:
    if array.dtype.kind == "f" and np.any(np.isnan(array)):
        raise Refused("what becomes of NaN is not defined")
    return array


@kernel("Clip", measure=like_first)
def clip(call: Call) -> Array:
    """Bounds are attributes before opset 11; the upper one wins where they cross."""
    data = _without_nan(require_kind(call[0], "iuf"))
    if call.opset < 11:
        bounds = [call.attribute(name) for name in ("min", "max")]
        low, high = (None if b is None else np.asarray(b.as_float(), data.dtype) for b in bounds)
    else:
        low, high = call.optional(1), call.optional(2)
    for bound in (low, high):
        if bound is not None and (bound.size != 1 or bound.dtype != data.dtype):
            raise Refused("a bound of Clip is not one number of the same type")
    if low is not None:
        data = np.maximum(data, low.reshape(()))
    return data if high is None else np.minimum(data, high.reshape(()))


def _unary(name: str, function: Callable[[Array], Array], kinds: str = "f") -> None:
    def compute(call: Call) -> Array:
        return function(require_kind(call[0], kinds))

    kernel(name, measure=like_first)(compute)


def _sigmoid(array: Array) -> Array:
    wide = array.astype(np.float64)
    return (1 / (1 + np.exp(-wide))).astype(array.dtype)


def _erf(array: Array) -> Array:
    values = [math.erf(x) for x in array.reshape(-1).tolist()]
    return np.asarray(values, np.float64).astype(array.dtype).reshape(array.shape)


_unary("Neg", np.negative, "if")
_unary("Abs", np.abs, "iuf")
_unary("Sign", np.sign, "iuf")
_unary("Relu", lambda a: np.maximum(_without_nan(a), a.dtype.type(0)), "if")
_unary("Not", np.logical_not, "b")
_unary("BitwiseNot", np.bitwise_not, "iu")
_unary("Sqrt", np.sqrt)
_unary("Reciprocal", lambda a: np.divide(a.dtype.type(1), a))
_unary("Exp", np.exp)
_unary("Log", np.log)
_unary("Floor", np.floor)
_unary("Ceil", np.ceil)
_unary("Round", np.rint)
_unary("Tanh", np.tanh)
_unary("Sin", np.sin)
_unary("Cos", np.cos)
_unary("Sigmoid", _sigmoid)
_unary("Erf", _erf)
_unary("IsNaN", np.isnan)


@kernel("Where", measure=like_broadcast)
def where(call: Call) -> Array:
    """Choose by a boolean condition."""
    condition, chosen, other = call.present()
    if condition.dtype != np.bool_ or chosen.dtype != other.dtype:
        raise Refused("Where has inputs of different types")
    return np.where(condition, chosen, other)
