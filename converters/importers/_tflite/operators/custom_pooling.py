"""MediaPipe's pooling that tells where the largest elements were, and its inverse."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Array, Operator
from graphopt.converters.importers._tflite.operators._common import (
    channels_first,
    channels_last,
    output_name,
    padding,
)
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

__all__ = ["PoolOptions"]


class PoolOptions(NamedTuple):
    """Rows before columns; ``padding`` as the schema numbers it (0 is SAME)."""

    padding: int
    strides: tuple[int, int]
    kernel: tuple[int, int]

    @classmethod
    def of(cls, op: Operator) -> PoolOptions:
        """Read TFLite's C struct: padding (1 is SAME), strides and kernel as columns, rows; an activation.

        Raises:
            ValueError: They are not.
        """
        if len(op.custom_options) < 24:
            raise ValueError(f"{len(op.custom_options)} bytes of options; 24 are needed")
        kind, across, down, columns, rows, activation = struct.unpack("<6i", op.custom_options[:24])
        if kind not in (1, 2) or min(across, down, columns, rows) < 1:
            raise ValueError(f"padding {kind}, strides {down}, {across}, kernel {rows}, {columns}")
        if activation:
            raise UnsupportedError(f"{op.place}: activation function {activation} is not supported")
        return cls(kind - 1, (down, across), (rows, columns))


def _size(ctx: Context, op: Operator) -> tuple[int, int]:
    rows, columns = ctx.dims(op.inputs[0])[1:3]
    if rows < 1 or columns < 1:
        raise UnsupportedError(f"{op.place}: free height or width is not supported")
    return rows, columns


def _corner(count: int, stride: int, pad: int) -> Array:
    """Where each window begins."""
    return np.arange(count, dtype=np.int64) * stride - pad


@converter("CUSTOM:MaxPoolingWithArgmax2D")
def _max_pool(ctx: Context, op: Operator) -> None:
    """The place is that inside the window, ``row * columns + column``, plus 0.1, as a float."""
    options, (rows, columns) = PoolOptions.of(op), _size(ctx, op)
    attributes = padding(options.padding, (rows, columns), options.kernel, options.strides, (1, 1))
    pads = attributes.get("pads", [0, 0, 0, 0])
    assert isinstance(pads, list)
    name = output_name(ctx, op)
    first = channels_first(ctx, ctx.real(op.inputs[0]))
    shape = {"kernel_shape": options.kernel, "strides": options.strides, **attributes}
    values, flat = ctx.build.nodes_of("MaxPool", [first], shape, 2, name)
    place = ctx.build.op("Mod", flat, ctx.build.ints([rows * columns]))
    counts = [
        (size + sum(pads[axis::2]) - kernel) // stride + 1
        for axis, (size, kernel, stride) in enumerate(
            zip((rows, columns), options.kernel, options.strides, strict=True)
        )
    ]
    corners = [_corner(n, s, p) for n, s, p in zip(counts, options.strides, pads, strict=False)]
    width = ctx.build.ints([columns])
    row = ctx.build.op("Sub", ctx.build.op("Div", place, width), ctx.build.ints(corners[0][:, None]))
    column = ctx.build.op("Sub", ctx.build.op("Mod", place, width), ctx.build.ints(corners[1]))
    inside = ctx.build.op("Mul", row, ctx.build.ints([options.kernel[1]]))
    whole = ctx.build.cast(ctx.build.op("Add", inside, column), ir.DataType.FLOAT)
    marked = ctx.build.op("Add", whole, ctx.build.constant(np.float32(0.1)))
    ctx.set(op.outputs[0], channels_last(ctx, values, 4, name))
    ctx.set(op.outputs[1], channels_last(ctx, marked, 4, ctx.tensor(op.outputs[1]).name))


@converter("CUSTOM:MaxUnpooling2D")
def _max_unpool(ctx: Context, op: Operator) -> None:
    """Each element goes to its place in a window of zeros; windows that overlap are refused."""
    options, (rows, columns) = PoolOptions.of(op), _size(ctx, op)
    if options.strides != options.kernel:
        raise UnsupportedError(f"{op.place}: windows that overlap or leave gaps are not supported")
    height, width = options.kernel
    name = output_name(ctx, op)
    first = channels_first(ctx, ctx.real(op.inputs[0]))
    place = ctx.build.cast(channels_first(ctx, ctx.real(op.inputs[1])), ir.DataType.INT64)
    across = ctx.build.ints([width])
    row = ctx.build.op(
        "Add", ctx.build.op("Div", place, across), ctx.build.ints(_corner(rows, height, 0)[:, None])
    )
    column = ctx.build.op(
        "Add", ctx.build.op("Mod", place, across), ctx.build.ints(_corner(columns, width, 0))
    )
    flat = ctx.build.op("Add", ctx.build.op("Mul", row, ctx.build.ints([columns * width])), column)
    lines = ctx.build.ints([0, 0, -1])
    total = ctx.build.ints([rows * height * columns * width])
    shape = ctx.build.op("Concat", ctx.build.op("Shape", first, end=2), total, axis=0)
    zeros = ctx.build.op("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, np.float32)))
    places, values = (ctx.build.op("Reshape", value, lines) for value in (flat, first))
    made = ctx.build.op("ScatterElements", zeros, places, values, axis=2)
    whole = ctx.build.op("Reshape", made, ctx.build.ints([0, 0, rows * height, columns * width]), name=name)
    ctx.set(op.outputs[0], channels_last(ctx, whole, 4, name))
