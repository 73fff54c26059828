from __future__ import annotations

import numpy as np
import pytest

RULE = "group-normalization"


def text(
    *,
    opset=21,
    x="N, 6, H, W",
    w="6, 1, 1",
    target="0, 3, -1",
    dtype="float",
    back="shape",
    tail=None,
    start=0,
    **other,
) -> str:
    tail = "m = Mul (b, gamma); y = Add (m, beta)" if tail is None else tail
    y = other.get("y", f"{dtype}[{x}] y")
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
    g ({dtype}[{x}] x, {dtype}[{w}] gamma, {dtype}[{w}] beta, {dtype}[3] s, {dtype}[3] z) => ({y}) {{
        target = Constant <value = int64[{target.count(",") + 1}] {{{target}}}> ()
        fixed = Constant <value = int64[4] {{{other.get("fixed", "0, 6, 4, -1")}}}> ()
        r = Reshape (x, target)
        i = InstanceNormalization <epsilon = 0.001> (r, s, z)
        shape = Shape <start = {start}> (x)
        b = Reshape (i, {back})
        {tail.replace(";", chr(10))}
    }}"""


@pytest.fixture
def pair(parse, bind, draw):
    def make(body, shape=(6, 1, 1)):
        arrays = {"gamma": draw(*shape, seed=1), "beta": draw(*shape, seed=2)}
        arrays |= {"s": draw(3, seed=3), "z": draw(3, seed=4)}
        return [bind(parse(body), **arrays) for _ in range(2)]

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"x": "N, 6, L", "w": "6, 1"},
        {"target": "0, 3, 2, -1"},
        {"back": "fixed", "x": "N, 6, 4, 5"},
        {"x": "2, 6, 4, 5", "target": "2, 3, -1", "back": "fixed"},
        {"w": "1, 6, 1, 1"},
    ],
)
def test_fused(changes, pair, draw, fuse, ops, assert_same):
    body = text(**changes)
    w = tuple(map(int, changes.get("w", "6, 1, 1").split(",")))
    before, after = pair(body, w)
    result = fuse(after, RULE)
    assert [op for op in ops(after) if op != "Shape"] == ["GroupNormalization"]
    assert result.summary == "fused 1 group-normalization"
    node = after.graph.node(-1)
    assert node.attributes.get_int("num_groups") == 3
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-3)
    assert sorted(after.graph.initializers) == ["beta", "gamma"]
    shape = (2, 6, 5) if changes.get("x") == "N, 6, L" else (2, 6, 4, 5)
    assert_same(before, after, {"x": draw(*shape) + 1}, atol=1e-5)
    if "float[N" in body:
        assert_same(before, after, {"x": draw(3, *shape[1:])}, atol=1e-5)


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("y = Identity (b)", ["Identity"]),
        ("y = Mul (b, gamma)", []),
        ("y = Add (b, beta)", []),
        ("m = Mul (b, gamma); y = Add (m, x)", ["Add"]),
        ("m = Mul (b, x); y = Add (m, beta)", ["Mul", "Add"]),
        ("y = Mul (b, b)", ["Mul"]),
    ],
)
def test_what_does_not_fit_stays(tail, left, pair, draw, fuse, ops, assert_same):
    before, after = pair(text(tail=tail))
    fuse(after, RULE)
    assert ops(after) == ["GroupNormalization", *left]
    assert_same(before, after, {"x": draw(2, 6, 4, 5)}, atol=1e-5)


def test_half_precision(parse, bind, draw, fuse, ops, assert_same):
    half = np.float16
    arrays = {n: draw(6, 1, 1, seed=k, dtype=half) for k, n in enumerate(("gamma", "beta"))}
    arrays |= {"s": np.ones(3, half), "z": np.zeros(3, half)}
    before, after = (bind(parse(text(dtype="float16")), **arrays) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["GroupNormalization"]
    assert_same(before, after, {"x": draw(2, 6, 4, 5, dtype=half)}, rtol=1e-2, atol=1e-2)  # 11 bits a step


REFUSED = {
    "opset 20": (text(opset=20), "needs opset 21"),
    "double": (text(dtype="double"), "DOUBLE"),
    "unknown channels": (text(x="N, C, H, W"), "does not split a known number"),
    "groups across channels": (text(x="N, 5, H, W", w="5, 1, 1", target="0, 3, -1"), "does not split"),
    "batch in the groups": (text(target="-1, 3, 40"), "keep the batch axis"),
    "batch of fixed size": (text(target="2, 3, -1"), "keep the batch axis"),
    "another shape behind": (
        text(back="fixed", x="N, 6, 4, 5", fixed="0, 6, 5, -1", y="float[N, 6, 5, 4] y"),
        "shape back",
    ),
    "dynamic shape behind": (text(back="fixed"), "shape back"),
    "part of the shape": (text(start=1, target="0, 3, -1", y="float[A, B, C] y"), "shape back"),
    "used elsewhere": (text(tail="y = Identity (b)", y="float[N, 6, H, W] y, float[N, 3, K] i"), ""),
    "grouped used": (
        text(tail="m = Mul (b, gamma); y = Add (m, beta)", y="float[N, 6, H, W] y, float[N, 3, K] r"),
        "'r' of Reshape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, parse, bind, draw, reason):
    body, expected = REFUSED[case]
    channels = 5 if "5, 1, 1" in body else 6
    dtype = np.float64 if case == "double" else np.float32
    arrays = {n: draw(channels, 1, 1, dtype=dtype) for n in ("gamma", "beta")}
    model = bind(parse(body), **arrays, s=draw(3, dtype=dtype), z=draw(3, dtype=dtype))
    found = reason(model, RULE)
    assert expected in found
    assert bool(expected) == bool(found)


def test_refused_where_the_scale_of_the_groups_is_given(parse, reason):
    assert "graph input" in reason(parse(text()), RULE)
