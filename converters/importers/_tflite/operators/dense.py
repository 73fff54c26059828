"""Products of matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import finish, output_name
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


@converter("FULLY_CONNECTED")
def _fully_connected(ctx: Context, op: Operator) -> None:
    """``x W^T + b``: Gemm of a matrix; MatMul where the leading axes are kept."""
    if op.options.get("weightsFormat", 0):
        raise UnsupportedError(f"{op.place}: shuffled weights are not supported")
    data, weight = op.inputs[0], op.inputs[1]
    rank, name = ctx.tensor(data).rank, output_name(ctx, op)
    value, bias = ctx.real(data), ctx.bias(op.input(2))
    width = ctx.tensor(weight).shape[-1]
    if op.options.get("keepNumDims", False) and rank != 2:
        matrix = _transposed(ctx, weight)
        made = ctx.build.op("MatMul", value, matrix, name=name)
        finish(ctx, op, made if bias is None else ctx.build.op("Add", made, bias, name=name))
        return
    if rank != 2 or ctx.dims(data)[-1] != width:
        value = ctx.build.op("Reshape", value, ctx.build.ints([-1, width]), name=name)
    matrix = ctx.real(weight) if ctx.array(weight) is None else ctx.weight(weight, None, None)
    inputs = [value, matrix, bias]
    (made,) = ctx.build.nodes_of("Gemm", inputs, {"transB": 1}, 1, name)
    finish(ctx, op, made)


def _transposed(ctx: Context, weight: int) -> ir.Value:
    if ctx.array(weight) is None:
        return ctx.build.op("Transpose", ctx.real(weight), perm=[1, 0])
    q = ctx.tensor(weight).quantization
    return ctx.weight(weight, np.transpose, 1 - q.axis if q is not None and q.per_channel else None)


@converter("BATCH_MATMUL")
def _batch_matmul(ctx: Context, op: Operator) -> None:
    name = output_name(ctx, op)
    operands = []
    for position, flag in ((0, "adjX"), (1, "adjY")):
        index = op.inputs[position]
        if op.options.get(flag, False):
            operands.append(_adjoint(ctx, index))
        else:
            operands.append(ctx.real(index))
    finish(ctx, op, ctx.build.op("MatMul", *operands, name=name))


def _adjoint(ctx: Context, index: int) -> ir.Value:
    """The last two axes exchanged; of a constant now."""
    order = [*range(ctx.tensor(index).rank - 2), ctx.tensor(index).rank - 1, ctx.tensor(index).rank - 2]
    if ctx.array(index) is None:
        return ctx.build.op("Transpose", ctx.real(index), perm=order)
    q = ctx.tensor(index).quantization
    axis = order.index(q.axis) if q is not None and q.per_channel else None
    return ctx.weight(index, lambda array: array.transpose(order), axis)
