"""Branches, loops, and variables, against LiteRT."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import flexbuffers
from tflite_models import Graph, Op, Tensor, constant, write

from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.reader import read
from graphopt.converters.importers._tflite.states import check_states
from graphopt.errors import InputError, UnsupportedError, UserError
from graphopt.runtime import evaluate


def scalar(kind: type = np.bool_) -> Tensor:
    return Tensor(np.zeros((), kind))


def branches(draw) -> list[Graph]:
    def branch(op: str, kind: str) -> Graph:
        return Graph(
            [Tensor(draw(3)), constant(draw(3, seed=1)), Tensor(draw(3))], [Op(op, [0, 1], [2], kind)]
        )

    op = Op("IF", [0, 1], [2], "If", {"thenSubgraphIndex": 1, "elseSubgraphIndex": 2})
    return [
        Graph([scalar(), Tensor(draw(3)), Tensor(draw(3))], [op]),
        branch("ADD", "Add"),
        branch("MUL", "Mul"),
    ]


def test_if(imported, draw):
    made = imported(*branches(draw))
    assert "If" in made.ops
    for condition in (True, False):
        for want, got in made.both(np.array(condition), draw(3)):
            np.testing.assert_allclose(got, want, 1e-6)


def test_a_branch_that_hands_its_input_on(imported, draw):
    main, then, _ = branches(draw)
    made = imported(main, then, Graph([Tensor(draw(3))], [], outputs=[0]))
    for condition in (True, False):
        for want, got in made.both(np.array(condition), draw(3)):
            np.testing.assert_array_equal(got, want)


def test_a_composite_is_what_it_is_composed_of(imported, draw):
    attributes = np.frombuffer(flexbuffers.Dumps({}), np.uint8)
    options = {"name": b"my.add", "decompositionSubgraphIndex": 1, "compositeAttributes": attributes}
    op = Op("STABLEHLO_COMPOSITE", [0], [1], "StableHLOComposite", options)
    made = imported(Graph([Tensor(draw(3)), Tensor(draw(3))], [op]), branches(draw)[1])
    assert made.ops == ["Add"]
    for want, got in made.both(draw(3)):
        np.testing.assert_array_equal(got, want)


def loop() -> list[Graph]:
    """Add up 1.5 to a vector until a counter comes to a limit that is fed."""
    number, vector = scalar(np.int32), Tensor(np.zeros(2, np.float32))
    op = Op("WHILE", [0, 1, 2], [3, 4, 5], "While", {"condSubgraphIndex": 1, "bodySubgraphIndex": 2})
    main = Graph([number, number, vector, number, number, vector], [op])
    condition = Graph([number, number, vector, scalar()], [Op("LESS", [0, 1], [3])], inputs=[0, 1, 2])
    tensors = [number, number, vector, constant(np.int32(1)), constant(np.float32(1.5)), number, vector]
    body = Graph(tensors, [Op("ADD", [0, 3], [5], "Add"), Op("ADD", [2, 4], [6], "Add")], outputs=[5, 1, 6])
    return [main, condition, body]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_while(limit, imported):
    made = imported(*loop())
    assert "Loop" in made.ops
    arrays = np.array(0, np.int32), np.array(limit, np.int32), np.float32([1, 2])
    results = made.both(*arrays)
    np.testing.assert_array_equal(results[2][1], np.float32([1, 2]) + 1.5 * limit)
    for want, got in results:
        np.testing.assert_array_equal(got, want)


def test_a_subgraph_that_calls_itself_is_refused(imported, draw):
    inner = Op("IF", [1, 0], [2], "If", {"thenSubgraphIndex": 1, "elseSubgraphIndex": 1})
    again = Graph([Tensor(draw(3)), constant(True), Tensor(draw(3))], [inner])
    with pytest.raises(InputError, match="subgraph 1 calls itself"):
        imported(branches(draw)[0], again, again)


def test_a_call_of_no_subgraph_is_refused(imported, draw):
    with pytest.raises(InputError, match="subgraph 1 is called, there is none"):
        imported(branches(draw)[0])


def test_a_call_with_other_arguments_is_refused(imported, draw):
    main, _, other = branches(draw)
    wrong = Graph([Tensor(draw(3)), Tensor(draw(3)), Tensor(draw(3))], [Op("ADD", [0, 1], [2], "Add")])
    with pytest.raises(InputError, match="subgraph 1 has 2 inputs and is called with 1"):
        imported(main, wrong, other)


def test_calls_that_double_at_each_level_are_bounded(imported, draw):
    """40 levels of two branches each would be a billion nodes."""

    def level(index: int) -> Graph:
        op = Op("IF", [0, 1], [2], "If", {"thenSubgraphIndex": index + 1, "elseSubgraphIndex": index + 1})
        return Graph([scalar(), Tensor(draw(3)), Tensor(draw(3))], [op])

    def inner(index: int) -> Graph:
        more = {"thenSubgraphIndex": index + 1, "elseSubgraphIndex": index + 1}
        return Graph([Tensor(draw(3)), constant(True), Tensor(draw(3))], [Op("IF", [1, 0], [2], "If", more)])

    last = Graph([Tensor(draw(3)), Tensor(draw(3))], [Op("ABS", [0], [1])])
    with pytest.raises(UnsupportedError, match=r"more than [0-9]+ nodes"):
        imported(level(0), *(inner(n) for n in range(1, 40)), last)


def accumulator(draw, initial: np.ndarray | None = None) -> list[Graph]:
    """``total += x``, and the new total is the output; at the start it is ``initial``."""
    start = np.zeros(3, np.float32) if initial is None else initial
    handle = Tensor(np.zeros((), np.int32), type="RESOURCE")
    named = {"sharedName": b"total", "container": b""}
    main = Graph(
        [handle, Tensor(draw(3)), Tensor(draw(3)), Tensor(draw(3))],
        [
            Op("CALL_ONCE", [], [], "CallOnce", {"initSubgraphIndex": 1}),
            Op("VAR_HANDLE", [], [0], "VarHandle", named),
            Op("READ_VARIABLE", [0], [2], "ReadVariable"),
            Op("ADD", [2, 1], [3], "Add"),
            Op("ASSIGN_VARIABLE", [0, 3], [], "AssignVariable"),
        ],
        outputs=[3],
    )
    before = Graph(
        [handle, constant(start)],
        [Op("VAR_HANDLE", [], [0], "VarHandle", named), Op("ASSIGN_VARIABLE", [0, 1], [], "AssignVariable")],
        outputs=[],
    )
    return [main, before]


def test_a_variable_becomes_an_input_and_an_output(imported, draw):
    made = imported(*accumulator(draw))
    assert [v.name for v in made.model.graph.inputs] == ["t1", "total"]
    assert [v.name for v in made.model.graph.outputs] == ["t3", "total_next"]
    for want, got in made.both(draw(3), draw(3, seed=1)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("start", [0.0, 2.5])
def test_the_state_goes_round_as_in_the_file(start, imported, draw):
    """Five runs one after the other: LiteRT keeps the variable, the ONNX model is handed it."""
    graphs = accumulator(draw, np.full(3, start, np.float32))
    made = imported(*graphs)
    (described,) = json.loads(made.model.metadata_props["graphopt.state"])
    assert described == {"input": "total", "output": "total_next", "initial": start}
    interpreter = Interpreter(model_content=write(*graphs))
    interpreter.allocate_tensors()
    state = np.full(3, described["initial"], np.float32)
    for step in range(5):
        data = draw(3, seed=step)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data)
        interpreter.invoke()
        want = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        got = evaluate.run(made.model, [{"t1": data, "total": state}]).outputs[0]
        np.testing.assert_allclose(got["t3"], want, 1e-6)
        state = got["total_next"]


def test_a_state_that_goes_another_way_is_refused(imported, draw):
    """An initial value that the import took wrongly shows in the first steps."""
    made = imported(*accumulator(draw))
    converted = convert(read(made.source))
    wrong = dataclasses.replace(converted, initial={"total": np.ones(3, np.float32)})
    opened = made.exported.run
    check_states(made.source.read_bytes(), opened, converted)
    with pytest.raises(UnsupportedError, match="'t3' is another one in step 0"):
        check_states(made.source.read_bytes(), opened, wrong)


def test_a_variable_that_is_assigned_in_a_branch_is_refused(imported, draw):
    main, before = accumulator(draw)
    handle, named = main.tensors[0], {"sharedName": b"total", "container": b""}
    assigning = Graph(
        [Tensor(draw(3)), handle],
        [Op("VAR_HANDLE", [], [1], "VarHandle", named), Op("ASSIGN_VARIABLE", [1, 0], [], "AssignVariable")],
        outputs=[0],
    )
    op = Op("IF", [4, 1], [5], "If", {"thenSubgraphIndex": 2, "elseSubgraphIndex": 2})
    changed = Graph([*main.tensors, scalar(), Tensor(draw(3))], [*main.ops, op], outputs=[5])
    with pytest.raises(UnsupportedError, match=r"IF.*variables that are assigned inside"):
        imported(changed, before, assigning)


def transposition(draw, options: bytes, custom: str = "Convolution2DTransposeBias") -> Graph:
    tensors = [
        Tensor(draw(1, 4, 6, 3)),
        constant(draw(2, 2, 2, 3)),
        constant(draw(2)),
        Tensor(draw(1, 8, 12, 2)),
    ]
    return Graph(tensors, [Op("CUSTOM", [0, 1, 2], [3], custom=custom, custom_options=options)])


def pool_options(padding: int, stride: int, kernel: int, activation: int = 0) -> bytes:
    return np.array([padding, stride, stride, kernel, kernel, activation], np.int32).tobytes()


@pytest.mark.parametrize(("padding", "stride", "kernel"), [(1, 2, 2), (2, 2, 2), (1, 2, 3), (2, 1, 3)])
def test_mediapipe_pooling_with_places(padding, stride, kernel, imported, draw):
    """The places are compared as well; between two operators of LiteRT, which run as they are."""
    count = -(-6 // stride) if padding == 1 else (6 - kernel) // stride + 1
    pooled = draw(1, count, count, 3)
    tensors = [
        Tensor(draw(1, 6, 6, 3)),
        Tensor(draw(1, 6, 6, 3)),
        Tensor(pooled),
        Tensor(pooled),
        Tensor(pooled),
    ]
    options = pool_options(padding, stride, kernel)
    ops = [
        Op("ABS", [0], [1]),
        Op("CUSTOM", [1], [2, 3], custom="MaxPoolingWithArgmax2D", custom_options=options),
        Op("NEG", [2], [4]),
    ]
    made = imported(Graph(tensors, ops, outputs=[4, 3]))
    assert any("MaxPoolingWithArgmax2D: LiteRT has no kernel" in note for note in made.exported.notes)
    for want, got in made.both(draw(1, 6, 6, 3, seed=5)):
        np.testing.assert_allclose(got, want, 1e-6)


def test_mediapipe_unpooling_brings_the_largest_back(imported, draw):
    tensors = [
        Tensor(draw(1, 6, 4, 3)),
        *(Tensor(draw(1, 3, 2, 3)) for _ in range(2)),
        Tensor(draw(1, 6, 4, 3)),
    ]
    options = pool_options(1, 2, 2)
    ops = [
        Op("CUSTOM", [0], [1, 2], custom="MaxPoolingWithArgmax2D", custom_options=options),
        Op("CUSTOM", [1, 2], [3], custom="MaxUnpooling2D", custom_options=options),
    ]
    data = draw(1, 6, 4, 3, seed=5)
    ((want, got),) = imported(Graph(tensors, ops)).both(data)
    np.testing.assert_array_equal(got, want)
    assert np.count_nonzero(got) == 3 * 2 * 3
    np.testing.assert_array_equal(got[got != 0], data[got != 0])


@pytest.mark.parametrize("options", [b"", pool_options(3, 2, 2), pool_options(1, 2, 2, activation=1)])
def test_pooling_options_must_be_there(options, imported, draw):
    tensors = [Tensor(draw(1, 4, 4, 3)), Tensor(draw(1, 2, 2, 3)), Tensor(draw(1, 2, 2, 3))]
    op = Op("CUSTOM", [0], [1, 2], custom="MaxPoolingWithArgmax2D", custom_options=options)
    with pytest.raises(UserError, match="MaxPoolingWithArgmax2D"):
        imported(Graph(tensors, [op]))


@pytest.mark.parametrize("padding", [1, 2])
def test_mediapipe_transposed_convolution(padding, agrees, draw):
    options = np.array([padding, 2, 2], np.int32).tobytes()
    made = agrees(transposition(draw, options), ["Transpose", "ConvTranspose", "Transpose"], atol=1e-5)
    assert any("TRANSPOSE_CONV" in note for note in made.exported.notes)


@pytest.mark.parametrize("options", [b"", b"\x01\x00\x00\x00", np.array([7, 2, 2], np.int32).tobytes()])
def test_its_options_must_be_there(options, imported, draw):
    with pytest.raises(InputError, match="Convolution2DTransposeBias"):
        imported(transposition(draw, options))


def test_an_unknown_custom_operator_is_refused(imported, draw):
    with pytest.raises(UnsupportedError, match=r"custom operator Frobnicate \(first: operator 0"):
        imported(transposition(draw, b"", "Frobnicate"))
