"""Operators that MediaPipe adds to TFLite."""

from __future__ import annotations

import struct

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import SAME
from graphopt.converters.importers._tflite.operators.convolution import convolve_transposed
from graphopt.converters.importers._tflite.registry import converter

__all__ = ["transpose_bias_options"]


def transpose_bias_options(op: Operator) -> dict[str, int]:
    """Padding (as the schema numbers it) and strides of a Convolution2DTransposeBias.

    Its options are TFLite's C struct: padding (1 is SAME, 2 VALID), stride over columns, stride over rows.

    Raises:
        ValueError: They are not.
    """
    if len(op.custom_options) < 12:
        raise ValueError(f"{len(op.custom_options)} bytes of options; 12 are needed")
    padding, across, down = struct.unpack("<iii", op.custom_options[:12])
    if padding not in (1, 2) or min(across, down) < 1:
        raise ValueError(f"padding {padding}, strides {down}, {across}")
    return {"padding": padding - 1, "strideW": across, "strideH": down}


@converter("CUSTOM:Convolution2DTransposeBias")
def _transpose_bias(ctx: Context, op: Operator) -> None:
    """A transposed convolution: data, weights O, rows, columns, I, and a bias."""
    data, weight = op.inputs[0], op.inputs[1]
    options = transpose_bias_options(op)
    kernel = list(ctx.tensor(weight).shape[1:3])
    strides = [options["strideH"], options["strideW"]]
    sizes = []
    for size, k, stride in zip(ctx.tensor(data).shape[1:3], kernel, strides, strict=True):
        pads = max(k - (size - 1) % stride - 1, 0) if options["padding"] == SAME else 0
        sizes.append((size - 1) * stride + k - pads)
    if tuple(sizes) != ctx.tensor(op.outputs[0]).shape[1:3]:
        raise ValueError(f"its output is {sizes[0]} x {sizes[1]} by its options, in the file it is not")
    convolve_transposed(
        ctx, op, (data, weight, op.input(2)), (3, 0, 1, 2), strides, sizes, options["padding"]
    )
