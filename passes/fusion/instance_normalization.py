"""Instance normalization, written out, becomes InstanceNormalization.

With the mean ``E`` over all axes behind the second, and one scale and bias per channel (axis 1)::

    InstanceNormalization(x) = (x - E(x)) / sqrt(E((x - E(x))^2) + epsilon) * scale + bias

(Ulyanov et al., https://arxiv.org/abs/1607.08022.) What is also a LayerNormalization, scale and bias
included, is left to :mod:`graphopt.passes.fusion.layer_normalization`, where the opset has that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._formula import float_types, why_broadcast, why_shared
from graphopt.passes.fusion._written_normalization import Plan, Written, plain_axes, plan, read
from graphopt.passes.fusion.layer_normalization import LayerNormalization, normalized_shape
from graphopt.rewrite import Context, Rule

__all__ = ["InstanceNormalization", "one_per_channel"]

Array = np.ndarray[Any, np.dtype[Any]]
_MIN_OPSET = 7


class InstanceNormalization(Rule[Written]):
    """``(x - E(x)) / sqrt(Var(x) + epsilon) * scale + bias`` over all spatial axes: one operator."""

    name = "instance-normalization"
    roots = ("Sqrt", "Pow")

    def match(self, node: ir.Node) -> Written | None:
        """A normalization around the root, with its mean taken off."""
        found = read(node)
        return found if found is not None and found.centered else None

    def check(self, match: Written, context: Context) -> str | None:
        """The axes are all behind the channels, whose number is known; nothing is used elsewhere."""
        if context.opset < _MIN_OPSET:
            return f"InstanceNormalization needs opset {_MIN_OPSET}, the model has {context.opset}"
        reason = float_types(match.x, context, "InstanceNormalization")
        reason = reason or why_broadcast(match.x, match.numbers, context)
        reason = reason or _why_not_spatial(match, context)
        if reason is not None:
            return reason
        made = _plan(match, context)
        if made.scale is None and match.scaled_first:
            return f"the scale before {describe(match.root)} is not one number for each channel"
        if _is_layer(match, made, context):
            return "LayerNormalization does the same"
        return why_shared(made.output, [match.x])

    def rewrite(self, match: Written, context: Context) -> None:
        """One operator."""
        made, channels = _plan(match, context), _channels(match, context)
        dtype, rank = context.infer(match.x).dtype, context.rank(match.x)
        assert channels is not None
        assert dtype is not None
        assert rank is not None
        scale, bias = np.ones(channels, dtype.numpy()), np.zeros(channels, dtype.numpy())
        inputs = [match.x]
        for role, value, default in (("scale", made.scale, scale), ("bias", made.bias, bias)):
            array = default if value is None else one_per_channel(value, rank, channels)
            assert array is not None
            wanted = f"{made.output.name}_{role}" if value is None or value.name is None else value.name
            inputs.append(context.constant(wanted, array, heir_of=value))
        attributes = [ir.AttrFloat32("epsilon", match.epsilon)]
        context.replace(made.output, "InstanceNormalization", inputs, attributes, like=match.root)


def one_per_channel(value: ir.Value, rank: int, channels: int) -> Array | None:
    """The constant as one number for each channel, axis 1 of ``rank``; None where it is none such."""
    tensor = constant_of(value)
    if tensor is None or len(tensor.shape) > rank:
        return None
    shape = (*(1,) * (rank - len(tensor.shape)), *tensor.shape.numpy())
    if shape[1] not in (1, channels) or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(tensor.numpy().reshape(-1), (channels,)).copy()


def _channels(match: Written, context: Context) -> int | None:
    shape = context.infer(match.x).shape
    channels = None if shape is None or len(shape) < 3 else shape[1]
    return channels if isinstance(channels, int) else None


def _why_not_spatial(match: Written, context: Context) -> str | None:
    rank = context.rank(match.x)
    if rank is None or plain_axes(match.axes, rank) != list(range(2, rank)):
        return f"the normalized axes {list(match.axes)} of '{match.x.name}' are not those behind the second"
    return None if _channels(match, context) else f"the number of channels of '{match.x.name}' is not known"


def _plan(match: Written, context: Context) -> Plan:
    rank, channels = context.rank(match.x), _channels(match, context)
    assert rank is not None
    assert channels is not None
    return plan(match, lambda v: one_per_channel(v, rank, channels) is not None, with_bias=True)


def _is_layer(match: Written, made: Plan, context: Context) -> bool:
    """Whether one LayerNormalization would take as much."""
    rule, shape = LayerNormalization(), normalized_shape(match, context)
    if isinstance(shape, str) or rule.check(match, context) is not None:
        return False
    stages = [match.normalized, match.scaled, match.biased]
    return stages.index(rule.plan(match, shape, context).output) >= stages.index(made.output)
