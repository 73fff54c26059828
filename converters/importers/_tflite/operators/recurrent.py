"""Recurrent layers over whole sequences; their variable tensors begin each run with zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Array, Operator
from graphopt.converters.importers._tflite.operators._common import output_name
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

__all__ = ["lstm"]

_ACTIVATIONS = {1: "Relu", 4: "Tanh"}
_INPUT, _FORGET, _CELL, _OUTPUT = range(4)
#: ONNX's order of gates.
_ORDER = (_INPUT, _OUTPUT, _FORGET, _CELL)


def _constant(ctx: Context, op: Operator, position: int) -> Array | None:
    """A weight in real numbers, float32; None where it is left out."""
    index = op.input(position)
    if index < 0:
        return None
    array = ctx.real_array(index)
    if array is None:
        raise UnsupportedError(f"{op.place}: its weight '{ctx.tensor(index).name}' is computed")
    return array.astype(np.float32)


def _gates(ctx: Context, op: Operator, first: int) -> list[Array | None]:
    return [_constant(ctx, op, first + gate) for gate in range(4)]


def _checked_activation(ctx: Context, op: Operator) -> str:
    if ctx.tensor(op.inputs[0]).quantized:
        raise UnsupportedError(f"{op.place}: of quantized data is not supported")
    kind = int(op.options.get("fusedActivationFunction", 0))
    if kind not in _ACTIVATIONS:
        raise UnsupportedError(f"{op.place}: activation function {kind} is not supported")
    return _ACTIVATIONS[kind]


def _sequence(ctx: Context, op: Operator, value: ir.Value, *, back: bool = False) -> ir.Value:
    """Time before batch, as ONNX has it, or back again."""
    if op.options.get("timeMajor", False):
        return value
    return ctx.build.op("Transpose", value, name=output_name(ctx, op) if back else "", perm=[1, 0, 2])


def _finish(ctx: Context, op: Operator, made: ir.Value) -> None:
    whole = ctx.build.op("Squeeze", made, ctx.build.ints([1]), name=output_name(ctx, op))
    ctx.set(op.outputs[0], _sequence(ctx, op, whole, back=True))
    note = f"{op.place}: LiteRT keeps its state from run to run; here each run begins with zeros"
    if note not in ctx.notes:
        ctx.notes.append(note)


def _coupled(weights: list[Array | None]) -> list[Array]:
    """Weights of four gates; without an input gate it is 1 - forget, whose weights are the negative ones."""
    forget = weights[_FORGET]
    assert forget is not None
    return [weights[_INPUT] if weights[_INPUT] is not None else -forget, *weights[1:]]  # type: ignore[list-item]


def _stacked(weights: Sequence[Array], order: Sequence[int] = _ORDER) -> Array:
    return np.concatenate([weights[gate] for gate in order])[None]


def lstm(ctx: Context, op: Operator, data: ir.Value, *states: ir.Value | None) -> Sequence[ir.Value]:
    """One ONNX LSTM: gates, peepholes and biases in its order, the recurrent bias is zero.

    Args:
        ctx: The call.
        op: With the 20 or 24 inputs of TFLite's LSTM.
        data: [time, batch, features].
        states: Hidden and cell state [1, batch, units]; zeros where there are none.
    """
    activation = _checked_activation(ctx, op)
    if op.options.get("cellClip", 0.0) or op.options.get("projClip", 0.0):
        raise UnsupportedError(f"{op.place}: clipping of the cell is not supported")
    if any(op.input(position) >= 0 for position in (16, 17, 20, 21, 22, 23)):
        raise UnsupportedError(f"{op.place}: projection and layer normalization are not supported")
    weights, recurrent = _coupled(_gates(ctx, op, 1)), _coupled(_gates(ctx, op, 5))
    bias = _coupled(_gates(ctx, op, 12))
    peepholes = [_constant(ctx, op, position) for position in (9, 10, 11)]
    units = recurrent[_FORGET].shape[0]
    inputs: list[ir.Value | None] = [
        data,
        ctx.build.constant(_stacked(weights), "W"),
        ctx.build.constant(_stacked(recurrent), "R"),
        ctx.build.constant(np.concatenate([_stacked(bias), np.zeros((1, 4 * units), np.float32)], 1), "B"),
        None,
        *(states or (None, None)),
    ]
    if peepholes[1] is not None:
        own = peepholes[0] if peepholes[0] is not None else -peepholes[1]
        assert peepholes[2] is not None
        inputs.append(ctx.build.constant(np.concatenate([own, peepholes[2], peepholes[1]])[None]))
    attributes = {"hidden_size": units, "activations": ["Sigmoid", activation, activation]}
    return ctx.build.nodes_of("LSTM", inputs, attributes, 3, output_name(ctx, op))


@converter("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(ctx: Context, op: Operator) -> None:
    _finish(ctx, op, lstm(ctx, op, _sequence(ctx, op, ctx.real(op.inputs[0])))[0])


@converter("UNIDIRECTIONAL_SEQUENCE_RNN")
def _rnn(ctx: Context, op: Operator) -> None:
    """One ONNX RNN."""
    activation = _checked_activation(ctx, op)
    weight, recurrent, bias = (_constant(ctx, op, position) for position in (1, 2, 3))
    assert weight is not None
    assert recurrent is not None
    assert bias is not None
    inputs = [
        _sequence(ctx, op, ctx.real(op.inputs[0])),
        ctx.build.constant(weight[None], "W"),
        ctx.build.constant(recurrent[None], "R"),
        ctx.build.constant(np.concatenate([bias, np.zeros_like(bias)])[None], "B"),
    ]
    attributes = {"hidden_size": recurrent.shape[0], "activations": [activation]}
    made = ctx.build.nodes_of("RNN", inputs, attributes, 2, output_name(ctx, op))
    _finish(ctx, op, made[0])
