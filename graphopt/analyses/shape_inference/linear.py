"""Matrix products, convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analyses import dims as d
from graphopt.analyses.dims import Axis, fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Sizes, Unknown, anew, rule
from graphopt.analyses.shape_inference.elementwise import broadcast_all

__all__ = ["convolved", "globally_pooled", "matrix_product", "pooled"]


def matrix_product(left: Sequence[int | Axis], right: Sequence[int | Axis]) -> Sizes:
    """The shape of numpy's ``matmul``: vectors count as a row or a column that goes again."""
    rows, columns = tuple(left[-2:-1]), tuple(right[-1:]) if len(right) > 1 else ()
    batch = broadcast_all([tuple(left[:-2]), tuple(right[:-2])])
    return (*batch, *rows, *columns)


@rule("MatMul")
def _matmul(op: Op) -> Inferred:
    left, right = op[0].dims, op[1].dims
    if left is None or right is None:
        return Inferred(op[0].dtype)
    return Inferred(op[0].dtype, matrix_product(left, right))  # type: ignore[arg-type]


@rule("MatMulInteger")
def _matmul_integer(op: Op) -> Inferred:
    return Inferred(ir.DataType.INT32, matrix_product(op.dims(0), op.dims(1)))


@rule("QLinearMatMul")
def _quantized_matmul(op: Op) -> Inferred:
    return Inferred(op[7].dtype, matrix_product(op.dims(0), op.dims(3)))


@rule("Gemm")
def _gemm(op: Op) -> Inferred:
    left, right = op[0].dims, op[1].dims
    row, column = op.integer("transA", 0) != 0, op.integer("transB", 0) == 0
    rows = fresh() if left is None else left[row]
    columns = fresh() if right is None else right[column]
    return Inferred(op[0].dtype, (rows, columns))


def _window(
    op: Op, rank: int, kernel: Sequence[int | Axis]
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Strides, dilations and pads (all begins, then all ends) of a window over ``rank`` axes."""
    strides = op.integers("strides") or (1,) * rank
    dilations = op.integers("dilations") or (1,) * rank
    pads = op.integers("pads") or (0,) * (2 * rank)
    if not len(strides) == len(dilations) == len(kernel) == rank or len(pads) != 2 * rank:
        raise ValueError("strides, dilations, pads and kernel do not fit the input")
    return strides, dilations, pads


def _slid(op: Op, data: Sizes, kernel: Sequence[int | Axis], *, ceil: bool = False) -> list[int | Axis]:
    """How many places a window has along each axis; a new axis where runtimes differ, or it does not fit."""
    rank = len(data)
    strides, dilations, pads = _window(op, rank, kernel)
    padding = op.text("auto_pad", "NOTSET")
    sizes = []
    for i, size in enumerate(data):
        if padding.startswith("SAME"):
            dilated = any(n != 1 for n in dilations)
            sizes.append(fresh() if dilated else d.floor_divide(d.add(size, strides[i] - 1), strides[i]))
            continue
        width = d.add(d.multiply(d.add(kernel[i], -1), dilations[i]), 1)
        border = 0 if padding == "VALID" else pads[i] + pads[i + rank]
        room = d.subtract(d.add(size, border), width)
        sizes.append(_places(room, strides[i], size, 0 if padding == "VALID" else pads[i], ceil=ceil))
    return sizes


def _places(room: int | Axis, stride: int, size: int | Axis, begin: int, *, ceil: bool) -> int | Axis:
    count = d.add(d.floor_divide(room, stride), 1)
    if ceil and stride > 1:
        if not isinstance(room, int) or not isinstance(size, int) or not isinstance(count, int):
            return fresh()
        rounded = -(-room // stride) + 1
        if rounded != count and (rounded - 1) * stride >= size + begin:
            return fresh()  # the last window would lie in the padding: runtimes differ in whether it counts
        count = rounded
    return fresh() if isinstance(count, int) and count < 1 else count


def convolved(op: Op, data: int, weight: int) -> Sizes:
    """The shape that a convolution of two of the inputs gives."""
    image, filters = op.dims(data), op.dims(weight)
    kernel: Sequence[int | Axis] = op.integers("kernel_shape") or filters[2:]
    return (image[0], filters[0], *_slid(op, image[2:], kernel))


@rule("Conv", "DeformConv")
def _conv(op: Op) -> Inferred:
    return Inferred(
        op[0].dtype, convolved(op, 0, 1) if op[1].dims is not None and op[0].dims is not None else None
    )


@rule("ConvInteger")
def _conv_integer(op: Op) -> Inferred:
    return Inferred(ir.DataType.INT32, convolved(op, 0, 1))


@rule("QLinearConv")
def _quantized_conv(op: Op) -> Inferred:
    return Inferred(op[7].dtype, convolved(op, 0, 3))


@rule("ConvTranspose")
def _conv_transpose(op: Op) -> Inferred:
    image, filters = op.dims(0), op.dims(1)
    rank = len(image) - 2
    channels = d.multiply(filters[1], op.integer("group", 1))
    wanted = op.integers("output_shape")
    if wanted is not None:
        return Inferred(op[0].dtype, (image[0], channels, *wanted[-rank:]))
    kernel: Sequence[int | Axis] = op.integers("kernel_shape") or filters[2:]
    strides, dilations, pads = _window(op, rank, kernel)
    extra = op.integers("output_padding") or (0,) * rank
    padding = op.text("auto_pad", "NOTSET")
    if padding.startswith("SAME"):  # runtimes differ
        return Inferred(op[0].dtype, (image[0], channels, *anew(rank)))
    sizes: list[int | Axis] = []
    for i, size in enumerate(image[2:]):
        width = d.add(d.multiply(d.add(kernel[i], -1), dilations[i]), 1)
        border = 0 if padding == "VALID" else pads[i] + pads[i + rank]
        full = d.add(d.multiply(d.add(size, -1), strides[i]), d.add(width, extra[i] - border))
        sizes.append(fresh() if isinstance(full, int) and full < 1 else full)
    return Inferred(op[0].dtype, (image[0], channels, *sizes))


def pooled(op: Op, data: int = 0) -> Sizes:
    """The shape that a pool gives."""
    image = op.dims(data)
    kernel = op.integers("kernel_shape")
    if kernel is None:
        raise LookupError("attribute 'kernel_shape' is missing")
    ceil = op.integer("ceil_mode", 0) != 0
    return (*image[:2], *_slid(op, image[2:], kernel, ceil=ceil))


@rule("AveragePool", "LpPool")
def _pool(op: Op) -> Inferred:
    return Inferred(op[0].dtype, pooled(op) if op[0].dims is not None else None)


@rule("MaxPool")
def _max_pool(op: Op) -> list[Inferred]:
    dims = pooled(op) if op[0].dims is not None else None
    return [Inferred(op[0].dtype, dims), Inferred(ir.DataType.INT64, dims)]


def globally_pooled(op: Op) -> Sizes:
    """The shape that a pool over whole images gives."""
    image = op.dims(0)
    return (*image[:2], *([1] * (len(image) - 2)))


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(op: Op) -> Inferred:
    return Inferred(op[0].dtype, globally_pooled(op))


@rule("MaxUnpool")
def _max_unpool(op: Op) -> Inferred:
    image = op.dims(0)
    return Inferred(op[0].dtype, (*image[:2], *anew(len(image) - 2)))


@rule("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def _loss(op: Op) -> list[Inferred]:
    whole = op.text("reduction", "mean") == "none"
    return [Inferred(op[0].dtype, op[1].dims if whole else ()), Inferred(op[0].dtype, op[0].dims)]


@rule("CausalConvWithState", "LinearAttention", "SwiGLU")
def _unsure(op: Op) -> Inferred:
    raise Unknown
