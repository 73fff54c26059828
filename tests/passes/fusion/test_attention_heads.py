from __future__ import annotations

import numpy as np
import pytest

H, D = 3, 8
RULE = "attention-heads"
SPLIT = "split = Constant <value_ints = [0, 0, 3, 8]> ()"
MERGE = "merge = Constant <value_ints = [0, 0, 24]> ()"


def head(name: str) -> str:
    return f"""{name}4 = Reshape ({name}, split)
        {name}h = Transpose <perm = [0, 2, 1, 3]> ({name}4)"""


def text(
    body: str, *, inputs="float[b, s, 24] q, float[b, t, 24] k, float[b, t, 24] v", out="m, n, o"
) -> str:
    return f"""<ir_version: 11, opset_import: ["" : 23]> g ({inputs}) => (float[{out}] y) {{
        {SPLIT}
        {MERGE}
        {body}
    }}"""


HEADS = "\n".join(map(head, "qkv"))
ATTEND = "a = Attention <scale = 0.3> (qh, kh, vh)"
BACK = "t = Transpose <perm = [0, 2, 1, 3]> (a)"
OUT = f"{BACK}\ny = Reshape (t, merge)"


@pytest.fixture
def feed(draw):
    """Q, K and V for some batch and lengths."""

    def make(batch=2, queries=4, keys=5) -> dict[str, np.ndarray]:
        sizes = {"q": queries, "k": keys, "v": keys}
        return {n: draw(batch, size, H * D, seed=i) for i, (n, size) in enumerate(sizes.items())}

    return make


def test_split_and_merge(parse, feed, fuse, ops, assert_same):
    source = text(f"{HEADS}\n{ATTEND}\n{OUT}")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    attributes = after.graph[-1].attributes
    assert (attributes["q_num_heads"].as_int(), attributes["kv_num_heads"].as_int()) == (H, H)
    assert_same(before, after, feed(), feed(1, 1, 1), feed(3, 2, 7))


def test_mask_stays(parse, feed, draw, fuse, ops, assert_same):
    inputs = "float[b, s, 24] q, float[b, t, 24] k, float[b, t, 24] v, float[b, 1, s, t] m"
    body = f"{HEADS}\n{ATTEND.replace('vh)', 'vh, m)')}\n{OUT}"
    before, after = parse(text(body, inputs=inputs)), parse(text(body, inputs=inputs))
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, feed() | {"m": draw(2, 1, 4, 5)})


@pytest.mark.parametrize(
    ("out", "shape"),
    [
        (f"{BACK}\nflat = Constant <value_ints = [-1, 24]> ()\ny = Reshape (t, flat)", "m, n"),
        (f"{BACK}\nflat = Constant <value_ints = [0, 0, 6, 4]> ()\ny = Reshape (t, flat)", "m, n, o, p"),
        (f"{BACK}\ny = Neg (t)", "m, n, o, p"),
    ],
)
def test_other_merges_keep_a_reshape(out, shape, parse, feed, fuse, ops, assert_same):
    source = text(f"{HEADS}\n{ATTEND}\n{out}", out=shape)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after)[:2] == ["Attention", "Reshape"]
    assert "Transpose" not in ops(after)
    assert_same(before, after, feed(), feed(1, 3, 2))


PACKED = """five = Constant <value_ints = [0, 0, 3, 3, 8]> ()
    r = Reshape (x, five)
    u = Transpose <perm = [2, 0, 3, 1, 4]> (r)
    n0 = Constant <value_ints = [0]> ()
    n1 = Constant <value_ints = [1]> ()
    n2 = Constant <value_ints = [2]> ()
    n3 = Constant <value_ints = [3]> ()
    i0 = Constant <value_int = 0> ()
    i1 = Constant <value_int = 1> ()
    i2 = Constant <value_int = 2> ()"""
PICKED = {
    "split": """s0, s1, s2 = Split <axis = 0, num_outputs = 3> (u)
        qh = Squeeze (s0, n0)
        kh = Squeeze (s1, n0)
        vh = Squeeze (s2, n0)""",
    "slice": """s0 = Slice (u, n0, n1, n0, n1)
        s1 = Slice (u, n1, n2, n0)
        s2 = Slice (u, n2, n3, n0)
        qh = Squeeze (s0, n0)
        kh = Squeeze (s1, n0)
        vh = Squeeze (s2, n0)""",
    "gather": """qh = Gather <axis = 0> (u, i0)
        kh = Gather <axis = 0> (u, i1)
        vh = Gather (u, i2)""",
    "another order": """qh = Gather <axis = 0> (u, i2)
        kh = Gather <axis = 0> (u, i0)
        vh = Gather <axis = 0> (u, i1)""",
}


@pytest.mark.parametrize("picked", PICKED)
def test_one_product(picked, parse, draw, fuse, ops, assert_same):
    source = text(f"{PACKED}\n{PICKED[picked]}\n{ATTEND}\n{OUT}", inputs="float[b, s, 72] x")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Split", "Attention"]
    assert_same(before, after, {"x": draw(2, 5, 72)}, {"x": draw(1, 1, 72)})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("vh = Gather (u, i2)", "vh = Gather (u, i1)", "are not the three parts of one product"),
        ("[0, 0, 3, 3, 8]", "[0, -1, 3, 6, 4]", ""),
        ("[0, 0, 3, 3, 8]", "[0, -1, 3, 3, 4]", "may change batch or sequence"),
        ("[2, 0, 3, 1, 4]", "[2, 1, 3, 0, 4]", ""),
        ("kh = Gather <axis = 0>", "kh = Gather <axis = 1>", ""),
    ],
)
def test_other_ways_to_take_a_product_apart(old, new, expected, parse, reason, fuse, ops):
    source = text(f"{PACKED}\n{PICKED['gather']}\n{ATTEND}\n{BACK}\ny = Neg (t)", inputs="float[b, s, 72] x")
    model = parse(source.replace(old, new), check=False)
    if "6, 4" in new:  # six heads of four are heads as well
        fuse(model, RULE)
        assert "Transpose" not in ops(model)
        return
    assert expected in reason(model, RULE)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "split = Constant <value_ints = [0, 0, 3, 8]>",
            "split = Constant <value_ints = [0, -1, 6, 8]>",
            "batch or",
        ),
        (
            "split = Constant <value_ints = [0, 0, 3, 8]>",
            "split = Constant <value_ints = [-1, 2, 3, 8]>",
            "batch or",
        ),
        ("[0, 2, 1, 3]> (a)", "[2, 0, 1, 3]> (a)", ""),
        ("[0, 2, 1, 3]> (k4)", "[0, 2, 3, 1]> (k4)", ""),
        (
            "y = Reshape (t, merge)",
            "w = Reshape (t, merge)\nb2 = ReduceSum <keepdims = 0> (a)\ny = Add (w, b2)",
            "",
        ),
    ],
)
def test_refusals(old, new, expected, parse, reason):
    source = text(f"{HEADS}\n{ATTEND}\n{OUT}")
    assert old in source
    found = reason(parse(source.replace(old, new), check=False), RULE)
    assert expected in found
    assert bool(found) == bool(expected)


def test_operands_of_unknown_rank(parse, reason):
    source = text(f"{HEADS}\n{ATTEND}\n{OUT}", inputs="float[] q, float[b, t, 24] k, float[b, t, 24] v")
    model = parse(source, check=False)
    model.graph.inputs[0].shape = None
    assert "may do something else than splitting heads" in reason(model, RULE)


def test_cache_of_keys(parse, reason):
    inputs = (
        "float[b, s, 24] q, float[b, t, 24] k, float[b, t, 24] v, float[b, 3, p, 8] pk, float[b, 3, p, 8] pv"
    )
    attend = "a, nk, nv = Attention (qh, kh, vh, , pk, pv)"
    assert reason(parse(text(f"{HEADS}\n{attend}\n{OUT}", inputs=inputs), check=False), RULE) == ""


def test_written_out_attention_with_heads_behind(parse, feed, fuse, ops, assert_same):
    body = f"""{HEADS.replace("kh = Transpose <perm = [0, 2, 1, 3]>", "kh = Transpose <perm = [0, 2, 3, 1]>")}
        z = MatMul (qh, kh)
        p = Softmax (z)
        a = MatMul (p, vh)
        {OUT}"""
    before, after = parse(text(body)), parse(text(body))
    fuse(after, "attention", RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, feed(), feed(3, 1, 4))


ROTARY = """qr = RotaryEmbedding (qh, cos, sin)
    kr = RotaryEmbedding <interleaved = 1> (kh, cos, sin)"""


def test_rotary_embedding_in_between(parse, feed, draw, fuse, ops, assert_same):
    inputs = "float[b, s, 24] q, float[b, s, 24] k, float[b, s, 24] v, float[b, s, 4] cos, float[b, s, 4] sin"
    source = text(f"{HEADS}\n{ROTARY}\n{ATTEND.replace('qh, kh', 'qr, kr')}\n{OUT}", inputs=inputs)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["RotaryEmbedding", "RotaryEmbedding", "Attention"]
    first, second, _ = (n for n in after.graph if n.op_type != "Constant")
    assert first.attributes["num_heads"].as_int() == second.attributes["num_heads"].as_int() == H
    assert "interleaved" not in first.attributes
    assert second.attributes["interleaved"].as_int() == 1
    for batch, length in ((2, 5), (1, 1), (3, 4)):
        angles = {n: draw(batch, length, D // 2, seed=i + 5) for i, n in enumerate(("cos", "sin"))}
        assert_same(before, after, feed(batch, length, length) | angles)


def test_rotary_embedding_of_parts_of_one_product(parse, draw, fuse, ops, assert_same):
    inputs = "float[b, s, 72] x, float[b, s, 4] cos, float[b, s, 4] sin"
    rotary = ROTARY.replace(" <interleaved = 1>", "")
    body = f"{PACKED}\n{PICKED['gather']}\n{rotary}\n{ATTEND.replace('qh, kh', 'qr, kr')}\n{OUT}"
    before, after = parse(text(body, inputs=inputs)), parse(text(body, inputs=inputs))
    fuse(after, RULE)
    assert ops(after) == ["Split", "RotaryEmbedding", "RotaryEmbedding", "Attention"]
    angles = {n: draw(2, 5, D // 2, seed=i + 5) for i, n in enumerate(("cos", "sin"))}
    assert_same(before, after, {"x": draw(2, 5, 72)} | angles)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RotaryEmbedding (qh, cos, sin)", "RotaryEmbedding (qh, cache, cache, ids)"),
        ("a = Attention", "z = Neg (qr)\na = Attention"),
    ],
)
def test_rotary_embedding_that_stays(old, new, parse, reason):
    inputs = (
        "float[b, s, 24] q, float[b, s, 24] k, float[b, s, 24] v, float[b, s, 4] cos, float[b, s, 4] sin, "
        "float[9, 4] cache, int64[b, s] ids"
    )
    source = text(f"{HEADS}\n{ROTARY}\n{ATTEND.replace('qh, kh', 'qr, kr')}\n{OUT}", inputs=inputs)
    assert old in source
    assert reason(parse(source.replace(old, new)), RULE) == ""


def test_fewer_heads_of_keys(parse, draw, fuse, ops, assert_same):
    few = HEADS.replace("(k, split)", "(k, few)").replace("(v, split)", "(v, few)")
    source = text(
        f"few = Constant <value_ints = [0, 0, 1, 8]> ()\n{few}\n{ATTEND}\n{OUT}",
        inputs="float[b, s, 24] q, float[b, t, 8] k, float[b, t, 8] v",
    )
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert after.graph[-1].attributes["kv_num_heads"].as_int() == 1
    assert_same(before, after, {"q": draw(2, 4, 24), "k": draw(2, 5, 8, seed=1), "v": draw(2, 5, 8, seed=2)})
