from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

RULE = "matmul-add"


def model_text(
    addend="3", *, add="Add (m, b)", x="float[N, 4] x", w="float[4, 3] w", more="", outputs=("y",), opset=17
):
    shape = f"[{addend}]" if addend else ""
    declared = ", ".join(f"float[p, q] {name}" for name in outputs)
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g ({x}, {w}, float{shape} b) => ({declared}) {{
        [product] m = MatMul (x, w)
        [sum] y = {add}
        {more}
    }}"""


@pytest.mark.parametrize("add", ["Add (m, b)", "Add (b, m)"])
@pytest.mark.parametrize("addend", ["3", "1, 3", "1", "", "1, 1"])
@pytest.mark.parametrize("constant", [True, False])
def test_becomes_gemm(addend, add, constant, parse, bind, draw, fuse, ops, assert_same):
    bound = {"w": None, "b": None} if constant else {}
    before, after = (bind(parse(model_text(addend, add=add)), **bound) for _ in range(2))
    result = fuse(after, RULE)
    assert ops(after) == ["Gemm"]
    assert after.graph.node(0).name == "product"
    assert result.summary == "fused 1 matmul-add"
    weights = {} if constant else {"w": draw(4, 3), "b": draw(*[int(d) for d in addend.split(",") if d])}
    feeds = [{"x": draw(n, 4), **weights} for n in (1, 5)]
    assert_same(before, after, *feeds)


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_every_opset(opset, parse, bind, draw, fuse, ops, assert_same):
    before, after = (bind(parse(model_text(opset=opset)), w=None, b=None) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Gemm"]
    assert_same(before, after, {"x": draw(2, 4)})


def test_float64(parse, bind, draw, fuse, ops, assert_same):
    text = model_text().replace("float[", "double[")
    before, after = (bind(parse(text), w=None, b=None) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Gemm"]
    assert_same(before, after, {"x": draw(2, 4, dtype=np.float64)}, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"x": "float[N, 2, 4] x"}, "Gemm needs rank 2; an input of MatMul 'product' has 3"),
        ({"x": "float[] x"}, "has an unknown rank"),
        ({"x": "float[4] x"}, "an input of MatMul 'product' has 1"),
        ({"w": "float[2, 4, 3] w"}, "an input of MatMul 'product' has 3"),
        ({"addend": "N, 3"}, "the addend 'b' is not one number per column"),  # a residual
        ({"addend": "2, 1"}, "the addend 'b' is not one number per column"),
        ({"addend": "1, 1, 3"}, "the addend 'b' is not one number per column"),  # grows the result
        ({"addend": "K"}, "the addend 'b' is not one number per column"),
        (
            {"addend": "5", "w": "float[4, 1] w"},
            "the addend 'b' is not one number per column",
        ),  # grows it too
        ({"addend": "3", "w": "float[4, M] w"}, "the addend 'b' is not one number per column"),
        (
            {"more": "z = Relu (m)", "outputs": ("y", "z")},
            "the output 'm' of MatMul 'product' is used elsewhere",
        ),
        ({"outputs": ("y", "m")}, "the output 'm' of MatMul 'product' is used elsewhere"),
        ({"add": "Add (m, m)"}, "the output 'm' of MatMul 'product' is used elsewhere"),
        ({"opset": 6}, "opset 6 broadcasts by other rules"),
    ],
)
def test_refuses(options, expected, parse, reason):
    assert expected in reason(parse(model_text(**options), check=False), RULE)


def test_refuses_integers(parse, reason):
    assert reason(parse(model_text().replace("float[", "int32[")), RULE) == "the addend 'b' is INT32"


def test_refuses_an_addend_of_unknown_shape(parse, reason):
    model = parse(model_text().replace("float[3] b", "float[] b"), check=False)
    assert reason(model, RULE) == "the shape of the addend 'b' is unknown"


def test_declared_shapes_are_not_believed(parse, reason):
    # the file says that r has two axes; what is known of x says nothing
    text = model_text(x="float[] x").replace(
        "[product] m = MatMul (x", "r = Relu (x) [product] m = MatMul (r"
    )
    model = parse(text, check=False)
    model.graph.node(0).outputs[0].shape = ir.Shape([2, 4])
    assert "has an unknown rank" in reason(model, RULE)


def test_no_match_for_add_of_something_else(parse, reason):
    text = model_text().replace("[sum]", "r = Relu (m) [sum]").replace("Add (m, b)", "Add (r, b)")
    assert reason(parse(text), RULE) == ""


def test_then_scale_and_shift_fold_into_the_gemm(parse, bind, draw, fuse, ops, assert_same):
    more = "u = Mul (y, b) z = Sub (u, b)"
    before, after = (bind(parse(model_text(more=more, outputs=("z",))), w=None, b=None) for _ in range(2))
    fuse(after)
    assert ops(after) == ["Gemm"]
    assert_same(before, after, {"x": draw(3, 4)}, atol=1e-5)


RESHAPES = "gemm-reshapes"
SHARED = "n = Neg (f)\nr = ReduceSum (n)\nz = Reshape (g, whole)"


def between(
    gemm="Gemm (f, w, b)", *, w="float[8, 5] w", more="", out="0, 0, 5", x="float[s, t, 8] x", opset=17
) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g ({x}, {w}, float[5] b) => (float[i, j, k] y) {{
        flat = Constant <value_ints = [-1, 8]> ()
        shape = Shape <start = 0, end = 2> (x)
        five = Constant <value_ints = [5]> ()
        whole = Concat <axis = 0> (shape, five)
        fixed = Constant <value_ints = [{out}]> ()
        f = Reshape (x, flat)
        [product] g = {gemm}
        {more or "y = Reshape (g, whole)"}
    }}"""


@pytest.mark.parametrize(
    ("gemm", "wanted"),
    [("Gemm (f, w, b)", ["MatMul", "Add"]), ("Gemm <alpha = 1.0, beta = 0.5> (f, w)", [])],
)
def test_gemm_between_reshapes(gemm, wanted, parse, bind, draw, fuse, ops, assert_same):
    before, after = (bind(parse(between(gemm)), w=None, b=None) for _ in range(2))
    fuse(after, RESHAPES)
    assert [o for o in ops(after) if o not in ("Shape", "Concat")] == (
        wanted or ["Reshape", "Gemm", "Reshape"]
    )
    assert_same(before, after, *({"x": draw(s, t, 8)} for s, t in ((1, 1), (2, 3), (4, 1))))


def test_gemm_between_reshapes_without_a_row(parse, bind, draw, fuse, ops, assert_same):
    source = between("Gemm (f, w)", more="z = Reshape (g, whole)\ny = Add (z, b)")
    before, after = (bind(parse(source), w=None, b=None) for _ in range(2))
    fuse(after, RESHAPES)
    assert ops(after)[-2:] == ["MatMul", "Add"]
    assert after.graph[-2].name == "product"
    assert_same(before, after, {"x": draw(2, 3, 8)})


def test_gemm_between_reshapes_with_a_transposed_weight(parse, bind, draw, fuse, ops, assert_same):
    source = between("Gemm <transB = 1> (f, w, b)", w="float[5, 8] w")
    before, after = (bind(parse(source), w=None, b=None) for _ in range(2))
    fuse(after, RESHAPES)
    assert ops(after)[-2:] == ["MatMul", "Add"]
    assert after.graph.initializers["w"].shape == (8, 5)
    assert_same(before, after, {"x": draw(2, 3, 8)}, {"x": draw(1, 4, 8)})


def test_gemms_of_one_flattened_value(parse, bind, draw, fuse, ops, assert_same):
    more = """h = Gemm (f, w)
        z = Reshape (h, whole)
        u = Reshape (g, whole)
        y = Add (u, z)"""
    before, after = (bind(parse(between(more=more)), w=None, b=None) for _ in range(2))
    fuse(after, RESHAPES)
    assert "Reshape" not in ops(after)
    assert_same(before, after, {"x": draw(2, 3, 8)})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Gemm (f", "Gemm <alpha = 2.0> (f", "more than a product"),
        ("Gemm (f", "Gemm <beta = 2.0> (f", "more than a product"),
        ("y = Reshape (g, whole)", f"{SHARED}\ny = Add (z, r)", "is used elsewhere"),
        ("y = Reshape (g, whole)", "y = Reshape (g, fixed)", "may make other axes"),
        ("[-1, 8]", "[8, -1]", "may do more"),
        ("y = Reshape (g, whole)", "z = Neg (g)\ny = Reshape (z, whole)", ""),
        ("float[5] b", "float[m, 5] b", "not one number per column"),
    ],
)
def test_gemm_between_reshapes_refusals(old, new, expected, parse, bind, reason):
    source = between(out="-1, 1, 5")
    assert old in source
    found = reason(bind(parse(source.replace(old, new), check=False), w=None), RESHAPES)
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_transposed_weight_that_is_shared(parse, bind, reason):
    more = "n = ReduceSum (w)\nz = Reshape (g, whole)\ny = Add (z, n)"
    source = between("Gemm <transB = 1> (f, w, b)", w="float[5, 8] w", more=more)
    assert "is used elsewhere" in reason(bind(parse(source), w=None), RESHAPES)
    source = between("Gemm <transB = 1> (f, w, b)", w="float[5, 8] w")
    assert "the weight 'w' is a graph input" in reason(parse(source), RESHAPES)
