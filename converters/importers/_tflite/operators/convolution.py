"""Convolutions: weights O, kernel, I become O, I, kernel; data is transposed to channels first and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    SAME,
    finish_first,
    output_name,
    padding,
    real_first,
)
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

__all__ = ["convolve_transposed"]


def _numbers(op: Operator, what: str, axes: str) -> list[int]:
    return [int(op.options.get(f"{what}{axis}", 1)) for axis in axes]


def _dilations(op: Operator, axes: str) -> list[int]:
    return [int(op.options.get(f"dilation{axis}Factor", 1)) for axis in axes]


def _convolve(ctx: Context, op: Operator, order: Sequence[int], axes: str, group: int | None) -> None:
    """Conv of any rank; ``order`` takes the weight to O, I, kernel."""
    data, weight = op.inputs[0], op.inputs[1]
    shape = [ctx.tensor(weight).shape[axis] for axis in order]
    rank = len(shape)
    channels = ctx.tensor(data).shape[-1]
    if ctx.tensor(data).rank != rank or min(shape) < 1:
        raise ValueError(f"data of rank {ctx.tensor(data).rank}, weight of shape {shape}")
    groups = channels // shape[1] if group is None else group
    if groups < 1 or shape[1] * groups != channels or shape[0] % groups:
        raise ValueError(f"{channels} channels in, weight {shape}")
    strides, dilations = _numbers(op, "stride", axes), _dilations(op, axes)
    attributes: dict[str, Any] = {
        "kernel_shape": shape[2:],
        "strides": strides,
        "dilations": dilations,
        "group": groups,
        **padding(op.options.get("padding", SAME), ctx.dims(data)[1:-1], shape[2:], strides, dilations),
    }
    _conv(ctx, op, "Conv", (data, weight, op.input(2)), order, attributes)


def _conv(
    ctx: Context,
    op: Operator,
    op_type: str,
    tensors: tuple[int, int, int],
    order: Sequence[int],
    attributes: dict[str, Any],
) -> None:
    """The node, of data, weight and bias; ``order`` takes the weight to the axes that ONNX has."""
    data, weight, bias = tensors
    inputs = [
        real_first(ctx, data),
        ctx.weight(weight, lambda array: array.transpose(order), _channel_axis(ctx, weight, order)),
        ctx.bias(bias),
    ]
    (made,) = ctx.build.nodes_of(op_type, inputs, attributes, 1, output_name(ctx, op))
    finish_first(ctx, op, made, len(order))


def _channel_axis(ctx: Context, weight: int, order: Sequence[int]) -> int | None:
    q = ctx.tensor(weight).quantization
    return None if q is None or not q.per_channel else list(order).index(q.axis)


@converter("CONV_2D")
def _conv_2d(ctx: Context, op: Operator) -> None:
    _convolve(ctx, op, (0, 3, 1, 2), "HW", None)


@converter("CONV_3D")
def _conv_3d(ctx: Context, op: Operator) -> None:
    _convolve(ctx, op, (4, 3, 0, 1, 2), "DHW", None)


@converter("DEPTHWISE_CONV_2D")
def _depthwise(ctx: Context, op: Operator) -> None:
    _convolve(ctx, op, (3, 0, 1, 2), "HW", ctx.tensor(op.inputs[0]).shape[-1])


def convolve_transposed(
    ctx: Context,
    op: Operator,
    tensors: tuple[int, int, int],
    order: Sequence[int],
    strides: Sequence[int],
    sizes: Sequence[int],
    kind: int,
) -> None:
    """ConvTranspose of data, weight and bias to these sizes; ``order`` takes the weight to I, O, kernel."""
    data, weight, _ = tensors
    kernel = [ctx.tensor(weight).shape[axis] for axis in order[2:]]
    attributes = _transposed_attributes(ctx, op, data, kernel, strides, sizes, kind)
    _conv(ctx, op, "ConvTranspose", tensors, order, attributes)


def _transposed_attributes(
    ctx: Context,
    op: Operator,
    data: int,
    kernel: Sequence[int],
    strides: Sequence[int],
    sizes_out: Sequence[int],
    kind: int,
) -> dict[str, Any]:
    """Attributes with which a ConvTranspose has the output size that the file says.

    ``size_out = (size_in - 1) * stride + kernel - pads``; SAME halves the pads, the odd one at the end; what
    is missing at the end is output padding.
    """
    sizes_in, free = ctx.tensor(data).shape[1:-1], min(ctx.dims(data)[1:-1]) < 0
    if free and any(o != i * s for o, i, s in zip(sizes_out, sizes_in, strides, strict=True)):
        raise UnsupportedError(f"{op.place}: an output size that is computed is not supported")
    begins, ends, extra = [], [], []
    for size, wanted, k, stride in zip(sizes_in, sizes_out, kernel, strides, strict=True):
        total = (size - 1) * stride + k - wanted
        begin = max(total, 0) // 2 if kind == SAME else 0
        begins.append(begin)
        ends.append(max(total - begin, 0))
        extra.append(max(begin - total, 0))
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides)}
    attributes["pads"] = [*begins, *ends]
    return {**attributes, "output_padding": extra} if any(extra) else attributes


def _builtin_transposed(ctx: Context, op: Operator, order: Sequence[int], axes: str) -> None:
    """``order`` takes the weight to I, O, kernel."""
    weight, data = op.inputs[1], op.inputs[2]
    strides = _numbers(op, "stride", axes)
    if any(dilation != 1 for dilation in _dilations(op, axes)):
        raise UnsupportedError(f"{op.place}: dilation is not supported")
    wanted = ctx.array(op.inputs[0])
    sizes = list(ctx.tensor(op.outputs[0]).shape[1:-1])
    if wanted is not None:
        sizes = [int(n) for n in wanted.reshape(-1)[1:-1]]
    kind = op.options.get("padding", SAME)
    convolve_transposed(ctx, op, (data, weight, op.input(3)), order, strides, sizes, kind)


@converter("TRANSPOSE_CONV")
def _transpose_conv(ctx: Context, op: Operator) -> None:
    _builtin_transposed(ctx, op, (3, 0, 1, 2), "HW")


@converter("CONV_3D_TRANSPOSE")
def _conv_3d_transpose(ctx: Context, op: Operator) -> None:
    _builtin_transposed(ctx, op, (4, 3, 0, 1, 2), "DHW")
