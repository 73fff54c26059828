"""Operators of onnxruntime that appear in real files. Those without a rule here have no known shape."""

from __future__ import annotations

from graphopt.analyses import dims as d
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Unknown, rule
from graphopt.analyses.shape_inference.elementwise import broadcast_all, like
from graphopt.analyses.shape_inference.linear import convolved, pooled

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
    image = op.dims(0)
    return Inferred(op[0].dtype, (*image[:2], *([1] * (len(image) - 2))))
