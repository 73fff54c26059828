from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

RULE = "distant-scale"
PERM = "perm = [0, 3, 1, 2]"
MATMUL = "MatMul (x, w)", "4, 3", "n, 5, 6, 4", "3"
CONV = "Conv (x, w)", "3, 4, 2, 2", "n, 4, 6, 7", "3, 1, 1"
DECONV = "ConvTranspose <strides = [2, 2]> (x, w)", "4, 3, 2, 2", "n, 4, 3, 2", "3, 1, 1"
GEMM = "Gemm <transB = 1> (x, w, v)", "3, 4", "n, 4", "3"


def text(linear, between, last, *, constant, bias="3", more="", outputs=("y",)):
    call, weight, x, _ = linear
    shape = f"[{constant}]" if constant else ""
    dims = ", ".join("pqrst"[: len(x.split(","))])
    values = [f"float[{weight}] w", f"float[{bias}] b", f"float{shape} k", "float[3] v"]
    made = ", ".join(f"float[{dims}] {name}" for name in outputs)
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{x}] x, {", ".join(values)}) => ({made}) {{
            [main] m = {call}
            {between}
            [scaled] y = {last}
            {more}
        }}"""


@pytest.fixture
def make(parse, bind):
    def make_model(written: str) -> ir.Model:
        model = parse(written)
        return bind(model, **{v.name: None for v in model.graph.inputs if v.name != "x"})

    return make_model


def feeds(linear, draw):
    shape = [int(d) if d.strip() != "n" else 0 for d in linear[2].split(",")]
    return [{"x": draw(*[d or n for d in shape])} for n in (1, 3)]


@pytest.mark.parametrize("last", ["Mul (t, k)", "Mul (k, t)", "Div (t, k)"])
@pytest.mark.parametrize(
    ("linear", "between", "constant", "left"),
    [
        (MATMUL, "t = Add (m, b)", "3", ["MatMul", "Add"]),
        (MATMUL, "t = Add (b, m)", "1, 1, 3", ["MatMul", "Add"]),
        (MATMUL, "t = Add (m, b)", "", ["MatMul", "Add"]),
        (MATMUL, f"t = Transpose <{PERM}> (m)", "3, 1, 1", ["MatMul", "Transpose"]),
        (MATMUL, "t = Transpose (m)", "3, 1, 1, 1", ["MatMul", "Transpose"]),
        (MATMUL, f"a = Add (m, b) t = Transpose <{PERM}> (a)", "1, 3, 1, 1", ["MatMul", "Add", "Transpose"]),
        (CONV, "t = Transpose <perm = [0, 2, 3, 1]> (m)", "3", ["Conv", "Transpose"]),
        (DECONV, "t = Transpose <perm = [0, 2, 3, 1]> (m)", "1, 3", ["ConvTranspose", "Transpose"]),
        (GEMM, "t = Transpose <perm = [1, 0]> (m)", "3, 1", ["Gemm", "Transpose"]),
    ],
)
def test_the_scale_goes_into_the_product(
    linear, between, constant, left, last, make, fuse, ops, assert_same, draw
):
    written = text(linear, between, last, constant=constant)
    before, after = make(written), make(written)
    result = fuse(after, RULE)
    assert result.refusals == []
    assert ops(after) == left
    assert after.graph.node(0).name == "main"
    assert_same(before, after, *feeds(linear, draw), rtol=1e-5, atol=1e-5)


def test_a_bias_of_one_number_becomes_one_for_each_channel(make, fuse, ops, assert_same, draw):
    written = text(MATMUL, "t = Add (m, b)", "Mul (t, k)", constant="3", bias="1")
    before, after = make(written), make(written)
    assert fuse(after, RULE).modified
    assert ops(after) == ["MatMul", "Add"]
    assert after.graph.initializers["b"].shape == [3]
    assert_same(before, after, *feeds(MATMUL, draw), rtol=1e-5, atol=1e-5)


def test_a_bias_that_others_read_stays_for_them(make, fuse, ops, assert_same, draw):
    more = "z = Add (y, b)"
    written = text(MATMUL, "t = Add (m, b)", "Mul (t, k)", constant="3", more=more, outputs=("z",))
    before, after = make(written), make(written)
    assert fuse(after, RULE).modified
    assert ops(after) == ["MatMul", "Add", "Add"]
    assert_same(before, after, *feeds(MATMUL, draw), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("linear", "between", "last", "constant", "options", "why"),
    [
        (MATMUL, "t = Add (m, b)", "Div (k, t)", "3", {}, "the divisor"),
        (MATMUL, "t = Add (m, b)", "Mul (t, k)", "6, 1", {}, "vary by output channel alone"),
        (MATMUL, f"t = Transpose <{PERM}> (m)", "Mul (t, k)", "5, 1", {}, "vary by output channel alone"),
        (MATMUL, f"t = Transpose <{PERM}> (m)", "Mul (t, k)", "6", {}, "vary by output channel alone"),
        (MATMUL, "t = Add (m, b)", "Mul (t, k)", "1, 1, 1, 1, 3", {}, "vary by output channel alone"),
        (MATMUL, "t = Add (m, b)", "Mul (t, k)", "3", {"bias": "6, 3"}, "the bias 'b' does not vary"),
        (MATMUL, "t = Add (m, b)", "Mul (t, k)", "3", {"outputs": ("y", "t")}, "'t' is used elsewhere"),
        (MATMUL, "t = Add (m, b)", "Mul (t, k)", "3", {"outputs": ("y", "m")}, "is used elsewhere"),
        (
            MATMUL,
            f"a = Add (m, b) t = Transpose <{PERM}> (a)",
            "Mul (t, k)",
            "3, 1, 1",
            {"outputs": ("y", "a")},
            "'a' is used elsewhere",
        ),
    ],
)
def test_refused(linear, between, last, constant, options, why, make, reason):
    written = text(linear, between, last, constant=constant, **options)
    if constant.count(",") == 4:  # broadcasting grows the result
        written = written.replace("=> (float[p, q, r, s] y)", "=> (float[o, p, q, r, s] y)")
    assert why in reason(make(written), RULE)


def test_a_weight_that_a_caller_may_override_is_left_alone(parse, bind, reason):
    model = parse(text(MATMUL, "t = Add (m, b)", "Mul (t, k)", constant="3"))
    assert reason(bind(model, b=None, k=None, v=None), RULE) == ""


def test_what_would_overflow_is_left_alone(make, reason):
    model = make(text(MATMUL, "t = Add (m, b)", "Mul (t, k)", constant="3"))
    model.graph.initializers["k"].const_value = ir.tensor(np.float32([1, 1, 3e38]), name="k")
    model.graph.initializers["b"].const_value = ir.tensor(np.float32([1, 1, 1e3]), name="b")
    assert "would overflow" in reason(model, RULE)


def test_without_anything_between_it_is_another_rule(make, reason):
    assert reason(make(text(MATMUL, "t = Identity (m)", "Mul (t, k)", constant="3")), RULE) == ""


def test_a_graph_output_keeps_its_name(make, fuse):
    model = make(text(MATMUL, "t = Add (m, b)", "Mul (t, k)", constant="3"))
    fuse(model, RULE)
    assert [v.name for v in model.graph.outputs] == ["y"]
