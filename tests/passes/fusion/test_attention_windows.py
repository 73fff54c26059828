from __future__ import annotations

import numpy as np
import pytest

W, H, N, D = 4, 2, 3, 8
RULE = "attention-windows"
INPUTS = {"q": (H, N, D), "k": (H, N, D), "v": (H, N, D)}

ATTEND = """kt = Transpose <perm = [0, 1, 3, 2]> (k)
    u = Mul (q, c)
    s = MatMul (u, kt)
    t = Add (s, bias)"""
MASKED = """t5 = Reshape (t, five)
    m5 = Reshape (mask, maskfive)
    a5 = Add (t5, m5)
    z = Reshape (a5, four)
    p = Softmax <axis = -1> (z)
    y = MatMul (p, v)"""


def text(body: str, inputs: str = "", *, opset=23, extra="") -> str:
    inputs = inputs or "float[b, 2, 3, 8] q, float[b, 2, 3, 8] k, float[b, 2, 3, 8] v"
    return f"""<ir_version: 11, opset_import: ["" : {opset}]>
    g ({inputs}, float[1, 2, 3, 3] bias, float[4, 3, 3] mask{extra}) => (float[m, n, o, p] y) {{
        c = Constant <value = float {{0.35}}> ()
        five = Constant <value_ints = [-1, 4, 2, 3, 3]> ()
        maskfive = Constant <value_ints = [1, 4, 1, 3, 3]> ()
        four = Constant <value_ints = [-1, 2, 3, 3]> ()
        {body}
    }}"""


@pytest.fixture
def masks(draw):
    """Relative positions, and a mask of -100 that hides all but some keys of each window."""
    hidden = np.random.default_rng(3).random((W, N, N)) > 0.5
    return {"bias": draw(1, H, N, N, seed=9), "mask": np.where(hidden, -100.0, 0.0).astype(np.float32)}


@pytest.fixture
def feed(draw):
    """Q, K and V of a number of images."""
    return lambda images: {n: draw(images * W, *s, seed=i) for i, (n, s) in enumerate(INPUTS.items())}


def test_windows_stand_beside_heads(parse, bind, masks, feed, fuse, ops, assert_same):
    source = text(f"{ATTEND}\n{MASKED}")
    before, after = (bind(parse(source), **masks) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Reshape", "Add", "Reshape", *["Reshape"] * 3, "Attention", "Reshape"]
    assert after.graph[-2].attributes["scale"].as_float() == pytest.approx(0.35)
    assert_same(before, after, *map(feed, (1, 2, 5)))


def test_without_a_bias_the_mask_is_spread_over_heads(parse, bind, masks, feed, fuse, ops, assert_same):
    source = text(f"{ATTEND}\n{MASKED}".replace("t = Add (s, bias)", "t = Mul (s, c)"))
    before, after = (bind(parse(source), **masks) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Reshape", "Expand", "Reshape", *["Reshape"] * 3, "Attention", "Reshape"]
    assert_same(before, after, *map(feed, (1, 3)))


def test_operands_the_other_way_round(parse, bind, masks, feed, fuse, ops, assert_same):
    source = text(f"{ATTEND}\n{MASKED}".replace("(s, bias)", "(bias, s)").replace("(t5, m5)", "(m5, t5)"))
    before, after = (bind(parse(source), **masks) for _ in range(2))
    fuse(after, RULE)
    assert "Softmax" not in ops(after)
    assert_same(before, after, feed(2))


def test_keys_whose_heads_lie_behind(parse, bind, masks, feed, fuse, ops, assert_same):
    source = text(f"{ATTEND}\n{MASKED}".replace("[0, 1, 3, 2]", "[0, 2, 3, 1]")).replace("3, 8] k", "2, 8] k")
    source = source.replace("float[b, 2, 2, 8] k", "float[b, 3, 2, 8] k")
    before, after = (bind(parse(source), **masks) for _ in range(2))
    fuse(after, RULE)
    assert "Softmax" not in ops(after)
    arrays = feed(2)
    arrays["k"] = np.ascontiguousarray(arrays["k"].transpose(0, 2, 1, 3))
    assert_same(before, after, arrays)


PACKED = """parts = Constant <value_ints = [-1, 3, 3, 2, 8]> ()
    r = Reshape (x, parts)
    w = Transpose <perm = [2, 0, 3, 1, 4]> (r)
    i0 = Constant <value_int = 0> ()
    i1 = Constant <value_int = 1> ()
    i2 = Constant <value_int = 2> ()
    q = Gather <axis = 0> (w, i0)
    k = Gather <axis = 0> (w, i1)
    v = Gather <axis = 0> (w, i2)"""


@pytest.mark.parametrize("order", ["012", "120", "201"])
def test_parts_of_one_product_become_a_split(order, parse, bind, masks, draw, fuse, ops, assert_same):
    packed = PACKED
    for name, index in zip("qkv", order, strict=True):
        packed = packed.replace(f"{name} = Gather <axis = 0> (w, i{'qkv'.index(name)})", f"{name} = @{index}")
    for index in "012":
        packed = packed.replace(f"@{index}", f"Gather <axis = 0> (w, i{index})")
    source = text(f"{packed}\n{ATTEND}\n{MASKED}", "float[b, 3, 48] x")
    before, after = (bind(parse(source), **masks) for _ in range(2))
    fuse(after, RULE)
    inner = ["Reshape", "Transpose", "Reshape", "Split", "Attention", "Reshape"]
    assert ops(after) == ["Reshape", "Add", "Reshape", *inner]
    assert_same(before, after, *({"x": draw(images * W, N, 48)} for images in (1, 2, 3)))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[-1, 4, 2, 3, 3]", "[-1, 1, 2, 3, 3]", "is wanted"),  # the mask makes the windows
        ("y = MatMul (p, v)", "n = IsNaN (p)\nf = Where (n, c, p)\ny = MatMul (f, v)", ""),
        ("p = Softmax <axis = -1> (z)", "p = Softmax <axis = 1> (z)", ""),
        ("z = Reshape (a5, four)", "e = ReduceSum (a5)\nz0 = Reshape (a5, four)\nz = Add (z0, e)", ""),
        ("u = Mul (q, c)", "d = Neg (c)\nu = Mul (q, c)\nw = Neg (s)", ""),
        ("value = float {0.35}", "value = float {-0.35}", "is not above 0"),
    ],
)
def test_refusals(old, new, expected, parse, bind, masks, reason):
    source = text(f"{ATTEND}\n{MASKED}")
    assert old in source
    found = reason(bind(parse(source.replace(old, new), check=False), **masks), RULE)
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_row_that_is_masked_as_a_whole(parse, bind, masks, reason):
    masks["mask"][1, 2] = np.finfo(np.float32).min
    assert "may mask a whole row" in reason(bind(parse(text(f"{ATTEND}\n{MASKED}")), **masks), RULE)


def test_a_mask_of_unknown_numbers(parse, bind, masks, reason):
    del masks["mask"]
    assert "may mask a whole row" in reason(bind(parse(text(f"{ATTEND}\n{MASKED}")), **masks), RULE)


def test_a_mask_that_differs_from_image_to_image(parse, bind, masks, reason):
    source = text(f"{ATTEND}\n{MASKED}".replace("[1, 4, 1, 3, 3]", "[1, 4, 1, 3, 3]"))
    source = source.replace("m5 = Reshape (mask, maskfive)", "m5 = Identity (images)")
    model = bind(parse(source.replace("mask)", "mask, float[i, 4, 1, 3, 3] images)")), **masks)
    assert "is wanted" in reason(model, RULE)


def test_opset_without_attention(parse, bind, masks, reason):
    model = bind(parse(text(f"{ATTEND}\n{MASKED}", opset=22)), **masks)
    assert "Attention needs opset 23" in reason(model, RULE)


def test_operands_of_unknown_rank(parse, bind, masks, reason):
    model = bind(parse(text(f"{ATTEND}\n{MASKED}"), check=False), **masks)
    model.graph.inputs[2].shape = None
    assert "is None" in reason(model, RULE)
