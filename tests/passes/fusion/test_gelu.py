from __future__ import annotations

import math
import re

import numpy as np
import onnx_ir as ir
import pytest

SQRT2, HALF_ROOT = math.sqrt(2), math.sqrt(0.5)
K = math.sqrt(2 / math.pi)

NUMBERS = {
    "half": 0.5,
    "one": 1,
    "two": 2,
    "three": 3,
    "root": SQRT2,
    "inverse": HALF_ROOT,
    "k": K,
    "cubic": 0.044715,
    "product": K * 0.044715,
}


def model_text(body: str, *, opset=20, dtype="float", shape="", outputs="y", x="2, 5", **changes) -> str:
    numbers = {**NUMBERS, **changes}
    used = [name for name in numbers if re.search(rf"\b{name}\b", body)]
    dims = f"[{shape}]" if shape else ""
    constants = "\n".join(
        f"{n} = Constant <value = {dtype}{dims} {{{float(numbers[n])!r}}}> ()" for n in used
    )
    declared = ", ".join(
        f"{dtype}[{', '.join('pqr'[: x.count(',') + 1])}] {name}" for name in outputs.split()
    )
    return f"""<ir_version: 9, opset_import: ["" : {opset}]> g ({dtype}[{x}] x) => ({declared}) {{
        {constants}
        {body}
    }}"""


def lines(text: str) -> str:
    return "\n".join(part.strip() for part in text.split(";"))


BY_ROOT, BY_INVERSE = "a = Div (x, root); e = Erf (a)", "a = Mul (x, inverse); e = Erf (a)"
ERF = {
    "x * 0.5 * (1 + erf)": f"{BY_ROOT}; p = Add (e, one); h = Mul (x, half); y = Mul (h, p)",
    "x * (1 + erf) * 0.5": f"{BY_ROOT}; p = Add (e, one); h = Mul (x, p); y = Mul (h, half)",
    "torch, by mul": f"{BY_INVERSE}; p = Add (one, e); h = Mul (p, x); y = Mul (half, h)",
    "x * (0.5 * (1 + erf))": f"{BY_INVERSE}; p = Add (one, e); h = Mul (half, p); y = Mul (x, h)",
    "by two": f"{BY_ROOT}; p = Add (e, one); h = Mul (x, p); y = Div (h, two)",
    "half of x by division": f"{BY_ROOT}; p = Add (e, one); h = Div (x, two); y = Mul (p, h)",
}
HALF_X_FIRST = "t = Tanh (a); p = Add (t, one); h = Mul (x, half); y = Mul (h, p)"
HALF_LAST = "t = Tanh (a); p = Add (one, t); h = Mul (p, x); y = Mul (half, h)"
TANH = {
    "pow": f"c = Pow (x, three); d = Mul (c, cubic); s = Add (x, d); a = Mul (s, k); {HALF_X_FIRST}",
    "cube": "q = Mul (x, x); c = Mul (q, x); d = Mul (c, cubic); s = Add (d, x); a = Mul (k, s); "
    + HALF_LAST,
    "factored": "q = Mul (x, x); d = Mul (q, cubic); s = Add (d, one); b = Mul (x, k); a = Mul (b, s); "
    + HALF_X_FIRST,
    "expanded": f"c = Pow (x, three); d = Mul (c, product); b = Mul (x, k); a = Add (b, d); {HALF_LAST}",
    "nested": "c = Mul (cubic, x); d = Mul (c, x); s = Add (one, d); b = Mul (k, x); a = Mul (b, s); "
    "t = Tanh (a); p = Add (t, one); h = Mul (half, p); y = Mul (h, x)",
}


@pytest.mark.parametrize("spelling", ERF)
@pytest.mark.parametrize("shape", ["", "1", "1, 1"])
def test_exact_spellings(spelling, shape, parse, draw, fuse, ops, assert_same):
    text = model_text(lines(ERF[spelling]), shape=shape)
    before, after = parse(text), parse(text)
    result = fuse(after, "gelu")
    assert ops(after) == ["Gelu"]
    assert [n.op_type for n in after.graph] == ["Gelu"]
    assert "approximate" not in after.graph.node(0).attributes
    assert result.summary == "fused 1 gelu"
    assert_same(before, after, {"x": 3 * draw(2, 5)})


@pytest.mark.parametrize("spelling", TANH)
def test_tanh_spellings(spelling, parse, draw, fuse, ops, assert_same):
    text = model_text(lines(TANH[spelling]))
    before, after = parse(text), parse(text)
    fuse(after, "gelu")
    assert ops(after) == ["Gelu"]
    assert after.graph.node(0).attributes["approximate"].value == "tanh"
    assert_same(before, after, {"x": 3 * draw(2, 5)})


def test_input_may_be_a_sum(parse, draw, fuse, ops, assert_same):
    body = lines(
        "x2 = Mul (x, x); x3 = Add (x2, one); "
        + ERF["torch, by mul"].replace("(x,", "(x3,").replace(", x)", ", x3)")
    )
    before, after = parse(model_text(body)), parse(model_text(body))
    fuse(after, "gelu")
    assert ops(after) == ["Mul", "Add", "Gelu"]
    assert_same(before, after, {"x": draw(2, 5)})


def test_parts_with_other_users_stay(parse, draw, fuse, ops, assert_same):
    text = model_text(lines(ERF["x * 0.5 * (1 + erf)"] + "; z = Neg (h); w = Neg (a)"), outputs="y z w")
    before, after = parse(text), parse(text)
    fuse(after, "gelu")
    assert sorted(ops(after)) == ["Div", "Gelu", "Mul", "Neg", "Neg"]
    assert_same(before, after, {"x": draw(2, 5)})


def test_float16(parse, fuse, ops):
    # the parser has no float16 literals
    model = parse(model_text(lines(ERF["torch, by mul"])).replace("float[", "float16["), check=False)
    for node in model.graph:
        if node.op_type == "Constant":
            number = node.attributes["value"].as_tensor().numpy().astype(np.float16)
            node.attributes.add(ir.AttrTensor("value", ir.tensor(number)))
    fuse(model, "gelu")
    assert ops(model) == ["Gelu"]


REFUSED = [
    ({"opset": 19}, "Gelu needs opset 20, the model has 19"),
    ({"shape": "1, 1, 1"}, "'x' may have fewer axes than a constant around Erf"),
]


@pytest.mark.parametrize(("options", "expected"), REFUSED)
def test_refuses(options, expected, parse, reason):
    text = model_text(lines(ERF["torch, by mul"]), **options)
    assert expected in reason(parse(text, check=False), "gelu")


def test_refuses_unknown_rank_with_constants_of_rank_1(parse, reason):
    text = model_text(lines(ERF["torch, by mul"]), shape="1").replace("float[2, 5] x", "float[] x")
    assert "'x' may have fewer axes" in reason(parse(text, check=False), "gelu")


NEAR_MISSES = {
    "wrong root": ({"root": 1.5}, ERF["by two"]),
    "a digit left out": ({"root": 1.4142}, ERF["by two"]),
    "wrong half": ({"half": 0.25}, ERF["torch, by mul"]),
    "wrong one": ({"one": 2}, ERF["torch, by mul"]),
    "two instead of half": ({}, ERF["by two"].replace("Div (h, two)", "Mul (h, two)")),
    "square": ({}, ERF["torch, by mul"].replace("Mul (half, h)", "Mul (x, h)")),
    "divided by x": ({}, f"{BY_ROOT}; p = Add (e, one); h = Mul (half, x); y = Div (h, p)"),
    "minus": ({}, ERF["by two"].replace("Add (e, one)", "Sub (e, one)")),
    "another input": ({}, "z = Neg (x); " + ERF["torch, by mul"].replace("(x, inverse)", "(z, inverse)")),
    "erf of a square": ({}, ERF["torch, by mul"].replace("Mul (x, inverse)", "Mul (x, x)")),
    "erf alone": ({}, "a = Mul (x, inverse); y = Erf (a)"),
    "without the last factor": ({}, "a = Mul (x, inverse); e = Erf (a); p = Add (one, e); y = Mul (p, x)"),
    "tanh with erf's argument": ({}, ERF["torch, by mul"].replace("Erf", "Tanh")),
    "wrong cubic": ({"cubic": 0.0447}, TANH["pow"]),
    "wrong power": ({"three": 2}, TANH["pow"]),
    "power of 4": ({"three": 4}, TANH["pow"]),
    "sum used elsewhere": ({"outputs": "y p"}, ERF["torch, by mul"]),
    "erf used elsewhere": ({"outputs": "y e"}, ERF["torch, by mul"]),
    "product used elsewhere": ({"outputs": "y h"}, ERF["torch, by mul"]),
    "overflowing": ({"half": "1e38", "one": 1e38}, ERF["torch, by mul"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses(case, parse, reason):
    options, body = NEAR_MISSES[case]
    assert reason(parse(model_text(lines(body), **options)), "gelu") == ""
