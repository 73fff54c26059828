"""Recurrent layers: an initial state of zeros is what they start from anyway."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, describe
from graphopt.rewrite import Context, Rule, input_at, is_op

__all__ = ["RecurrentZeroState"]

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
    return is_op(node, *_VIEWS) and _is_zeros(node.inputs[0], depth - 1)


def _all_positive_zero(array: np.ndarray) -> bool:
    return bool(np.all(array == 0) and not np.any(np.signbit(array)))
