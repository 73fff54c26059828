"""Loop and Scan: values carried for nothing, outputs that nobody reads."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from graphopt.graph import can_replace, captured_values, is_used, replace_value
from graphopt.passes.control_flow._rebuild import rebuild
from graphopt.passes.control_flow._splice import discard, identity, release
from graphopt.passes.control_flow._step import Scope, Step
from graphopt.rewrite import origin

__all__ = ["simplify"]


class _Repeated(NamedTuple):
    """A Loop or Scan. Carried value ``i`` is input ``i + inner_in`` of node and body, output ``i`` of the
    node and output ``i + inner_out`` of the body.
    """

    node: ir.Node
    body: ir.Graph
    carried: int
    inner_in: int
    inner_out: int

    def parameter(self, index: int) -> ir.Value:
        return self.body.inputs[index + self.inner_in]

    def result(self, index: int) -> ir.Value:
        return self.body.outputs[index + self.inner_out]

    def initial(self, index: int) -> ir.Value | None:
        return self.node.inputs[index + self.inner_in]


def simplify(node: ir.Node, scope: Scope) -> Step:
    """Capture what is carried unchanged, drop what nobody needs; the new node is in the step."""
    loop = _read(node)
    if loop is None or not any(map(is_used, node.outputs)):
        return Step()
    invariant = [
        i
        for i in range(loop.carried)
        if origin(loop.result(i), "Identity", within=loop.body) is loop.parameter(i)
    ]
    for index in invariant:
        _capture(loop, index, scope)
    if not any(map(is_used, node.outputs)):
        discard(node)
        return Step(collections.Counter({"removed loops": 1}))
    live, needed = _needed(loop, invariant)
    unneeded = [i for i in range(len(node.outputs)) if i not in needed]
    if not unneeded:
        return Step()
    new = _without(loop, unneeded)
    _remove_dead(loop.body, live)
    dropped = len(unneeded) - len(invariant)
    done = {"captured values": len(invariant), "dropped outputs": dropped}
    return Step(collections.Counter({k: v for k, v in done.items() if v}), [new])


def _read(node: ir.Node) -> _Repeated | None:
    """The node's parts; None where they do not fit together."""
    body = node.attributes["body"].as_graph()
    if node.op_type == "Loop":
        loop = _Repeated(node, body, len(node.inputs) - 2, 2, 1)
    else:
        scanned = node.attributes["num_scan_inputs"].as_int()
        loop = _Repeated(node, body, len(node.inputs) - scanned, 0, 0)
    fits = (
        0 <= loop.carried <= len(node.outputs)
        and len(body.inputs) == len(node.inputs)
        and len(body.outputs) == len(node.outputs) + loop.inner_out
        and all(loop.initial(i) is not None for i in range(loop.carried))
        and not any(v.is_initializer() for v in body.inputs)
    )
    return loop if fits else None


def _capture(loop: _Repeated, index: int, scope: Scope) -> None:
    """Let the body use the initial value itself, and the users of the output as well."""
    parameter, initial = loop.parameter(index), loop.initial(index)
    assert initial is not None
    _own_output(loop, index, scope)
    for user, place in parameter.uses():
        user.replace_input_with(place, initial)
    output = loop.node.outputs[index]
    if not is_used(output):
        return
    if not can_replace(output, initial):
        initial = identity(initial, loop.node, scope.names.fresh(initial.name or "copy"))
    replace_value(output, initial)
    output.name = None


def _own_output(loop: _Repeated, index: int, scope: Scope) -> None:
    """Where other outputs of the body are the parameter itself, let an Identity make them."""
    parameter, outputs = loop.parameter(index), loop.body.outputs
    for place, value in enumerate(outputs):
        if value is parameter and place != index + loop.inner_out:
            copy = ir.node("Identity", [value])
            copy.outputs[0].name = scope.names.fresh(value.name or "copy")
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            loop.body.append(copy)
            outputs[place] = copy.outputs[0]


def _needed(loop: _Repeated, invariant: Collection[int]) -> tuple[set[ir.Node], set[int]]:
    """The nodes of the body that matter, and the outputs of the Loop or Scan that must stay."""
    needed = {i for i, v in enumerate(loop.node.outputs) if is_used(v) and i not in invariant}
    carried_by = {loop.parameter(i): i for i in range(loop.carried) if i not in invariant}
    live = set[ir.Node]()
    pending = [*loop.body.outputs[: loop.inner_out], *(loop.result(i) for i in needed)]
    while pending:
        value = pending.pop()
        index = carried_by.get(value)
        if index is not None and index not in needed:
            needed.add(index)
            pending.append(loop.result(index))
        node = value.producer()
        if node is not None and node.graph is loop.body and node not in live:
            live.add(node)
            pending += _reads(node)
    return live, needed


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in node.inputs if v is not None)
    yield from captured_values(node)


def _remove_dead(body: ir.Graph, live: Collection[ir.Node]) -> None:
    dead = [node for node in body if node not in live]
    for node in dead:
        release(node)
    body.remove(dead)


def _without(loop: _Repeated, unneeded: Collection[int]) -> ir.Node:
    """Take outputs out of node and body, with the parameters and inputs of the carried ones."""
    node, body = loop.node, loop.body
    gone = {i + loop.inner_in for i in unneeded if i < loop.carried}
    for index in sorted(unneeded, reverse=True):
        body.outputs.pop(index + loop.inner_out)
    for index in sorted(gone, reverse=True):
        body.inputs.pop(index)
    inputs = [v for i, v in enumerate(node.inputs) if i not in gone]
    kept = [i for i in range(len(node.outputs)) if i not in unneeded]
    scans = [i - loop.carried for i in unneeded if i >= loop.carried]
    return rebuild(node, inputs, kept, _trimmed(node.attributes.values(), scans))


def _trimmed(attributes: Iterable[ir.Attr], gone: Collection[int]) -> Iterator[ir.Attr]:
    """The attributes of a Scan, without what they say of dropped outputs."""
    for attribute in attributes:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            kept = [n for i, n in enumerate(attribute.as_ints()) if i not in gone]
            if kept:
                yield ir.AttrInt64s(attribute.name, kept)
        else:
            yield attribute
