"""Images of another size."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    channels_first,
    channels_last,
    finish_first,
    finish_stored,
    output_name,
    real_first,
    to_int64,
)
from graphopt.converters.importers._tflite.registry import converter


def _coordinates(op: Operator) -> str:
    if op.options.get("alignCorners", False):
        return "align_corners"
    return "half_pixel" if op.options.get("halfPixelCenters", False) else "asymmetric"


def _resized(ctx: Context, op: Operator, value: ir.Value, **attributes: object) -> ir.Value:
    """Resize of values in NCHW: batch and channels keep their sizes."""
    name = output_name(ctx, op)
    wanted = to_int64(ctx, op.inputs[1])
    return ctx.build.op(
        "Resize",
        value,
        None,
        None,
        wanted,
        name=name,
        axes=[2, 3],
        coordinate_transformation_mode=_coordinates(op),
        **attributes,
    )


@converter("RESIZE_BILINEAR")
def _bilinear(ctx: Context, op: Operator) -> None:
    finish_first(ctx, op, _resized(ctx, op, real_first(ctx, op.inputs[0]), mode="linear"))


@converter("RESIZE_NEAREST_NEIGHBOR")
def _nearest(ctx: Context, op: Operator) -> None:
    """Rounding of the place in the input: down, or to the nearest with aligned corners (halves up)."""
    rounding = "round_prefer_ceil" if op.options.get("alignCorners", False) else "floor"
    coordinates = _coordinates(op)
    if coordinates == "half_pixel":
        # TFLite takes floor((i + 0.5) * scale), ONNX subtracts another half: rounding makes up for it.
        rounding = "round_prefer_ceil"
    first = channels_first(ctx, ctx.stored(op.inputs[0]))
    made = _resized(ctx, op, first, mode="nearest", nearest_mode=rounding)
    finish_stored(ctx, op, channels_last(ctx, made, 4, output_name(ctx, op)), op.inputs[0])
