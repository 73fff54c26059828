"""Recurrent layers that take one step a run; their variable tensors become inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import activated, output_name
from graphopt.converters.importers._tflite.operators.recurrent import lstm
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


def _state(ctx: Context, op: Operator, position: int) -> tuple[str, ir.Value]:
    """The content of a variable tensor before the run, and its name."""
    index = op.inputs[position]
    tensor, state = ctx.tensor(index), ctx.state
    if not tensor.variable or tensor.quantized or ctx.tensor(op.inputs[0]).quantized:
        raise UnsupportedError(f"{op.place}: of quantized data, or without a variable tensor")
    if len(ctx.callers) > 1:
        raise UnsupportedError(f"{op.place}: inside a branch or a loop is not supported")
    if min(ctx.dims(op.inputs[0])) < 0:
        raise UnsupportedError(
            f"{op.place}: with a free batch is not supported, its state has {tensor.shape[0]} rows"
        )
    name = tensor.name or f"state_{index}"
    if name in state.values:
        raise UnsupportedError(f"{op.place}: two operators share the state '{name}'")
    value = state.begin(name, tensor, ctx.build, op.place)
    state.initial[name] = np.zeros(tensor.shape, tensor.array_dtype)
    return name, value


@converter("RNN")
def _rnn(ctx: Context, op: Operator) -> None:
    """``h' = activation(x W^T + h R^T + b)``."""
    name, before = _state(ctx, op, 4)
    data, weight, recurrent, bias = (ctx.real(index) for index in op.inputs[:4])
    (own,) = ctx.build.nodes_of("Gemm", [data, weight, bias], {"transB": 1})
    (kept,) = ctx.build.nodes_of("Gemm", [before, recurrent], {"transB": 1})
    total = ctx.build.op("Add", own, kept)
    if op.options.get("fusedActivationFunction", 0) == 4:
        after = ctx.build.op("Tanh", total, name=output_name(ctx, op))
    else:
        after = activated(ctx, op, total)
    ctx.state.values[name] = after
    ctx.set(op.outputs[0], after)


@converter("SVDF")
def _svdf(ctx: Context, op: Operator) -> None:
    """A memory of the last products with the features, one column newer each run, weighed over time.

    Source: Nakkiran et al., Compressing Deep Neural Networks using a Rank-Constrained Topology, 2015.
    """
    name, before = _state(ctx, op, 4)
    filters, memory = ctx.tensor(op.inputs[2]).shape
    rank, batch = int(op.options.get("rank", 1)), ctx.dims(op.inputs[0])[0]
    if rank < 1 or filters % rank:
        raise ValueError(f"{filters} filters of rank {rank}")
    (new,) = ctx.build.nodes_of("Gemm", [ctx.real(op.inputs[0]), ctx.real(op.inputs[1])], {"transB": 1})
    column = ctx.build.op("Unsqueeze", new, ctx.build.ints([2]))
    held = ctx.build.op("Reshape", before, ctx.build.ints([batch, filters, memory]))
    bounds = [ctx.build.ints([number]) for number in (1, memory, 2)]
    moved = ctx.build.op("Concat", ctx.build.op("Slice", held, *bounds), column, axis=2)
    weighed = ctx.build.op("Mul", moved, ctx.real(op.inputs[2]))
    last = ctx.build.ints([2])
    summed = ctx.build.op("ReduceSum", weighed, last, keepdims=0)
    grouped = ctx.build.op("Reshape", summed, ctx.build.ints([batch, filters // rank, rank]))
    total = ctx.build.op("ReduceSum", grouped, last, keepdims=0, name=output_name(ctx, op))
    bias = ctx.optional(op, 3)
    if bias is not None:
        total = ctx.build.op("Add", total, bias, name=output_name(ctx, op))
    ctx.state.values[name] = ctx.build.op("Reshape", moved, ctx.build.ints([batch, filters * memory]))
    ctx.set(op.outputs[0], activated(ctx, op, total))


@converter("LSTM")
def _lstm(ctx: Context, op: Operator) -> None:
    """A sequence of one step, from the state of the last run."""
    if op.options.get("kernelType", 0):
        raise UnsupportedError(f"{op.place}: the basic kernel of quantized models is not supported")
    first = ctx.build.ints([0])
    states = [_state(ctx, op, position) for position in (18, 19)]
    before = [ctx.build.op("Unsqueeze", value, first) for _, value in states]
    _, *after = lstm(ctx, op, ctx.build.op("Unsqueeze", ctx.real(op.inputs[0]), first), *before)
    for (name, _), value in zip(states, after, strict=True):
        ctx.state.values[name] = ctx.build.op("Squeeze", value, first)
    ctx.set(op.outputs[0], ctx.state.values[states[0][0]])
