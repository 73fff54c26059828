"""Operators that pick elements by index, or find indices."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses import dims as d
from graphopt.analyses.dims import fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Unknown, anew, rule

__all__: list[str] = []


@rule("Gather")
def _gather(op: Op) -> Inferred:
    data, indices = op[0].dims, op[1].dims
    if data is None or indices is None:
        return Inferred(op[0].dtype)
    axis = op.axis(len(data), 0)
    return Inferred(op[0].dtype, (*data[:axis], *indices, *data[axis + 1 :]))


@rule("GatherElements")
def _gather_elements(op: Op) -> Inferred:
    return Inferred(op[0].dtype, op[1].dims)


@rule("GatherND")
def _gather_nd(op: Op) -> Inferred:
    data, indices = op.dims(0), op.dims(1)
    if not isinstance(indices[-1], int):
        return Inferred(op[0].dtype)
    batch = op.integer("batch_dims", 0)
    return Inferred(op[0].dtype, (*indices[:-1], *data[batch + indices[-1] :]))


@rule("ArgMax", "ArgMin")
def _arg(op: Op) -> Inferred:
    if op[0].dims is None:
        return Inferred(ir.DataType.INT64)
    data = op.dims(0)
    axis = op.axis(len(data), 0)
    kept = (1,) if op.integer("keepdims", 1) else ()
    return Inferred(ir.DataType.INT64, (*data[:axis], *kept, *data[axis + 1 :]))


@rule("TopK")
def _top_k(op: Op) -> list[Inferred]:
    if op[0].dims is None:
        return [Inferred(op[0].dtype), Inferred(ir.DataType.INT64)]
    data = list(op.dims(0))
    given = op.numbers(1) if op.opset >= 10 else (op.integer("k", -1),)
    data[op.axis(len(data), -1)] = given[0] if given and given[0] >= 0 else fresh()
    return [Inferred(op[0].dtype, data), Inferred(ir.DataType.INT64, data)]


@rule("OneHot")
def _one_hot(op: Op) -> Inferred:
    indices, depth = op.dims(0), op.elements(1)
    axis = op.axis(len(indices) + 1, -1)
    size = depth[0] if depth and isinstance(depth[0], int) and depth[0] >= 0 else fresh()
    return Inferred(op[2].dtype, (*indices[:axis], size, *indices[axis:]))


@rule("NonZero")
def _non_zero(op: Op) -> Inferred:
    data = op[0].dims
    rows = fresh() if data is None else max(len(data), 1)
    return Inferred(ir.DataType.INT64, (rows, fresh()))


@rule("Compress")
def _compress(op: Op) -> Inferred:
    if op.node.attributes.get("axis") is None:
        return Inferred(op[0].dtype, anew(1))
    data = list(op.dims(0))
    data[op.axis(len(data), 0)] = fresh()
    return Inferred(op[0].dtype, data)


@rule("Unique")
def _unique(op: Op) -> list[Inferred]:
    """With an axis the first output keeps the rank of the input."""
    count = fresh()
    counts = [Inferred(ir.DataType.INT64, dims) for dims in ((count,), anew(1), (count,))]
    if op.node.attributes.get("axis") is None:
        return [Inferred(op[0].dtype, (count,)), *counts]
    data = list(op.dims(0))
    data[op.axis(len(data), 0)] = count
    return [Inferred(op[0].dtype, data), *counts]


@rule("NonMaxSuppression")
def _non_max_suppression(op: Op) -> Inferred:
    return Inferred(ir.DataType.INT64, (fresh(), 3))


@rule("EyeLike")
def _eye_like(op: Op) -> Inferred:
    return Inferred(op.dtype("dtype", op[0].dtype), op[0].dims)


@rule("Det")
def _det(op: Op) -> Inferred:
    return Inferred(op[0].dtype, op.dims(0)[:-2])


@rule("Einsum")
def _einsum(op: Op) -> Inferred:
    """Labels are sizes; one that several operands have may be 1 in some of them."""
    left, arrow, right = op.text("equation", "").replace(" ", "").partition("->")
    if not arrow or "." in left:
        raise Unknown
    sizes: dict[str, d.Dim] = {}
    for term, index in zip(left.split(","), range(len(op.inputs)), strict=True):
        for label, size in zip(term, op.dims(index), strict=True):
            known = sizes.get(label, 1)
            sizes[label] = d.broadcast(known, size)  # type: ignore[arg-type]
    return Inferred(op[0].dtype, [sizes[label] for label in right])
