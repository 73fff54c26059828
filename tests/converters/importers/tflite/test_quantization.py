"""Weights of few bits and sparse ones, and numbers between scales, against LiteRT."""

from __future__ import annotations

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_models import Graph, Op, Tensor, constant, quantized, write

from graphopt.converters.importers._tflite.reader import read
from graphopt.errors import InputError, UnsupportedError

DENSE, CSR = 0, 1


def fully_connected(
    data: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None, **options
) -> Graph:
    tensors = [data, weight, out, *([bias] if bias else [])]
    inputs = [0, 1, 3] if bias else [0, 1]
    return Graph(tensors, [Op("FULLY_CONNECTED", inputs, [2], "FullyConnected", options, version=1)])


def test_fully_connected(agrees, draw):
    graph = fully_connected(Tensor(draw(3, 5)), constant(draw(4, 5)), Tensor(draw(3, 4)), constant(draw(4)))
    agrees(graph, ["Gemm"])


def test_fully_connected_flattens(agrees, draw):
    graph = fully_connected(Tensor(draw(2, 3, 5)), constant(draw(4, 15)), Tensor(draw(2, 4)))
    agrees(graph, ["Reshape", "Gemm"])


def test_fully_connected_keeps_axes(agrees, draw):
    out = Tensor(draw(2, 3, 4))
    graph = fully_connected(
        Tensor(draw(2, 3, 5)), constant(draw(4, 5)), out, constant(draw(4)), keepNumDims=True
    )
    agrees(graph, ["MatMul", "Add"])


def test_fully_connected_with_fed_weights(agrees, draw):
    agrees(fully_connected(Tensor(draw(3, 5)), Tensor(draw(4, 5)), Tensor(draw(3, 4))), ["Gemm"])


@pytest.mark.parametrize("flags", [{}, {"adjX": True}, {"adjY": True}, {"adjX": True, "adjY": True}])
def test_batch_matmul(flags, agrees, draw):
    first = draw(2, 5, 3) if flags.get("adjX") else draw(2, 3, 5)
    second = draw(4, 5, seed=1) if flags.get("adjY") else draw(5, 4, seed=1)
    for right in (Tensor(second), constant(second)):
        tensors = [Tensor(first), right, Tensor(draw(2, 3, 4))]
        agrees(Graph(tensors, [Op("BATCH_MATMUL", [0, 1], [2], "BatchMatMul", flags)]), atol=1e-5)


def test_int8_fully_connected(agrees):
    rng = np.random.default_rng(0)
    numbers = rng.integers(-128, 128, (7, 20)).astype(np.int8)
    graph = fully_connected(
        quantized(numbers, 0.05, -3),
        constant(rng.integers(-127, 128, (6, 20)).astype(np.int8), scale=[0.02], zero=[0]),
        quantized(numbers[:, :6], 0.4, 9),
        constant(np.arange(6, dtype=np.int32) * 300, scale=[0.001], zero=[0]),
    )
    made = agrees(graph)
    assert made.ops == [*["DequantizeLinear"] * 3, "Gemm", "QuantizeLinear"]
    assert list(made.exported.tolerance.steps.values()) == [1.0]


def test_int16_activations(agrees):
    rng = np.random.default_rng(0)
    numbers = rng.integers(-30000, 30000, (3, 8)).astype(np.int16)
    graph = fully_connected(
        quantized(numbers, 0.001),
        constant(rng.integers(-127, 128, (4, 8)).astype(np.int8), scale=[0.02], zero=[0]),
        quantized(numbers[:, :4], 0.01),
        constant(np.arange(4, dtype=np.int64) * 3000, scale=[0.00002], zero=[0]),
    )
    agrees(graph)


def dynamic_range(draw, scales=(0.02,)) -> Graph:
    weight = np.random.default_rng(0).integers(-127, 128, (4, 16)).astype(np.int8)
    kept = constant(weight, scale=scales, axis=0)
    return fully_connected(Tensor(draw(3, 16)), kept, Tensor(draw(3, 4)), constant(draw(4)))


@pytest.mark.parametrize("scales", [(0.02,), (0.01, 0.02, 0.03, 0.04)])
def test_dynamic_range_weights_stay_integers(scales, agrees, draw):
    """LiteRT's own run rounds the activations to 8 bits; the truth is the same file with float weights."""
    graph = dynamic_range(draw, scales)
    made = agrees(graph, ["DequantizeLinear", "Gemm"])
    (node,) = [node for node in made.model.graph if node.op_type == "DequantizeLinear"]
    assert node.inputs[0].const_value.dtype.name == "INT8"
    assert any("weights of 8 bits" in note for note in made.exported.notes)


def test_float16_weights_become_float32(agrees, draw):
    tensors = [
        Tensor(draw(3, 5)),
        constant(draw(4, 5).astype(np.float16)),
        Tensor(draw(4, 5)),
        Tensor(draw(3, 4)),
    ]
    ops = [Op("DEQUANTIZE", [1], [2]), Op("FULLY_CONNECTED", [0, 2], [3], "FullyConnected")]
    made = agrees(Graph(tensors, ops), ["Gemm"])
    assert [v.const_value.dtype.name for v in made.model.graph.initializers.values()] == ["FLOAT"]


def test_quantize_and_back(agrees, draw):
    tensors = [Tensor(draw(50) * 5), quantized(np.zeros(50, np.int8), 0.05, 4), Tensor(draw(50))]
    made = agrees(Graph(tensors, [Op("QUANTIZE", [0], [1]), Op("DEQUANTIZE", [1], [2])]))
    assert made.ops == ["QuantizeLinear", "DequantizeLinear"]
    assert list(made.exported.tolerance.steps.values()) == [pytest.approx(0.05)]


def test_requantize(agrees):
    numbers = np.arange(-128, 128, dtype=np.int8)
    tensors = [quantized(numbers, 0.05, 4), quantized(numbers.astype(np.uint8), 0.07, 120)]
    agrees(Graph(tensors, [Op("QUANTIZE", [0], [1])]), ["DequantizeLinear", "QuantizeLinear"])


def fake_quant(draw, **more) -> Graph:
    options = {"min": -1.3, "max": 2.1, "numBits": 8, **more}
    return Graph([Tensor(draw(60) * 2), Tensor(draw(60))], [Op("FAKE_QUANT", [0], [1], "FakeQuant", options)])


def test_fake_quant(agrees, imported, draw):
    agrees(fake_quant(draw), atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"FAKE_QUANT.*narrow range"):
        imported(fake_quant(draw, narrowRange=True))


def int4(array: np.ndarray) -> bytes:
    pairs = (array.reshape(-1).astype(np.int16) & 15).astype(np.uint8)
    return (pairs[::2] | pairs[1::2] << 4).tobytes()


def test_int4_weights(agrees, draw):
    numbers = np.random.default_rng(0).integers(-7, 8, (4, 16)).astype(np.int8)
    weight = constant(numbers, scale=[0.1], type="INT4", data=int4(numbers))
    agrees(fully_connected(Tensor(draw(3, 16)), weight, Tensor(draw(3, 4))), ["DequantizeLinear", "Gemm"])


def sparsity(order, blocks, levels) -> schema.SparsityParametersT:
    made = schema.SparsityParametersT()
    made.traversalOrder, made.blockMap = np.array(order, np.int32), np.array(blocks, np.int32)
    made.dimMetadata = []
    for level in levels:
        entry = schema.DimensionMetadataT()
        if isinstance(level, int):
            entry.format, entry.denseSize = DENSE, level
        else:
            entry.format = CSR
            entry.arraySegmentsType = entry.arrayIndicesType = 1
            entry.arraySegments, entry.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
            entry.arraySegments.values, entry.arrayIndices.values = (np.array(v, np.int32) for v in level)
        made.dimMetadata.append(entry)
    return made


def sparse_file(graph: Graph, tensor: int, parameters: schema.SparsityParametersT) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(bytearray(write(graph)))
    model.subgraphs[0].tensors[tensor].sparsity = parameters
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


ROWS = np.float32([[0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 0, 0], [5, 6, 0, 0]])


def sparse_graph(elements, shape=(4, 4)) -> Graph:
    """DENSIFY, then an addition to what is fed."""
    weight = constant(np.zeros(shape, np.float32), data=np.float32(elements).tobytes())
    tensors = [Tensor(np.ones(shape, np.float32)), weight, Tensor(ROWS), Tensor(ROWS)]
    return Graph(tensors, [Op("DENSIFY", [1], [2], "Densify"), Op("ADD", [0, 2], [3], "Add")])


def check_dense(made, dense) -> None:
    for want, got in made.both(np.ones_like(dense)):
        np.testing.assert_array_equal(got, dense + 1)
        np.testing.assert_array_equal(got, want)


def test_sparse_rows(imported):
    parameters = sparsity([0, 1], [], [4, ([0, 2, 4, 4, 6], [2, 3, 2, 3, 0, 1])])
    check_dense(imported(sparse_file(sparse_graph([1, 2, 3, 4, 5, 6]), 1, parameters)), ROWS)


def test_sparse_blocks(imported):
    """Blocks of 2 x 2: the upper right, the lower left; inside them all elements."""
    parameters = sparsity([0, 1, 2, 3], [0, 1], [2, ([0, 1, 2], [1, 0]), 2, 2])
    check_dense(imported(sparse_file(sparse_graph([1, 2, 3, 4, 0, 0, 5, 6]), 1, parameters)), ROWS)


def test_sparse_columns(imported):
    """Column by column."""
    parameters = sparsity([1, 0], [], [4, ([0, 1, 2, 4, 6], [3, 3, 0, 1, 0, 1])])
    check_dense(imported(sparse_file(sparse_graph([5, 6, 1, 3, 2, 4]), 1, parameters)), ROWS)


@pytest.mark.parametrize(
    "parameters",
    [
        sparsity([0, 1], [], [4, ([0, 2, 4, 4, 6], [2, 3, 2, 3, 0, 9])]),  # an index outside
        sparsity([0, 1], [], [4, ([0, 2, 4, 4, 99], [2, 3, 2, 3, 0, 1])]),  # a segment outside
        sparsity([0, 1], [], [4, ([0, 4, 2, 4, 6], [2, 3, 2, 3, 0, 1])]),  # segments that go back
        sparsity([0, 1], [], [4, ([0, 2], [2, 3])]),  # too few segments
        sparsity([0, 0], [], [4, ([0, 2, 4, 4, 6], [2, 3, 2, 3, 0, 1])]),  # an axis twice
        sparsity([0, 1, 2], [7], [4, 4, 1]),  # a block of no axis
        sparsity([0, 1], [], [1 << 30, 1 << 30]),  # larger than the tensor
        sparsity([0, 1], [], [4]),  # a level too few
        sparsity([0, 1], [], [4, 4]),  # more than there are elements
    ],
)
def test_sparsity_that_does_not_fit(parameters, tmp_path):
    source = tmp_path / "model.tflite"
    source.write_bytes(sparse_file(sparse_graph([1, 2, 3, 4, 5, 6]), 1, parameters))
    with pytest.raises(InputError, match="tensor 't1' has sparsity that does not fit"):
        read(source).subgraphs[0].tensors[1].array  # noqa: B018


def test_scales_that_do_not_fit(imported, draw):
    weight = constant(np.zeros((4, 5), np.int8), scale=[0.1, 0.2], axis=0)
    with pytest.raises(InputError, match=r"'t1' of shape \[4, 5\] has 2 scales on axis 0"):
        imported(fully_connected(Tensor(draw(3, 5)), weight, Tensor(draw(3, 4))))


def test_zero_points_that_cannot_be(imported, draw):
    numbers = np.zeros((4, 5), np.int8)
    with pytest.raises(InputError, match="'t0' has a zero point that no INT8 can be"):
        imported(
            fully_connected(quantized(numbers, 0.1, 200), constant(numbers, scale=[1]), Tensor(draw(4, 4)))
        )
    weight, bias = constant(numbers, scale=[1.0]), constant(np.zeros(4, np.int32), scale=[0.1], zero=[3])
    with pytest.raises(InputError, match="its bias 't3' has a zero point"):
        imported(fully_connected(quantized(numbers, 0.1), weight, quantized(numbers[:, :4], 1.0), bias))


def test_shuffled_weights_are_refused(imported, draw):
    graph = fully_connected(Tensor(draw(3, 5)), constant(draw(4, 5)), Tensor(draw(3, 4)), weightsFormat=1)
    with pytest.raises(UnsupportedError, match=r"FULLY_CONNECTED.*shuffled weights"):
        imported(graph)
