"""Layer normalization, written out, becomes LayerNormalization (opset 17) or RMSNormalization (opset 23).

Over the last ``k`` axes, with the mean ``E`` over these::

    LayerNormalization(x) = (x - E(x)) / sqrt(E((x - E(x))^2) + epsilon) * scale + bias
    RMSNormalization(x)   = x / sqrt(E(x^2) + epsilon) * scale

(Ba et al., https://arxiv.org/abs/1607.06450; Zhang and Sennrich, https://arxiv.org/abs/1910.07467).
:mod:`graphopt.passes.fusion._written_normalization` says in which spellings. Both operators want a scale of
the shape of the normalized axes: a scale or bias of another shape stays behind the operator as it was, and
ones stand in for it. Both compute float16 in float, which only makes the result more exact; a double stays as
it is, since ``stash_type`` would round it to float.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._formula import float_types, why_broadcast, why_shared
from graphopt.passes.fusion._written_normalization import Plan, Written, plain_axes, plan, read
from graphopt.rewrite import Context, Rule

__all__ = ["LayerNormalization", "RMSNormalization", "fits", "normalized_shape"]

#: A scale of ones, where there is none, may not have more elements than this.
_LARGEST_ONES: Final = 16384


class _OverLastAxes(Rule[Written]):
    roots = ("Sqrt", "Pow")
    op_type: ClassVar[str]
    min_opset: ClassVar[int]
    centered: ClassVar[bool]

    def match(self, node: ir.Node) -> Written | None:
        """A normalization around the root, with or without its mean taken off."""
        found = read(node)
        return found if found is not None and found.centered == self.centered else None

    def check(self, match: Written, context: Context) -> str | None:
        """The operator exists, the axes are the last ones, nothing in between is used elsewhere."""
        if context.opset < self.min_opset:
            return f"{self.op_type} needs opset {self.min_opset}, the model has {context.opset}"
        reason = float_types(match.x, context, self.op_type)
        reason = reason or why_broadcast(match.x, match.numbers, context)
        shape = normalized_shape(match, context)
        if reason is not None or isinstance(shape, str):
            return reason or str(shape)
        made = self.plan(match, shape, context)
        if made.scale is None and match.scaled_first:
            return f"the scale before {describe(match.root)} does not vary by the normalized axes alone"
        if made.scale is None and int(np.prod(shape)) > _LARGEST_ONES:
            return f"there is no scale, and one of {shape} ones would be large"
        return why_shared(made.output, [v for v in (match.x, made.scale, made.bias) if v is not None])

    def plan(self, match: Written, shape: tuple[int, ...], context: Context) -> Plan:
        """As much of scale and bias as fits the normalized axes."""
        rank = context.rank(match.x) or 0
        return plan(match, lambda value: fits(value, shape, rank, context), with_bias=self.centered)

    def rewrite(self, match: Written, context: Context) -> None:
        """One operator."""
        shape = normalized_shape(match, context)
        assert not isinstance(shape, str)
        made = self.plan(match, shape, context)
        dtype = context.infer(match.x).dtype
        assert dtype is not None
        ones = np.ones(shape, dtype.numpy())
        scale = _parameter(made.scale, shape, context)
        inputs = [match.x, scale or context.constant(f"{made.output.name}_scale", ones)]
        if made.bias is not None:
            inputs.append(_parameter(made.bias, shape, context) or made.bias)
        attributes = [ir.AttrInt64("axis", -len(shape)), ir.AttrFloat32("epsilon", match.epsilon)]
        context.replace(made.output, self.op_type, inputs, attributes, like=match.root)


class LayerNormalization(_OverLastAxes):
    """``(x - E(x)) / sqrt(Var(x) + epsilon) * scale + bias`` over the last axes: one operator (opset 17)."""

    name = "layer-normalization"
    op_type = "LayerNormalization"
    min_opset = 17
    centered = True


class RMSNormalization(_OverLastAxes):
    """``x / sqrt(E(x^2) + epsilon) * scale`` over the last axes: one RMSNormalization (opset 23)."""

    name = "rms-normalization"
    op_type = "RMSNormalization"
    min_opset = 23
    centered = False


def normalized_shape(match: Written, context: Context) -> tuple[int, ...] | str:
    """The sizes of the normalized axes, which are the last ones; else why they are not usable."""
    shape = context.infer(match.x).shape
    if shape is None:
        return f"the rank of '{match.x.name}' is not known"
    axes = plain_axes(match.axes, len(shape))
    if axes is None or axes != list(range(len(shape) - len(axes), len(shape))):
        return f"the normalized axes {list(match.axes)} of '{match.x.name}' are not the last ones"
    sizes = [shape[axis] for axis in axes]
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) < len(sizes):
        return f"the sizes of the normalized axes of '{match.x.name}' are not known"
    if int(np.prod(known)) < 2:
        return f"the normalized axes of '{match.x.name}' hold less than two elements"
    return known


def fits(value: ir.Value, shape: tuple[int, ...], rank: int, context: Context) -> bool:
    """Whether a scale or bias varies by the normalized axes alone, and adds no axis to ``x``."""
    static = context.infer(value).static
    if static is None or constant_of(value) is None:
        return static == shape
    if len(static) > rank or any(size != 1 for size in static[: max(0, len(static) - len(shape))]):
        return False
    return all(size in (1, full) for size, full in zip(static[::-1], shape[::-1], strict=False))


def _parameter(value: ir.Value | None, shape: tuple[int, ...], context: Context) -> ir.Value | None:
    """The scale or bias in the shape of the normalized axes."""
    tensor = constant_of(value)
    if value is None or tensor is None or tuple(tensor.shape) == shape:
        return value
    array = tensor.numpy()
    array = array.reshape(array.shape[max(0, array.ndim - len(shape)) :])
    full: np.ndarray[Any, np.dtype[Any]] = np.broadcast_to(array, shape)
    return context.constant(value.name or "scale", full.copy(), heir_of=value)
