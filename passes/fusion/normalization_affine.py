"""Constants behind LayerNormalization and RMSNormalization go into their scale and bias, Casts around go.

With ``n`` what is normalized, ``s`` and ``b`` scale and bias::

    (n * s + b) * c = n * (s c) + b c          (n * s + b) + c = n * s + (b + c)

both computed in double precision. And both operators compute float16 in float by themselves (``stash_type``
1), so that a model that casts to float for it need not::

    Cast(Norm(Cast(x, float), s, b), float16) = Norm(x, Cast(s, float16), Cast(b, float16))

to the rounding of float16, where ``s`` and ``b`` lose nothing in it.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, constant_of, describe
from graphopt.passes.fusion.layer_normalization import fits
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, producer, why_not_constant

__all__ = ["NormalizationAdd", "NormalizationCasts", "NormalizationMul"]

Array = np.ndarray[Any, np.dtype[Any]]
_NORMS = ("LayerNormalization", "RMSNormalization")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


class Match(NamedTuple):
    """A normalization, the node behind it, and the other operand of that."""

    norm: ir.Node
    node: ir.Node
    constant: ir.Value


class _Affine(Rule[Match]):
    norms: ClassVar[tuple[str, ...]]

    def match(self, node: ir.Node) -> Match | None:
        """A normalization on one side, a constant on the other."""
        for side in (0, 1) if len(node.inputs) == 2 else ():
            norm, other = producer(node.inputs[side], node, *self.norms), node.inputs[1 - side]
            if norm is not None and other is not None and constant_of(other) is not None:
                return Match(norm, node, other)
        return None

    def check(self, match: Match, context: Context) -> str | None:
        """Scale and bias are constants of the shape of the normalized axes, and stay finite."""
        reason = _why_not_alone(match.norm) or _why_not_parameters(match.norm, context)
        if reason is not None:
            return reason
        x, scale = match.norm.inputs[0], array_of(match.norm.inputs[1])
        assert x is not None
        assert scale is not None
        if not fits(match.constant, scale.shape, context.rank(x) or 0, context):
            return f"the constant '{match.constant.name}' does not vary by the normalized axes alone"
        dtype = scale.dtype
        if not all(np.all(np.isfinite(_rounded(a, dtype))) for a in self.parameters(match) if a is not None):
            return "the new scale or bias would not be finite"
        return None

    def parameters(self, match: Match) -> tuple[Array, Array | None]:
        """The new scale and bias in double precision."""
        raise NotImplementedError

    def rewrite(self, match: Match, context: Context) -> None:
        """The normalization with a new scale, a new bias."""
        old = [*match.norm.inputs[1:], match.constant]
        inputs = [match.norm.inputs[0]]
        scale, dtype = _float64(match.norm.inputs[1])
        if match.node.op_type == "Mul" and np.all(scale == 1):
            old[0] = match.constant  # the scale was none, the constant is the one with a name
        for array, heir in zip(self.parameters(match), old, strict=False):
            if array is not None:
                assert heir is not None
                new = context.constant(heir.name or "scale", _rounded(array, dtype), heir_of=heir)
                inputs.append(new)
        kept = list(match.norm.attributes.values())
        context.replace(match.node.outputs[0], match.norm.op_type, inputs, kept, like=match.norm)


class NormalizationMul(_Affine):
    """LayerNormalization or RMSNormalization, then Mul by a constant: the normalization alone."""

    name = "normalization-mul"
    roots = ("Mul",)
    norms = _NORMS

    def parameters(self, match: Match) -> tuple[Array, Array | None]:
        """Both multiplied."""
        scale, bias, c = _operands(match)
        return scale * c, None if bias is None else bias * c


class NormalizationAdd(_Affine):
    """LayerNormalization, then Add of a constant: the normalization alone."""

    name = "normalization-add"
    roots = ("Add",)
    norms = ("LayerNormalization",)

    def parameters(self, match: Match) -> tuple[Array, Array | None]:
        """The bias grows."""
        scale, bias, c = _operands(match)
        return scale, np.broadcast_to(c, scale.shape) if bias is None else bias + c


class NormalizationCasts(Rule[Match]):
    """Cast to float, LayerNormalization or RMSNormalization, Cast to float16: the normalization alone."""

    name = "normalization-casts"
    roots = ("Cast",)

    def match(self, node: ir.Node) -> Match | None:
        """Casts to float before and to float16 behind."""
        norm = producer(input_at(node, 0), node, *_NORMS)
        before = None if norm is None else producer(norm.inputs[0], node, "Cast")
        x = None if before is None else input_at(before, 0)
        if norm is None or before is None or x is None or _to(node) != ir.DataType.FLOAT16:
            return None
        return Match(norm, node, x) if _to(before) == ir.DataType.FLOAT else None

    def check(self, match: Match, context: Context) -> str | None:
        """From float16, computing in float, with parameters that float16 can hold."""
        if context.infer(match.constant).dtype != ir.DataType.FLOAT16:
            return f"'{match.constant.name}' is not known to be of type FLOAT16"
        if match.norm.attributes.get_int("stash_type", 1) != 1:
            return f"{describe(match.norm)} does not compute in float"
        reason = _why_not_alone(match.norm) or _why_not_parameters(match.norm, context)
        for value in match.norm.inputs[1:] if reason is None else ():
            array = array_of(value)
            if array is not None and not np.array_equal(_rounded(array, np.dtype(np.float16)), array):
                return f"'{value.name if value else ''}' would lose digits in float16"
        return reason

    def rewrite(self, match: Match, context: Context) -> None:
        """The normalization of what was cast."""
        inputs: list[ir.Value | None] = [match.constant]
        for value in match.norm.inputs[1:]:
            array = array_of(value)
            assert array is not None
            assert value is not None
            half = _rounded(array, np.dtype(np.float16))
            inputs.append(context.constant(value.name or "scale", half, heir_of=value))
        kept = list(match.norm.attributes.values())
        context.replace(match.node.outputs[0], match.norm.op_type, inputs, kept, like=match.norm)


def _to(cast: ir.Node) -> int:
    return cast.attributes.get_int("to", 0)


def _why_not_alone(norm: ir.Node) -> str | None:
    if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
        return f"{describe(norm)} has more than one output"
    if not is_exclusive(norm.outputs[0]):
        return f"the output '{norm.outputs[0].name}' of {describe(norm)} is used elsewhere"
    return None


def _why_not_parameters(norm: ir.Node, context: Context) -> str | None:
    """Scale and bias have to be constants of the shape of the normalized axes."""
    shape = context.infer(norm.inputs[0]).shape if norm.inputs[0] is not None else None
    axis = norm.attributes.get_int("axis", -1)
    sizes = None if shape is None else tuple(shape)[axis:]
    for value, role in zip(norm.inputs[1:], ("the scale", "the bias"), strict=False):
        if value is None:
            return f"{describe(norm)} leaves {role} out"
        reason = why_not_constant(value, role)
        if reason is not None:
            return reason
        array = array_of(value)
        if array is None or array.shape != sizes or constant_of(value).dtype not in _FLOATS:  # type: ignore[union-attr]
            return f"{role} '{value.name}' is not of the shape of the normalized axes"
    return None


def _operands(match: Match) -> tuple[Array, Array | None, Array]:
    scale, bias = match.norm.inputs[1], input_at(match.norm, 2)
    c = _float64(match.constant)[0]
    scale_array = _float64(scale)[0]
    c = c.reshape(c.shape[max(0, c.ndim - scale_array.ndim) :])
    return scale_array, None if bias is None else _float64(bias)[0], c


def _float64(value: ir.Value | None) -> tuple[Array, np.dtype[Any]]:
    array = array_of(value)
    assert array is not None
    return array.astype(np.float64), array.dtype


def _rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)
