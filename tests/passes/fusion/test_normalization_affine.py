from __future__ import annotations

import numpy as np
import pytest

RULES = ("normalization-mul", "normalization-add", "normalization-casts")
LAYER = "n = LayerNormalization <epsilon = 0.01> (x, s, b);"
RMS = "n = RMSNormalization (x, s);"


def text(body: str, *, c="8", s="8", x="N, 4, 8", dtype="float", outputs="", opset=24) -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g (float[{x}] x, {dtype}[{s}] s, {dtype}[{s}] b, {dtype}[{c}] c) => (float[{x}] y{outputs}) {{
        {body.replace(";", chr(10))}
    }}"""


@pytest.fixture
def pair(parse, bind, draw):
    def make(body, c=(8,), s=(8,), dtype=np.float32):
        arrays = {
            "s": draw(*s, dtype=dtype),
            "b": draw(*s, seed=1, dtype=dtype),
            "c": draw(*c, seed=2, dtype=dtype),
        }
        return [bind(parse(body), **arrays) for _ in range(2)]

    return make


@pytest.mark.parametrize("shape", [(8,), (1,), (1, 8), (1, 1, 8), (1, 1, 1)])
@pytest.mark.parametrize(
    "body",
    [
        f"{LAYER} y = Mul (n, c)",
        f"{LAYER} y = Add (c, n)",
        f"{LAYER} m = Mul (c, n); y = Add (m, c)",
        "n = LayerNormalization (x, s); y = Add (n, c)",
        "n = LayerNormalization (x, s); y = Mul (n, c)",
        f"{RMS} y = Mul (c, n)",
    ],
)
def test_constants_go_into_scale_and_bias(body, shape, pair, draw, fuse, ops, assert_same):
    before, after = pair(text(body, c=", ".join(map(str, shape))), shape)
    fuse(after, *RULES)
    assert len(ops(after)) == 1
    assert_same(before, after, {"x": draw(2, 4, 8)}, {"x": draw(1, 4, 8, seed=5)})


def test_a_scale_over_two_axes(pair, draw, fuse, ops, assert_same):
    body = text("n = LayerNormalization <axis = 1> (x, s, b); y = Mul (n, c)", s="4, 8", c="4, 1")
    before, after = pair(body, (4, 1), (4, 8))
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization"]
    assert_same(before, after, {"x": draw(2, 4, 8)})


REFUSED = {
    "varies by row": (f"{LAYER} y = Mul (n, c)", (4, 1), "does not vary by the normalized axes"),
    "used elsewhere": (f"{LAYER} m = Mul (n, c); y = Add (m, n)", (8,), "used elsewhere"),
    "two outputs": (
        "n, q = LayerNormalization (x, s, b); m = Mul (n, c); y = Sub (m, q)",
        (8,),
        "more than one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, pair, reason):
    body, shape, expected = REFUSED[case]
    assert expected in reason(pair(text(body, c=", ".join(map(str, shape))), shape)[0], "normalization-mul")


def test_refused_with_given_scale(parse, bind, draw, reason):
    model = bind(parse(text(f"{LAYER} y = Mul (n, c)")), c=draw(8))
    assert "graph input" in reason(model, *RULES)


def test_refused_where_the_scale_overflows(parse, bind, draw, reason):
    big = np.full(8, 1e30, np.float32)
    model = bind(parse(text(f"{LAYER} y = Mul (n, c)")), s=big, b=draw(8), c=big)
    assert "finite" in reason(model, *RULES)


def test_a_given_operand_and_a_bias_of_rms_are_no_match(parse, bind, draw, reason):
    assert reason(bind(parse(text(f"{LAYER} y = Mul (n, c)")), s=draw(8), b=draw(8)), *RULES) == ""
    assert reason(bind(parse(text(f"{RMS} y = Add (n, c)")), s=draw(8), c=draw(8)), *RULES) == ""


CASTS = "h = Cast <to = 10> (x); f = Cast <to = 1> (h);"


def cast_text(norm: str, tail: str = "q = Mul (z, c); y = Cast <to = 1> (q)") -> str:
    return f"""<ir_version: 9, opset_import: ["" : 24]>
    g (float[N, 4, 8] x, float[8] s, float[8] b, float16[8] c) => (float[N, 4, 8] y) {{
        {CASTS.replace(";", chr(10))}
        {norm}
        z = Cast <to = 10> (n)
        {tail.replace(";", chr(10))}
    }}"""


@pytest.fixture
def in_float(parse, bind, draw):
    def make(body, s=None):
        ones = np.ones(8, np.float32) if s is None else s
        arrays = {"s": ones, "b": np.zeros(8, np.float32), "c": draw(8, dtype=np.float16)}
        return [bind(parse(body), **arrays) for _ in range(2)]

    return make


@pytest.mark.parametrize("norm", ["n = RMSNormalization (f, s)", "n = LayerNormalization (f, s, b)"])
def test_casts_around_a_normalization_in_float(norm, in_float, draw, fuse, ops, assert_same):
    before, after = in_float(cast_text(norm))
    fuse(after, *RULES)
    assert ops(after) == ["Cast", norm.split()[2], "Cast"]
    feeds = ({"x": draw(2, 4, 8)}, {"x": 300 * draw(1, 4, 8)})  # whose squares overflow float16
    assert_same(before, after, *feeds, rtol=2e-3, atol=2e-3)  # two units of float16


def test_refused_where_the_scale_needs_float(in_float, reason):
    body = cast_text("n = RMSNormalization (f, s)")
    model = in_float(body, s=np.full(8, 0.1, np.float32))[0]
    assert "would lose digits" in reason(model, *RULES)


def test_refused_where_the_input_was_no_half(in_float, reason):
    body = cast_text("n = RMSNormalization (f, s)").replace("Cast <to = 10> (x)", "Cast <to = 11> (x)")
    assert "FLOAT16" in reason(in_float(body)[0], *RULES)


def test_casts_of_another_type_are_no_match(in_float, reason):
    body = cast_text("n = RMSNormalization (f, s)", "y = Cast <to = 1> (z)").replace(
        "z = Cast <to = 10>", "z = Cast <to = 11>"
    )
    assert reason(in_float(body)[0], *RULES) == ""


def test_the_formula_in_float_inside_a_half_model(parse, bind, draw, fuse, ops, assert_same):
    body = f"""<ir_version: 9, opset_import: ["" : 24]>
    g (float[N, 4, 8] x, float16[8] w) => (float[N, 4, 8] y) {{
        axes = Constant <value = int64[1] {{-1}}> ()
        two = Constant <value = float {{2.0}}> ()
        eps = Constant <value = float {{1e-6}}> ()
        {CASTS.replace(";", chr(10))}
        q = Pow (f, two)
        v = ReduceMean (q, axes)
        e = Add (v, eps)
        s = Sqrt (e)
        r = Reciprocal (s)
        n = Mul (f, r)
        z = Cast <to = 10> (n)
        m = Mul (w, z)
        y = Cast <to = 1> (m)
    }}"""
    before, after = (bind(parse(body), w=draw(8, dtype=np.float16)) for _ in range(2))
    fuse(after, *RULES, "rms-normalization")
    assert ops(after) == ["Cast", "RMSNormalization", "Cast"]
    assert list(after.graph.initializers) == ["w"]
    assert_same(before, after, {"x": draw(2, 4, 8)}, {"x": 300 * draw(1, 4, 8)}, rtol=2e-3, atol=2e-3)
