"""BatchNormalization at inference folds into the linear operator before it.

With the running statistics fixed, BatchNormalization is an affine map per channel::

    BN(y)_c = gamma_c * (y_c - mean_c) / sqrt(var_c + epsilon) + beta_c
            = scale_c * y_c + shift_c
      scale = gamma / sqrt(var + epsilon),  shift = beta - scale * mean

and :mod:`graphopt.passes.fusion.linear` says how such a map goes into weight and bias.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, describe
from graphopt.passes.fusion.linear import Affine, Linear
from graphopt.rewrite import Context, Rule, input_at, producer, why_not_constant

__all__ = ["ConvBatchNormalization", "GemmBatchNormalization"]

Array = np.ndarray[Any, np.dtype[Any]]
_PARAMETERS = ("scale", "bias", "mean", "variance")


class Match(NamedTuple):
    """A linear node and the BatchNormalization behind it."""

    linear: Linear
    norm: ir.Node


class _BatchNormalization(Rule[Match]):
    roots = ("BatchNormalization",)
    op_types: ClassVar[tuple[str, ...]]

    def match(self, node: ir.Node) -> Match | None:
        """A BatchNormalization whose data comes from one of ``op_types``."""
        before = producer(input_at(node, 0), node, *self.op_types)
        if before is None or len(node.inputs) != 5 or None in node.inputs[1:]:
            return None
        return Match(Linear(before), node)

    def check(self, match: Match, context: Context) -> str | None:
        """Inference mode, everything constant, one number per channel, finite results."""
        reason = _why_not_inference(match.norm, context.opset) or match.linear.refuse(context)
        if reason is None and match.linear.output_rank(context) != 2 and match.linear.op_type == "MatMul":
            reason = f"the channels of {describe(match.norm)} are not known to be the last axis"
        reason = reason or _why_not_parameters(match.norm, match.linear.channels)
        return reason or match.linear.refuse_affine(_affine(match.norm), context)

    def rewrite(self, match: Match, context: Context) -> None:
        """Fold scale and shift into the linear node."""
        norm = match.norm
        match.linear.absorb(_affine(norm), norm.outputs[0], context, bias_from=norm.inputs[2])


class ConvBatchNormalization(_BatchNormalization):
    """Conv or ConvTranspose, then BatchNormalization: one Conv or ConvTranspose."""

    name = "conv-batch-normalization"
    op_types = ("Conv", "ConvTranspose")


class GemmBatchNormalization(_BatchNormalization):
    """Gemm or MatMul of rank 2, then BatchNormalization: one Gemm."""

    name = "gemm-batch-normalization"
    op_types = ("Gemm", "MatMul")


def _why_not_inference(norm: ir.Node, opset: int) -> str | None:
    """Training mode is an attribute since opset 14; before, more than one output asked for it."""
    if opset >= 14 and norm.attributes.get_int("training_mode", 0) != 0:
        return f"{describe(norm)} is in training mode"
    if len(norm.outputs) != 1:
        return f"{describe(norm)} has more than one output"
    if norm.attributes.get_int("spatial", 1) != 1:  # opset 7 and 8
        return f"{describe(norm)} normalizes each position by itself"
    return None


def _why_not_parameters(norm: ir.Node, channels: int) -> str | None:
    for role, value in zip(_PARAMETERS, norm.inputs[1:], strict=True):
        assert value is not None
        reason = why_not_constant(value, f"the {role}")
        if reason is not None:
            return reason
        array = array_of(value)
        if array is None or array.shape != (channels,):
            return f"the {role} '{value.name}' is not one number for each of {channels} channels"
    variance = array_of(norm.inputs[4])
    assert variance is not None
    if not np.all(variance.astype(np.float64) + _epsilon(norm) > 0):
        return f"the variance '{norm.inputs[4].name}' is not positive"  # type: ignore[union-attr]
    return None


def _epsilon(norm: ir.Node) -> float:
    return norm.attributes.get_float("epsilon", 1e-5)


def _affine(norm: ir.Node) -> Affine:
    gamma, beta, mean, variance = (_float64(value) for value in norm.inputs[1:])
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        scale = gamma / np.sqrt(variance + _epsilon(norm))
        return Affine(scale, beta - scale * mean)


def _float64(value: ir.Value | None) -> Array:
    array = array_of(value)
    assert array is not None
    return array.astype(np.float64)
