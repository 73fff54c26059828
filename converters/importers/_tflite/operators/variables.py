"""Variables, which keep their content from run to run: extra inputs and outputs of the ONNX model."""

from __future__ import annotations

from graphopt.converters.importers._tflite.builder import Builder
from graphopt.converters.importers._tflite.context import Context, State
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import InputError


@converter("VAR_HANDLE")
def _handle(ctx: Context, op: Operator) -> None:
    shared = op.options.get("sharedName") or b""
    name = shared.decode("utf-8", "replace") if isinstance(shared, bytes) else str(shared)
    ctx.handles[op.outputs[0]] = name or ctx.tensor(op.outputs[0]).name


def _variable(ctx: Context, op: Operator) -> str:
    if op.inputs[0] not in ctx.handles:
        raise InputError(f"{op.place}: its first input is no handle of a variable")
    return ctx.handles[op.inputs[0]]


@converter("READ_VARIABLE")
def _read(ctx: Context, op: Operator) -> None:
    name, tensor, state = _variable(ctx, op), ctx.tensor(op.outputs[0]), ctx.state
    if name not in state.values:
        state.begin(name, tensor, ctx.build, op.place)
    ctx.set(op.outputs[0], state.values[name])


@converter("ASSIGN_VARIABLE")
def _assign(ctx: Context, op: Operator) -> None:
    name, source = _variable(ctx, op), op.inputs[1]
    ctx.state.values[name] = ctx.stored(source)
    ctx.state.assigned[name] = ctx.array(source)


@converter("CALL_ONCE")
def _call_once(ctx: Context, op: Operator) -> None:
    """What runs before the first run: it gives the variables their initial content."""
    before = State()
    ctx.call(int(op.options.get("initSubgraphIndex", 0)), [], Builder(ctx.build), before)
    ctx.state.initial.update(before.assigned)
