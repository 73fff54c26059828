from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from graphopt.passes.fusion.fuse import Fuse

RULES = ("conv-mul", "conv-add", "gemm-mul", "gemm-add")
CONV = "Conv (x, w)", "3, 2, 3, 3", "2, 2, 5, 5"
CONV_BIAS = "Conv <pads = [1, 1, 1, 1]> (x, w, b)", "3, 2, 3, 3", "2, 2, 5, 5"
DECONV = "ConvTranspose <strides = [2, 2]> (x, w)", "2, 3, 2, 2", "1, 2, 4, 4"
GEMM = "Gemm <transB = 1, beta = 0.5> (x, w, b)", "3, 4", "2, 4"
GEMM_BARE = "Gemm <alpha = 2.0> (x, w)", "4, 3", "2, 4"
MATMUL = "MatMul (x, w)", "4, 3", "2, 5, 4"


def model_text(linear, second, *, constant="3, 1, 1", more="", outputs=("y",), opset=17):
    """x -> linear -> second (of c and k) -> y."""
    call, weight, x = linear
    bias = ", float[3] b" if "b)" in call else ""
    shape = f"[{constant}]" if constant else ""
    dims = ", ".join("pqrst"[: len(x.split(","))])
    declared = ", ".join(f"float[{dims}] {name}" for name in outputs)
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{x}] x, float[{weight}] w{bias}, float{shape} k) => ({declared}) {{
            [main] c = {call}
            [second] y = {second}
            {more}
        }}"""


def bound(bind, model, **changes):
    return bind(model, **{**{v.name: None for v in model.graph.inputs if v.name != "x"}, **changes})


OPERATORS = ["Mul (c, k)", "Mul (k, c)", "Div (c, k)", "Add (c, k)", "Add (k, c)", "Sub (c, k)", "Sub (k, c)"]


@pytest.mark.parametrize("second", OPERATORS)
@pytest.mark.parametrize(
    ("linear", "constant"),
    [
        (CONV, "3, 1, 1"),
        (CONV, "1, 3, 1, 1"),
        (CONV, ""),
        (CONV_BIAS, "3, 1, 1"),
        (CONV_BIAS, "1"),
        (DECONV, "3, 1, 1"),
        (GEMM, "3"),
        (GEMM, "1, 3"),
        (GEMM_BARE, "1"),
    ],
)
def test_folds_into_one_node(linear, constant, second, parse, bind, draw, fuse, ops, assert_same):
    text = model_text(linear, second, constant=constant)
    before, after = (bound(bind, parse(text)) for _ in range(2))
    result = fuse(after, *RULES)
    assert ops(after) == [linear[0].split()[0]]
    assert after.graph.node(0).name == "main"
    assert result.refusals == []
    assert set(after.graph.initializers) <= {"w", "b", "k"}
    assert_same(before, after, {"x": draw(*map(int, linear[2].split(",")))}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("second", ["Mul (c, k)", "Mul (k, c)", "Div (c, k)"])
@pytest.mark.parametrize("constant", ["3", "1", "", "1, 1, 3"])
def test_matmul_takes_scales_at_any_rank(second, constant, parse, bind, draw, fuse, ops, assert_same):
    text = model_text(MATMUL, second, constant=constant)
    before, after = (bound(bind, parse(text)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["MatMul"]
    assert_same(before, after, {"x": draw(2, 5, 4)}, atol=1e-5)


def test_matmul_of_unknown_rank_takes_a_vector(parse, bind, draw, fuse, ops, assert_same):
    text = model_text(MATMUL, "Mul (c, k)", constant="3").replace("[2, 5, 4] x", "[] x")
    before, after = (bound(bind, parse(text, check=False)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["MatMul"]
    for shape in ((4,), (2, 4), (2, 5, 4)):
        feeds = {"x": draw(*shape)}
        want, got = (ReferenceEvaluator(ir.to_proto(m)).run(None, feeds)[0] for m in (before, after))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_chain_becomes_one_conv(parse, bind, draw, fuse, ops, assert_same):
    more = "m = Mul (k, y) n = Sub (k, m) o = Div (n, k) z = Add (o, k)"
    text = model_text(CONV, "Add (c, k)", more=more, outputs=("z",))
    before, after = (bound(bind, parse(text)) for _ in range(2))
    result = fuse(after, *RULES)
    assert ops(after) == ["Conv"]
    assert result.summary == "fused 3 conv-add, 2 conv-mul"
    assert_same(before, after, {"x": draw(2, 2, 5, 5)}, rtol=1e-4, atol=1e-4)


def test_add_alone_leaves_a_shared_weight_alone(parse, bind, draw, fuse, ops, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 32, 5, 5] x, float[32, 32, 3, 3] w, float[32, 1, 1] k)
        => (float[p, q, r, s] y, float[p, q, r, s] z)
        { a = Conv (x, w) y = Add (a, k) b = Conv (x, w) z = Sub (b, k) }"""
    before, after = (bound(bind, parse(text)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["Conv", "Conv"]
    assert after.graph.node(0).inputs[1] is after.graph.node(1).inputs[1] is after.graph.initializers["w"]
    assert_same(before, after, {"x": draw(1, 32, 5, 5)}, atol=1e-4)


REFUSED = [
    (CONV, "Mul (c, k)", {"constant": "3"}, "does not vary by output channel alone"),  # along the width
    (CONV, "Mul (c, k)", {"constant": "1, 3, 3, 3"}, "does not vary by output channel alone"),
    (CONV, "Add (c, k)", {"constant": "3, 3, 3"}, "does not vary by output channel alone"),
    (CONV, "Add (c, k)", {"constant": "2, 1, 1, 1"}, "does not vary by output channel alone"),
    (CONV, "Mul (c, k)", {"constant": "1, 1, 1, 1, 1"}, "does not vary by output channel alone"),  # grows
    (GEMM, "Add (c, k)", {"constant": "2, 1"}, "does not vary by output channel alone"),
    (GEMM, "Add (c, k)", {"constant": "1, 1, 3"}, "does not vary by output channel alone"),
    (MATMUL, "Mul (c, k)", {"constant": "5, 1"}, "does not vary by output channel alone"),
    (MATMUL, "Mul (c, k)", {"constant": "1, 1, 1, 3"}, "does not vary by output channel alone"),
    (CONV, "Div (k, c)", {}, "the output of Conv 'main' is the divisor"),
    (CONV, "Mul (c, k)", {"more": "z = Relu (c)", "outputs": ("y", "z")}, "the output 'c' of Conv"),
    (CONV, "Mul (c, k)", {"outputs": ("y", "c")}, "the output 'c' of Conv"),
    (CONV, "Mul (c, k)", {"opset": 6}, "opset 6 broadcasts by other rules"),
]  # fmt: skip


@pytest.mark.parametrize(("linear", "second", "options", "expected"), REFUSED)
def test_refuses(linear, second, options, expected, parse, bind, reason):
    model = bound(bind, parse(model_text(linear, second, **options), check=False))
    assert expected in reason(model, *RULES)


@pytest.mark.parametrize("second", ["Add (c, c)", "Mul (c, x)", "Add (c, r)"])
def test_no_match_without_a_constant(second, parse, bind, reason):
    text = model_text(("Conv (r, w)", "2, 2, 1, 1", "1, 2, 4, 4"), second, constant="2, 1, 1")
    text = text.replace("[main]", "r = Relu (x) [main]")
    assert reason(bound(bind, parse(text)), *RULES) == ""


def test_no_match_behind_a_product_of_activations(parse, bind, reason):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4] x, float[4, 3] w, float k)
        => (float[p, q] y) { c = MatMul (x, w) y = Mul (c, k) }"""
    assert reason(bind(parse(text), k=None), "gemm-mul") == ""


def test_matmul_takes_no_shift_here(parse, bind, reason):
    assert reason(bound(bind, parse(model_text(MATMUL, "Add (c, k)", constant="3"))), *RULES) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k", "the constant 'k' is a graph input"),
        ("w", "the weight 'w' is a graph input"),
        ("b", "the bias 'b' is a graph input"),
    ],
)
def test_refuses_what_a_caller_may_override(name, expected, parse, bind, reason):
    model = bound(bind, parse(model_text(CONV_BIAS, "Mul (c, k)")))
    model.graph.inputs.append(model.graph.initializers[name])
    assert reason(model, *RULES) == expected


@pytest.mark.parametrize(
    ("second", "constant", "expected"),
    [
        ("Div (c, k)", [1, 0, 1], "the weight 'w' would not be finite"),
        ("Mul (c, k)", [1, np.inf, 1], "the weight 'w' would not be finite"),
        ("Mul (c, k)", [1e-39, 1, 1], "the weight 'w' would become denormal"),
        ("Add (c, k)", [1, np.nan, 1], "the bias of Conv 'main' would not be finite"),
    ],
)
def test_refuses_numbers_that_would_break(second, constant, expected, parse, bind, reason):
    array = np.array(constant, np.float32).reshape(3, 1, 1)
    assert reason(bound(bind, parse(model_text(CONV, second)), k=array), *RULES) == expected


def test_integer_matmul_is_left_alone(parse, bind, reason):
    text = model_text(MATMUL, "Mul (c, k)", constant="3").replace("float", "int32")
    assert reason(bound(bind, parse(text)), *RULES) == "the weight 'w' is INT32"


def test_constant_nodes_count_as_constants(parse, bind, draw, fuse, ops, assert_same):
    text = model_text(CONV, "Mul (c, t)").replace("[main]", "t = Constant <value_float = 2.5> () [main]")
    before, after = (bound(bind, parse(text)) for _ in range(2))
    fuse(after, *RULES)
    assert [n.op_type for n in after.graph] == ["Conv"]
    assert_same(before, after, {"x": draw(2, 2, 5, 5)})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    op_type=st.sampled_from(["Gemm", "MatMul"]),
    transposed=st.booleans(),
    bias=st.sampled_from([None, (), (1,), (3,), (1, 3), (1, 1)]),
    norm=st.booleans(),
    tail=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div"]), max_size=4),
)
def test_any_chain_behind_a_matrix_product_is_one_node(seed, op_type, transposed, bias, norm, tail):
    rng = np.random.default_rng(seed)
    model = _random_chain(rng, op_type, transposed, bias, norm, tail)
    before = model.clone()
    Fuse()(model)
    left = [n.op_type for n in model.graph]
    if op_type == "Gemm" or "Sub" not in tail:  # a Sub behind MatMul has no bias to go into
        assert left in (["Gemm"], ["MatMul"])
    x = rng.standard_normal((5, 4))
    want, got = (ReferenceEvaluator(ir.to_proto(m)).run(None, {"x": x})[0] for m in (before, model))
    scale = np.abs(want).max() + 1.0
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-12)


def _random_chain(rng, op_type, transposed, bias, norm, tail) -> ir.Model:
    double = ir.TensorType(ir.DataType.DOUBLE)
    x = ir.Value(name="x", type=double, shape=ir.Shape(["N", 4]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 17}, name="g")

    def constant(name, *shape):
        array = rng.uniform(0.5, 2, shape)
        value = ir.Value(
            name=name, const_value=ir.tensor(array, name=name), type=double, shape=ir.Shape(shape)
        )
        graph.register_initializer(value)
        return value

    def node(op_type, inputs, **attributes):
        graph.append(ir.node(op_type, inputs, attributes))
        return graph[-1].outputs[0]

    if op_type == "MatMul":
        value = node("MatMul", [x, constant("w", 4, 3)])
    else:
        inputs = [x, constant("w", 3, 4) if transposed else constant("w", 4, 3)]
        inputs += [constant("b", *bias)] if bias is not None else []
        value = node("Gemm", inputs, transB=int(transposed), alpha=0.5, beta=-2.0)
    if norm:
        parameters = [constant(name, 3) for name in ("gamma", "beta", "mean", "var")]
        value = node("BatchNormalization", [value, *parameters], epsilon=2.0**-10)
    for index, step in enumerate(tail):
        other = constant(f"c{index}", *[(), (1,), (3,), (1, 3)][rng.integers(4)])
        value = node(step, [value, other] if step == "Div" or rng.integers(2) else [other, value])
    value.name, value.type = "y", double
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=8)
