"""Branches and loops: the subgraphs they call become subgraphs of ONNX's If and Loop."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.converters.importers._tflite.builder import Builder
from graphopt.converters.importers._tflite.context import Context, onnx_type
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


def _scalar(build: Builder, value: ir.Value) -> ir.Value:
    """A condition, which may come as a vector of one, as ONNX wants it."""
    return build.op("Reshape", value, build.ints([]))


def _graph(build: Builder, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
    """A subgraph; what it hands on unchanged gets a node of its own."""
    made = {output for node in build.nodes for output in node.outputs}
    results: list[ir.Value] = []
    for value in outputs:
        own = value in made and value not in results
        results.append(value if own else build.op("Identity", value))
    return ir.Graph(inputs, results, nodes=build.nodes, name=name)


@converter("IF")
def _if(ctx: Context, op: Operator) -> None:
    arguments = [ctx.stored(index) for index in op.inputs[1:]]
    branches = {}
    for key, which in (("then_branch", "thenSubgraphIndex"), ("else_branch", "elseSubgraphIndex")):
        build = Builder(ctx.build)
        outputs = _called(ctx, op, int(op.options.get(which, 0)), arguments, build)
        branches[key] = _graph(build, (), outputs, key)
    condition = _scalar(ctx.build, ctx.stored(op.inputs[0]))
    name = ctx.tensor(op.outputs[0]).name if op.outputs else ""
    made = ctx.build.nodes_of("If", [condition], branches, len(op.outputs), name)
    for index, value in zip(op.outputs, made, strict=True):
        ctx.set(index, value)


@converter("WHILE")
def _while(ctx: Context, op: Operator) -> None:
    """The condition is computed before the loop, and at the end of its body for the next round."""
    condition, body = int(op.options.get("condSubgraphIndex", 0)), int(op.options.get("bodySubgraphIndex", 0))
    start = [ctx.stored(index) for index in op.inputs]
    (first,) = _called(ctx, op, condition, start, ctx.build)
    build = Builder(ctx.build)
    tensors = [ctx.tensor(index) for index in op.inputs]
    number = ir.Value(
        name=build.unique("iteration"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])
    )
    going = ir.Value(name=build.unique("going"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    carried = [
        ir.Value(name=build.unique(tensor.name or "carried"), type=ir.TensorType(onnx_type(tensor, op.place)))
        for tensor in tensors
    ]
    after = _called(ctx, op, body, carried, build)
    (again,) = _called(ctx, op, condition, after, build)
    outputs = [_scalar(build, again), *after]
    graph = _graph(build, [number, going, *carried], outputs, "body")
    inputs = [None, _scalar(ctx.build, first), *start]
    made = ctx.build.nodes_of("Loop", inputs, {"body": graph}, len(start), ctx.tensor(op.outputs[0]).name)
    for index, value in zip(op.outputs, made, strict=True):
        ctx.set(index, value)


def _called(
    ctx: Context, op: Operator, index: int, arguments: Sequence[ir.Value], build: Builder
) -> list[ir.Value]:
    """A subgraph inside a branch or a loop; it must leave the model's variables alone."""
    before = dict(ctx.state.values)
    outputs = ctx.call(index, arguments, build)
    now, given = ctx.state.values, ctx.state.inputs
    if any(value is not before.get(name, given.get(name)) for name, value in now.items()):
        raise UnsupportedError(f"{op.place}: variables that are assigned inside it are not supported")
    return outputs


@converter("STABLEHLO_COMPOSITE")
def _composite(ctx: Context, op: Operator) -> None:
    """What it is composed of."""
    arguments = [ctx.stored(index) for index in op.inputs]
    outputs = ctx.call(int(op.options.get("decompositionSubgraphIndex", 0)), arguments, ctx.build)
    for index, value in zip(op.outputs, outputs, strict=True):
        ctx.set(index, value)
