from __future__ import annotations

import numpy as np
import pytest

RULES = ("softmax", "log-softmax")


def text(body: str, *, opset=18, axis=-1, dtype="float", outputs="") -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g ({dtype}[N, 4, K] x) => ({dtype}[N, 4, K] y{outputs}) {{
        axis = Constant <value = int64[1] {{{axis}}}> ()
        other = Constant <value = int64[1] {{1}}> ()
        m = ReduceMax <keepdims = 1> (x, axis)
        z = Sub (x, m)
        {body.replace(";", chr(10))}
    }}"""


SOFTMAX = "e = Exp (z); s = ReduceSum (e, axis); y = Div (e, s)"
LOG_SOFTMAX = "e = Exp (z); s = ReduceSum (e, axis); l = Log (s); y = Sub (z, l)"


@pytest.mark.parametrize("axis", [-1, 1, 2, 0])
@pytest.mark.parametrize(("body", "op"), [(SOFTMAX, "Softmax"), (LOG_SOFTMAX, "LogSoftmax")])
def test_fused(axis, body, op, parse, draw, fuse, ops, assert_same):
    before, after = parse(text(body, axis=axis)), parse(text(body, axis=axis))
    fuse(after, *RULES)
    assert ops(after) == [op]
    assert after.graph.node(-1).attributes.get_int("axis") == axis
    x = draw(2, 4, 5)
    assert_same(before, after, {"x": x}, {"x": 100 * x[:1]}, {"x": 0 * x}, {"x": x - 1e4}, atol=1e-5)


def test_axes_as_attributes(parse, draw, fuse, ops, assert_same):
    body = text(SOFTMAX, opset=13).replace(
        "ReduceMax <keepdims = 1> (x, axis)", "ReduceMax <axes = [-1]> (x)"
    )
    before, after = parse(body), parse(body)
    fuse(after, *RULES)
    assert ops(after) == ["Softmax"]
    assert_same(before, after, {"x": draw(2, 4, 5)})


def test_half_precision(parse, draw, fuse, ops, assert_same):
    before, after = (parse(text(SOFTMAX, dtype="float16")) for _ in range(2))
    fuse(after, *RULES)
    assert ops(after) == ["Softmax"]
    assert_same(before, after, {"x": draw(2, 4, 5, dtype=np.float16)}, rtol=4e-3, atol=1e-3)  # 11 bits a step


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (text(SOFTMAX, outputs=", float[N, 4, K] e"), "'e' of Exp"),
        (text(LOG_SOFTMAX, outputs=", float[N, 4, 1] s"), "'s' of ReduceSum"),
        (text(SOFTMAX, dtype="double"), "DOUBLE"),
    ],
)
def test_refused_with_reason(body, expected, parse, reason):
    assert expected in reason(parse(body), *RULES)


NEAR_MISSES = {
    "no maximum": "e = Exp (x); s = ReduceSum (e, axis); y = Div (e, s)",
    "sum over another axis": "e = Exp (z); s = ReduceSum (e, other); y = Div (e, s)",
    "sum of what is shifted": "e = Exp (z); s = ReduceSum (z, axis); y = Div (e, s)",
    "mean": "e = Exp (z); s = ReduceMean (e, axis); y = Div (e, s)",
    "upside down": "e = Exp (z); s = ReduceSum (e, axis); y = Div (s, e)",
    "log of the softmax of x minus": "e = Exp (z); s = ReduceSum (e, axis); l = Log (s); y = Sub (l, z)",
    "x minus": "e = Exp (z); s = ReduceSum (e, axis); l = Log (s); y = Sub (x, l)",
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses(case, parse, reason):
    assert reason(parse(text(NEAR_MISSES[case])), *RULES) == ""


def test_a_minimum_is_no_maximum(parse, reason):
    assert reason(parse(text(SOFTMAX).replace("ReduceMax", "ReduceMin")), *RULES) == ""


def test_all_axes_are_not_one(parse, reason):
    assert (
        reason(parse(text(SOFTMAX).replace("ReduceMax <keepdims = 1> (x, axis)", "ReduceMax (x)")), *RULES)
        == ""
    )


def test_opset_12(parse, reason):
    body = text(SOFTMAX, opset=12).replace(
        "ReduceMax <keepdims = 1> (x, axis)", "ReduceMax <axes = [-1]> (x)"
    )
    body = body.replace("ReduceSum (e, axis)", "ReduceSum <axes = [-1]> (e)")
    assert "needs opset 13" in reason(parse(body), *RULES)
