from __future__ import annotations

import pytest

RULE = "instance-normalization"


def text(body: str, *, opset=18, x="N, 3, H, W", w="3, 1, 1", axes="2, 3", dtype="float", extra="") -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g ({dtype}[{x}] x, {dtype}[{w}] scale, {dtype}[{w}] bias) => ({dtype}[{x}] y{extra}) {{
        axes = Constant <value = int64[{axes.count(",") + 1}] {{{axes}}}> ()
        eps = Constant <value = {dtype} {{1e-5}}> ()
        mu = ReduceMean (x, axes)
        d = Sub (x, mu)
        q = Mul (d, d)
        v = ReduceMean (q, axes)
        e = Add (v, eps)
        s = Sqrt (e)
        n = Div (d, s)
        {body.replace(";", chr(10))}
    }}"""


AFFINE, ALONE = "m = Mul (n, scale); y = Add (m, bias)", "y = Identity (n)"


@pytest.mark.parametrize("axes", ["2, 3", "-1, -2", "3, 2"])
@pytest.mark.parametrize("w", ["3, 1, 1", "1, 3, 1, 1"])
def test_scale_and_bias_per_channel(axes, w, parse, bind, draw, fuse, ops, assert_same):
    shape = tuple(map(int, w.split(",")))
    body = text(AFFINE, axes=axes, w=w)
    before, after = (bind(parse(body), scale=draw(*shape), bias=draw(*shape, seed=1)) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["InstanceNormalization"]
    assert {n: list(v.shape) for n, v in after.graph.initializers.items()} == {"scale": [3], "bias": [3]}
    assert_same(before, after, {"x": draw(2, 3, 4, 5) + 2}, {"x": draw(1, 3, 6, 2)}, atol=1e-5)


def test_without_scale_where_the_sizes_are_dynamic(parse, draw, fuse, ops, assert_same):
    before, after = parse(text(ALONE)), parse(text(ALONE))
    fuse(after, RULE, "layer-normalization")
    assert ops(after) == ["InstanceNormalization", "Identity"]
    feed = {"scale": draw(3, 1, 1), "bias": draw(3, 1, 1)}
    assert_same(before, after, {"x": draw(2, 3, 4, 5), **feed}, {"x": draw(1, 3, 6, 2), **feed})


def test_before_layer_normalization_existed(parse, draw, fuse, ops, assert_same):
    body = text(ALONE, opset=13, x="N, 3, 8", axes="-1").replace(
        "ReduceMean (x, axes)", "ReduceMean <axes = [-1]> (x)"
    )
    body = body.replace("ReduceMean (q, axes)", "ReduceMean <axes = [-1]> (q)")
    before, after = parse(body), parse(body)
    fuse(after, RULE, "layer-normalization")
    assert ops(after) == ["InstanceNormalization", "Identity"]
    assert_same(before, after, {"x": draw(2, 3, 8), "scale": draw(3, 1, 1), "bias": draw(3, 1, 1)})


def test_what_also_is_a_layer_normalization_becomes_one(parse, bind, draw, fuse, ops, assert_same):
    body = text(AFFINE, x="N, 3, 8", axes="2", w="8")
    before, after = (bind(parse(body), scale=draw(8), bias=draw(8, seed=1)) for _ in range(2))
    fuse(after, RULE, "layer-normalization")
    assert ops(after) == ["LayerNormalization"]
    assert_same(before, after, {"x": draw(2, 3, 8)})


def test_a_scale_per_channel_wins_over_a_layer_normalization_without(
    parse, bind, draw, fuse, ops, assert_same
):
    body = text(AFFINE, x="N, 3, 8", axes="2", w="3, 1")
    before, after = (bind(parse(body), scale=draw(3, 1), bias=draw(3, 1, seed=1)) for _ in range(2))
    fuse(after, RULE, "layer-normalization")
    assert ops(after) == ["InstanceNormalization"]
    assert_same(before, after, {"x": draw(2, 3, 8)})


def test_a_scale_of_another_shape_stays(parse, draw, fuse, ops, assert_same):
    body = text("m = Mul (n, scale); y = Add (m, bias)", w="H, W")
    before, after = parse(body), parse(body)
    fuse(after, RULE)
    assert ops(after) == ["InstanceNormalization", "Mul", "Add"]
    assert_same(before, after, {"x": draw(2, 3, 4, 5), "scale": draw(4, 5), "bias": draw(4, 5)})


REFUSED = {
    "channels too": (text(ALONE, axes="1, 2, 3"), "are not those behind the second"),
    "one spatial axis of two": (text(ALONE, axes="3"), "are not those behind the second"),
    "rank 2": (text(ALONE, x="N, 3", axes="1"), "are not those behind the second"),
    "unknown channels": (text(ALONE, x="N, C, H, W"), "number of channels"),
    "double": (text(ALONE, dtype="double"), "DOUBLE"),
    "layer normalization": (text(ALONE, x="N, 3, 8", axes="2"), "LayerNormalization does the same"),
    "used elsewhere": (text("y = Add (n, v)"), "'v' of ReduceMean"),
    "graph output": (text(ALONE, extra=", float[N, 3, 1, 1] v"), "'v' of ReduceMean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_reason(case, parse, reason):
    body, expected = REFUSED[case]
    assert expected in reason(parse(body), RULE)


def test_not_centered_is_no_match(parse, reason):
    body = text(ALONE).replace("d = Sub (x, mu)", "d = Abs (x)")
    assert reason(parse(body), RULE) == ""
