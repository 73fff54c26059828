from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fusion.fuse import Fuse

BN = ("conv-batch-normalization", "gemm-batch-normalization")


def model_text(
    linear: str, weight: str, *, x="2, 6, 5, 5", channels=4, bias=None, out=("y",), opset=17, extra="", bn=""
):
    """x -> linear -> BatchNormalization -> y; everything else is an input for ``bind``."""
    inputs = [
        f"float[{x}] x",
        f"float[{weight}] w",
        *([f"float[{bias}] b"] if bias else ["float b"] if bias == "" else []),
    ]
    inputs += [f"float[{channels}] {name}" for name in ("gamma", "beta", "mean", "var")]
    dims = ", ".join("pqrst"[: len(x.split(","))])
    outputs = ", ".join(f"float[{dims}] {name}" for name in out)
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g ({", ".join(inputs)}) => ({outputs}) {{
        [main] c = {linear} (x, w{"" if bias is None else ", b"})
        [norm] y = BatchNormalization {bn} (c, gamma, beta, mean, var)
        {extra}
    }}"""


def with_weights(bind, model: ir.Model, **changes) -> ir.Model:
    drawn = {v.name: None for v in model.graph.inputs if v.name != "x"}
    variance = np.linspace(0.5, 2, model.graph.inputs[-1].shape[0], dtype=np.float32)
    return bind(model, **{**drawn, "var": variance, **changes})


CASES = {
    "conv": ("Conv", "4, 6, 3, 3", {}),
    "conv with bias": ("Conv", "4, 6, 3, 3", {"bias": "4"}),
    "grouped conv, padded": ("Conv <group = 2, pads = [1, 0, 2, 1], strides = [2, 1]>", "4, 3, 3, 3", {}),
    "depthwise conv": ("Conv <group = 6>", "6, 1, 3, 3", {"channels": 6}),
    "conv 1-D": ("Conv", "4, 6, 3", {"x": "2, 6, 9"}),
    "conv 3-D": ("Conv", "4, 6, 2, 2, 2", {"x": "2, 6, 3, 4, 3"}),
    "deconv": ("ConvTranspose <strides = [2, 2]>", "6, 4, 3, 3", {}),
    "deconv with bias": ("ConvTranspose", "6, 4, 2, 2", {"bias": "4"}),
    "grouped deconv": (
        "ConvTranspose <group = 3, output_padding = [1, 0], strides = [2, 2]>",
        "6, 2, 3, 3",
        {"channels": 6},
    ),
    "gemm": ("Gemm", "6, 4", {"x": "3, 6"}),
    "gemm transposed": ("Gemm <transB = 1>", "4, 6", {"x": "3, 6", "bias": "4"}),
    "gemm scaled": ("Gemm <alpha = 0.5, beta = 2.0, transA = 1>", "6, 4", {"x": "6, 3", "bias": "1, 4"}),
    "gemm with scalar bias": ("Gemm <beta = -1.5>", "6, 4", {"x": "3, 6", "bias": ""}),
    "matmul": ("MatMul", "6, 4", {"x": "3, 6"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_folds_into_the_linear_node(case, parse, bind, draw, fuse, ops, assert_same):
    linear, weight, options = CASES[case]
    text = model_text(linear, weight, **options)
    before, after = (with_weights(bind, parse(text)) for _ in range(2))
    result = fuse(after, *BN)
    op_type = linear.split()[0]
    assert ops(after) == ["Gemm" if op_type == "MatMul" else op_type]
    assert result.modified
    assert result.refusals == []
    assert after.graph.node(0).name == "main"
    assert [v.name for v in after.graph.outputs] == ["y"]
    assert set(after.graph.initializers) == {"w", "b" if "bias" in options else "beta"}
    shape = [int(d) for d in options.get("x", "2, 6, 5, 5").split(",")]
    assert_same(before, after, {"x": draw(*shape)}, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("opset", [7, 9, 11, 14, 15, 18])
def test_every_opset_of_batch_normalization(opset, parse, bind, draw, fuse, ops, assert_same):
    text = model_text("Conv", "4, 6, 3, 3", opset=opset, bn="<epsilon = 0.1, momentum = 0.5>")
    before, after = (with_weights(bind, parse(text)) for _ in range(2))
    fuse(after, *BN)
    assert ops(after) == ["Conv"]
    assert_same(before, after, {"x": draw(2, 6, 5, 5)}, atol=2e-5)


def test_all_zero_weights_and_zero_scale(parse, bind, draw, fuse, ops, assert_same):
    zeros = {"w": np.zeros((4, 6, 3, 3), np.float32), "gamma": np.array([0, 1, 0, 2], np.float32)}
    before, after = (with_weights(bind, parse(model_text("Conv", "4, 6, 3, 3")), **zeros) for _ in range(2))
    fuse(after, *BN)
    assert ops(after) == ["Conv"]
    assert_same(before, after, {"x": draw(2, 6, 5, 5)})


def test_running_twice_changes_nothing_more(parse, bind, fuse):
    model = with_weights(bind, parse(model_text("Conv", "4, 6, 3, 3")))
    assert fuse(model, *BN).modified
    assert not fuse(model, *BN).modified


def test_undo_copy_keeps_its_numbers(parse, bind, draw, fuse, run):
    model = with_weights(bind, parse(model_text("Conv", "4, 6, 3, 3", bias="4")))
    undo, feeds = model.clone(), {"x": draw(2, 6, 5, 5)}
    want = run(undo, feeds)
    fuse(model, *BN)
    np.testing.assert_array_equal(run(undo, feeds), want)


REFUSED = {
    "training mode": ({"bn": "<training_mode = 1>", "opset": 17}, "training mode"),
    "conv output used elsewhere": (
        {"extra": "z = Relu (c)", "out": ("y", "z")},
        "the output 'c' of Conv 'main' is used elsewhere",
    ),
    "conv output is a graph output": ({"out": ("y", "c")}, "the output 'c' of Conv 'main'"),
    "opset 6": ({"opset": 6, "bn": "<is_test = 1>"}, "opset 6 broadcasts by other rules"),
    "per position": ({"opset": 7, "bn": "<spatial = 0>"}, "normalizes each position by itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, parse, bind, reason):
    options, expected = REFUSED[case]
    model = parse(model_text("Conv", "4, 6, 3, 3", **options), check=False)
    assert expected in reason(with_weights(bind, model), *BN)


def full(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


NOT_FINITE = {
    "the weight 'w' would not be finite": {"w": full(np.nan, 4, 6, 3, 3)},
    "the weight 'w' would not be finite ": {"w": full(3e38, 4, 6, 3, 3), "gamma": full(9, 4)},
    "the weight 'w' would become denormal": {"w": full(1e-30, 4, 6, 3, 3), "gamma": full(1e-9, 4)},
    "the bias of Conv 'main' would not be finite": {"mean": full(3e38, 4), "gamma": full(9, 4)},
    "the variance 'var' is not positive": {"var": np.array([1, -1, 1, 1], np.float32)},
    "the variance 'var' is not positive ": {"var": np.array([1, np.nan, 1, 1], np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("expected", NOT_FINITE)
def test_refuses_numbers_that_would_break(expected, parse, bind, reason):
    model = with_weights(bind, parse(model_text("Conv", "4, 6, 3, 3")), **NOT_FINITE[expected])
    assert reason(model, *BN) == expected.strip()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w", "the weight 'w' is a graph input"),
        ("b", "the bias 'b' is a graph input"),
        ("gamma", "the scale 'gamma' is a graph input"),
        ("beta", "the bias 'beta' is a graph input"),
        ("mean", "the mean 'mean' is a graph input"),
        ("var", "the variance 'var' is a graph input"),
    ],
)
@pytest.mark.parametrize("with_default", [True, False])
def test_refuses_graph_inputs(name, expected, with_default, parse, bind, reason):
    model = with_weights(bind, parse(model_text("Conv", "4, 6, 3, 3", bias="4")))
    value = model.graph.initializers[name]
    if not with_default:
        model.graph.initializers.pop(name)
    model.graph.inputs.append(value)  # with_default: an initializer that a caller may override
    assert reason(model, *BN) == expected


def test_refuses_computed_weight(parse, bind, reason):
    text = model_text("Conv", "4, 6, 3, 3").replace(
        "[main] c = Conv (x, w)", "v = Neg (w) [main] c = Conv (x, v)"
    )
    assert reason(with_weights(bind, parse(text)), *BN) == "the weight 'v' is computed by Neg (output 'v')"


TIED = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, {C}, 5, 5] x, float[{C}, {C}, 3, 3] w,
    float[{C}] p, float[{C}] q, float[{C}] var) => (float[p, q, r, s] y, float[p, q, r, s] z) {{
    a = Conv (x, w)
    y = BatchNormalization (a, p, q, p, var)
    b = Conv (x, w)
    z = BatchNormalization (b, q, p, q, var)
}}"""


def test_shared_large_weight_is_not_copied(parse, bind, fuse, ops):
    model = with_weights(bind, parse(TIED.format(C=16)))
    result = fuse(model, *BN)
    assert not result.modified
    assert ops(model) == ["Conv", "BatchNormalization"] * 2
    assert {r.reason for r in result.refusals} == {"the weight 'w' is used elsewhere"}


def test_shared_small_weight_is_copied(parse, bind, draw, fuse, ops, assert_same):
    before, after = (with_weights(bind, parse(TIED.format(C=2))) for _ in range(2))
    fuse(after, *BN)
    assert ops(after) == ["Conv", "Conv"]
    assert_same(before, after, {"x": draw(1, 2, 5, 5)}, atol=2e-5)


def test_refuses_matmul_of_more_than_two_axes(parse, bind, reason):
    # the channels of BatchNormalization are axis 1, those of MatMul the last
    model = with_weights(bind, parse(model_text("MatMul", "6, 4", x="2, 4, 6")))
    assert "are not known to be the last axis" in reason(model, *BN)


def test_refuses_matmul_of_unknown_rank(parse, bind, reason):
    text = model_text("MatMul", "6, 4", x="2, 6").replace("float[2, 6] x", "float[] x")
    assert "are not known to be the last axis" in reason(with_weights(bind, parse(text, check=False)), *BN)


@pytest.mark.parametrize("shape", ["3, 4", "3, 1"])
def test_refuses_gemm_bias_that_varies_by_row(shape, parse, bind, reason):
    model = with_weights(bind, parse(model_text("Gemm", "6, 4", x="3, 6", bias=shape)))
    assert reason(model, *BN) == "the bias 'b' is not one number per output channel"


def test_no_match_behind_another_operator(parse, bind, reason):
    text = (
        model_text("Conv", "4, 6, 3, 3")
        .replace("(c, gamma", "(r, gamma")
        .replace("[norm]", "r = Relu (c) [norm]")
    )
    assert reason(with_weights(bind, parse(text)), *BN) == ""


def test_no_match_in_another_domain(parse, bind, reason):
    text = (
        model_text("Conv", "4, 6, 3, 3")
        .replace("c = Conv", "c = com.acme.Conv")
        .replace("17]>", '17, "com.acme" : 1]>')
    )
    assert reason(with_weights(bind, parse(text, check=False)), *BN) == ""


def test_conv_outside_a_branch_does_not_move_into_it(parse, bind, fuse, ops):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 5, 5] x, bool k, float[2, 2, 3, 3] w,
        float[2] p, float[2] q, float[2] var) => (float[p, q, r, s] y) {
        c = Conv (x, w)
        y = If (k) <then_branch = t () => (float[p, q, r, s] u) { u = BatchNormalization (c, p, q, p, var) },
                    else_branch = e () => (float[p, q, r, s] v) { v = Relu (x) }>
    }"""
    model = bind(parse(text), w=None, p=None, q=None, var=np.ones(2, np.float32))
    assert not fuse(model, *BN).modified


def test_whole_pattern_inside_a_branch(parse, bind, draw, fuse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 5, 5] x, bool k, float[2, 2, 3, 3] w,
        float[2] p, float[2] q, float[2] var) => (float[p, q, r, s] y) {
        y = If (k) <
            then_branch = t () => (float[p, q, r, s] u)
                { c = Conv (x, w) u = BatchNormalization (c, p, q, p, var) },
            else_branch = e () => (float[p, q, r, s] v) { v = Relu (x) }
        >
    }"""
    before, after = (bind(parse(text), w=None, p=None, q=None, var=np.ones(2, np.float32)) for _ in range(2))
    assert fuse(after, *BN).modified
    then_branch = after.graph.node(0).attributes["then_branch"].as_graph()
    assert [n.op_type for n in then_branch] == ["Conv"]
    feeds = [{"x": draw(1, 2, 5, 5), "k": np.array(k)} for k in (True, False)]
    assert_same(before, after, *feeds, atol=2e-5)


def test_float16_that_would_overflow_is_refused(parse, bind, reason):
    text = model_text("Conv", "4, 6, 3, 3").replace("float", "float16")
    half = {v: np.ones(4, np.float16) for v in ("gamma", "beta", "mean", "var")}
    weight = np.full((4, 6, 3, 3), 40000, np.float16)
    model = with_weights(bind, parse(text), **{**half, "w": weight, "gamma": np.full(4, 2, np.float16)})
    assert reason(model, *BN) == "the weight 'w' would not be finite"


def test_float16_keeps_its_type(parse, bind, draw, fuse, ops, assert_same):
    text = model_text("Conv", "4, 6, 3, 3").replace("float", "float16")
    positive = {"var": np.ones(4, np.float16)}
    before, after = (with_weights(bind, parse(text), **positive) for _ in range(2))
    fuse(after, *BN)
    assert ops(after) == ["Conv"]
    assert {v.dtype for v in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    # float16 has 11 bits; outputs are sums of 54 products of size about 1
    assert_same(before, after, {"x": draw(2, 6, 5, 5, dtype=np.float16)}, rtol=1e-2, atol=5e-2)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spatial=st.integers(1, 3),
    group=st.integers(1, 3),
    transpose=st.booleans(),
    bias=st.booleans(),
    double=st.booleans(),
    tail=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div"]), max_size=3),
)
def test_conv_then_norm_then_affine_is_one_conv(seed, spatial, group, transpose, bias, double, tail):
    rng = np.random.default_rng(seed)
    if transpose and double:
        group = 1  # onnx.reference mistakes the groups of ConvTranspose; onnxruntime has it in float32 only
    model = _random_model(rng, spatial, group, transpose, bias, double, tail)
    before = model.clone()
    Fuse()(model)
    assert [n.op_type for n in model.graph] == ["ConvTranspose" if transpose else "Conv"]
    x = rng.standard_normal((2, 2 * group, *[4] * spatial)).astype(np.float64 if double else np.float32)
    want, got = (_evaluate(m, x) for m in (before, model))
    scale = np.abs(want).max() + 1.0
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-12 if double else 2e-6)


def _random_model(rng, spatial, group, transpose, bias, double, tail) -> ir.Model:
    dtype = np.float64 if double else np.float32
    channels = 3 * group
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="g")
    x = ir.Value(
        name="x",
        type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))),
        shape=ir.Shape([2, 2 * group] + [4] * spatial),
    )
    graph.inputs.append(x)

    def constant(name, shape, low=0.5, high=2.0):
        signs = rng.choice([-1, 1], shape) if low > 0 and name != "var" else 1
        array = (rng.uniform(low, high, shape) * signs).astype(dtype)
        value = ir.Value(
            name=name, const_value=ir.tensor(array, name=name), type=x.type, shape=ir.Shape(array.shape)
        )
        graph.register_initializer(value)
        return value

    def node(op_type, inputs, **attributes):
        made = ir.node(op_type, inputs, attributes)
        graph.append(made)
        return made.outputs[0]

    weight = (2 * group, 3) if transpose else (channels, 2)
    inputs = [x, constant("w", (*weight, *[2] * spatial)), *([constant("b", (channels,))] if bias else [])]
    value = node("ConvTranspose" if transpose else "Conv", inputs, group=group)
    parameters = [constant(name, (channels,)) for name in ("gamma", "beta", "mean", "var")]
    value = node("BatchNormalization", [value, *parameters], epsilon=2.0**-10)  # the attribute is float32
    for index, op_type in enumerate(tail):
        shape = [(), (1,), (channels, *[1] * spatial), (1, channels, *[1] * spatial)][rng.integers(4)]
        other = constant(f"c{index}", shape)
        right = op_type == "Div" or bool(rng.integers(2))
        value = node(op_type, [value, other] if right else [other, value])
    value.name, value.type = "y", x.type
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=8)


def _evaluate(model: ir.Model, x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float64:  # onnxruntime convolves in float32 only
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]
