"""Recurrent layers: an initial state of zeros is what they start from anyway; the last step is an output."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, describe
from graphopt.passes.fusion._formula import ints
from graphopt.rewrite import Context, Rule, input_at, is_op, producer

__all__ = ["RecurrentLastStep", "RecurrentZeroState"]

#: Input slots of the initial states: hidden, and the cell of LSTM.
_STATES: Final = {"GRU": (5,), "RNN": (5,), "LSTM": (5, 6)}
#: Operators whose elements are all elements of their first input.
_VIEWS: Final = (
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Expand",
    "Gather",
    "Tile",
)
_DEPTH: Final = 8
#: Input slot of the lengths of sequences.
_LENGTHS: Final = 4


class _Match(NamedTuple):
    node: ir.Node
    given: tuple[int, ...]


class RecurrentZeroState(Rule[_Match]):
    """LSTM, GRU or RNN whose initial state is zeros: leave the input out.

    The specification starts from zeros where ``initial_h`` (and ``initial_c``) is left out, so that the
    Shape -> Concat -> ConstantOfShape chains of exporters, which only size these zeros, are not needed. Zeros
    are a constant of zeros, or ConstantOfShape of zero, also seen through operators that only move elements.
    """

    name = "recurrent-zero-state"
    roots = tuple(_STATES)

    def match(self, node: ir.Node) -> _Match | None:
        """A recurrent node with initial states."""
        given = tuple(i for i in _STATES[node.op_type] if input_at(node, i) is not None)
        return _Match(node, given) if given else None

    def check(self, match: _Match, context: Context) -> str | None:
        """Refuse unless one of the states is zeros."""
        if any(_is_zeros(input_at(match.node, i)) for i in match.given):
            return None
        return f"the initial state of {describe(match.node)} is not known to be zeros"

    def rewrite(self, match: _Match, context: Context) -> None:
        """Leave out the states that are zeros."""
        for index in match.given:
            if _is_zeros(input_at(match.node, index)):
                context.leave_out(match.node, index)


def _is_zeros(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    if value is None:
        return False
    array = array_of(value)
    if array is not None:
        return _all_positive_zero(array)
    node = value.producer()
    if node is None or depth == 0:
        return False
    if is_op(node, "ConstantOfShape"):
        fill = node.attributes.get("value")
        return fill is None or _all_positive_zero(fill.as_tensor().numpy())
    if is_op(node, "Concat"):
        return all(_is_zeros(value, depth - 1) for value in node.inputs)
    return is_op(node, *_VIEWS) and _is_zeros(node.inputs[0], depth - 1)


def _all_positive_zero(array: np.ndarray) -> bool:
    return bool(np.all(array == 0) and not np.any(np.signbit(array)))


class _Last(NamedTuple):
    gather: ir.Node
    squeeze: ir.Node
    recurrent: ir.Node


class RecurrentLastStep(Rule[_Last]):
    """The last step of all outputs of a forward LSTM, GRU or RNN: its output of the last hidden state.

    ``Y[steps, 1, batch, hidden]`` without the axis of directions, at -1, is ``Y_h`` without that axis. Where
    lengths of sequences are given, the last step is that of the longest.
    """

    name = "recurrent-last-step"
    roots = ("Gather",)

    def match(self, node: ir.Node) -> _Last | None:
        """Gather of index -1 behind a Squeeze of the first output."""
        index = array_of(node.inputs[1])
        if index is None or index.ndim or index.item() != -1 or node.attributes.get_int("axis", 0) != 0:
            return None
        squeeze = producer(node.inputs[0], node, "Squeeze")
        recurrent = None if squeeze is None else producer(squeeze.inputs[0], squeeze, *_STATES)
        if squeeze is None or recurrent is None or squeeze.inputs[0] is not recurrent.outputs[0]:
            return None
        return _Last(node, squeeze, recurrent)

    def check(self, match: _Last, context: Context) -> str | None:
        """Refuse unless it is one direction, forward, of sequences of one length, steps first."""
        node = match.recurrent
        if node.attributes.get_string("direction", "forward") != "forward":
            return f"{describe(node)} does not run forward alone"
        if input_at(node, _LENGTHS) is not None or node.attributes.get_int("layout", 0) != 0:
            return f"{describe(node)} has lengths of sequences, or another layout"
        if ints(input_at(match.squeeze, 1)) != [1]:
            return f"{describe(match.squeeze)} does not take away the axis of directions alone"
        return None

    def rewrite(self, match: _Last, context: Context) -> None:
        """Squeeze the last hidden state instead."""
        node, output = match.recurrent, match.gather.outputs[0]
        if len(node.outputs) < 2:
            node.resize_outputs(2)
        last = node.outputs[1]
        if not last.name:
            last.name, last.type = context.fresh_name(f"{node.outputs[0].name}_last"), node.outputs[0].type
        axis = context.constant("axes", np.array([0], np.int64))
        context.replace(output, "Squeeze", [last, axis], like=match.gather)
