"""Operators on images: resizing, sampling, regions."""

from __future__ import annotations

import numpy as np

from graphopt.analyses import dims as d
from graphopt.analyses.dims import Axis, Dim, fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Sizes, Unknown, anew, counted, rule, size_or_new

__all__: list[str] = []


@rule("Resize")
def _resize(op: Op) -> Inferred:
    data = op[0].dims
    if data is None:
        return Inferred(op[0].dtype)
    stretches = op.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    crops = op.text("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    given = op.integers("axes")
    axes = range(len(data)) if given is None else [counted(a, len(data)) for a in given]
    if not stretches:
        return Inferred(op[0].dtype, anew(len(data)))
    sizes: list[Dim] = list(data)
    if op.opset >= 11 and op.has(3):
        wanted = op.elements(3)
        if wanted is None or len(wanted) != len(axes):
            wanted = anew(len(axes))
        for axis, size in zip(axes, wanted, strict=True):
            sizes[axis] = size_or_new(size)
        return Inferred(op[0].dtype, sizes)
    scales = op.array(2 if op.opset >= 11 else 1)
    if crops or scales is None or scales.size != len(axes):
        return Inferred(op[0].dtype, anew(len(data)))
    for axis, scale in zip(axes, scales.reshape(-1), strict=True):
        sizes[axis] = _scaled(data[axis], np.float32(scale))  # type: ignore[arg-type]
    return Inferred(op[0].dtype, sizes)


@rule("Upsample")
def _upsample(op: Op) -> Inferred:
    data = op.dims(0)
    scales = op.array(1) if op.opset >= 9 else np.asarray(op.floats("scales") or (), np.float32)
    if scales is None or scales.size != len(data):
        return Inferred(op[0].dtype, anew(len(data)))
    pairs = zip(data, scales.reshape(-1), strict=True)
    return Inferred(op[0].dtype, [_scaled(size, np.float32(scale)) for size, scale in pairs])


def _scaled(size: int | Axis, scale: np.float32) -> int | Axis:
    """The scaled size where all ways to round agree, or the scale is whole; else a new axis."""
    if float(scale).is_integer():
        return d.multiply(size, int(scale))
    if isinstance(size, int) and int(np.float32(size) * scale) == int(size * float(scale)):
        return int(size * float(scale))
    return fresh()


@rule("GridSample")
def _grid_sample(op: Op) -> Inferred:
    return Inferred(op[0].dtype, (*op.dims(0)[:2], *op.dims(1)[1:-1]))


@rule("AffineGrid")
def _affine_grid(op: Op) -> Inferred:
    sizes = op.elements(1)
    if sizes is None or len(sizes) not in (4, 5):
        raise Unknown
    known = [size_or_new(s) for s in sizes]
    return Inferred(op[0].dtype, (known[0], *known[2:], len(known) - 2))


@rule("RoiAlign")
def _roi_align(op: Op) -> Inferred:
    size = op.integer("output_height", 1), op.integer("output_width", 1)
    return Inferred(op[0].dtype, (_first(op, 1), _second(op), *size))


@rule("MaxRoiPool")
def _max_roi_pool(op: Op) -> Inferred:
    return Inferred(op[0].dtype, (_first(op, 1), _second(op), *(op.integers("pooled_shape") or ())))


def _first(op: Op, index: int) -> int | Axis:
    return op.dims(index)[0]


def _second(op: Op) -> int | Axis:
    dims: Sizes = op.dims(0)
    return dims[1]
