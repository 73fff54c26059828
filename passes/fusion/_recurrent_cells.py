"""What the body of a Loop computes in one step, and which recurrent operator computes the same.

The body is read as a formula over the step of the sequence and the carried states. Whatever is a matrix
product, a bias, or columns of either is kept as one :class:`Affine`, so that it does not matter in which
order an exporter adds, nor whether it splits the gates before or after. Then the formulas of the
specification are looked for:

====  ==============================================================================================
RNN   h' = f(x W + h R + b)
GRU   h' = z h + (1 - z) g(x W_h + r (h R_h + b_r) + b_h), or g(x W_h + (r h) R_h + b_h)
LSTM  c' = f c + i g(...), h' = o k(c')
====  ==============================================================================================

Source: https://onnx.ai/onnx/operators/ (RNN, GRU, LSTM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

__all__ = [
    "Activation",
    "Affine",
    "Apply",
    "Cell",
    "Complement",
    "Formula",
    "Product",
    "Source",
    "Sum",
    "cell_of",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Formula:
    """A matrix [batch, n] that the body computes; the same object wherever it is used."""


@dataclass(frozen=True, eq=False)
class Source(Formula):
    """The step of the sequence (``state`` is None), or the state with this number."""

    state: int | None


@dataclass(frozen=True, eq=False)
class Affine(Formula):
    """The sum of formulas times constant matrices [k, n], and a bias [n]."""

    terms: Mapping[Formula, Array]
    bias: Array

    def columns(self, start: int, end: int) -> Affine:
        """Some of its columns."""
        return Affine({f: matrix[:, start:end] for f, matrix in self.terms.items()}, self.bias[start:end])

    def plus(self, other: Affine) -> Affine:
        """The sum of both."""
        terms = dict(self.terms)
        for formula, matrix in other.terms.items():
            terms[formula] = terms[formula] + matrix if formula in terms else matrix
        return Affine(terms, self.bias + other.bias)


@dataclass(frozen=True)
class Activation:
    """An activation function by its name in the attributes of recurrent operators."""

    name: str
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True, eq=False)
class Apply(Formula):
    """An activation function of a formula."""

    activation: Activation
    argument: Formula


@dataclass(frozen=True, eq=False)
class Product(Formula):
    """The product of two formulas, element by element."""

    factors: tuple[Formula, Formula]


@dataclass(frozen=True, eq=False)
class Sum(Formula):
    """The sum of two formulas that are not both affine."""

    parts: tuple[Formula, Formula]


@dataclass(frozen=True, eq=False)
class Complement(Formula):
    """One minus a formula."""

    argument: Formula


@dataclass(frozen=True)
class Cell:
    """A recurrent operator.

    Attributes:
        op_type: ``RNN``, ``GRU`` or ``LSTM``.
        states: Numbers of the carried states: hidden, and the cell of LSTM.
        weights: Of the step, [gates * hidden, features].
        recurrence: Of the hidden state, [gates * hidden, hidden].
        bias: For both, [2 * gates * hidden].
        activations: In the order of the operator.
        attributes: What else the operator must be told.
    """

    op_type: str
    states: tuple[int, ...]
    weights: Array
    recurrence: Array
    bias: Array
    activations: tuple[Activation, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)


#: The gates in the order that the operators want them: input, output, forget, cell; update, reset, hidden.
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}


def cell_of(results: Mapping[int, Formula]) -> Cell | None:
    """The operator that makes these next states, by number; None where none does."""
    if len(results) == 2:
        first, second = results
        return _lstm(results, first, second) or _lstm(results, second, first)
    if len(results) == 1:
        ((state, result),) = results.items()
        return _gru(state, result) or _rnn(state, result)
    return None


def _rnn(state: int, result: Formula) -> Cell | None:
    gate = _gate(result, state)
    return None if gate is None else _cell("RNN", (state,), [gate], (gate.activation,))


def _lstm(results: Mapping[int, Formula], hidden: int, cell: int) -> Cell | None:
    memory = results[cell]
    for output, squashed in _orders(results[hidden], Product):
        if not (isinstance(squashed, Apply) and squashed.argument is memory):
            continue
        for kept, added in _orders(memory, Sum):
            forget = next((f for f, c in _orders(kept, Product) if _is_state(c, cell)), None)
            for entry, candidate in _orders(added, Product):
                gates = [_gate(g, hidden) for g in (entry, output, forget, candidate)]
                complete = [gate for gate in gates if gate is not None]
                if len(complete) < 4 or len({gate.activation for gate in complete[:3]}) > 1:
                    continue
                activations = (complete[0].activation, complete[3].activation, squashed.activation)
                return _cell("LSTM", (hidden, cell), complete, activations)
    return None


def _gru(state: int, result: Formula) -> Cell | None:
    for kept, renewed in _orders(result, Sum):
        for update, old in _orders(kept, Product):
            for complement, candidate in _orders(renewed, Product):
                right = isinstance(complement, Complement) and complement.argument is update
                gate = _gate(update, state)
                if right and _is_state(old, state) and gate is not None and isinstance(candidate, Apply):
                    found = _reset_after(state, gate, candidate) or _reset_before(state, gate, candidate)
                    if found is not None:
                        return found
    return None


def _reset_after(state: int, update: _Gate, candidate: Apply) -> Cell | None:
    """``g(x W_h + r (h R_h + b_r) + b_h)``."""
    for entry, recurrent in _orders(candidate.argument, Sum):
        for reset, inner in _orders(recurrent, Product):
            gate = _gate(reset, state)
            if gate is None or gate.activation != update.activation:
                continue
            step, hidden = _affine(entry, state), _affine(inner, state)
            if step is None or hidden is None or step.recurrence is not None or hidden.weights is not None:
                continue
            last = _Gate(candidate.activation, step.weights, hidden.recurrence, step.bias, hidden.bias)
            activations = (update.activation, candidate.activation)
            return _cell("GRU", (state,), [update, gate, last], activations, linear_before_reset=1)
    return None


def _reset_before(state: int, update: _Gate, candidate: Apply) -> Cell | None:
    """``g(x W_h + (r h) R_h + b_h)``."""
    argument = candidate.argument
    if not isinstance(argument, Affine) or len(argument.terms) != 2:
        return None
    product = next((term for term in argument.terms if isinstance(term, Product)), None)
    step = next((term for term in argument.terms if _is_state(term, None)), None)
    if product is None or step is None:
        return None
    reset = next((r for r, h in _orders(product, Product) if _is_state(h, state)), None)
    gate = _gate(reset, state)
    if gate is None or gate.activation != update.activation:
        return None
    last = _Gate(candidate.activation, argument.terms[step], argument.terms[product], argument.bias)
    return _cell("GRU", (state,), [update, gate, last], (update.activation, candidate.activation))


@dataclass(frozen=True)
class _Gate:
    """``activation(x weights + h recurrence + bias + recurrent_bias)``; None for a term that is missing."""

    activation: Activation
    weights: Array | None
    recurrence: Array | None
    bias: Array
    recurrent_bias: Array | None = None


def _gate(formula: Formula | None, state: int) -> _Gate | None:
    if not isinstance(formula, Apply):
        return None
    inner = _affine(formula.argument, state)
    return None if inner is None else _Gate(formula.activation, inner.weights, inner.recurrence, inner.bias)


def _affine(formula: Formula, state: int) -> _Gate | None:
    """A formula that is affine in the step and the state alone."""
    if not isinstance(formula, Affine):
        return None
    weights = recurrence = None
    for term, matrix in formula.terms.items():
        if _is_state(term, None):
            weights = matrix if weights is None else weights + matrix
        elif _is_state(term, state):
            recurrence = matrix if recurrence is None else recurrence + matrix
        else:
            return None
    return _Gate(Activation(""), weights, recurrence, formula.bias)


def _is_state(formula: Formula, state: int | None) -> bool:
    return isinstance(formula, Source) and formula.state == state


def _orders(formula: Formula | None, kind: type[Product] | type[Sum]) -> list[tuple[Formula, Formula]]:
    """The two operands in both orders, where the formula is of this kind."""
    if isinstance(formula, Product) and kind is Product:
        a, b = formula.factors
    elif isinstance(formula, Sum) and kind is Sum:
        a, b = formula.parts
    else:
        return []
    return [(a, b), (b, a)]


def _fits(gate: _Gate, features: int, hidden: int) -> bool:
    """Whether a gate has the shapes of the others; one of a single column would be broadcast."""
    return (
        len(gate.bias) == hidden
        and (gate.weights is None or gate.weights.shape == (features, hidden))
        and (gate.recurrence is None or gate.recurrence.shape == (hidden, hidden))
        and (gate.recurrent_bias is None or len(gate.recurrent_bias) == hidden)
    )


def _cell(
    op_type: str,
    states: tuple[int, ...],
    gates: Sequence[_Gate],
    activations: tuple[Activation, ...],
    **attributes: int,
) -> Cell | None:
    hidden = len(gates[0].bias)
    features = next((len(gate.weights) for gate in gates if gate.weights is not None), 0)
    if not features or len(gates) != _GATES[op_type] or not all(_fits(g, features, hidden) for g in gates):
        return None

    def rows(matrix: Array | None, width: int) -> Array:
        return np.zeros((hidden, width)) if matrix is None else matrix.T

    weights = np.concatenate([rows(gate.weights, features) for gate in gates])
    recurrence = np.concatenate([rows(gate.recurrence, hidden) for gate in gates])
    zeros = np.zeros(hidden)
    recurrent = [zeros if gate.recurrent_bias is None else gate.recurrent_bias for gate in gates]
    bias = np.concatenate([gate.bias for gate in gates] + recurrent)
    return Cell(op_type, states, weights, recurrence, bias, activations, attributes)
