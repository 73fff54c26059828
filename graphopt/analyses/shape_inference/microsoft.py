"""Operators of onnxruntime that appear in real files. Those without a rule here have no known shape."""

from __future__ import annotations

from graphopt.analyses import dims as d
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Unknown, rule
from graphopt.analyses.shape_inference.elementwise import broadcast_all, like
from graphopt.analyses.shape_inference.linear import convolved, globally_pooled, matrix_product, pooled

__all__: list[str] = []
_DOMAIN = "com.microsoft"


@rule("BiasGelu", "FastGelu", "Gelu", "QuickGelu", domain=_DOMAIN)
@rule("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", domain=_DOMAIN)
def _like_first(op: Op) -> Inferred:
    return like(op[0])


@rule("QLinearAdd", "QLinearMul", domain=_DOMAIN)
def _quantized_arithmetic(op: Op) -> Inferred:
    """A and B stand at 0 and 3, each followed by its scale and zero point."""
    return Inferred(op[0].dtype, broadcast_all([op.dims(0), op.dims(3)]))


@rule("QLinearConcat", domain=_DOMAIN)
def _quantized_concat(op: Op) -> Inferred:
    """Scale and zero point of the output, then tensor, scale and zero point of each operand."""
    shapes = [op.dims(i) for i in range(2, len(op.inputs), 3)]
    axis = op.axis(len(shapes[0]), 0)
    sizes = [
        next((s[i] for s in shapes if isinstance(s[i], int)), shapes[0][i]) for i in range(len(shapes[0]))
    ]
    sizes[axis] = 0
    for shape in shapes:
        sizes[axis] = d.add(sizes[axis], shape[axis])
    return Inferred(op[2].dtype, sizes)


@rule("QLinearConv", domain=_DOMAIN)
def _quantized_conv(op: Op) -> Inferred:
    if op.integer("channels_last", 0):
        raise Unknown
    return Inferred(op[7].dtype, convolved(op, 0, 3))


@rule("QLinearAveragePool", domain=_DOMAIN)
def _quantized_pool(op: Op) -> Inferred:
    if op.integer("channels_last", 0):
        raise Unknown
    return Inferred(op[0].dtype, pooled(op))


@rule("QLinearGlobalAveragePool", domain=_DOMAIN)
def _quantized_global_pool(op: Op) -> Inferred:
    if op.integer("channels_last", 0):
        raise Unknown
    return Inferred(op[0].dtype, globally_pooled(op))


@rule("FusedConv", domain=_DOMAIN)
def _fused_conv(op: Op) -> Inferred:
    return Inferred(op[0].dtype, convolved(op, 0, 1))


@rule("FusedGemm", domain=_DOMAIN)
def _fused_gemm(op: Op) -> Inferred:
    row, column = op.integer("transA", 0) != 0, op.integer("transB", 0) == 0
    return Inferred(op[0].dtype, (op.dims(0)[row], op.dims(1)[column]))


@rule("FusedMatMul", domain=_DOMAIN)
def _fused_matmul(op: Op) -> Inferred:
    """A product of operands whose last two axes are swapped first, where both have them."""
    if op.integer("transBatchA", 0) or op.integer("transBatchB", 0):
        raise Unknown
    sides = []
    for index, name in enumerate(("transA", "transB")):
        side = op.dims(index)
        swapped = op.integer(name, 0) != 0 and len(side) > 1
        sides.append((*side[:-2], side[-1], side[-2]) if swapped else side)
    return Inferred(op[0].dtype, matrix_product(*sides))


@rule("MatMulNBits", domain=_DOMAIN)
def _packed_product(op: Op) -> Inferred:
    return Inferred(op[0].dtype, (*op.dims(0)[:-1], op.integer("N", 0)))


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_DOMAIN)
def _skip_normalization(op: Op) -> list[Inferred]:
    """The result; mean and deviation, which runtimes leave out; the sum that was normalized."""
    return [like(op[0]), Inferred(), Inferred(), like(op[0])]
