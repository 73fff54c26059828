from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt import limits
from graphopt.errors import UnsupportedError
from graphopt.runtime import evaluate, segments
from graphopt.runtime._weights import Structure

MLP = """<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 64] x) => (float[N, 64] y, float[N, 64] first) {
  first = MatMul(x, w0)
  a = Relu(first)
  b = MatMul(a, w1)
  c = Add(b, first)
  d = MatMul(c, w0)
  e = Tanh(d)
  f = MatMul(e, w2)
  y = Add(f, x)
}"""

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
branches (bool c, float[N, 64] x) => (float[N, 64] y) {
  a = MatMul(x, w0)
  b = MatMul(a, w1)
  y = If (c) <
    then_branch = then () => (float[N, 64] t) { t = MatMul(a, w2) },
    else_branch = otherwise () => (float[N, 64] e) { s = Add(a, x) e = Sub(s, b) }
  >
}"""

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
calls (float[N, 64] x) => (float[N, 64] y) {
  a = own.Block (x, w0)
  b = own.Block (a, w1)
  y = MatMul(b, w2)
}
<domain: "own", opset_import: ["" : 17]>
Block (x, w) => (y) {
  m = MatMul(x, w)
  y = Relu(m)
}"""

SEQUENCE = """<ir_version: 8, opset_import: ["" : 17]>
sequence (float[N, 64] x) => (float[M, 64] y) {
  a = MatMul(x, w0)
  s = SequenceConstruct(a, x)
  b = MatMul(x, w1)
  t = SequenceInsert(s, b)
  c = MatMul(x, w2)
  u = SequenceInsert(t, c)
  y = ConcatFromSequence <axis = 0> (u)
}"""

WEIGHT = 64 * 64 * 4
GRAPHS = {"mlp": MLP, "branches": BRANCHES, "functions": FUNCTIONS, "sequence": SEQUENCE}


def with_weights(text: str, names: tuple[str, ...] = ("w0", "w1", "w2")) -> ir.Model:
    """A text model whose free names are initializers of shape [64, 64]."""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name in names:
        array = random.standard_normal((64, 64), np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


@pytest.fixture
def model(request):
    return with_weights(GRAPHS[request.param])


def feeds_of(model: ir.Model) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    feeds = []
    for rows in (1, 3, 2):
        feed = {"x": random.standard_normal((rows, 64), np.float32)}
        if any(v.name == "c" for v in model.graph.inputs):
            feed["c"] = np.array(rows == 3)
        feeds.append(feed)
    return feeds


def assert_equal_outputs(want: list[dict], got: list[dict], rtol: float = 1e-5) -> None:
    assert len(want) == len(got)
    for first, second in zip(want, got, strict=True):
        assert list(first) == list(second)
        for name in first:
            np.testing.assert_allclose(second[name], first[name], rtol=rtol, atol=1e-6)


def test_outputs_are_keyed_by_name_in_graph_order(run):
    model = with_weights(MLP)
    (feed, *_) = feeds = feeds_of(model)
    found = evaluate.run(model, feeds)
    assert found.engine == "onnxruntime"
    assert [list(o) for o in found.outputs] == [["y", "first"]] * 3
    for want, got in zip(run(model, feed), found.outputs[0].values(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_model_is_left_as_it_was():
    model = with_weights(MLP)
    before = ir.to_proto(model).SerializeToString()
    evaluate.run(model, feeds_of(model), segment_weights=WEIGHT)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_are_not_serialized():
    structure = Structure.of(with_weights(MLP))
    assert sorted(structure.placeholders()) == ["w0", "w1", "w2"]
    assert structure.proto.ByteSize() < WEIGHT
    assert structure.weight_bytes() == 3 * WEIGHT


@pytest.mark.parametrize("model", GRAPHS, indirect=True)
@pytest.mark.parametrize("limit", [1, WEIGHT, 2 * WEIGHT + 1000])
def test_segments_equal_the_whole(model, limit):
    feeds = feeds_of(model)
    whole, parts = evaluate.run(model, feeds), evaluate.run(model, feeds, segment_weights=limit)
    assert parts.engine == whole.engine == "onnxruntime"
    assert_equal_outputs(whole.outputs, parts.outputs)


def names(segment: segments.Segment) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return segment.inputs, segment.outputs, segment.initializers


def test_cuts_keep_within_the_limit_and_pass_on_what_is_needed():
    structure = Structure.of(with_weights(MLP))
    assert [names(s) for s in segments.cut(structure, WEIGHT + 1000)] == [
        (("x",), ("first", "a"), ("w0",)),
        (("a", "first"), ("c",), ("w1",)),
        (("c",), ("e",), ("w0",)),
        (("e", "x"), ("y",), ("w2",)),
    ]
    two = segments.cut(structure, 2 * WEIGHT + 1000)
    assert [s.initializers for s in two] == [("w0", "w1"), ("w2",)]
    assert [(s.start, s.stop) for s in two] == [(0, 6), (6, 8)]


def test_a_tensor_above_the_limit_makes_its_own_segment():
    structure = Structure.of(with_weights(MLP))
    cuts = segments.cut(structure, 10)
    assert [s.stop - s.start for s in cuts] == [1] * 8
    assert [len(s.initializers) for s in cuts] == [1, 0, 1, 0, 1, 0, 1, 0]


def test_captured_values_are_inputs_of_their_segment():
    structure = Structure.of(with_weights(BRANCHES))
    last = segments.cut(structure, WEIGHT + 1000)[-1]
    assert set(last.inputs) == {"c", "a", "x", "b"}
    assert last.initializers == ("w2",)


def test_graph_outputs_that_no_node_makes():
    model = with_weights("""<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 64] x) => (float[N, 64] y, float[64, 64] w1, float[64, 64] w0) {
              a = MatMul(x, w0)
              b = MatMul(a, w1)
              y = MatMul(b, w2)
            }""")
    feeds = feeds_of(model)[:1]
    whole, parts = evaluate.run(model, feeds), evaluate.run(model, feeds, segment_weights=1)
    assert_equal_outputs(whole.outputs, parts.outputs)


def test_an_initializer_that_is_an_input_may_be_overridden():
    model = with_weights(MLP)
    model.graph.inputs.append(model.graph.initializers["w1"])
    feed = feeds_of(model)[0]
    feeds = [feed, {**feed, "w1": np.zeros((64, 64), np.float32)}]
    whole, parts = evaluate.run(model, feeds), evaluate.run(model, feeds, segment_weights=WEIGHT)
    assert_equal_outputs(whole.outputs, parts.outputs)
    assert not np.allclose(whole.outputs[0]["y"], whole.outputs[1]["y"])


def test_external_data_is_read_from_its_folder(tmp_path):
    model = with_weights(MLP)
    feeds = feeds_of(model)
    want = evaluate.run(model, feeds).outputs
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "m.onnx")
    tensors = [v.const_value for v in loaded.graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) for t in tensors)
    assert_equal_outputs(want, evaluate.run(loaded, feeds).outputs)
    assert_equal_outputs(want, evaluate.run(loaded, feeds, segment_weights=WEIGHT).outputs)
    assert all(t.raw is None for t in tensors)  # nothing stays mapped


def test_external_data_of_two_folders_and_memory_mix(tmp_path):
    model = with_weights(MLP)
    feeds = feeds_of(model)
    want = evaluate.run(model, feeds).outputs
    for name, folder in (("w0", "a"), ("w1", "b")):
        value = model.graph.initializers[name]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.bin").write_bytes(b"pad" + value.const_value.tobytes())
        value.const_value = ir.ExternalTensor(
            "data.bin",
            3,
            WEIGHT,
            ir.DataType.FLOAT,
            shape=ir.Shape((64, 64)),
            name=name,
            base_dir=str(tmp_path / folder),
        )
    assert_equal_outputs(want, evaluate.run(model, feeds).outputs)
    assert_equal_outputs(want, evaluate.run(model, feeds, segment_weights=WEIGHT).outputs)


def test_large_weights_inside_subgraphs():
    """onnxruntime takes no data by name for these: two branches may use one name for different weights."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[N, 64] x) => (float[N, 64] y) {
          y = If (c) <
            then_branch = then () => (float[N, 64] t) { t = MatMul(x, w) },
            else_branch = otherwise () => (float[N, 64] e) { e = MatMul(x, w) }
          >
        }"""
    )
    for attribute, scale in zip(proto.graph.node[0].attribute, (2, 3), strict=True):
        weights = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32) * scale, "w")
        attribute.g.initializer.append(weights)
    model = ir.from_proto(proto)
    x = np.ones((1, 64), np.float32)
    found = evaluate.run(model, [{"c": np.array(True), "x": x}, {"c": np.array(False), "x": x}])
    assert [o["y"][0, 0] for o in found.outputs] == [2, 3]


EXOTIC = [
    ("bfloat16", ml_dtypes.bfloat16),
    ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
    ("int4", ml_dtypes.int4),
    ("uint4", ml_dtypes.uint4),
    ("float16", np.float16),
    ("double", np.float64),
    ("bool", np.bool_),
]


@pytest.mark.parametrize(("name", "dtype"), EXOTIC)
@pytest.mark.parametrize("limit", [limits.SEGMENT_WEIGHTS, 1])
def test_weights_inputs_and_outputs_of_every_element_type(name, dtype, limit):
    elements = ir.DataType.from_numpy(np.dtype(dtype))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g ({name}[N] x) => (float[N] y, {name}[N] z, float[64, 64] u) {{
          y = Cast <to = 1> (x)
          z = Cast <to = {elements.value}> (y)
          u = Cast <to = 1> (w)
        }}"""
    )
    table = (np.arange(64 * 64).reshape(64, 64) % 7).astype(dtype)
    proto.graph.initializer.append(ir.to_proto(ir.tensor(table, name="w")))
    model = ir.from_proto(proto)
    x = np.array([1, 0, 3, 5, 2]).astype(dtype)
    found = evaluate.run(model, [{"x": x}], segment_weights=limit)
    assert found.engine == "onnxruntime"
    (outputs,) = found.outputs
    assert outputs["z"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(outputs["z"], x)
    np.testing.assert_array_equal(outputs["y"], x.astype(np.float32))
    np.testing.assert_array_equal(outputs["u"], table.astype(np.float32))


def test_a_scalar_of_a_type_that_numpy_lacks_stays_a_scalar():
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 11, opset_import: ["" : 23]> g (bfloat16 x, float s) => (int64[r] y, float t)
            { y = Shape(s) t = Cast <to = 1> (x) }"""
        )
    )
    (outputs,) = evaluate.run(model, [{"x": np.array(3, ml_dtypes.bfloat16), "s": np.float32(2)}]).outputs
    assert outputs["y"].shape == (0,)
    assert (outputs["t"].shape, outputs["t"].tolist()) == ((), 3.0)


def test_sequences_strings_and_scalars(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x, string[M] s, float f) => (seq(float[N]) y, string[M] t, float h) {
          y = SequenceConstruct(x, x)
          t = Identity(s)
          h = Identity(f)
        }""")
    text = np.array(["a", "bc"], dtype=object)
    feed = {"x": np.ones(2, np.float32), "s": text, "f": np.float32(2)}
    (outputs,) = evaluate.run(model, [feed]).outputs
    assert [list(a) for a in outputs["y"]] == [[1, 1], [1, 1]]
    assert outputs["t"].tolist() == ["a", "bc"]
    assert outputs["h"].shape == ()


def no_kernel(parse) -> ir.Model:
    """onnxruntime has no int16 Max."""
    return parse("""<ir_version: 11, opset_import: ["" : 17]>
        g (int16[N] x, int16[N] y) => (int16[N] z, float[N] r) {
          z = Max(x, y)
          f = Cast <to = 1> (x)
          r = Div(f, f)
        }""")


def test_the_reference_evaluator_runs_what_onnxruntime_has_no_kernel_for(parse):
    model = no_kernel(parse)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented):
        ort.InferenceSession(ir.to_proto(model).SerializeToString())
    feed = {"x": np.array([1, -5, 0], np.int16), "y": np.array([-1, 7, 0], np.int16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 0/0 is the model's business, not a warning of ours
        found = evaluate.run(model, [feed])
    assert found.engine == "reference"
    np.testing.assert_array_equal(found.outputs[0]["z"], np.array([1, 7, 0], np.int16))
    assert np.isnan(found.outputs[0]["r"][2])


def test_the_reference_evaluator_gets_the_weights():
    model = with_weights(
        """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 64] x, int16[N] i) => (float[N, 64] y, int16[N] z) {
              y = MatMul(x, w0)
              z = Max(i, i)
            }""",
        ("w0",),
    )
    x = np.ones((1, 64), np.float32)
    found = evaluate.run(model, [{"x": x, "i": np.ones(1, np.int16)}])
    assert found.engine == "reference"
    np.testing.assert_allclose(found.outputs[0]["y"], x @ model.graph.initializers["w0"].const_value.numpy())


def test_inputs_that_the_reference_evaluator_refuses(parse):
    feed = {"x": np.ones(3, np.int16), "y": np.ones(4, np.int16)}
    with evaluate.Session(no_kernel(parse)) as session, pytest.raises(evaluate.InputsRefused):
        session.run(feed)


def test_no_engine(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "nobody" : 1]>
        g (float[N] x) => (float[N] y) { y = nobody.Knows(x) }""",
        check=False,
    )
    with pytest.raises(
        UnsupportedError, match=r"onnxruntime cannot load the model: .*nobody:Knows"
    ) as caught:
        evaluate.run(model, [{"x": np.ones(1, np.float32)}])
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, evaluate.InputsRefused)


@pytest.mark.parametrize(
    "body",
    [
        "g (float[N] x) => (int64[N] y) { y = Relu(x) }",
        "g (float[N] x) => (float[N] y) { y = Relu(nothing) }",
        "g (float[2] x) => (float[3] y) { z = Concat <axis = 0> (x, c) y = Add(z, x) }",
        "g (float[N] x) => (float[N] y) { y = NoSuchOperator(x) }",
    ],
)
def test_an_invalid_model_is_not_handed_to_the_lenient_engine(parse, body):
    """The reference evaluator would run some of these: a pass that makes one must not pass verification."""
    model = parse(f'<ir_version: 8, opset_import: ["" : 17]> {body}', check=False)
    with pytest.raises(UnsupportedError, match="onnxruntime cannot load the model"):
        evaluate.Session(model)


@pytest.mark.parametrize("limit", [limits.SEGMENT_WEIGHTS, WEIGHT])
@pytest.mark.parametrize(
    "feed",
    [
        {"x": np.ones((2, 63), np.float32)},
        {"x": np.ones((2, 64), np.float64)},
        {"x": np.ones(64, np.float32)},
        {},
        {"x": np.ones((2, 64), np.float32), "z": np.ones(1, np.float32)},
    ],
)
def test_refused_inputs(feed, limit):
    model = with_weights(MLP)
    with (
        evaluate.Session(model, segment_weights=limit) as session,
        pytest.raises(evaluate.InputsRefused) as caught,
    ):
        session.run(feed)
    assert "\n" not in str(caught.value)


def test_a_session_survives_refused_inputs_and_prints_nothing(parse, capfd):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Reshape(x, s) }""")
    with evaluate.Session(model) as session:
        with pytest.raises(evaluate.InputsRefused, match=r"Reshape.*requested shape:\{2,3\}") as caught:
            session.run({"x": np.ones((3, 3), np.float32)})
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)
    assert "/onnxruntime_src/" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_optimize_switches_onnxruntimes_optimizer_on(monkeypatch):
    levels = []
    original = ort.InferenceSession

    def watched(model, options, **arguments):
        levels.append(options.graph_optimization_level)
        return original(model, options, **arguments)

    monkeypatch.setattr(ort, "InferenceSession", watched)
    model = with_weights(MLP)
    plain = evaluate.run(model, feeds_of(model))
    fast = evaluate.run(model, feeds_of(model), optimize=True, threads=1)
    assert levels == [
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ]
    assert_equal_outputs(plain.outputs, fast.outputs)


def test_no_feeds_no_outputs():
    model = with_weights(MLP)
    assert evaluate.run(model, []).outputs == []
    assert evaluate.run(model, [], segment_weights=1).outputs == []


def test_a_newer_ir_version_than_onnxruntime_reads():
    model = with_weights(MLP)
    feeds = feeds_of(model)
    want = evaluate.run(model, feeds).outputs
    model.ir_version = onnx.IR_VERSION
    found = evaluate.run(model, feeds)
    assert found.engine == "onnxruntime"
    assert_equal_outputs(want, found.outputs)
    assert model.ir_version == onnx.IR_VERSION
