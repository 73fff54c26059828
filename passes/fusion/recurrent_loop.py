"""Loops that run a recurrent cell step by step: one LSTM, GRU or RNN."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dim, same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import array_of, describe, is_used
from graphopt.passes.fusion._formula import number
from graphopt.passes.fusion._loop_body import Body
from graphopt.passes.fusion._recurrent_cells import Activation, Cell, Formula, cell_of
from graphopt.rewrite import Context, Rule, input_at, is_op, origin

__all__ = ["RecurrentLoop"]

#: Axes of Squeeze and Unsqueeze are inputs since then.
_MIN_OPSET: Final = 13
#: Types that hold every number of steps there may be; in others a count may wrap or be rounded.
_COUNTING: Final = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_DEFAULTS: Final = {
    "RNN": (Activation("Tanh"),),
    "GRU": (Activation("Sigmoid"), Activation("Tanh")),
    "LSTM": (Activation("Sigmoid"), Activation("Tanh"), Activation("Tanh")),
}


class _Match(NamedTuple):
    """A Loop over a sequence; ``count`` is the state that counts, -1 where the Loop's own counter is used."""

    node: ir.Node
    body: ir.Graph
    sequence: ir.Value
    cell: Cell
    counters: frozenset[ir.Value]


class RecurrentLoop(Rule[_Match]):
    """Loop whose body is the cell of an LSTM, GRU or RNN over the first axis of a sequence: the operator.

    TensorFlow writes every recurrent layer as such a loop. The body may add and split in any order (see
    ``_recurrent_cells``); the Loop must run once for every step, and carry nothing but the states. A layer
    with a mask carries its last output as well and stays a Loop, since no operator skips steps in between.
    """

    name = "recurrent-loop"
    roots = ("Loop",)

    def match(self, node: ir.Node) -> _Match | None:
        """A Loop whose next states are the formulas of a cell."""
        body = node.attributes["body"].as_graph()
        carried = len(node.inputs) - 2
        if carried < 1 or len(body.inputs) != carried + 2 or len(body.outputs) != len(node.outputs) + 1:
            return None
        if (
            not any(map(is_used, node.outputs))
            or len(node.outputs) < carried
            or any(value is None for value in node.inputs[2:])
        ):
            return None
        counting = [i for i in range(carried) if _counts(node, body, i)]
        states = {body.inputs[i + 2]: i for i in range(carried) if i not in counting}
        counters = frozenset([body.inputs[0], *(body.inputs[i + 2] for i in counting)])
        if any(value.shape is not None and value.shape.rank() for value in counters):
            return None  # a step would have an axis more
        read = Body(body, states, counters)
        results = {i: read.formula(body.outputs[i + 1]) for i in states.values()}
        known: dict[int, Formula] = {i: result for i, result in results.items() if result is not None}
        cell = cell_of(known) if len(known) == len(states) else None
        if cell is None or read.sequence is None or any(is_used(node.outputs[i]) for i in counting):
            return None
        return _Match(node, body, read.sequence, cell, counters)

    def check(self, match: _Match, context: Context) -> str | None:
        """Refuse unless each step of the sequence is run once, from states of the right shape."""
        if context.opset < _MIN_OPSET:
            return f"opset {context.opset} has axes as attributes; convert to {_MIN_OPSET} or later"
        node, known = match.node, context.infer(match.sequence)
        dims = known.dims
        hidden = match.cell.recurrence.shape[1]
        if dims is None or len(dims) != 3 or dims[2] != match.cell.weights.shape[1]:
            return f"'{match.sequence.name}' is not known to be [steps, batch, {match.cell.weights.shape[1]}]"
        if known.dtype != ir.DataType.FLOAT:
            return f"'{match.sequence.name}' is not float32, and other types have no kernel in onnxruntime"
        for state in match.cell.states:
            initial = node.inputs[state + 2]
            assert initial is not None
            shape = context.infer(initial).dims
            if shape is None or len(shape) != 2 or not same(shape[0], dims[1]) or shape[1] != hidden:
                return f"the initial state '{initial.name}' is not known to be [batch, {hidden}]"
        result = origin(match.body.outputs[match.cell.states[0] + 1], "Identity")
        for value in match.body.outputs[len(node.inputs) - 1 :]:
            if origin(value, "Identity") is not result:
                return f"{describe(node)} stacks '{value.name}', which is not the hidden state"
        if not _is_count(input_at(node, 0), dims[0], context):
            return f"the trip count of {describe(node)} is not known to be the length of its sequence"
        start = input_at(node, 1)
        if start is not None and not _holds(start, dims[0], frozenset(), 0, context):
            return f"the condition of {describe(node)} is not known to hold at first"
        if not _holds(match.body.outputs[0], dims[0], match.counters, 1, context):
            return f"the condition of {describe(node)} is not known to hold until the sequence ends"
        return None

    def rewrite(self, match: _Match, context: Context) -> None:
        """One recurrent node; its outputs lose the axis of directions."""
        node, cell = match.node, match.cell
        known = context.infer(match.sequence)
        assert known.dims is not None
        steps, batch, _ = known.dims
        hidden = cell.recurrence.shape[1]
        first, second = (context.constant("axes", np.array([axis], np.int64)) for axis in (0, 1))
        every, *last = _operator(match, context, known, first)

        def squeezed(value: ir.Value, axis: ir.Value, *dims: Dim) -> ir.Value:
            shape = Inferred(known.dtype, dims)
            return context.add("Squeeze", [value, axis], before=node, like=value, known=shape)

        for state, value in zip(cell.states, last, strict=True):
            if is_used(node.outputs[state]):
                context.redirect(node.outputs[state], squeezed(value, first, batch, hidden), like=node)
        for stacked in node.outputs[len(node.inputs) - 2 :]:
            if is_used(stacked):
                context.redirect(stacked, squeezed(every, second, steps, batch, hidden), like=node)


def _operator(match: _Match, context: Context, known: Inferred, axis: ir.Value) -> list[ir.Value]:
    """The recurrent node: its outputs Y, Y_h and, of an LSTM, Y_c."""
    node, cell, dims = match.node, match.cell, known.dims
    assert dims is not None
    assert known.dtype is not None
    hidden = cell.recurrence.shape[1]

    def constant(wanted: str, array: np.ndarray[Any, Any]) -> ir.Value:
        assert known.dtype is not None
        return context.constant(wanted, array[None].astype(known.dtype.numpy()))

    bias = constant("bias", cell.bias) if np.any(cell.bias) else None
    inputs = [
        match.sequence,
        constant("weights", cell.weights),
        constant("recurrence", cell.recurrence),
        bias,
    ]
    state = Inferred(known.dtype, (1, dims[1], hidden))
    initial = []
    for index in cell.states:
        value = node.inputs[index + 2]
        assert value is not None
        initial.append(context.add("Unsqueeze", [value, axis], before=node, like=value, known=state))
    main = node.outputs[-1]
    first = context.add(
        cell.op_type,
        [*inputs, None, *initial],
        _attributes(cell, hidden),
        before=node,
        like=main,
        known=Inferred(known.dtype, (dims[0], 1, dims[1], hidden)),
        name=node.name,
    )
    made = first.producer()
    assert made is not None
    made.resize_outputs(1 + len(initial))
    for output in made.outputs[1:]:
        output.name = context.fresh_name(f"{first.name}_last")
        output.type, output.shape = first.type, ir.Shape(state.shape or ())
    return list(made.outputs)


def _attributes(cell: Cell, hidden: int) -> list[ir.Attr]:
    attributes: list[ir.Attr] = [ir.AttrInt64("hidden_size", hidden)]
    attributes += [ir.AttrInt64(name, value) for name, value in cell.attributes.items()]
    if cell.activations == _DEFAULTS[cell.op_type]:
        return attributes
    attributes.append(ir.AttrStrings("activations", [a.name for a in cell.activations]))
    # One list for all: the first function that has an alpha takes the first, and so on.
    for name in ("alpha", "beta"):
        values = [v for a in cell.activations if (v := getattr(a, name)) is not None]
        if values:
            attributes.append(ir.AttrFloat32s(f"activation_{name}", values))
    return attributes


def _counts(node: ir.Node, body: ir.Graph, index: int) -> bool:
    """Whether a carried value is 0, 1, 2 ..., as the Loop's own counter."""
    step = origin(body.outputs[index + 1], "Identity").producer()
    start = array_of(node.inputs[index + 2])
    if step is None or not is_op(step, "Add") or start is None or start.ndim or start.item() != 0:
        return False
    parameter = body.inputs[index + 2]
    return any(
        value is parameter and number(other) == 1
        for value, other in (tuple(step.inputs), tuple(step.inputs[::-1]))
    )


def _counted(value: ir.Value) -> ir.Value:
    """The number behind casts that keep it."""
    while True:
        value = origin(value, "Identity")
        node = value.producer()
        if node is None or not is_op(node, "Cast") or node.inputs[0] is None:
            return value
        if node.attributes.get_int("to", 0) not in _COUNTING:
            return value
        value = node.inputs[0]


def _is_count(value: ir.Value | None, steps: Dim, context: Context) -> bool:
    """Whether a scalar is the number of steps."""
    if value is None:
        return False
    root = _counted(value)
    constant = array_of(root)
    if constant is not None:
        return constant.size == 1 and isinstance(steps, int) and constant.item() == steps
    elements = context.infer(root).elements
    return elements is not None and len(elements) == 1 and same(elements[0], steps)


def _holds(value: ir.Value, steps: Dim, counters: frozenset[ir.Value], bound: int, context: Context) -> bool:
    """Whether a condition is true for sure: constant, or that ``counter + n`` with n <= bound is less than
    the number of steps (without counters: that n is), or several of these at once.
    """
    value = origin(value, "Identity")
    constant = array_of(value)
    if constant is not None:
        return bool(np.all(constant))
    node = value.producer()
    if node is None:
        return False
    if is_op(node, "And"):
        return all(v is not None and _holds(v, steps, counters, bound, context) for v in node.inputs)
    if not is_op(node, "Less") or node.inputs[0] is None:
        return False
    offset = _offset(_counted(node.inputs[0]), counters)
    return offset is not None and offset <= bound and _is_count(node.inputs[1], steps, context)


def _offset(value: ir.Value, counters: frozenset[ir.Value]) -> float | None:
    """``n`` of ``counter + n``, or of ``n`` alone."""
    if value in counters:
        return 0
    constant = number(value)
    if constant is not None:
        return constant
    node = value.producer()
    if node is None or not is_op(node, "Add"):
        return None
    for one, other in (node.inputs, node.inputs[::-1]):
        if one is not None and origin(one, "Identity") in counters:
            return number(other)
    return None
