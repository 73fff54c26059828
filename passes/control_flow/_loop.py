"""Loop: bodies that never run, or run so often that this can be written out."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt import limits
from graphopt.graph import add_initializer, array_of
from graphopt.passes.control_flow._splice import copy_of, splice, substitute
from graphopt.passes.control_flow._step import Scope, Step, flag_of
from graphopt.rewrite import input_at, origin

__all__ = ["simplify"]

#: Since then Unsqueeze takes its axes as an input.
_AXES_INPUT_OPSET = 13


class _Loop(NamedTuple):
    node: ir.Node
    body: ir.Graph
    carried: int

    @property
    def initial(self) -> Sequence[ir.Value | None]:
        return self.node.inputs[2:]


def simplify(node: ir.Node, scope: Scope) -> Step:
    """Write the Loop out, where its number of iterations is known and small."""
    loop = _Loop(node, node.attributes["body"].as_graph(), len(node.inputs) - 2)
    if not _is_sound(loop):
        return Step()
    count = _iterations(loop)
    if count is None or count > scope.max_iterations:
        return Step()
    if count == 0 and any(v.uses() or v.is_graph_output() for v in node.outputs[loop.carried :]):
        return Step(refusal="it never runs, and the shape of its stacked outputs is not known")
    size = sum(1 for _ in loop.body.all_nodes())
    if count > 1 and count * size > limits.UNROLL_NODES:
        return Step(refusal=f"its {size} nodes, {count} times, are above the limit of {limits.UNROLL_NODES}")
    nodes = _unroll(loop, count, scope)
    return Step(collections.Counter({"unrolled loops" if count else "removed loops": 1}), nodes)


def _is_sound(loop: _Loop) -> bool:
    inputs, outputs = loop.body.inputs, loop.body.outputs
    return (
        loop.carried >= 0
        and len(inputs) == 2 + loop.carried
        and len(outputs) == 1 + len(loop.node.outputs)
        and len(loop.node.outputs) >= loop.carried
        and None not in loop.initial
        and not any(v.is_initializer() for v in inputs)
    )


def _iterations(loop: _Loop) -> int | None:
    """How often the body runs; None where that is not known.

    Without a condition, ONNX says that the one the body makes is ignored, while onnxruntime reads it: only
    where it stays true do they agree.
    """
    trips, condition = input_at(loop.node, 0), input_at(loop.node, 1)
    count = array_of(trips)
    if trips is not None and count is not None and count.size == 1 and count.item() <= 0:
        return 0
    starts = flag_of(condition) if condition is not None else True
    if starts is False:
        return 0
    known = starts is True and (trips is None or (count is not None and count.size == 1))
    if not known:
        return None
    stops = condition is not None and flag_of(loop.body.outputs[0]) is False
    if stops or (count is not None and count.item() == 1):
        return 1
    return int(count.item()) if count is not None and _stays_true(loop.body) else None


def _stays_true(body: ir.Graph) -> bool:
    """Whether the condition that the body makes is true where the one it gets is."""
    value = origin(body.outputs[0], "Identity", within=body)
    return value is body.inputs[1] or flag_of(value) is True


def _unroll(loop: _Loop, count: int, scope: Scope) -> list[ir.Node]:
    """Put ``count`` copies of the body in the place of the Loop; the nodes."""
    node, carried = loop.node, loop.carried
    state = list(loop.initial)
    stacks: list[list[ir.Value | None]] = [[] for _ in node.outputs[carried:]]
    moved: list[ir.Node] = []
    for index in range(count):
        body = loop.body if index == count - 1 else copy_of(loop.body, scope.names)
        counters = _counters(body, index, node, scope)
        nodes, outputs = splice(
            body, [*counters, *state], node, scope.names, as_nodes=scope.needs_nodes(node)
        )
        moved += nodes
        state = outputs[1 : 1 + carried]
        for stack, value in zip(stacks, outputs[1 + carried :], strict=True):
            stack.append(value)
    used = [v.uses() or v.is_graph_output() for v in node.outputs[carried:]]
    stacked = [_stack(s, node, scope) if u else None for s, u in zip(stacks, used, strict=True)]
    substitute(node, [*state, *stacked], scope.names)
    return moved


def _counters(body: ir.Graph, index: int, node: ir.Node, scope: Scope) -> list[ir.Value | None]:
    """The iteration's number and the condition as constants, of the rank that the body declares for them."""
    values: list[ir.Value | None] = []
    for parameter, number in zip(body.inputs[:2], (np.int64(index), np.bool_(True)), strict=True):
        if not (parameter.uses() or parameter.is_graph_output()):
            values.append(None)
            continue
        rank = len(parameter.shape) if parameter.shape is not None else 0
        array = np.asarray(number).reshape((1,) * rank)
        values.append(_constant(parameter.name or "counter", array, node, scope))
    return values


def _constant(wanted: str, array: np.ndarray, before: ir.Node, scope: Scope) -> ir.Value:
    name = scope.names.fresh(wanted)
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    if not scope.needs_nodes(before):
        return add_initializer(graph, name, array)
    node = ir.node("Constant", [], {"value": ir.tensor(array, name=name)})
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def _stack(values: Sequence[ir.Value | None], before: ir.Node, scope: Scope) -> ir.Value:
    """The values of a stacked output, one behind the other along a new first axis."""
    rows = [_unsqueezed(value, before, scope) for value in values if value is not None]
    return rows[0] if len(rows) == 1 else _make(ir.node("Concat", rows, {"axis": 0}), before, scope)


def _unsqueezed(value: ir.Value, before: ir.Node, scope: Scope) -> ir.Value:
    if scope.opset < _AXES_INPUT_OPSET:
        return _make(ir.node("Unsqueeze", [value], {"axes": [0]}), before, scope)
    axes = _constant("axes", np.array([0], np.int64), before, scope)
    return _make(ir.node("Unsqueeze", [value, axes]), before, scope)


def _make(node: ir.Node, before: ir.Node, scope: Scope) -> ir.Value:
    graph = before.graph
    assert graph is not None
    node.outputs[0].name = scope.names.fresh("stacked")
    graph.insert_before(before, node)
    return node.outputs[0]
