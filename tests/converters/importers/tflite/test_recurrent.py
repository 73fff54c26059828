"""Recurrent layers against LiteRT."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_models import Graph, Op, Tensor, constant

from graphopt.errors import UnsupportedError

UNITS, WIDTH = 4, 3
TANH = 4


def lstm(
    draw, *, step=False, time_major=False, coupled=False, peepholes=False, activation=TANH, **options
) -> Graph:
    tensors = [Tensor(draw(2, WIDTH) if step else draw(2, 5, WIDTH))]
    inputs = [0]

    def add(array: np.ndarray | None, **more) -> None:
        inputs.append(-1 if array is None else len(tensors))
        if array is not None:
            tensors.append(Tensor(array, constant=not more, **more))

    for gate in range(4):
        add(None if coupled and not gate else draw(UNITS, WIDTH, seed=gate))
    for gate in range(4):
        add(None if coupled and not gate else draw(UNITS, UNITS, seed=10 + gate))
    for gate in range(3):
        add(draw(UNITS, seed=20 + gate) if peepholes and not (coupled and not gate) else None)
    for gate in range(4):
        add(None if coupled and not gate else draw(UNITS, seed=30 + gate))
    add(None)
    add(None)
    batch = 5 if time_major else 2
    for name in ("hidden", "cell"):
        add(np.zeros((batch, UNITS), np.float32), variable=True, name=name)
    tensors.append(Tensor(draw(2, UNITS) if step else draw(2, 5, UNITS)))
    if step:
        given = {"fusedActivationFunction": activation, **options}
        return Graph(tensors, [Op("LSTM", inputs, [len(tensors) - 1], "LSTM", given)])
    given = {"fusedActivationFunction": activation, "timeMajor": time_major, **options}
    kind = "UnidirectionalSequenceLSTM"
    return Graph(tensors, [Op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [len(tensors) - 1], kind, given)])


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
def test_lstm(time_major, coupled, peepholes, agrees, draw):
    graph = lstm(draw, time_major=time_major, coupled=coupled, peepholes=peepholes)
    made = agrees(graph, atol=1e-5)
    assert "LSTM" in made.ops
    assert any("here each run begins with zeros" in note for note in made.exported.notes)


def test_what_the_lstm_cannot_say_is_refused(imported, draw):
    with pytest.raises(UnsupportedError, match="clipping of the cell"):
        imported(lstm(draw, cellClip=3.0))
    with pytest.raises(UnsupportedError, match="activation function 3"):
        imported(lstm(draw, activation=3))


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("activation", [TANH, 1])
def test_rnn(time_major, activation, agrees, draw):
    batch = 5 if time_major else 2
    tensors = [
        Tensor(draw(2, 5, WIDTH)),
        constant(draw(UNITS, WIDTH)),
        constant(draw(UNITS, UNITS) / 3),
        constant(draw(UNITS)),
        Tensor(np.zeros((batch, UNITS), np.float32), variable=True),
        Tensor(draw(2, 5, UNITS)),
    ]
    options = {"timeMajor": time_major, "fusedActivationFunction": activation}
    op = Op("UNIDIRECTIONAL_SEQUENCE_RNN", [0, 1, 2, 3, 4], [5], "SequenceRNN", options)
    assert "RNN" in agrees(Graph(tensors, [op]), atol=1e-5).ops


def rnn_step(draw) -> Graph:
    tensors = [
        Tensor(draw(2, WIDTH)),
        constant(draw(UNITS, WIDTH)),
        constant(draw(UNITS, UNITS) / 3),
        constant(draw(UNITS)),
        Tensor(np.zeros((2, UNITS), np.float32), variable=True, name="hidden"),
        Tensor(draw(2, UNITS)),
    ]
    return Graph(tensors, [Op("RNN", [0, 1, 2, 3, 4], [5], "RNN", {"fusedActivationFunction": TANH})])


def svdf(draw, rank: int) -> Graph:
    filters, memory = 4 * rank, 5
    tensors = [
        Tensor(draw(2, WIDTH)),
        constant(draw(filters, WIDTH)),
        constant(draw(filters, memory)),
        constant(draw(4)),
        Tensor(np.zeros((2, filters * memory), np.float32), variable=True, name="memory"),
        Tensor(draw(2, 4)),
    ]
    return Graph(
        tensors, [Op("SVDF", [0, 1, 2, 3, 4], [5], "SVDF", {"rank": rank, "fusedActivationFunction": 1})]
    )


@pytest.mark.parametrize("kind", ["RNN", "SVDF", "SVDF of rank 2"])
def test_a_step_with_its_state(kind, imported, draw):
    """From a state that is not zero; the new one is compared as well."""
    graph = rnn_step(draw) if kind == "RNN" else svdf(draw, 2 if "2" in kind else 1)
    made = imported(graph)
    state = graph.tensors[4]
    assert [v.name for v in made.model.graph.inputs] == ["t0", state.name]
    assert [v.name for v in made.model.graph.outputs] == ["t5", f"{state.name}_next"]
    results = made.both(draw(2, WIDTH), draw(*state.array.shape, seed=7))
    assert len(results) == 2
    for want, got in results:
        np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_a_state_without_a_variable_is_refused(imported, draw):
    graph = rnn_step(draw)
    graph.tensors[4].variable = False
    with pytest.raises(UnsupportedError, match="without a variable tensor"):
        imported(graph)


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_step_of_lstm_with_its_states(peepholes, coupled, imported, draw):
    made = imported(lstm(draw, step=True, peepholes=peepholes, coupled=coupled))
    assert [v.name for v in made.model.graph.inputs] == ["t0", "hidden", "cell"]
    results = made.both(draw(2, WIDTH), draw(2, UNITS, seed=3), draw(2, UNITS, seed=4))
    assert len(results) == 3
    for want, got in results:
        np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_the_basic_kernel_is_refused(imported, draw):
    with pytest.raises(UnsupportedError, match="basic kernel"):
        imported(lstm(draw, step=True, kernelType=1))
