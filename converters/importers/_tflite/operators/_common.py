"""What several families of operators need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context, onnx_type
from graphopt.converters.importers._tflite.model import Operator
from graphopt.errors import UnsupportedError

__all__ = [
    "SAME",
    "activated",
    "channels_first",
    "channels_last",
    "clip",
    "finish",
    "finish_first",
    "finish_int64",
    "finish_stored",
    "normal_axis",
    "output_name",
    "padding",
    "real_first",
    "to_int64",
]

SAME = 0
_RELU, _RELU_N1_TO_1, _RELU6 = range(1, 4)


def output_name(ctx: Context, op: Operator) -> str:
    """The name of the operator's first output, which its nodes are named after."""
    return ctx.tensor(op.outputs[0]).name


def clip(ctx: Context, value: ir.Value, low: float | None, high: float | None, name: str = "") -> ir.Value:
    """Clip of float values."""
    bounds = [None if bound is None else ctx.build.constant(np.float32(bound)) for bound in (low, high)]
    return ctx.build.op("Clip", value, *bounds, name=name)


def activated(ctx: Context, op: Operator, value: ir.Value) -> ir.Value:
    """The activation function that is part of the operator."""
    kind = op.options.get("fusedActivationFunction", 0)
    name = output_name(ctx, op)
    if kind == 0:
        return value
    if kind == _RELU:
        return ctx.build.op("Relu", value, name=name)
    if kind == _RELU_N1_TO_1:
        return clip(ctx, value, -1, 1, name)
    if kind == _RELU6:
        return clip(ctx, value, 0, 6, name)
    # TANH and SIGN_BIT: LiteRT's kernels leave them out without a word, XNNPACK refuses them.
    raise UnsupportedError(f"{op.place}: activation function {kind} is not supported inside this operator")


def finish(ctx: Context, op: Operator, value: ir.Value) -> None:
    """Real numbers become the operator's output, after its own activation function."""
    ctx.set_real(op.outputs[0], activated(ctx, op, value))


def finish_stored(ctx: Context, op: Operator, value: ir.Value, source: int) -> None:
    """Stored numbers of ``source``, moved about, become the output; requantized if its scale is another."""
    if ctx.same_quantization(source, op.outputs[0]):
        ctx.set(op.outputs[0], value)
    else:
        tensor = ctx.tensor(source)
        real = ctx.dequantize(value, tensor) if tensor.quantized else value
        ctx.set_real(op.outputs[0], real)


def finish_int64(ctx: Context, index: int, op: Operator, value: ir.Value) -> None:
    """Sizes or indices, which ONNX makes as int64, become an output of the file's integer type."""
    tensor = ctx.tensor(index)
    wanted = onnx_type(tensor, op.place)
    ctx.set(index, value if wanted == ir.DataType.INT64 else ctx.build.cast(value, wanted, tensor.name))


def _order(rank: int, last: bool) -> list[int]:
    return [0, *range(2, rank), 1] if last else [0, rank - 1, *range(1, rank - 1)]


def channels_first(ctx: Context, value: ir.Value, rank: int = 4, name: str = "") -> ir.Value:
    """NHWC to NCHW."""
    return ctx.build.op("Transpose", value, name=name, perm=_order(rank, last=False))


def channels_last(ctx: Context, value: ir.Value, rank: int = 4, name: str = "") -> ir.Value:
    """NCHW to NHWC."""
    return ctx.build.op("Transpose", value, name=name, perm=_order(rank, last=True))


def real_first(ctx: Context, index: int) -> ir.Value:
    """Real numbers in NCHW; quantized ones are transposed as they are stored.

    A DequantizeLinear stands right before the operator so: runtimes look for it there.
    """
    tensor = ctx.tensor(index)
    value = channels_first(ctx, ctx.stored(index), tensor.rank)
    return ctx.dequantize(value, tensor) if tensor.quantized else value


def finish_first(ctx: Context, op: Operator, value: ir.Value, rank: int = 4) -> None:
    """Real numbers in NCHW become the output, after the activation function inside and QuantizeLinear."""
    tensor = ctx.tensor(op.outputs[0])
    value = activated(ctx, op, value)
    if tensor.quantized:
        value = ctx.quantize(value, tensor)
    ctx.set(op.outputs[0], channels_last(ctx, value, rank, tensor.name))


def padding(
    kind: int,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> dict[str, object]:
    """The attributes for SAME or VALID padding; SAME puts the odd one at the end.

    With a stride of 1 the pads do not depend on the size; else a free axis leaves them to the runtime.
    """
    if kind != SAME:
        return {}
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        if size < 0 and stride > 1 and reach > 1:
            return {"auto_pad": "SAME_UPPER"}
        count = -(-size // stride) if size >= 0 else 1
        total = max((count - 1) * stride + reach - size, 0) if size >= 0 else max(reach - stride, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return {"pads": [*begins, *ends]} if any(begins) or any(ends) else {}


def normal_axis(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        ValueError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank}")
    return axis % rank


def to_int64(ctx: Context, index: int, name: str = "") -> ir.Value:
    """An integer tensor as ONNX wants sizes and indices: constants are converted now."""
    array = ctx.array(index)
    if array is not None:
        return ctx.build.ints(array.astype(np.int64), ctx.tensor(index).name or "constant")
    value = ctx.stored(index)
    return value if ctx.tensor(index).type == "INT64" else ctx.build.cast(value, ir.DataType.INT64, name)
