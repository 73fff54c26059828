"""Group normalization, as exporters write it, becomes GroupNormalization (opset 21).

Before the operator existed, its channels were split into groups for InstanceNormalization::

    n = Reshape(InstanceNormalization(Reshape(x, [N, G, -1]); s, b), shape of x)
    y = n * gamma + beta

A group is a run of ``C / G`` channels of one sample in both. So with one number per channel (those per group
repeated, ``s_c = s[c // (C / G)]``) this is ::

    y = GroupNormalization(x; num_groups=G, scale = gamma * s, bias = gamma * b + beta)

(Wu and He, https://arxiv.org/abs/1803.08494.) The definition of opset 18 has a scale per group and is not
used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same, same_dims
from graphopt.graph import array_of, describe
from graphopt.passes.fusion._formula import float_types, ints, only_user, other_input, why_shared
from graphopt.passes.fusion.instance_normalization import one_per_channel
from graphopt.rewrite import Context, Rule, input_at, is_op, producer, why_not_constant

__all__ = ["GroupNormalization"]

Array = np.ndarray[Any, np.dtype[Any]]
_OPSET = 21


class Match(NamedTuple):
    """Both Reshapes, the InstanceNormalization between them, and what is behind."""

    x: ir.Value
    before: ir.Node
    norm: ir.Node
    after: ir.Node
    scale: ir.Value | None
    scaled: ir.Value | None
    bias: ir.Value | None
    biased: ir.Value | None


class Affine(NamedTuple):
    """The value to replace, scale and bias of every channel in double precision, what these come from."""

    output: ir.Value
    scale: Array
    bias: Array
    scale_from: ir.Value | None = None
    bias_from: ir.Value | None = None


class GroupNormalization(Rule[Match]):
    """Reshape, InstanceNormalization, Reshape, Mul and Add: one GroupNormalization (opset 21)."""

    name = "group-normalization"
    roots = ("InstanceNormalization",)

    def match(self, node: ir.Node) -> Match | None:
        """InstanceNormalization between two Reshapes, and Mul and Add behind, where they are."""
        before, after = producer(input_at(node, 0), node, "Reshape"), only_user(node.outputs[0], "Reshape")
        x = None if before is None else input_at(before, 0)
        if before is None or after is None or x is None or after.inputs[0] is not node.outputs[0]:
            return None
        value = after.outputs[0]
        mul = only_user(value, "Mul")
        scale = None if mul is None else other_input(mul, value)
        value = value if mul is None else mul.outputs[0]
        add = only_user(value, "Add")
        bias = None if add is None else other_input(add, value)
        ends = [None if end is None else end.outputs[0] for end in (mul, add)]
        return Match(x, before, node, after, scale, ends[0], bias, ends[1])

    def check(self, match: Match, context: Context) -> str | None:
        """The groups are whole channels of one sample, the second Reshape undoes the first."""
        if context.opset < _OPSET:
            return f"GroupNormalization per channel needs opset {_OPSET}, the model has {context.opset}"
        reason = float_types(match.x, context, "GroupNormalization") or _why_not_groups(match, context)
        for value, role in zip(match.norm.inputs[1:], ("the scale", "the bias"), strict=True):
            assert value is not None
            reason = reason or why_not_constant(value, role) or _why_not_per_group(value, match, context)
        if reason is not None:
            return reason
        targets = [value for end in (match.before, match.after) for value in end.inputs[1:] if value]
        return why_shared(_affine(match, context).output, [match.x, *targets])

    def rewrite(self, match: Match, context: Context) -> None:
        """One operator, its scale and bias computed in double precision."""
        made, dtype = _affine(match, context), context.infer(match.x).dtype
        assert dtype is not None
        parts = (("scale", made.scale, made.scale_from), ("bias", made.bias, made.bias_from))
        inputs = [match.x]
        for role, array, old in parts:
            name = f"{made.output.name}_{role}" if old is None or old.name is None else old.name
            inputs.append(context.constant(name, array.astype(dtype.numpy()), heir_of=old))
        groups = context.infer(match.before.outputs[0]).shape[1]  # type: ignore[index]
        assert isinstance(groups, int)
        epsilon = match.norm.attributes.get_float("epsilon", 1e-5)
        attributes = [ir.AttrInt64("num_groups", groups), ir.AttrFloat32("epsilon", epsilon)]
        context.replace(made.output, "GroupNormalization", inputs, attributes, like=match.norm)


def _why_not_groups(match: Match, context: Context) -> str | None:
    shape, grouped = context.infer(match.x).shape, context.infer(match.before.outputs[0]).shape
    if shape is None or grouped is None or len(shape) < 3 or len(grouped) < 3:
        return f"the shapes around {describe(match.before)} are not known"
    channels, groups = shape[1], grouped[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or groups < 1 or channels % groups:
        return f"{describe(match.before)} does not split a known number of channels into groups"
    if not same(shape[0], grouped[0]) and not _keeps_batch(match.before):
        return f"{describe(match.before)} is not known to keep the batch axis"
    if not _restores(match, shape, context):
        return f"{describe(match.after)} is not known to give '{match.x.name}' its shape back"
    return None


def _why_not_per_group(value: ir.Value, match: Match, context: Context) -> str | None:
    grouped = context.infer(match.before.outputs[0]).shape
    if grouped is not None and context.infer(value).static == (grouped[1],):
        return None
    return f"'{value.name}' is not one number for each group"


def _keeps_batch(reshape: ir.Node) -> bool:
    target = ints(input_at(reshape, 1))
    return bool(target) and target[0] == 0 and not reshape.attributes.get_int("allowzero", 0)  # type: ignore[index]


def _restores(match: Match, shape: ir.Shape, context: Context) -> bool:
    target = input_at(match.after, 1)
    made_by = None if target is None else target.producer()
    if made_by is not None and is_op(made_by, "Shape") and made_by.inputs[0] is match.x:
        starts_later = made_by.attributes.get_int("start", 0) != 0
        return not starts_later and "end" not in made_by.attributes
    final = context.infer(match.after.outputs[0]).shape
    return final is not None and same_dims(final.dims, shape.dims)


def _affine(match: Match, context: Context) -> Affine:
    shape = context.infer(match.x).shape
    assert shape is not None
    rank, channels = len(shape), shape[1]
    assert isinstance(channels, int)
    scale, bias = (_each_channel(array_of(value), channels) for value in match.norm.inputs[1:])
    found = Affine(match.after.outputs[0], scale, bias)
    if match.scale is not None and match.scaled is not None:
        gamma = one_per_channel(match.scale, rank, channels)
        if gamma is None:
            return found
        found = Affine(match.scaled, scale * gamma, bias * gamma, match.scale)
    beta = None if match.bias is None else one_per_channel(match.bias, rank, channels)
    if beta is None or match.biased is None:
        return found
    return Affine(match.biased, found.scale, found.bias + beta, found.scale_from, match.bias)


def _each_channel(array: Array | None, channels: int) -> Array:
    assert array is not None
    return np.repeat(array.astype(np.float64), channels // array.size)
