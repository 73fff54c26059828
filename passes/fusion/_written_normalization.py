"""Recognise normalizations spelled out in elementary operators.

With ``E`` the mean over some axes (kept), every one of them is ::

    d = x - E(x)                     (LayerNormalization, InstanceNormalization; d = x for RMSNormalization)
    n = d / sqrt(E(d^2) + epsilon)
    y = n * scale + bias

The square is Mul or Pow, the division Div by the root, or Mul by its Reciprocal, by 1 / root or by
``Pow(-0.5)``; the scale may come before or after it. Variance as ``E(x^2) - E(x)^2`` is not recognised: it
cancels where the mean is large, and its numbers are others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusion._formula import (
    axes_of,
    is_power,
    number,
    only_user,
    other_input,
    scalar_pairs,
    square_of,
)
from graphopt.rewrite import input_at, producer

__all__ = ["Plan", "Written", "plain_axes", "plan", "read"]


@dataclasses.dataclass(frozen=True)
class Written:
    """A normalization as it was found.

    Attributes:
        x: What is normalized.
        centered: Whether the mean is subtracted.
        axes: Normalized axes as written; empty for all.
        epsilon: What is added to the mean of squares.
        root: The node that takes the root.
        numbers: Constants of one element in the formula.
        normalized: The quotient; if ``scaled_first``, the scale is already part of it.
        scale: The factor.
        scaled_first: See ``normalized``.
        scaled: The product behind the quotient.
        bias: The summand.
        biased: The sum.
    """

    x: ir.Value
    centered: bool
    axes: tuple[int, ...]
    epsilon: float
    root: ir.Node
    numbers: tuple[ir.Value, ...]
    normalized: ir.Value
    scale: ir.Value | None = None
    scaled_first: bool = False
    scaled: ir.Value | None = None
    bias: ir.Value | None = None
    biased: ir.Value | None = None


class Plan(NamedTuple):
    """What a rule makes of a written normalization: up to which value, with which scale and bias."""

    output: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None


def plan(found: Written, fits: Callable[[ir.Value], bool], *, with_bias: bool) -> Plan:
    """As much of scale and bias as fits the operator; the rest stays behind it."""
    scale = found.scale if found.scale is not None and fits(found.scale) else None
    if found.scale is not None and scale is None:
        return Plan(found.normalized, None, None)
    if with_bias and found.bias is not None and found.biased is not None and fits(found.bias):
        return Plan(found.biased, scale, found.bias)
    return Plan(found.scaled or found.normalized, scale, None)


def read(root: ir.Node) -> Written | None:
    """The normalization whose root is taken by ``root``, a Sqrt or a Pow by 0.5 or -0.5."""
    if root.op_type == "Pow" and not (is_power(root, 0.5) or is_power(root, -0.5)):
        return None
    add = producer(input_at(root, 0), root, "Add")
    for squares, constant, epsilon in () if add is None else scalar_pairs(add):
        mean = producer(squares, root, "ReduceMean")
        if mean is None or not (0 <= epsilon < np.inf):
            continue
        axes, d = _kept_axes(mean), square_of(input_at(mean, 0), mean)
        if axes is None or d is None:
            return None
        x = _minuend(d, axes, root)
        numbers = (constant, *_exponents(root, producer(mean.inputs[0], root, "Pow")))
        return _normalized(Written(x or d, x is not None, axes, epsilon, root, numbers, root.outputs[0]))
    return None


def _exponents(*nodes: ir.Node | None) -> list[ir.Value]:
    powers = [node for node in nodes if node is not None and node.op_type == "Pow"]
    return [value for node in powers if (value := node.inputs[1]) is not None]


def _kept_axes(mean: ir.Node) -> tuple[int, ...] | None:
    axes = axes_of(mean)
    return None if axes is None or mean.attributes.get_int("keepdims", 1) != 1 else tuple(sorted(axes))


def _minuend(d: ir.Value, axes: tuple[int, ...], user: ir.Node) -> ir.Value | None:
    """``x`` where ``d`` is ``x - mean(x)`` over these axes."""
    sub = producer(d, user, "Sub")
    mean = None if sub is None else producer(sub.inputs[1], user, "ReduceMean")
    if sub is None or mean is None or mean.inputs[0] is not sub.inputs[0] or _kept_axes(mean) != axes:
        return None
    return sub.inputs[0]


def _is_data(value: ir.Value | None, found: Written) -> bool:
    """Whether ``value`` is what the root divides: ``x`` or ``x - mean(x)``, perhaps computed again."""
    if value is None or not found.centered:
        return value is found.x
    return _minuend(value, found.axes, found.root) is found.x


def _data_and_scale(value: ir.Value | None, found: Written) -> tuple[bool, ir.Value | None]:
    """Whether the value is the data, or the data times a scale: that scale."""
    if _is_data(value, found):
        return True, None
    node = producer(value, found.root, "Mul")
    for side in (0, 1):
        if node is not None and _is_data(node.inputs[side], found):
            return True, node.inputs[1 - side]
    return False, None


def _normalized(found: Written) -> Written | None:
    """Follow the root to the quotient, then to scale and bias."""
    value, inverse = found.root.outputs[0], is_power(found.root, -0.5)
    for _ in range(3):
        node = only_user(value, "Reciprocal", "Mul", "Div")
        if node is None:
            return None
        if not inverse and (node.op_type == "Reciprocal" or _is_one_by(node, value)):
            inverse = True
            numbers = [v for v in node.inputs if v is not None and v is not value]
            found = dataclasses.replace(found, numbers=(*found.numbers, *numbers))
            value = node.outputs[0]
            continue
        if node.op_type != ("Mul" if inverse else "Div") or (not inverse and node.inputs[1] is not value):
            return None
        other = other_input(node, value)
        is_data, scale = _data_and_scale(other, found)
        if is_data and (scale is None or found.scale is None):
            scale = scale or found.scale
            return _affine(
                dataclasses.replace(
                    found, normalized=node.outputs[0], scale=scale, scaled_first=scale is not None
                )
            )
        if not inverse or found.scale is not None or other is None:
            return None
        found, value = dataclasses.replace(found, scale=other), node.outputs[0]
    return None


def _is_one_by(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type == "Div" and node.inputs[1] is value and number(node.inputs[0]) == 1.0


def _affine(found: Written) -> Written:
    """Add the scale and bias behind the quotient."""
    value = found.normalized
    node = only_user(value, "Mul") if found.scale is None else None
    if node is not None and node.inputs[0] is not node.inputs[1]:
        found = dataclasses.replace(found, scale=other_input(node, value), scaled=node.outputs[0])
        value = node.outputs[0]
    node = only_user(value, "Add")
    if node is not None and node.inputs[0] is not node.inputs[1]:
        found = dataclasses.replace(found, bias=other_input(node, value), biased=node.outputs[0])
    return found


def plain_axes(axes: tuple[int, ...], rank: int) -> list[int] | None:
    """The axes from 0 upwards; all where none are named; None where one does not exist or comes twice."""
    plain = sorted(axis + rank if axis < 0 else axis for axis in axes) or list(range(rank))
    is_valid = plain and len(set(plain)) == len(plain) and plain[0] >= 0 and plain[-1] < rank
    return plain if is_valid else None
