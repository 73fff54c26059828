from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UnsupportedError
from graphopt.options import ConversionError, build
from graphopt.passes.quantization.quantize_weights import QuantizeWeights


def bind(model: ir.Model, dtype=np.float32, seed=0, **arrays) -> ir.Model:
    """Turn every graph input but x, i and c into an initializer, drawn where no array is given."""
    rng = np.random.default_rng(seed)
    for value in [v for v in model.graph.inputs if v.name not in ("x", "i", "c")]:
        array = arrays.get(value.name)
        if array is None:
            array = rng.standard_normal(value.shape.numpy()).astype(dtype)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


def quantize(model: ir.Model, **options):
    return build(QuantizeWeights, {"min_elements": 1, **options})(model)


def text(body, inputs, *, opset=17, rank=2, dtype="float"):
    dims = ", ".join("pqrs"[:rank])
    return (
        f"""<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({dtype}[{dims}] y) {{ {body} }}"""
    )


def dequantized(model: ir.Model, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None]:
    """What a weight became: float numbers, codes, scales, axis."""
    node = next(n for n in model.graph if n.outputs[0].name == name)
    assert node.op_type == "DequantizeLinear"
    codes, scale = (v.const_value.numpy() for v in node.inputs)
    axis = node.attributes.get_int("axis", None)
    shape = [-1 if a == axis else 1 for a in range(codes.ndim)]
    return codes * scale.reshape(shape if axis is not None else ()), codes, scale, axis


CONV, DECONV = "float[1, 16, 6, 6] x, float[32, 16, 3, 3] w", "float[1, 16, 3, 3] x, float[16, 32, 3, 3] w"
RECURRENT = "float[3, 2, 20] x, float[{d}, {g}, 20] w, float[{d}, {g}, 16] v"
#: body, inputs, rank of the output, axis of the scales
MODELS = {
    "conv": ("y = Conv (x, w)", CONV, 4, 0),
    "depthwise conv": ("y = Conv <group = 64> (x, w)", "float[1, 64, 6, 6] x, float[64, 1, 3, 3] w", 4, 0),
    "deconv": ("y = ConvTranspose (x, w)", DECONV, 4, 1),
    "grouped deconv": ("y = ConvTranspose <group = 2> (x, w)", DECONV, 4, None),
    "gemm": ("y = Gemm (x, w)", "float[2, 40] x, float[40, 30] w", 2, 1),
    "gemm transposed": ("y = Gemm <transB = 1> (x, w)", "float[2, 40] x, float[30, 40] w", 2, 0),
    "matmul": ("y = MatMul (x, w)", "float[2, 40] x, float[40, 30] w", 2, 1),
    "matmul, weight first": ("y = MatMul (w, x)", "float[40, 3] x, float[30, 40] w", 2, 0),
    "matmul, batched": ("y = MatMul (x, w)", "float[2, 3, 40] x, float[2, 40, 30] w", 3, 2),
    "matmul, vector": ("y = MatMul (x, w)", "float[2, 3, 1000] x, float[1000] w", 2, None),
    "embedding": ("y = Gather (w, i)", "int64[4] i, float[100, 16] w", 2, 0),
    "embedding by column": ("y = Gather <axis = -1> (w, i)", "int64[4] i, float[16, 100] w", 2, 1),
    "lstm": ("y, h, d = LSTM <hidden_size = 16> (x, w, v)", RECURRENT.format(d=1, g=64), 4, 1),
    "gru, both ways": (
        'y, h = GRU <hidden_size = 16, direction = "bidirectional"> (x, w, v)',
        RECURRENT.format(d=2, g=48),
        4,
        1,
    ),
    "rnn": ("y, h = RNN <hidden_size = 16> (x, w, v)", RECURRENT.format(d=1, g=16), 4, 1),
    "behind transpose": (
        "t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)",
        "float[2, 40] x, float[30, 40] w",
        2,
        0,
    ),
    "behind transposes": (
        "s = Transpose (w) t = Transpose <perm = [0, 2, 1]> (s) u = Identity (t) y = MatMul (x, u)",
        "float[2, 3, 20] x, float[20, 30, 2] w",
        3,
        1,
    ),
    "behind reshape": (
        "k = Constant <value_ints = [40, 30]> () t = Reshape (w, k) y = MatMul (x, t)",
        "float[2, 40] x, float[20, 60] w",
        2,
        None,
    ),
    "tied, same axis": (
        "e = Gather (w, i) t = Transpose (w) y = MatMul (e, t)",
        "int64[4] i, float[100, 16] w",
        2,
        0,
    ),
    "tied, other axis": ("e = Gather (w, i) y = MatMul (e, w)", "int64[4] i, float[40, 40] w", 2, None),
    "used twice": (
        "a = MatMul (x, w) b = MatMul (a, w) y = MatMul (b, w)",
        "float[2, 40] x, float[40, 40] w",
        2,
        1,
    ),
}


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    drawn = {}
    for value in model.graph.inputs:
        shape = value.shape.numpy()
        integer = value.dtype == ir.DataType.INT64
        drawn[value.name] = (
            rng.integers(0, 16, shape) if integer else rng.standard_normal(shape).astype(np.float32)
        )
    return drawn


@pytest.mark.parametrize("case", MODELS)
def test_every_kind_of_weight(case, parse, run):
    body, inputs, rank, axis = MODELS[case]
    before, after = (bind(parse(text(body, inputs, rank=rank), check=False)) for _ in range(2))
    result = quantize(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert result.modified
    for name, value in before.graph.initializers.items():
        numbers, codes, scale, got_axis = dequantized(after, name)
        want = value.const_value.numpy()
        assert (codes.dtype, scale.dtype, got_axis) == (np.int8, np.float32, axis)
        assert scale.shape == (() if axis is None else (want.shape[axis],))
        assert np.abs(codes).max() == 127
        broadcast = (
            scale if axis is None else scale.reshape([-1 if a == axis else 1 for a in range(want.ndim)])
        )
        assert np.all(np.abs(numbers - want) <= broadcast * 0.5001)
    assert set(after.graph.initializers) == {
        f"{n}_{part}" for n in before.graph.initializers for part in ("quantized", "scale")
    }
    _check_output(before, after, run)


def _check_output(before: ir.Model, after: ir.Model, run) -> None:
    """The model computes with the dequantized weights, with and without onnxruntime's optimizer."""
    oracle, feeds = before.clone(), feeds_of(before)
    for name, value in oracle.graph.initializers.items():
        value.const_value = ir.tensor(dequantized(after, name)[0].astype(np.float32), name=name)
    want = run(oracle, feeds)[0]
    options = ort.SessionOptions()  # the default level of optimization, but activations stay in float
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    proto = ir.to_proto(after).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    for got in (run(after, feeds)[0], session.run(None, feeds)[0]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_weights_stay_near(parse, run):
    before, after = (bind(parse(text(*MODELS["conv"][:2], rank=4))) for _ in range(2))
    quantize(after)
    want, got = (run(m, feeds_of(before))[0] for m in (before, after))
    assert 20 * np.log10(np.linalg.norm(want) / np.linalg.norm(got - want)) > 40


def test_per_tensor_has_one_scale(parse):
    model = bind(parse(text(*MODELS["gemm"][:2])))
    largest = np.abs(model.graph.initializers["w"].const_value.numpy()).max()
    quantize(model, granularity="per-tensor")
    _, _, scale, axis = dequantized(model, "w")
    assert axis is None
    assert scale == np.float32(largest / 127)


def test_names_and_place_of_the_new_node(parse, ops):
    model = bind(parse(text("a = Relu (x) [last] y = MatMul (a, w)", "float[2, 40] x, float[40, 30] w")))
    result = quantize(model)
    assert ops(model) == ["Relu", "DequantizeLinear", "MatMul"]
    assert model.graph.node(1).name == "w_dequantize"
    assert model.graph.node(2).inputs[1].name == "w"
    assert result.summary == "quantized 1 weight, 100 % of parameters"


def test_round_half_to_even(parse):
    weight = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 126.5]] * 8, np.float32)
    weight = np.tile(weight, (8, 8))
    model = bind(parse(text("y = MatMul (x, w)", "float[2, 64] x, float[64, 64] w")), w=weight)
    quantize(model, granularity="per-tensor")
    np.testing.assert_array_equal(dequantized(model, "w")[1][0, :8], [127, 0, 2, 2, 0, -2, -127, 126])


def test_zero_and_tiny_channels(parse):
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weight[0], weight[1], weight[2] = 0, 1e-43, 1e-36
    model = bind(parse(text("y = Gemm <transB = 1> (x, w)", "float[2, 32] x, float[64, 32] w")), w=weight)
    quantize(model)
    numbers, codes, scale, _ = dequantized(model, "w")
    assert scale[0] == 1
    assert np.all(scale >= np.finfo(np.float32).smallest_normal)
    assert not codes[0].any()
    np.testing.assert_allclose(numbers[2], weight[2], rtol=0.5)


def test_float16_from_opset_19(parse, run):
    inputs = "float16[2, 40] x, float16[40, 30] w"
    before, after = (
        bind(parse(text("y = MatMul (x, w)", inputs, opset=19, dtype="float16")), dtype=np.float16)
        for _ in range(2)
    )
    assert quantize(after).modified
    _, codes, scale, _ = dequantized(after, "w")
    assert (codes.dtype, scale.dtype) == (np.int8, np.float16)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 40)).astype(np.float16)}
    want, got = (run(m, feeds)[0].astype(np.float32) for m in (before, after))
    np.testing.assert_allclose(got, want, atol=0.2)


# What is left alone -----------------------------------------------------------------------------------------


def refusal(model: ir.Model, **options) -> str:
    names = sorted(model.graph.initializers)
    result = quantize(model, **options)
    assert not result.modified
    assert result.summary == "no weight to quantize"
    assert sorted(model.graph.initializers) == names
    assert len(result.refusals) <= 1
    return f"{result.refusals[0].where}: {result.refusals[0].reason}" if result.refusals else ""


X_W = "float[2, 40] x, float[40, 30] w"


SQUARE = "float[40, 40] x, float[40, 40] w"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = MatMul (x, w) y = Mul (a, w)", "weight 'w': it is no weight to Mul (output 'y')"),
        ("y = Gemm (x, w, w)", "weight 'w': it is no weight to Gemm (output 'y')"),
        ("t = Transpose (w) u = Relu (t) v = MatMul (x, t) y = Add (u, v)", "to Relu (output 'u')"),
    ],
)
def test_other_uses(body, expected, parse):
    assert expected in refusal(bind(parse(text(body, SQUARE))))


@pytest.mark.parametrize(
    "body",
    [
        "y = Add (x, w)",
        "y = Gemm (x, x, w)",
        "r = Relu (w) y = MatMul (x, r)",
        "k = Constant <value_float = 0.1> () q = QuantizeLinear (w, k) d = DequantizeLinear (q, k) "
        "y = MatMul (x, d)",
    ],
)
def test_what_is_no_weight_is_no_refusal(body, parse):
    assert refusal(bind(parse(text(body, SQUARE)))) == ""


def test_graph_inputs_and_outputs(parse):
    model = bind(parse(text("y = MatMul (x, w)", X_W)))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert refusal(model) == ""
    model = bind(parse(text("y = MatMul (x, w)", X_W)))
    model.graph.outputs.append(model.graph.initializers["w"])
    assert refusal(model) == "weight 'w': it is a graph output"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3.4e38])
def test_numbers_that_are_not_finite(number, parse):
    weight = np.ones((40, 30), np.float32)
    weight[3, 4] = number
    model = bind(parse(text("y = MatMul (x, w)", X_W)), w=weight)
    assert refusal(model) == "weight 'w': it holds numbers that are not finite, or too large"


def test_never_larger(parse):
    # one scale for each row of three numbers, and a node, for 12 bytes a row
    model = bind(parse(text("y = Gather (w, i)", "int64[4] i, float[20, 3] w")))
    assert refusal(model) == "weight 'w': int8 with its scales would not be smaller"


def test_float16_before_opset_19(parse):
    inputs = X_W.replace("float[", "float16[")
    model = bind(parse(text("y = MatMul (x, w)", inputs, dtype="float16")), dtype=np.float16)
    assert refusal(model) == "weight 'w': float16 needs opset 19, the model has 17"


def test_other_types_are_no_candidates(parse):
    for dtype in ("double", "int32"):
        model = bind(
            parse(text("y = MatMul (x, w)", X_W.replace("float[", f"{dtype}["), dtype=dtype)), dtype=dtype
        )
        assert refusal(model) == ""


def test_min_elements(parse):
    assert refusal(bind(parse(text("y = MatMul (x, w)", X_W))), min_elements=1201) == ""
    assert quantize(bind(parse(text("y = MatMul (x, w)", X_W))), min_elements=1200).modified


def test_twice_is_once(parse, ops):
    model = bind(parse(text("y = MatMul (x, w)", X_W)))
    assert quantize(model).modified
    assert refusal(model) == ""


TWO = "[first] a = MatMul (x, w) [second] y = MatMul (a, v)"


@pytest.mark.parametrize(
    ("options", "quantized"),
    [
        ({}, {"w", "v"}),
        ({"include": "w"}, {"w"}),
        ({"include": "second"}, {"v"}),
        ({"include": "sec"}, set()),  # the whole name must match
        ({"include": "sec.*|w"}, {"w", "v"}),
        ({"exclude": "w"}, {"v"}),
        ({"exclude": "first|second"}, set()),
        ({"include": "w", "exclude": "f.*"}, set()),
    ],
)
def test_include_and_exclude(options, quantized, parse):
    model = bind(parse(text(TWO, "float[2, 40] x, float[40, 40] w, float[40, 40] v")))
    result = quantize(model, **options)
    assert {n.outputs[0].name for n in model.graph if n.op_type == "DequantizeLinear"} == quantized
    assert result.modified == bool(quantized)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_bad_regular_expression(option):
    with pytest.raises(ConversionError, match=f"'{option}' is not a regular expression: .*position 0"):
        build(QuantizeWeights, {option: "(conv"})


@pytest.mark.parametrize(
    ("options", "opset", "needed"),
    [({}, 12, 13), ({"granularity": "per-tensor"}, 9, 10), ({"granularity": "per-channel"}, 10, 13)],
)
def test_old_opset_is_one_clear_error(options, opset, needed, parse, ops):
    model = bind(parse(text("y = MatMul (x, w)", X_W, opset=opset)))
    with pytest.raises(UnsupportedError) as caught:
        quantize(model, **options)
    assert f"needs opset {needed}, the model has {opset}; put 'convert-opset: {{target: {needed}}}'" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert ops(model) == ["MatMul"]


def test_old_opset_without_weights_is_no_error(parse):
    assert refusal(bind(parse(text("y = Relu (x)", "float[2, 2] x", opset=9)))) == ""


def test_per_tensor_at_opset_10(parse, run):
    before, after = (bind(parse(text("y = MatMul (x, w)", X_W, opset=10))) for _ in range(2))
    quantize(after, granularity="per-tensor")
    _check_output(before, after, run)


# Scopes, storage --------------------------------------------------------------------------------------------

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 40] x, bool c, float[40, 30] w, float[40, 30] v)
    => (float[2, 30] y) {
        y = If (c) <then_branch = t () => (float[2, 30] a) { r = Relu (x) a = MatMul (r, w) },
                    else_branch = e () => (float[2, 30] b) { b = MatMul (x, v) }>
    }"""


@pytest.mark.parametrize("inside", [False, True])
def test_subgraphs(inside, parse, run):
    before, after = (bind(parse(BRANCHES)) for _ in range(2))
    if inside:  # the weight v belongs to the branch itself
        for model in (before, after):
            value = model.graph.initializers.pop("v")
            model.graph.node(0).attributes["else_branch"].as_graph().register_initializer(value)
    result = quantize(after)
    assert result.summary == "quantized 2 weights, 100 % of parameters"
    onnx.checker.check_model(ir.to_proto(after))
    for condition in (True, False):
        feeds = {"x": np.ones((2, 40), np.float32), "c": np.array(condition)}
        want, got = (run(m, feeds)[0] for m in (before, after))
        assert not np.array_equal(want, got)
        np.testing.assert_allclose(got, want, atol=0.2)


@pytest.mark.parametrize("in_function", [False, True])
def test_weights_in_constant_nodes(in_function, parse, run):
    numbers = ", ".join(str(n % 17 - 8) for n in range(400))
    body = f"w = Constant <value = float[20, 20] {{{numbers}}}> () y = MatMul (x, w)"
    plain = f"""<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[2, 20] x) => (float[2, 20] y) {{
        {"y = own.F (x)" if in_function else body} }}
        <domain: "own", opset_import: ["" : 17]> F (x) => (y) {{ {body} }}"""
    before, after = parse(plain), parse(plain)
    result = quantize(after)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(after))
    graph = next(iter(after.functions.values())).graph if in_function else after.graph
    kinds = [n.op_type for n in graph]
    assert kinds[-2:] == ["DequantizeLinear", "MatMul"]
    assert kinds.count("Constant") == (2 if in_function else 0)
    feeds = {"x": np.ones((2, 20), np.float32)}
    want, got = (run(m, feeds)[0] for m in (before, after))
    np.testing.assert_allclose(got, want, atol=0.8)


def test_file_becomes_a_quarter(parse):
    model = bind(parse(text("y = MatMul (x, w)", "float[2, 400] x, float[400, 300] w")))
    before = ir.to_proto(model).ByteSize()
    quantize(model)
    assert ir.to_proto(model).ByteSize() < 0.26 * before


def test_external_weights_are_read_one_by_one_and_released(parse, tmp_path):
    model = bind(parse(text(TWO, "float[2, 40] x, float[40, 40] w, float[40, 40] v")))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "m.onnx")
    tensors = [v.const_value for v in loaded.graph.initializers.values()]
    assert quantize(loaded).modified
    assert all(isinstance(t, ir.ExternalTensor) and t.raw is None for t in tensors)
    quantize(model)
    for name in ("w", "v"):
        np.testing.assert_array_equal(dequantized(loaded, name)[0], dequantized(model, name)[0])


def test_undo_copy_keeps_its_weights(parse):
    model = bind(parse(text("y = MatMul (x, w)", X_W)))
    undo, weight = model.clone(), model.graph.initializers["w"].const_value.numpy().copy()
    quantize(model)
    value = undo.graph.initializers["w"]
    assert (value.name, value.const_value.name, value.dtype) == ("w", "w", ir.DataType.FLOAT)
    np.testing.assert_array_equal(value.const_value.numpy(), weight)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(8, 70),
    columns=st.integers(8, 70),
    axis=st.sampled_from([0, 1, None]),
    exponent=st.integers(-20, 20),
    block=st.sampled_from([1, 7, 64, 1 << 20]),
)
def test_error_is_at_most_half_a_scale(seed, rows, columns, axis, exponent, block):
    from graphopt.passes.quantization import quantize_weights as module

    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, columns)) * 10.0**exponent).astype(np.float32)
    weight[rng.integers(rows)] = 0
    scale = module._scales(weight, axis)
    original, module._BLOCK = module._BLOCK, block
    try:
        codes = module._codes(weight, scale, axis)
    finally:
        module._BLOCK = original
    broadcast = scale.astype(np.float64)
    if axis is not None:
        broadcast = broadcast.reshape((-1, 1) if axis == 0 else (1, -1))
    assert np.all(np.abs(codes * broadcast - weight) <= broadcast * (0.5 + 1e-5))
    assert np.abs(codes.astype(int)).max() <= 127
