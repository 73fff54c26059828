"""The last step of object detectors: boxes from their encoding, non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from flatbuffers import flexbuffers

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import output_name, to_int64
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


@converter("CUSTOM:TFLite_Detection_PostProcess")
def _post_process(ctx: Context, op: Operator) -> None:
    """Boxes, classes, scores and their number, filled up with zeros.

    The fast way: each box counts for its best class alone. Source: TFLite's detection_postprocess.cc.
    """
    options: dict[str, Any] = flexbuffers.Loads(bytearray(op.custom_options))
    if options.get("use_regular_nms", False) or int(options["max_classes_per_detection"]) != 1:
        raise UnsupportedError(f"{op.place}: suppression by class, or several classes for a box")
    if ctx.dims(op.inputs[0])[0] != 1:
        raise UnsupportedError(f"{op.place}: of a batch is not supported")
    count = int(options["max_detections"])
    boxes = _decoded(ctx, op, options)
    best, kinds = _best(ctx, op, int(options["num_classes"]))
    # TFLite keeps a score that is equal to the threshold, ONNX does not.
    least = np.asarray(np.nextafter(np.float32(options["nms_score_threshold"]), np.float32(-np.inf)))
    limits = [np.array([count], np.int64), np.array([options["nms_iou_threshold"]], np.float32), least[None]]
    constants = [ctx.build.constant(limit) for limit in limits]
    found = ctx.build.op("NonMaxSuppression", boxes, best, *constants)
    chosen = ctx.build.op("Gather", found, ctx.build.constant(np.int64(2)), axis=1)
    missing = ctx.build.op("Sub", ctx.build.ints([count]), ctx.build.op("Shape", chosen))
    scores = ctx.build.op("Squeeze", best, ctx.build.ints([1]))
    for index, value in zip(op.outputs, (boxes, kinds, scores), strict=False):
        picked = ctx.build.op("Gather", value, chosen, axis=1)
        before = [0] * (2 * ctx.tensor(index).rank)
        pads = [ctx.build.ints(before[: len(before) // 2 + 1]), missing]
        if len(before) == 6:
            pads.append(ctx.build.ints([0]))
        whole = ctx.build.op(
            "Pad", picked, ctx.build.op("Concat", *pads, axis=0), name=ctx.tensor(index).name
        )
        ctx.set(index, whole)
    number = ctx.build.op("Shape", chosen)
    ctx.set(op.outputs[3], ctx.build.cast(number, ir.DataType.FLOAT, output_name(ctx, op)))


def _decoded(ctx: Context, op: Operator, options: dict[str, Any]) -> ir.Value:
    """Corners of the boxes: centre and size relative to the anchors, all as y, x, height, width."""
    scales = np.array([options[f"{name}_scale"] for name in "yxhw"], np.float32)
    anchors = ctx.real_array(op.inputs[2])
    if anchors is None:
        raise UnsupportedError(f"{op.place}: anchors that are computed are not supported")
    encoded = ctx.build.op("Div", ctx.real(op.inputs[0]), ctx.build.constant(scales))
    centres, sizes = ctx.build.nodes_of("Split", [encoded], {"axis": 2, "num_outputs": 2}, 2)
    middle, extent = (ctx.build.constant(part) for part in (anchors[:, :2], anchors[:, 2:]))
    centre = ctx.build.op("Add", ctx.build.op("Mul", centres, extent), middle)
    half = ctx.build.op(
        "Mul", ctx.build.op("Exp", sizes), ctx.build.constant(anchors[:, 2:] * np.float32(0.5))
    )
    corners = (ctx.build.op(op_type, centre, half) for op_type in ("Sub", "Add"))
    return ctx.build.op("Concat", *corners, axis=2)


def _best(ctx: Context, op: Operator, classes: int) -> tuple[ir.Value, ir.Value]:
    """Scores [1, 1, boxes] of the best classes, and these as floats [1, boxes]; a first one is background."""
    value, offset = ctx.real(op.inputs[1]), ctx.dims(op.inputs[1])[2] - classes
    if offset < 0:
        raise ValueError(f"{classes} classes, scores of {ctx.dims(op.inputs[1])[2]}")
    if offset:
        bounds = [ctx.build.ints([n]) for n in (offset, offset + classes, 2)]
        value = ctx.build.op("Slice", value, *bounds)
    scores = ctx.build.op("ReduceMax", value, ctx.build.ints([2]), keepdims=0)
    kinds = ctx.build.op("ArgMax", value, axis=2, keepdims=0)
    best = ctx.build.op("Unsqueeze", scores, ctx.build.ints([1]))
    return best, ctx.build.cast(kinds, ir.DataType.FLOAT)


@converter("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
def _suppression(ctx: Context, op: Operator) -> None:
    """Indices of the boxes that are left, in version 5 their scores, zeros behind them; how many they are."""
    sigma = ctx.real_array(op.input(5)) if op.name.endswith("V5") else np.zeros(())
    if sigma is None or sigma.any():
        raise UnsupportedError(f"{op.place}: soft suppression, or with a sigma that is computed")
    vector, scores = ctx.build.ints([1]), ctx.real(op.inputs[1])
    count = ctx.build.op("Reshape", to_int64(ctx, op.inputs[2]), vector)
    limits = [ctx.build.op("Reshape", ctx.real(index), vector) for index in op.inputs[3:5]]
    boxes = ctx.build.op("Unsqueeze", ctx.real(op.inputs[0]), ctx.build.ints([0]))
    rows = ctx.build.op("Unsqueeze", scores, ctx.build.ints([0, 1]))
    found = ctx.build.op("NonMaxSuppression", boxes, rows, count, *limits)
    chosen = ctx.build.op("Gather", found, ctx.build.constant(np.int64(2)), axis=1)
    number = ctx.build.op("Shape", chosen)
    pads = ctx.build.op("Concat", ctx.build.ints([0]), ctx.build.op("Sub", count, number), axis=0)
    results = [ctx.build.cast(chosen, ir.DataType.INT32)]
    if op.name.endswith("V5"):
        results.append(ctx.build.op("Gather", scores, chosen, axis=0))
    *filled, last = op.outputs
    for index, value in zip(filled, results, strict=True):
        ctx.set(index, ctx.build.op("Pad", value, pads, name=ctx.tensor(index).name))
    single = ctx.build.op("Reshape", number, ctx.build.ints([]))
    ctx.set(last, ctx.build.cast(single, ir.DataType.INT32, ctx.tensor(last).name))
