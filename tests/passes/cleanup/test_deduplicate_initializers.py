"""deduplicate-initializers: equal means every bit, and only what is equal is read to the end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup import _content
from graphopt.passes.cleanup.deduplicate_initializers import DeduplicateInitializers

X = np.array([[1.0, -2.0, 3.0]], np.float32)


def apply(model: ir.Model):
    """Run the pass; it must be finished after one run."""
    result = DeduplicateInitializers()(model)
    assert result.model is model
    assert not DeduplicateInitializers()(model).modified
    return result


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    """A model whose only node reads one initializer for each tensor."""
    values = []
    for index, tensor in enumerate(tensors):
        value = ir.Value(name=f"w{index}", type=ir.TensorType(tensor.dtype), const_value=tensor)
        values.append(value)
    node = ir.node("Something", values, domain="custom")
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 17, "custom": 1})
    return ir.Model(graph, ir_version=8)


def used(model: ir.Model) -> list[str]:
    return [v.name for v in model.graph.node(0).inputs]


def test_equal_initializers_become_the_first(parse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y)
    <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}, float[3] c = {1, 2, 4}, float[1,3] d = {1, 2, 3}> {
        p = Add(x, a) q = Mul(p, b) r = Sub(q, c) y = Div(r, d)
    }"""
    model = parse(text)
    result = apply(model)
    assert list(model.graph.initializers) == ["a", "c", "d"]
    assert result.summary == "merged 1 initializer (12 bytes)"
    assert_same(parse(text), model, {"x": X})


def test_the_shortest_name_stays(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[N,1] x) => (float[N,1] y)
    <float[1] a_rather_long_name = {1}, float[1] b = {1}> { p = Add(x, a_rather_long_name) y = Mul(p, b) }""")
    before = ir.to_proto(model).ByteSize()
    assert apply(model).modified
    assert list(model.graph.initializers) == ["b"]
    assert ir.to_proto(model).ByteSize() < before


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (np.array([0.0], np.float32), np.array([-0.0], np.float32), False),
        (np.array([np.nan], np.float32), np.array([np.nan], np.float32), True),
        (np.array([1], np.int32), np.array([1], np.float32).view(np.int32), False),
        (np.array([1], np.int32), np.array([1], np.uint32), False),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), False),
        (np.zeros((0,), np.float32), np.zeros((0,), np.float32), True),
        (np.array(5, np.int64), np.array(5, np.int64), True),
        (np.array(5, np.int64), np.array([5], np.int64), False),
        (np.arange(3000, dtype=np.int64), np.arange(3000, dtype=np.int64), True),
        (np.arange(3000, dtype=np.int64), np.append(np.arange(2999), 7), False),
        (np.array([True, False]), np.array([True, False]), True),
    ],
)
def test_equal_means_type_shape_and_bits(first, second, merged):
    model = model_of(ir.tensor(first, name="w0"), ir.tensor(second, name="w1"))
    assert apply(model).modified == merged
    assert used(model) == (["w0", "w0"] if merged else ["w0", "w1"])


def test_strings_and_packed_types():
    def text(*words: bytes) -> ir.StringTensor:
        return ir.StringTensor(words, shape=ir.Shape([len(words)]), name="")

    def nibbles(*values: int) -> ir.Tensor:
        array = np.array(values, np.int8).astype(ir.DataType.INT4.numpy())
        return ir.Tensor(array, dtype=ir.DataType.INT4)

    model = model_of(text(b"a", b"bc"), text(b"a", b"bc"), text(b"ab", b"c"), text(b"a", b"bc\0"))
    assert apply(model).summary == "merged 1 initializer (3 bytes)"
    assert used(model) == ["w0", "w0", "w2", "w3"]
    model = model_of(nibbles(1, 2, 3), nibbles(1, 2, 3), nibbles(1, 2, -3))
    apply(model)
    assert used(model) == ["w0", "w0", "w2"]


def test_graph_inputs_and_outputs_stay(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[3] x, float[3] a) => (float[3] y, float[3] b) <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3},
    float[3] c = {1, 2, 3}> { p = Add(x, a) q = Add(p, b) y = Add(q, c) }""")
    assert not apply(model).modified
    assert set(model.graph.initializers) == {"a", "b", "c"}


NESTED = """<ir_version: 8, opset_import: ["" : 17]> g (float[3] x, bool c) => (float[3] y)
<float[3] w = {1, 2, 3}> {
    z = If (c) <
        then_branch = t () => (float[3] p) <float[3] w1 = {1, 2, 3}, float[3] own = {4, 5, 6}> {
            p1 = Add(x, w1)
            p = Mul(p1, own)
        },
        else_branch = e () => (float[3] q) <float[3] w2 = {1, 2, 3}, float[3] other = {4, 5, 6}> {
            q1 = Sub(x, w2)
            q = Mul(q1, other)
        }
    >
    y = Add(z, w)
}"""


def test_subgraphs_use_the_outer_one_and_siblings_keep_theirs(parse, assert_same):
    model = parse(NESTED)
    assert apply(model).summary == "merged 2 initializers (24 bytes)"
    branches = model.graph.node(0).attributes
    assert list(branches["then_branch"].as_graph().initializers) == ["own"]
    assert list(branches["else_branch"].as_graph().initializers) == ["other"]
    for condition in (True, False):
        assert_same(parse(NESTED), model, {"x": X[0], "c": np.array(condition)})


def test_what_is_computed_when_it_is_read_is_left_alone():
    def compute() -> ir.TensorProtocol:
        raise AssertionError("computed")

    lazy = [ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape([2]), name=f"w{i}") for i in range(2)]
    assert not apply(model_of(*lazy)).modified


def test_external_data_is_read_only_as_far_as_needed(tmp_path, monkeypatch):
    """Unique signatures not at all, different heads not to the end, no map left behind."""
    size = 3 * _content.HEAD_BYTES
    arrays = [np.zeros(size, np.uint8) for _ in range(4)] + [np.zeros(size + 1, np.uint8)]
    arrays[2][-1] = 1  # differs at the very end
    arrays[3][0] = 1  # differs at once
    (tmp_path / "weights").write_bytes(b"".join(a.tobytes() for a in arrays))
    tensors, offset = [], 0
    for index, array in enumerate(arrays):
        shape = ir.Shape([array.size])
        tensors.append(
            ir.ExternalTensor(
                "weights",
                offset,
                array.size,
                ir.DataType.UINT8,
                shape=shape,
                name=f"w{index}",
                base_dir=tmp_path,
            )
        )
        offset += array.size
    read = []
    digest = _content.content
    monkeypatch.setattr(
        "graphopt.passes.cleanup.deduplicate_initializers.content", lambda t: read.append(t.name) or digest(t)
    )
    model = model_of(*tensors)
    result = DeduplicateInitializers()(model)
    assert used(model) == ["w0", "w0", "w2", "w3", "w4"]
    assert result.summary == f"merged 1 initializer ({size:,} bytes)"
    assert read == ["w0", "w1", "w2"]
    assert all(tensor.raw is None for tensor in tensors)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 5000])), max_size=8))
def test_what_each_use_reads_never_changes(picks):
    tensors = [ir.tensor(np.full(size, fill, np.int16)) for fill, size in picks]
    model = model_of(*tensors)
    result = apply(model)
    for value, tensor in zip(model.graph.node(0).inputs, tensors, strict=True):
        np.testing.assert_array_equal(value.const_value.numpy(), tensor.numpy())
    assert len(model.graph.initializers) == len(set(picks))
    assert result.modified == (len(set(picks)) < len(picks))
