"""TFLite files as a user gives them: names, axes, signatures, options; damaged and hostile files."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import Graph, Op, Tensor, constant, quantized, signature, write

import graphopt.importing
from graphopt import conversion
from graphopt.converters.importers._tflite import registry
from graphopt.converters.importers._tflite.convert import convert
from graphopt.converters.importers._tflite.reader import read
from graphopt.errors import InputError, UnsupportedError, UserError
from graphopt.import_options import ImportOptions


def perceptron(draw_seed: int = 0, **names: str) -> Graph:
    rng = np.random.default_rng(draw_seed)
    tensors = [
        Tensor(
            np.zeros((1, 6), np.float32), signature=(-1, 6), name=names.get("input", "serving_default_x:0")
        ),
        constant(rng.standard_normal((4, 6)).astype(np.float32), name="w"),
        constant(rng.standard_normal(4).astype(np.float32), name="b"),
        Tensor(np.zeros((1, 4), np.float32), signature=(-1, 4), name="hidden"),
        Tensor(
            np.zeros((1, 4), np.float32),
            signature=(-1, 4),
            name=names.get("output", "StatefulPartitionedCall:0"),
        ),
    ]
    ops = [
        Op("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnected"),
        Op("SOFTMAX", [3], [4], "Softmax", {"beta": 1.0}),
    ]
    return Graph(tensors, ops)


@pytest.fixture
def file(tmp_path: Path):
    def make(content: bytes, name: str = "model.tflite") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return make


def names_of(values) -> list[str]:
    return [value.name for value in values]


def test_an_import_through_the_child(file):
    model, report = graphopt.importing.import_source(file(write(perceptron())))
    assert [node.op_type for node in model.graph] == ["Gemm", "Softmax"]
    assert names_of(model.graph.inputs) == ["x"]
    assert names_of(model.graph.outputs) == ["StatefulPartitionedCall"]
    assert [str(d) for d in model.graph.inputs[0].shape] == ["batch", "6"]
    assert [str(d) for d in model.graph.outputs[0].shape] == ["batch", "4"]
    assert report is not None
    assert report.samples >= 2
    assert report.max_rel < 1e-5
    assert model.metadata_props["graphopt.format"] == "TFLite"


def test_the_signature_names_inputs_and_outputs(file):
    named = signature("serving_default", {"features": 0}, {"scores": 4})
    converted = convert(read(Path(file(write(perceptron(), signatures=[named])))))
    assert (list(converted.inputs), list(converted.outputs)) == (["features"], ["scores"])


def test_names_are_unique(file):
    converted = convert(read(Path(file(write(perceptron(input="same", output="same"))))))
    assert (list(converted.inputs), list(converted.outputs)) == (["same"], ["same_1"])


def test_an_inner_value_gives_way_to_an_output(file):
    graph = perceptron(output="hidden:0")
    converted = convert(read(Path(file(write(graph)))))
    assert list(converted.outputs) == ["hidden"]


def test_a_signature_is_chosen(file):
    second = perceptron(1, input="y", output="z")
    signatures = [
        signature("first", {"x": 0}, {"out": 4}),
        signature("second", {"data": 0}, {"result": 4}, 1),
    ]
    source = file(write(perceptron(), second, signatures=signatures))
    model, report = graphopt.importing.import_source(source, ImportOptions(signature="second"))
    assert names_of(model.graph.outputs) == ["result"]
    assert report is not None
    assert report.max_rel < 1e-5
    with pytest.raises(InputError, match=r"no signature 'third'; the file has: 'first', 'second'"):
        convert(read(Path(source)), "third")
    assert any("--signature" in note for note in convert(read(Path(source))).notes)


def test_the_format_is_known_by_its_content(file):
    content = write(perceptron())
    assert conversion.importer_for(file(content, "model")).format == "TFLite"
    with pytest.raises(InputError, match=r"content is TFLite.*rename it to \*\.tflite"):
        conversion.importer_for(file(content, "model.onnx"))
    with pytest.raises(InputError, match="no TFLite file, bytes 4 to 8 are not 'TFL3'"):
        graphopt.importing.import_source(file(b"something else", "other.tflite"))
    with pytest.raises(InputError, match="no such file"):
        graphopt.importing.import_source("nowhere.tflite")


def test_options_without_meaning_are_refused(file):
    with pytest.raises(InputError, match="--weights means nothing for a TFLite file"):
        graphopt.importing.import_source(file(write(perceptron())), ImportOptions(weights="w.npz"))


def test_every_unknown_operator_is_named(file):
    array = np.zeros(3, np.float32)
    tensors = [Tensor(array, name=f"t{i}") for i in range(4)]
    ops = [
        Op("HASHTABLE_LOOKUP", [0], [1]),
        Op("CUSTOM", [1], [2], custom="FlexErf"),
        Op("CUSTOM", [2], [3], custom="Other"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        convert(read(Path(file(write(Graph(tensors, ops))))))
    message = str(caught.value)
    assert "HASHTABLE_LOOKUP (first: operator 0 (HASHTABLE_LOOKUP) at 't1')" in message
    assert "TensorFlow's own Erf (convert without SELECT_TF_OPS)" in message
    assert "custom operator Other" in message
    assert "\n" not in message


def test_no_verification_needs_no_litert(file):
    model, report = graphopt.importing.import_source(file(write(perceptron())), ImportOptions(verify=False))
    assert report is not None
    assert report.samples == 0
    assert len(model.graph) == 2


def damaged(message: str, content: bytes, file) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert(read(Path(file(content))))
    assert "\n" not in str(caught.value)


def test_a_constant_shorter_than_its_shape(file):
    graph = perceptron()
    graph.tensors[1].data = b"1234"
    damaged(r"tensor 'w' has 4 bytes, its shape \[4, 6\] of FLOAT32 needs 96", write(graph), file)


@pytest.mark.parametrize("shape", [(1 << 30, 1 << 30), (2**31 - 1,) * 5, (-5, 3)])
def test_wild_shapes(shape, file):
    content = bytearray(write(perceptron()))
    marker = np.array([1, 6], np.int32).tobytes()
    graph = perceptron()
    graph.tensors[0].array = np.broadcast_to(np.float32(0), (7, 11, 13, 17, 19)[: len(shape)])
    graph.tensors[0].signature = None
    content = write(graph)
    marker = np.array((7, 11, 13, 17, 19)[: len(shape)], np.int32).tobytes()
    assert content.count(marker) == 1
    with pytest.raises(UserError):
        convert(
            read(Path(file(content.replace(marker, np.array(shape, np.int64).astype(np.int32).tobytes()))))
        )


def test_tensors_that_are_not_there(file):
    graph = perceptron()
    graph.outputs = [77]
    damaged("subgraph 0 uses tensor 77 of 5", write(graph), file)


def test_a_tensor_used_before_it_is_made(file):
    graph = perceptron()
    graph.ops = graph.ops[::-1]
    graph.outputs = [4]
    graph.inputs = [0]
    damaged("'hidden' is used before it is made", write(graph), file)


def test_a_tensor_made_twice(file):
    graph = perceptron()
    graph.ops = [*graph.ops, graph.ops[-1]]
    damaged(r"makes a tensor a second time", write(graph), file)


def test_an_operator_without_its_inputs(file):
    graph = perceptron()
    graph.ops[0] = Op("FULLY_CONNECTED", [0], [3], "FullyConnected")
    damaged(r"operator 0 \(FULLY_CONNECTED\) at 'hidden'", write(graph), file)


def corpus() -> list[bytes]:
    array = np.arange(24, dtype=np.int8).reshape(1, 2, 3, 4)
    tensors = [
        quantized(array, 0.1, 3),
        constant([[0, 0], [1, 1], [0, 0], [0, 0]], np.int32),
        quantized(array, 0.1, 3),
    ]
    pads = Graph(tensors, [Op("PAD", [0, 1], [2])])
    number = Tensor(np.zeros((), np.int32))
    loop = Op("WHILE", [0, 1], [2, 3], "While", {"condSubgraphIndex": 1, "bodySubgraphIndex": 2})
    condition = Graph([number, number, Tensor(np.array(True))], [Op("LESS", [0, 1], [2])])
    body = Graph(
        [number, number, constant(np.int32(1)), number],
        [Op("ADD", [0, 2], [3], "Add")],
        outputs=[3, 1],
        inputs=[0, 1],
    )
    named = signature("serving_default", {"x": 0}, {"y": 4})
    return [
        write(perceptron(), signatures=[named]),
        write(pads),
        write(Graph([number] * 4, [loop]), condition, body),
    ]


def read_or_refuse(content: bytes, path: Path) -> bool:
    """Whether a file could be converted; everything else must be a user's error of one line."""
    path.write_bytes(content)
    try:
        converted = convert(read(path))
    except UserError as error:
        assert "\n" not in str(error)
        return False
    assert isinstance(converted.model, ir.Model)
    return True


@pytest.mark.parametrize("number", range(3))
def test_flipped_bytes_and_short_files_never_escape(number, tmp_path):
    content = corpus()[number]
    rng = np.random.default_rng(number)
    path = tmp_path / "model.tflite"
    refused = 0
    for _ in range(400):
        mutated = bytearray(content)
        if rng.random() < 0.2:
            del mutated[int(rng.integers(8, len(mutated))) :]
        else:
            for place in rng.integers(8, len(mutated), rng.integers(1, 4)):
                mutated[place] = rng.integers(256)
        refused += not read_or_refuse(bytes(mutated), path)
    assert refused > 50


@pytest.mark.parametrize("number", range(3))
def test_wild_offsets_never_escape(number, tmp_path):
    """Every aligned word in turn is made a huge or negative number."""
    content = corpus()[number]
    path = tmp_path / "model.tflite"
    refused = 0
    for place in range(8, len(content) - 4, 4):
        for word in (0x7FFFFFFF, 0xFFFFFFFF, 0x00010000):
            mutated = content[:place] + struct.pack("<I", word) + content[place + 4 :]
            refused += not read_or_refuse(mutated, path)
    assert refused > 20


def test_a_damaged_file_through_the_child_is_one_line(file):
    content = corpus()[0]
    with pytest.raises(UserError) as caught:
        graphopt.importing.import_source(file(content[: len(content) // 2]))
    assert "\n" not in str(caught.value)


def test_the_page_lists_the_operators():
    docs = Path(__file__).parents[3] / "docs"
    spec = importlib.util.spec_from_file_location("generate", docs / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.TFLITE.read_text(encoding="utf-8")
    assert page == generate.tflite_text(page), "run: python docs/generate.py"


def test_what_is_converted_has_tests():
    """Each operator of the registry is named in a test of its family, against LiteRT."""
    folder = Path(__file__).with_name("tflite")
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    missing = [name for name in registry.names() if f'"{name.removeprefix("CUSTOM:")}"' not in text]
    assert not missing
