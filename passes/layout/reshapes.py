"""Chains of operators that only reshape and transpose become the fewest that do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.graph import array_of, describe
from graphopt.passes.layout import _arrangement as plans
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, producer

__all__ = ["ReshapeReshape", "ViewChain"]

_RESHAPING: Final = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_VIEWS: Final = (*_RESHAPING, "Transpose")
#: Since then the target of a Reshape is an input.
_MIN_OPSET: Final = 5
_LONGEST: Final = 12


class Plan(NamedTuple):
    """Steps that replace the chain behind ``source``; one of them may keep the target of a Reshape."""

    source: ir.Value
    steps: list[plans.Step]
    sizes: list[plans.Size]
    saved: int


class ViewChain(Rule[tuple[ir.Node, ...]]):
    """Reshape, Flatten, Squeeze, Unsqueeze and Transpose in a row: at most Reshape, Transpose, Reshape.

    A chain that only reorders the entries of one axis of fixed size (a channel shuffle) becomes one Gather,
    two Transposes one or none, Transpose of axes of which all but one have size 1 a Reshape.

    Left alone: what would not get shorter, or has an axis whose size is not known.
    """

    name = "view-chain"
    roots = _VIEWS

    def __init__(self) -> None:
        self._checked: tuple[tuple[ir.Node, ...], Plan | None] = (), None

    def match(self, node: ir.Node) -> tuple[ir.Node, ...] | None:
        """The node and those before it, the last first."""
        chain = [node]
        while len(chain) < _LONGEST:
            before = producer(chain[-1].inputs[0], chain[-1], *_VIEWS)
            if before is None:
                break
            chain.append(before)
        return tuple(chain) if len(chain) > 1 else None

    def check(self, match: tuple[ir.Node, ...], context: Context) -> str | None:
        """Shapes that are known, fewer nodes than before."""
        if context.opset < _MIN_OPSET:
            return (
                f"opset {context.opset} has no Reshape to a computed shape; convert to {_MIN_OPSET} or later"
            )
        self._checked = match, _best_plan(match, context)
        if self._checked[1] is None:
            return f"{len(match)} operators up to {describe(match[0])} are needed, or shapes are unknown"
        return None

    def rewrite(self, match: tuple[ir.Node, ...], context: Context) -> None:
        """The steps of the plan."""
        plan = self._checked[1] if self._checked[0] is match else _best_plan(match, context)
        assert plan is not None
        last = match[0]
        output, value, sizes = last.outputs[0], plan.source, plan.sizes
        if not plan.steps:
            context.redirect(output, value, like=last)
            return
        dtype = context.infer(output).dtype
        for step in plan.steps[:-1]:
            op_type, inputs, attributes = _operator(step, value, sizes, last, context)
            sizes = _sizes_after(step, sizes)
            known = Inferred(dtype, plans.dims_of(sizes))
            value = context.add(op_type, inputs, attributes, before=last, like=output, known=known)
        op_type, inputs, attributes = _operator(plan.steps[-1], value, sizes, last, context)
        context.replace(output, op_type, inputs, attributes, like=last)


def _best_plan(chain: Sequence[ir.Node], context: Context) -> Plan | None:
    """The plan that saves most, for the whole chain or its end; None where none saves anything."""
    found = [plan for length in range(2, len(chain) + 1) for plan in _plans(chain[:length], context)]
    return max(found, key=lambda plan: plan.saved, default=None)


def _plans(chain: Sequence[ir.Node], context: Context) -> Iterator[Plan]:
    source = chain[-1].inputs[0]
    sizes = plans.sizes_of(context.infer(source).dims) if source is not None else None
    if source is None or sizes is None:
        return
    steps = _steps(chain, sizes, context)
    if steps is None:
        return
    saved = _removable(chain) - max(len(steps), int(chain[0].outputs[0].is_graph_output()))
    if saved > 0 and _is_writable(steps, sizes, chain[0], context):
        yield Plan(source, steps, sizes, saved)


def _steps(chain: Sequence[ir.Node], sizes: list[plans.Size], context: Context) -> list[plans.Step] | None:
    """What does the same as the chain; None where that is not known."""
    if all(node.op_type in _RESHAPING for node in chain):  # whatever the shapes in between are
        final = plans.sizes_of(context.infer(chain[0].outputs[0]).dims)
        return None if final is None else [plans.Reshape(tuple(final))] if final != sizes else []
    arrangement = plans.Arrangement(sizes)
    if all(_apply(node, arrangement, context) for node in reversed(chain)):
        return arrangement.steps()
    return None


def _apply(node: ir.Node, arrangement: plans.Arrangement, context: Context) -> bool:
    if node.op_type == "Transpose":
        reverse = range(len(arrangement.end) - 1, -1, -1)
        return arrangement.transpose(node.attributes.get_ints("perm", tuple(reverse)))
    sizes = plans.sizes_of(context.infer(node.outputs[0]).dims)
    return sizes is not None and arrangement.reshape(sizes)


def _removable(chain: Sequence[ir.Node]) -> int:
    """How many nodes at the end of the chain nobody else needs."""
    count = 1
    while count < len(chain) and is_exclusive(chain[count].outputs[0]):
        count += 1
    return count


def _is_writable(
    steps: Sequence[plans.Step], sizes: list[plans.Size], last: ir.Node, context: Context
) -> bool:
    """Whether the target of every Reshape is a constant, or one that the last operator has."""
    for index, step in enumerate(steps):
        if isinstance(step, plans.Reshape) and plans.target_of(step.sizes, sizes) is None:
            return index == len(steps) - 1 and _keeps_meaning(last, context)
        sizes = _sizes_after(step, sizes)
    return True


def _keeps_meaning(node: ir.Node, context: Context) -> bool:
    """Whether a node is a Reshape whose target says the same behind another input: no 0 for "as is"."""
    target = input_at(node, 1)
    if node.op_type != "Reshape" or target is None:
        return False
    if node.attributes.get_int("allowzero", 0):
        return True
    elements = context.infer(target).elements
    return elements is not None and all(not isinstance(e, int) or e != 0 for e in elements)


def _sizes_after(step: plans.Step, sizes: list[plans.Size]) -> list[plans.Size]:
    if isinstance(step, plans.Reshape):
        return list(step.sizes)
    return [sizes[axis] for axis in step.order] if isinstance(step, plans.Transpose) else sizes


def _operator(
    step: plans.Step, value: ir.Value, sizes: list[plans.Size], last: ir.Node, context: Context
) -> tuple[str, list[ir.Value | None], list[ir.Attr]]:
    name = last.outputs[0].name
    if isinstance(step, plans.Transpose):
        return "Transpose", [value], [ir.AttrInt64s("perm", step.order)]
    if isinstance(step, plans.Gather):
        indices = context.constant(f"{name}_indices", step.indices)
        return "Gather", [value, indices], [ir.AttrInt64("axis", step.axis)]
    target = plans.target_of(step.sizes, sizes)
    if target is None:
        kept = [a for a in last.attributes.values() if a.name == "allowzero"]
        return "Reshape", [value, last.inputs[1]], kept
    return "Reshape", [value, context.constant(f"{name}_shape", np.array(target, np.int64))], []


class ReshapeReshape(Rule[tuple[ir.Node, ir.Node]]):
    """A Reshape behind an operator that only reshapes: that one is left out, whatever the shapes are.

    Left alone: a target that is not constant, or has a 0 for "as it is".
    """

    name = "reshape-reshape"
    roots = ("Reshape",)

    def match(self, node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
        """A Reshape and the operator before it."""
        before = producer(node.inputs[0], node, *_RESHAPING)
        return None if before is None or len(node.inputs) < 2 else (node, before)

    def check(self, match: tuple[ir.Node, ir.Node], context: Context) -> str | None:
        """A target that means the same behind another input."""
        node, before = match
        if not is_exclusive(before.outputs[0]):
            return f"the output '{before.outputs[0].name}' of {describe(before)} is used elsewhere"
        target = array_of(node.inputs[1])
        if target is None:
            return f"the target of {describe(node)} is not constant"
        if not node.attributes.get_int("allowzero", 0) and not target.all():
            return f"the target of {describe(node)} refers to an axis of its input"
        return None

    def rewrite(self, match: tuple[ir.Node, ir.Node], context: Context) -> None:
        """One Reshape."""
        node, before = match
        inputs = [before.inputs[0], node.inputs[1]]
        context.replace(node.outputs[0], "Reshape", inputs, node.attributes.values(), like=node)
