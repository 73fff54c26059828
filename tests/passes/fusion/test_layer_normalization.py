from __future__ import annotations

import numpy as np
import pytest

RULES = ("layer-normalization", "rms-normalization", "instance-normalization")


def text(
    body: str, *, opset=24, x="N, T, 8", y="N, T, 8", dtype="float", axes="-1", eps=1e-5, w="8", extra=""
) -> str:
    count = axes.count(",") + 1
    numbers = {"eps": eps, "one": 1.0, "two": 2.0, "half": 0.5, "minus": -0.5}
    if dtype == "float16":  # the parser wants their bits
        numbers = {name: int(np.float16(n).view(np.uint16)) for name, n in numbers.items()}
    constants = "\n".join(f"{name} = Constant <value = {dtype} {{{n!r}}}> ()" for name, n in numbers.items())
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g ({dtype}[{x}] x, {dtype}[{w}] scale, {dtype}[{w}] bias{extra}) => ({dtype}[{y}] y) {{
        axes = Constant <value = int64[{count}] {{{axes}}}> ()
        {constants}
        {body.replace(";", chr(10))}
    }}"""


MEAN = "mu = ReduceMean (x, axes); d = Sub (x, mu);"
VAR = "q = Mul (d, d); v = ReduceMean (q, axes); e = Add (v, eps);"
POW = "q = Pow (d, two); v = ReduceMean (q, axes); e = Add (eps, v);"
AFFINE = "m = Mul (n, scale); y = Add (m, bias)"
LAYER = {
    "div": f"{MEAN}{VAR} s = Sqrt (e); n = Div (d, s); {AFFINE}",
    "pow": f"{MEAN}{POW} s = Sqrt (e); n = Div (d, s); {AFFINE}",
    "reciprocal": f"{MEAN}{POW} s = Sqrt (e); r = Reciprocal (s); n = Mul (d, r); {AFFINE}",
    "one by root": f"{MEAN}{POW} s = Sqrt (e); r = Div (one, s); n = Mul (r, d); {AFFINE}",
    "power": f"{MEAN}{POW} r = Pow (e, minus); n = Mul (r, d); {AFFINE}",
    "root as power": f"{MEAN}{POW} s = Pow (e, half); n = Div (d, s); {AFFINE}",
    "commuted": f"{MEAN}{POW} s = Sqrt (e); n = Div (d, s); m = Mul (scale, n); y = Add (bias, m)",
    "scale before": f"{MEAN}{POW} s = Sqrt (e); m = Mul (scale, d); n = Div (m, s); y = Add (n, bias)",
    "scaled root": f"{MEAN}{POW} s = Sqrt (e); r = Reciprocal (s); rs = Mul (r, scale); n = Mul (d, rs); "
    "y = Add (n, bias)",
    "computed twice": f"{MEAN}{VAR} s = Sqrt (e); nu = ReduceMean (x, axes); f = Sub (x, nu); n = Div (f, s);"
    f"{AFFINE}",
}
RMS_SQUARE = "q = Pow (x, two); v = ReduceMean (q, axes); e = Add (v, eps);"
RMS = {
    "reciprocal": f"{RMS_SQUARE} s = Sqrt (e); r = Reciprocal (s); n = Mul (x, r); y = Mul (scale, n)",
    "one by root": f"{RMS_SQUARE} s = Sqrt (e); r = Div (one, s); n = Mul (x, r); y = Mul (n, scale)",
    "div": f"{RMS_SQUARE} s = Sqrt (e); n = Div (x, s); y = Mul (n, scale)",
    "power": f"{RMS_SQUARE} r = Pow (e, minus); n = Mul (x, r); y = Mul (n, scale)",
    "product": "q = Mul (x, x); v = ReduceMean (q, axes); e = Add (v, eps); s = Sqrt (e); n = Div (x, s); "
    "y = Mul (n, scale)",
    "scaled root": f"{RMS_SQUARE} s = Sqrt (e); r = Reciprocal (s); rs = Mul (r, scale); y = Mul (x, rs)",
}


@pytest.mark.parametrize("spelling", LAYER)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "graph inputs"])
def test_layer_spellings(spelling, constant, parse, bind, draw, fuse, ops, assert_same):
    models = [parse(text(LAYER[spelling])) for _ in range(2)]
    feed = {"scale": draw(8, seed=1), "bias": draw(8, seed=2)}
    if constant:
        models, feed = [bind(m, **feed) for m in models], {}
    result = fuse(models[1], *RULES)
    assert ops(models[1]) == ["LayerNormalization"]
    assert result.summary == "fused 1 layer-normalization"
    assert len(models[1].graph.initializers) == (2 if constant else 0)
    x = 3 * draw(2, 5, 8) + 1
    assert_same(*models, {"x": x, **feed}, {"x": x[:1, :3], **feed}, {"x": 1e3 * x, **feed}, atol=1e-5)


@pytest.mark.parametrize("spelling", RMS)
def test_rms_spellings(spelling, parse, bind, draw, fuse, ops, assert_same):
    before, after = (bind(parse(text(RMS[spelling])), scale=draw(8, seed=1)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["RMSNormalization"]
    assert after.graph.node(-1).attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert list(after.graph.initializers) == ["scale"]
    feed = {"bias": draw(8)}
    assert_same(before, after, {"x": draw(2, 5, 8), **feed}, {"x": 0 * draw(1, 3, 8), **feed})


@pytest.mark.parametrize("axes", ["1, 2", "-1, -2", "-2, 2"])
def test_several_axes(axes, parse, bind, draw, fuse, ops, assert_same):
    body = text(LAYER["div"], x="N, 3, 4", y="N, 3, 4", axes=axes, w="4")
    before, after = (bind(parse(body), scale=draw(4, seed=1), bias=draw(4, seed=2)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization"]
    assert after.graph.node(-1).attributes.get_int("axis") == -2
    assert [list(v.shape) for v in after.graph.initializers.values()] == [[3, 4], [3, 4]]
    assert_same(before, after, {"x": draw(2, 3, 4)}, {"x": draw(1, 3, 4, seed=3)})


def test_axes_as_attribute(parse, draw, fuse, ops, assert_same):
    body = text(LAYER["div"], opset=17).replace("(x, axes)", "<axes = [-1]> (x)")
    before, after = (parse(body.replace("(q, axes)", "<axes = [-1], keepdims = 1> (q)")) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization"]
    assert_same(before, after, {"x": draw(2, 5, 8), "scale": draw(8), "bias": draw(8, seed=1)})


PLAIN = f"{MEAN}{VAR} s = Sqrt (e); n = Div (d, s);"
PARTIAL = {
    "nothing behind": (f"{PLAIN} y = Identity (n)", ["LayerNormalization", "Identity"]),
    "bias alone": (f"{PLAIN} y = Add (n, bias)", ["LayerNormalization"]),
    "scale alone": (f"{PLAIN} y = Mul (n, scale)", ["LayerNormalization"]),
    "residual": (f"{PLAIN} m = Mul (n, scale); y = Add (m, x)", ["LayerNormalization", "Add"]),
    "square": (f"{PLAIN} y = Mul (n, n)", ["LayerNormalization", "Mul"]),
    "scale of the whole": (f"{PLAIN} k = Abs (x); m = Mul (n, k); y = Add (m, bias)", None),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_what_does_not_fit_stays(case, parse, draw, fuse, ops, assert_same):
    body, expected = PARTIAL[case]
    before, after = parse(text(body)), parse(text(body))
    assert fuse(after, *RULES).modified
    assert sorted(ops(after)) == sorted(expected or ["LayerNormalization", "Abs", "Mul", "Add"])
    assert_same(before, after, {"x": draw(2, 5, 8), "scale": draw(8), "bias": draw(8, seed=1)})


@pytest.mark.parametrize("shape", [(), (1,), (1, 8), (1, 1, 8), (1, 1, 1)])
def test_shapes_of_constant_scales(shape, parse, bind, draw, fuse, ops, assert_same):
    w = ", ".join(map(str, shape))
    body = text(LAYER["div"], w=w).replace("float[]", "float")
    before, after = (bind(parse(body), scale=draw(*shape), bias=draw(*shape, seed=1)) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization"]
    assert_same(before, after, {"x": draw(2, 5, 8)})


def test_vector_of_rank_one_times_itself(parse, draw, fuse, ops, assert_same):
    body = text(f"{PLAIN} y = Mul (n, n)", x="8", y="8")
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization", "Mul"]
    assert_same(before, after, {"x": draw(8), "scale": draw(8), "bias": draw(8)})


def test_half_precision(parse, draw, fuse, ops, assert_same):
    body = text(LAYER["div"], dtype="float16")
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == ["LayerNormalization"]
    feed = {n: draw(8, seed=s, dtype=np.float16) for s, n in enumerate(("scale", "bias"))}
    # The formula itself is rounded to 11 bits in every step
    assert_same(before, after, {"x": draw(2, 5, 8, dtype=np.float16), **feed}, rtol=1e-2, atol=1e-2)


def test_names_and_metadata(parse, fuse):
    model = parse(text(LAYER["div"]))
    root = next(n for n in model.graph if n.op_type == "Sqrt")
    root.name, root.metadata_props["origin"] = "norm", "layer.0"
    fuse(model, *RULES)
    node = model.graph.node(-1)
    assert (node.name, node.metadata_props) == ("norm", {"origin": "layer.0"})
    assert model.graph.outputs[0].name == "y"


ALONE = f"{PLAIN} y = Identity (n)"
REFUSED = {
    "not last": (text(ALONE, axes="1"), "are not the last ones"),
    "not contiguous": (text(ALONE, x="N, 4, 5, 6", y="N, 4, 5, 6", axes="1, 3"), "are not the last ones"),
    "unknown size": (text(ALONE, x="N, T, C", y="N, T, C"), "sizes of the normalized axes"),
    "one element": (text(ALONE, x="N, T, 1", y="N, T, 1"), "less than two"),
    "double": (text(LAYER["div"], dtype="double"), "of type DOUBLE"),
    "scale before": (text(LAYER["scale before"], w="5, 1", x="N, 5, 8", y="N, 5, 8"), "the scale before"),
    "epsilon of rank 4": (
        text(ALONE, y="1, N, T, 8").replace(
            "eps = Constant <value = float", "eps = Constant <value = float[1,1,1,1]"
        ),
        "fewer axes",
    ),
    "exponent of rank 4": (
        text(f"{MEAN}{POW} s = Sqrt (e); n = Div (d, s); y = Identity (n)", y="1, N, T, 8").replace(
            "two = Constant <value = float", "two = Constant <value = float[1,1,1,1]"
        ),
        "fewer axes",
    ),
    "root's exponent of rank 4": (
        text(f"{MEAN}{VAR} s = Pow (e, half); n = Div (d, s); y = Identity (n)", y="1, N, T, 8").replace(
            "half = Constant <value = float", "half = Constant <value = float[1,1,1,1]"
        ),
        "fewer axes",
    ),
    "variance used": (text(f"{PLAIN} k = Mul (v, v); y = Add (n, k)"), "'v' of ReduceMean"),
    "mean used": (text(f"{PLAIN} y = Add (n, mu)"), "'mu' of ReduceMean"),
    "centered used": (text(f"{PLAIN} y = Add (n, d)"), "'d' of Sub"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_reason(case, parse, reason):
    body, expected = REFUSED[case]
    assert expected in reason(parse(body), "layer-normalization")


@pytest.mark.parametrize(("rule", "spelling", "opset"), [("layer", "div", 16), ("rms", "div", 22)])
def test_refused_below_the_opset(rule, spelling, opset, parse, reason):
    body = text((LAYER if rule == "layer" else RMS)[spelling], opset=opset)
    if opset < 18:
        body = body.replace("(x, axes)", "<axes = [-1]> (x)").replace("(q, axes)", "<axes = [-1]> (q)")
    assert f"needs opset {opset + 1}" in reason(parse(body), f"{rule}-normalization")


def test_refused_where_ones_would_be_large(parse, reason):
    body = text(ALONE, x="N, 200, 200", y="N, 200, 200", axes="1, 2")
    assert "would be large" in reason(parse(body), "layer-normalization")


def test_refused_where_an_intermediate_is_an_output(parse, reason):
    body = text(LAYER["div"]).replace("=> (float[N, T, 8] y)", "=> (float[N, T, 8] y, float[N, T, 1] v)")
    assert "'v' of ReduceMean" in reason(parse(body), "layer-normalization")


NEAR_MISSES = {
    "other mean": "mu = ReduceMean (x, axes); d = Sub (scale, mu); q = Mul (d, d); v = ReduceMean (q, axes); "
    "e = Add (v, eps); s = Sqrt (e); f = Sub (x, mu); n = Div (f, s); y = Mul (n, scale)",
    "cube": f"{MEAN} three = Constant <value = float {{3.0}}> (); q = Pow (d, three);"
    "v = ReduceMean (q, axes); e = Add (v, eps); s = Sqrt (e); n = Div (d, s); y = Add (n, bias)",
    "product of two": f"{MEAN} q = Mul (d, x); v = ReduceMean (q, axes); e = Add (v, eps); s = Sqrt (e); "
    "n = Div (d, s); y = Add (n, bias)",
    "sum": f"{MEAN} q = Mul (d, d); v = ReduceSum (q, axes); e = Add (v, eps); s = Sqrt (e); n = Div (d, s); "
    "y = Add (n, bias)",
    "epsilon outside": f"{MEAN} q = Mul (d, d); v = ReduceMean (q, axes); s = Sqrt (v); e = Add (s, eps); "
    "n = Div (d, e); y = Add (n, bias)",
    "upside down": f"{MEAN}{VAR} s = Sqrt (e); n = Div (s, d); y = Add (n, bias)",
    "times the root": f"{MEAN}{VAR} s = Sqrt (e); n = Mul (d, s); y = Add (n, bias)",
    "half by root": f"{MEAN}{VAR} s = Sqrt (e); r = Div (half, s); n = Mul (d, r); y = Add (n, bias)",
    "two roots": f"{MEAN}{VAR} t = Sqrt (e); s = Sqrt (t); n = Div (d, s); y = Add (n, bias)",
    "other axes": f"{MEAN} other = Constant <value = int64[1] {{1}}> (); q = Mul (d, d); "
    "v = ReduceMean (q, other); e = Add (v, eps); s = Sqrt (e); n = Div (d, s); y = Add (n, bias)",
    "not what is divided": f"{MEAN}{VAR} s = Sqrt (e); n = Div (x, s); y = Add (n, bias)",
    "negative epsilon": f"{MEAN} q = Mul (d, d); v = ReduceMean (q, axes); e = Add (v, minus); s = Sqrt (e); "
    "n = Div (d, s); y = Add (n, bias)",
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses(case, parse, ops, fuse):
    model = parse(text(NEAR_MISSES[case]))
    before = ops(model)
    fuse(model, *RULES)
    assert ops(model) == before


def test_computed_and_given_epsilon_are_no_constants(parse, reason):
    body = text(LAYER["div"], extra=", float given").replace("e = Add (v, eps)", "e = Add (v, given)")
    assert reason(parse(body), *RULES) == ""


def test_axes_that_are_a_graph_input(parse, reason):
    body = text(LAYER["div"], extra=", int64[1] given").replace("(q, axes)", "(q, given)")
    assert reason(parse(body), *RULES) == ""
