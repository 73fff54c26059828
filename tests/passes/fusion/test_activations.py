from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

NUMBERS = {"zero": 0, "one": 1, "three": 3, "six": 6, "sixth": 1 / 6, "fifth": 0.2, "two": 2.0, "minus": -0.2}
SPECIAL = np.array([[np.nan, -0.0, 0.0, 3, -3, 1e30, -1e30, 80, -80, -200]], np.float32)
RULES = ("hard-sigmoid", "hard-swish", "swish", "mish", "softplus", "softsign", "leaky-relu")


def text(body: str, *, opset=24, x="N, 5", y=None, dtype="float", shape="", extra="", outputs="") -> str:
    dims = f"[{shape}]" if shape else ""
    numbers = {n: v for n, v in NUMBERS.items() if re.search(rf"\b{n}\b", body)}
    if dtype == "float16":  # the parser wants their bits
        numbers = {n: int(np.float16(v).view(np.uint16)) for n, v in numbers.items()}
    else:
        numbers = {n: float(v) for n, v in numbers.items()}
    constants = "\n".join(f"{n} = Constant <value = {dtype}{dims} {{{v!r}}}> ()" for n, v in numbers.items())
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g ({dtype}[{x}] x{extra}) => ({dtype}[{y or x}] y{outputs}) {{
        {constants}
        {body.replace(";", chr(10))}
    }}"""


CLIP = "a = Add (x, three); c = Clip (a, zero, six);"
FUSED = {
    "gate by 6": (f"{CLIP} y = Div (c, six)", ["HardSigmoid"]),
    "gate times 1/6": (f"{CLIP} y = Mul (sixth, c)", ["HardSigmoid"]),
    "gate, min of max": (
        "a = Add (three, x); l = Max (a, zero); c = Min (six, l); y = Div (c, six)",
        ["HardSigmoid"],
    ),
    "gate, max of min": (
        "a = Add (three, x); l = Min (a, six); c = Max (zero, l); y = Div (c, six)",
        ["HardSigmoid"],
    ),
    "x * clip / 6": (f"{CLIP} m = Mul (x, c); y = Div (m, six)", ["HardSwish"]),
    "clip * x * 1/6": (f"{CLIP} m = Mul (c, x); y = Mul (m, sixth)", ["HardSwish"]),
    "x * (clip / 6)": (f"{CLIP} g = Div (c, six); y = Mul (x, g)", ["HardSwish"]),
    "other * clip / 6": (
        f"o = Neg (x); {CLIP} m = Mul (o, c); y = Div (m, six)",
        ["Neg", "HardSigmoid", "Mul"],
    ),
    "x * gate": ("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x); y = Mul (h, x)", ["HardSwish"]),
    "silu": ("s = Sigmoid (x); y = Mul (x, s)", ["Swish"]),
    "quick gelu": ("m = Mul (x, two); s = Sigmoid (m); y = Mul (s, x)", ["Swish"]),
    "mish": ("p = Softplus (x); t = Tanh (p); y = Mul (x, t)", ["Mish"]),
    "mish, written": ("e = Exp (x); a = Add (e, one); p = Log (a); t = Tanh (p); y = Mul (t, x)", ["Mish"]),
    "softplus": ("e = Exp (x); a = Add (one, e); y = Log (a)", ["Softplus"]),
    "softsign": ("b = Abs (x); a = Add (one, b); y = Div (x, a)", ["Softsign"]),
    "leaky relu": ("m = Mul (fifth, x); y = Max (m, x)", ["LeakyRelu"]),
    "leaky relu, commuted": ("m = Mul (x, fifth); y = Max (x, m)", ["LeakyRelu"]),
}


#: Every case with constants of every shape; the bounds of Clip can only be scalars.
SHAPED = [
    (case, shape)
    for case in FUSED
    for shape in ("", "1", "1, 1")
    if not shape or "Clip" not in FUSED[case][0]
]


@pytest.mark.parametrize(("case", "shape"), SHAPED)
def test_fused(case, shape, parse, draw, fuse, ops, assert_same):
    body, expected = FUSED[case]
    before, after = parse(text(body, shape=shape)), parse(text(body, shape=shape))
    fuse(after, *RULES)
    assert ops(after) == expected
    assert_same(before, after, {"x": 4 * draw(3, 5)}, {"x": draw(1, 5, seed=1)})
    if "Exp" not in body:  # which overflows where Softplus does not
        assert_same(before, after, {"x": SPECIAL.reshape(2, 5)})


@pytest.mark.parametrize("case", [c for c in FUSED if "Exp" not in FUSED[c][0]])
def test_half_precision(case, parse, draw, fuse, ops, assert_same):
    body, expected = FUSED[case]
    before, after = (parse(text(body, dtype="float16")) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == expected
    feed = {"x": 2 * draw(3, 5, dtype=np.float16)}
    assert_same(before, after, feed, rtol=4e-3, atol=4e-3)  # the formula rounds to 11 bits in every step


@pytest.mark.parametrize(("opset", "expected"), [(13, ["HardSigmoid", "Mul"]), (14, ["HardSwish"])])
def test_hard_swish_before_it_existed(opset, expected, parse, draw, fuse, ops, assert_same):
    body = text(f"{CLIP} m = Mul (x, c); y = Div (m, six)", opset=opset)
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == expected
    assert_same(before, after, {"x": 4 * draw(3, 5)})


def test_clip_with_attributes(parse, draw, fuse, ops, assert_same):
    body = text(
        "a = Add (x, three); c = Clip <min = 0.0, max = 6.0> (a); m = Mul (x, c); y = Div (m, six)", opset=9
    )
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == ["HardSigmoid", "Mul"]
    assert_same(before, after, {"x": 4 * draw(3, 5)})


def test_a_factor_of_another_shape(parse, draw, fuse, ops, assert_same):
    body = text(f"{CLIP} m = Mul (o, c); y = Div (m, six)", y="N, 4, 5", extra=", float[N, 4, 1] o", x="1, 5")
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == ["HardSigmoid", "Mul"]
    assert_same(before, after, {"x": 4 * draw(1, 5), "o": draw(2, 4, 1)})


def test_names_metadata_and_attributes(parse, fuse):
    model = parse(text("m = Mul (x, two); s = Sigmoid (m); y = Mul (s, x)"))
    last = model.graph.node(-1)
    last.name, last.metadata_props["origin"] = "act", "block"
    fuse(model, "swish")
    node = model.graph.node(-1)
    assert (node.name, node.metadata_props) == ("act", {"origin": "block"})
    assert node.attributes.get_float("alpha") == 2.0
    assert model.graph.outputs[0].producer() is node


def test_in_a_branch(parse, fuse):
    model = parse("""<ir_version: 9, opset_import: ["" : 24]> g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <
            then_branch = t () => (float[N] a) { s = Sigmoid (x)
                a = Mul (x, s) },
            else_branch = e () => (float[N] b) { b = Identity (x) }
        >
    }""")
    fuse(model, "swish")
    branch = model.graph.node(0).attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Swish"]


REFUSED = {
    "swish, opset": (text("s = Sigmoid (x); y = Mul (x, s)", opset=23), "needs opset 24"),
    "mish, opset": (text("p = Softplus (x); t = Tanh (p); y = Mul (x, t)", opset=17), "needs opset 18"),
    "double": (text("m = Mul (x, fifth); y = Max (x, m)", dtype="double"), "DOUBLE"),
    "softplus, half": (text("e = Exp (x); a = Add (one, e); y = Log (a)", dtype="float16"), "FLOAT16"),
    "rank": (text("m = Mul (x, fifth); y = Max (x, m)", shape="1, 1, 1", y="1, N, 5"), "fewer axes"),
    "gate used": (text(f"{CLIP} y = Div (c, six)", outputs=", float[N, 5] a"), "'a' of Add"),
    "exp used": (text("e = Exp (x); a = Add (one, e); p = Log (a); y = Mul (p, e)"), "'e' of Exp"),
    "multiple used": (
        text("m = Mul (x, two); s = Sigmoid (m); y = Mul (s, x)", outputs=", float[N, 5] m"),
        "'m' of Mul",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_reason(case, parse, reason):
    body, expected = REFUSED[case]
    assert expected in reason(parse(body), *RULES)


NEAR_MISSES = {
    "shift 2": "a = Add (x, two); c = Clip (a, zero, six); y = Div (c, six)",
    "upper bound 3": "a = Add (x, three); c = Clip (a, zero, three); y = Div (c, six)",
    "lower bound 1": "a = Add (x, three); c = Clip (a, one, six); y = Div (c, six)",
    "no lower bound": "a = Add (x, three); c = Clip (a, , six); y = Div (c, six)",
    "by 3": f"{CLIP} y = Div (c, three)",
    "times 0.2": f"{CLIP} y = Mul (c, fifth)",
    "six by clip": f"{CLIP} y = Div (six, c)",
    "clip squared": f"{CLIP} m = Mul (c, c); y = Div (m, six)",
    "clip used twice": f"{CLIP} m = Mul (x, c); d = Div (m, six); y = Add (d, c)",
    "plain gate": "h = HardSigmoid (x); y = Mul (h, x)",
    "gate of another": "n = Neg (x); h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (n); y = Mul (h, x)",
    "sigmoid of another": "n = Neg (x); s = Sigmoid (n); y = Mul (x, s)",
    "sigmoid twice": "s = Sigmoid (x); y = Mul (s, s)",
    "sigmoid used": "s = Sigmoid (x); m = Mul (x, s); y = Add (m, s)",
    "plus sigmoid": "s = Sigmoid (x); y = Add (x, s)",
    "softplus of two": "e = Exp (x); a = Add (two, e); y = Log (a)",
    "tanh of another": "n = Neg (x); p = Softplus (n); t = Tanh (p); y = Mul (x, t)",
    "softsign of two": "b = Abs (x); a = Add (two, b); y = Div (x, a)",
    "softsign inverted": "b = Abs (x); a = Add (one, b); y = Div (a, x)",
    "softsign of another": "n = Neg (x); b = Abs (x); a = Add (one, b); y = Div (n, a)",
    "slope 2": "m = Mul (x, two); y = Max (x, m)",
    "negative slope": "m = Mul (x, minus); y = Max (x, m)",
    "slope 1": "m = Mul (x, one); y = Max (x, m)",
    "min": "m = Mul (x, fifth); y = Min (x, m)",
    "another": "n = Neg (x); m = Mul (n, fifth); y = Max (x, m)",
    "three": "m = Mul (x, fifth); y = Max (x, m, zero)",
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses(case, parse, reason):
    assert reason(parse(text(NEAR_MISSES[case])), *RULES) == ""


def test_given_numbers_are_no_constants(parse, reason):
    body = text("m = Mul (x, given); y = Max (x, m)", extra=", float given")
    assert reason(parse(body), *RULES) == ""


def test_a_slope_per_channel_is_no_leaky_relu(parse, bind, reason):
    model = bind(
        parse(text("m = Mul (x, slope); y = Max (x, m)", extra=", float[5] slope")),
        slope=np.full(5, 0.1, np.float32),
    )
    assert isinstance(model, ir.Model)
    assert reason(model, *RULES) == ""
