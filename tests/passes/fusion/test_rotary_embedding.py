from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

H, S, D = 3, 5, 8
RULE = "rotary-embedding"

HALVES = {
    "slices": """l = Slice (x, zero, half, last)
        r = Slice (x, half, end, last)""",
    "slices with steps": """l = Slice (x, zero, half, three, one)
        r = Slice (x, half, end, three, one)""",
    "split": "l, r = Split <axis = -1, num_outputs = 2> (x)",
    "sized split": "l, r = Split <axis = 3> (x, halves)",
}
ROTATE = """n = Neg (r)
    w = Concat <axis = -1> (n, l)"""
SUM = """a = Mul (x, cos)
    c = Mul (w, sin)
    y = Add (a, c)"""
TWICE = """f = Concat <axis = -1> (angles, angles)
    cos3 = Cos (f)
    sin3 = Sin (f)
    cos = Unsqueeze (cos3, one)
    sin = Unsqueeze (sin3, one)"""


def text(
    rotated: str = "",
    *,
    angles="float[1, s, 4] angles",
    twice=TWICE,
    total=SUM,
    opset=23,
    x="",
    dtype="float",
) -> str:
    x = x or f"b, {H}, s, 8"
    body = rotated or f"{HALVES['slices']}\n{ROTATE}"
    return f"""<ir_version: 11, opset_import: ["" : {opset}]>
    g ({dtype}[{x}] x, {angles}) => ({dtype}[m, n_, o, p] y) {{
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        three = Constant <value_ints = [3]> ()
        half = Constant <value_ints = [4]> ()
        halves = Constant <value_ints = [4, 4]> ()
        last = Constant <value_ints = [-1]> ()
        end = Constant <value_ints = [9223372036854775807]> ()
        {twice}
        {body}
        {total}
    }}"""


@pytest.fixture
def feed(draw):
    """x and angles; these for the whole batch or for each element of it."""

    def make(batch=2, length=S, *, each=False) -> dict[str, np.ndarray]:
        angles = draw(batch if each else 1, length, D // 2, seed=1) * 3
        return {"x": draw(batch, H, length, D), "angles": angles}

    return make


@pytest.mark.parametrize("halves", HALVES)
def test_halves(halves, parse, feed, fuse, ops, assert_same):
    source = text(f"{HALVES[halves]}\n{ROTATE}", angles="float[b, s, 4] angles")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Cos", "Sin", "RotaryEmbedding"]
    feeds = (feed(each=True), feed(1, 1, each=True), feed(3, 9, each=True))
    assert_same(before, after, *feeds)


def test_angles_of_no_batch_are_spread_over_it(parse, feed, fuse, ops, assert_same):
    before, after = parse(text()), parse(text())
    fuse(after, RULE)
    assert sorted(ops(after)) == sorted(
        ["Cos", "Sin", "RotaryEmbedding", *["Shape"] * 2, *["Concat"] * 2, *["Expand"] * 2]
    )
    assert_same(before, after, *(feed(batch, length) for batch in (1, 2, 5) for length in (1, 4, 7)))


def test_layers_share_their_angles(parse, feed, fuse, ops, assert_same):
    again = f"{HALVES['slices']}\n{ROTATE}\n{SUM}".replace("y = Add", "z = Add")
    for name in ("l", "r", "n", "w", "a", "c"):
        again = again.replace(f"{name} = ", f"{name}2 = ").replace(f"({name}", f"({name}2")
        again = again.replace(f", {name})", f", {name}2)")
    again = again.replace("(x", "(z0").replace("l2, r2 = ", "l2, r2 = ")
    source = text(total=f"{SUM.replace('y = Add', 'z0 = Add')}\n{again}\ny = Add (z, x)")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after).count("RotaryEmbedding") == 2
    assert ops(after).count("Expand") == ops(after).count("Cos") + ops(after).count("Sin") == 2
    assert_same(before, after, feed(), feed(3, 2))


@pytest.mark.parametrize("size", [2, 4, 6, 64])
def test_sizes(size, parse, draw, fuse, ops, assert_same):
    source = text(angles=f"float[b, s, {size // 2}] angles", x=f"b, {H}, s, {size}")
    source = source.replace("value_ints = [4]", f"value_ints = [{size // 2}]")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert "RotaryEmbedding" in ops(after)
    assert_same(before, after, {"x": draw(2, H, S, size), "angles": draw(2, S, size // 2)})


def test_float16(parse, draw, fuse, ops, assert_same):
    source = text(angles="float16[b, s, 4] angles", dtype="float16")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert "RotaryEmbedding" in ops(after)
    feeds = {"x": draw(2, H, S, D, dtype=np.float16), "angles": draw(2, S, D // 2, dtype=np.float16)}
    assert_same(before, after, feeds, rtol=2e-3, atol=4e-3)  # the rounding of float16, twice in the formula


CACHED = """cosc = Gather <axis = 0> (table_cos, ids)
    sinc = Gather <axis = 0> (table_sin, ids)
    cos = Unsqueeze (cosc, one)
    sin = Unsqueeze (sinc, one)"""


def tables(interleaved=False) -> dict[str, np.ndarray]:
    angles = np.outer(np.arange(16), 10.0 ** -np.arange(4)).astype(np.float32)
    twice = np.repeat(angles, 2, -1) if interleaved else np.concatenate([angles, angles], -1)
    return {"table_cos": np.cos(twice), "table_sin": np.sin(twice)}


def test_tables_of_cosines(parse, bind, draw, fuse, ops, assert_same):
    angles = "float[16, 8] table_cos, float[16, 8] table_sin, int64[b, s] ids"
    before, after = (bind(parse(text(angles=angles, twice=CACHED)), **tables()) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Gather", "Gather", "RotaryEmbedding"]
    assert {tuple(v.shape) for v in after.graph.initializers.values() if len(v.shape) == 2} == {(16, 4)}
    ids = np.array([[3, 1, 0, 15, 2], [0, 1, 2, 3, 4]])
    assert_same(before, after, {"x": draw(2, H, S, D), "ids": ids})


def test_constant_angles(parse, bind, draw, fuse, ops, assert_same):
    source = text(
        angles="float[16, 8] table_cos, float[16, 8] table_sin",
        twice="",
        total=SUM.replace("cos", "table_cos").replace("sin", "table_sin"),
        x=f"b, {H}, 16, 8",
    )
    before, after = (bind(parse(source), **tables()) for _ in range(2))
    fuse(after, RULE)
    assert "Mul" not in ops(after)
    assert "RotaryEmbedding" in ops(after)
    assert_same(before, after, *({"x": draw(batch, H, 16, D)} for batch in (1, 2, 3)))


PAIRS = """l = Slice (x, zero, end, three, two)
    r = Slice (x, one, end, three, two)
    n = Neg (r)
    n5 = Unsqueeze (n, last)
    l5 = Unsqueeze (l, last)
    j = Concat <axis = -1> (n5, l5)
    whole = Constant <value_ints = [0, 0, 0, 8]> ()
    w = Reshape (j, whole)"""
SPREAD = """a4 = Unsqueeze (angles, last)
    f4 = Expand (a4, two)
    flat = Constant <value_ints = [0, 0, 8]> ()
    f = Reshape (f4, flat)
    cos3 = Cos (f)
    sin3 = Sin (f)
    cos = Unsqueeze (cos3, one)
    sin = Unsqueeze (sin3, one)"""


def test_interleaved(parse, feed, fuse, ops, assert_same):
    source = text(PAIRS, angles="float[b, s, 4] angles", twice=SPREAD)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Cos", "Sin", "RotaryEmbedding"]
    assert after.graph[-1].attributes["interleaved"].as_int() == 1
    assert_same(before, after, feed(each=True), feed(1, 3, each=True))


def test_interleaved_constants(parse, bind, draw, fuse, ops, assert_same):
    angles = "float[16, 8] table_cos, float[16, 8] table_sin, int64[b, s] ids"
    source = text(PAIRS, angles=angles, twice=CACHED)
    before, after = (bind(parse(source), **tables(interleaved=True)) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Gather", "Gather", "RotaryEmbedding"]
    assert_same(before, after, {"x": draw(2, H, 2, D), "ids": np.array([[3, 1], [0, 9]])})


def test_pairs_do_not_go_with_halves(parse, bind, reason):
    angles = "float[16, 8] table_cos, float[16, 8] table_sin, int64[b, s] ids"
    model = bind(parse(text(PAIRS, angles=angles, twice=CACHED)), **tables())
    assert "may be of more than one angle" in reason(model, RULE)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("(angles, angles)", "(angles, other)", "may be of more than one angle"),
        ("cos3 = Cos (f)", "cos3 = Identity (given)", "may be of more than one angle"),
        ("w = Concat <axis = -1> (n, l)", "w = Concat <axis = -1> (l, n)", ""),
        ("w = Concat <axis = -1> (n, l)", "w = Concat <axis = 3> (n, n)", ""),
        ("l = Slice (x, zero, half, last)", "l = Slice (x, half, end, last)", "are not the parts"),
        ("r = Slice (x, half, end, last)", "r = Slice (x, zero, half, last)", "are not the parts"),
        ("r = Slice (x, half, end, last)", "r = Slice (x, half, end, zero)", "are not the parts"),
        ("y = Add (a, c)", "y = Sub (a, c)", ""),
        ("y = Add (a, c)", "d = Neg (a)\ny0 = Add (a, c)\ny = Add (y0, d)", "is used elsewhere"),
        ("a = Mul (x, cos)", "a = Mul (w, cos)", ""),
        ("Unsqueeze (sin3, one)", "Unsqueeze (sin3, zero)", ""),
        ("c = Mul (w, sin)", "c = Mul (w, cos)", ""),
    ],
)
def test_refusals(old, new, expected, parse, reason, fuse, ops):
    source = text(angles="float[1, s, 4] angles, float[1, s, 4] other, float[1, s, 8] given")
    assert old in source
    model = parse(source.replace(old, new), check=False)
    if new in ("Unsqueeze (sin3, zero)", "c = Mul (w, cos)"):  # the same numbers, or others of the same kind
        fuse(model, RULE)
        assert "RotaryEmbedding" in ops(model)
        return
    found = reason(model, RULE)
    assert expected in found
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("angles", "x"),
    [
        ("float[c, s, 4] angles", "b, 3, s, 8"),
        ("float[1, t, 4] angles", "b, 3, s, 8"),
        ("float[1, 1, 4] angles", "b, 3, s, 8"),
        ("float[b, s, 4] angles", "1, 3, s, 8"),
    ],
)
def test_shapes_that_may_not_fit(angles, x, parse, reason):
    assert "may not fit" in reason(parse(text(angles=angles, x=x), check=False), RULE)


def test_angles_that_differ_by_heads(parse, reason):
    twice = TWICE.replace("Unsqueeze (cos3, one)", "Identity (cos3)").replace(
        "Unsqueeze (sin3", "Identity (sin3"
    )
    twice = twice.replace("(sin3, one)", "(sin3)")
    source = text(angles=f"float[b, {H}, s, 4] angles", twice=twice)
    assert "differs by heads" in reason(parse(source), RULE)


def test_no_operator_for_it(parse, reason):
    assert "needs opset 23" in reason(parse(text(opset=22)), RULE)
    source = text(angles="double[1, s, 4] angles", dtype="double")
    assert "DOUBLE has no kernel" in reason(parse(source), RULE)
    model = parse(text(), check=False)
    model.graph.inputs[0].shape = None
    assert "'x' is None" in reason(model, RULE)
    model.graph.inputs[0].shape = ir.Shape(["b", 3, "s", "d"])
    assert "a known size" in reason(model, RULE)


PARTIAL = "partial-rotary-embedding"
PART = """l = Slice (x, zero, half, last)
    r = Slice (x, half, end, last)
    w = RotaryEmbedding {flags}(l, cos, sin)
    y = Concat <axis = -1> (w, r)"""


def part(flags: str = "") -> str:
    angles = "float[b, s, 2] cos, float[b, s, 2] sin"
    return text(PART.format(flags=flags), angles=angles, twice="", total="")


@pytest.mark.parametrize("flags", ["", "<interleaved = 1> "])
def test_part_of_a_head(flags, parse, draw, fuse, ops, assert_same):
    before, after = parse(part(flags)), parse(part(flags))
    fuse(after, PARTIAL)
    assert ops(after) == ["RotaryEmbedding"]
    assert after.graph[-1].attributes["rotary_embedding_dim"].as_int() == 4
    for batch, length in ((2, 5), (1, 1), (3, 2)):
        angles = {n: draw(batch, length, 2, seed=i) for i, n in enumerate(("cos", "sin"))}
        assert_same(before, after, {"x": draw(batch, H, length, D, seed=5)} | angles)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("r = Slice (x, half, end, last)", "r = Slice (x, two, end, last)", "something else"),
        ("l = Slice (x, zero, half, last)", "l = Slice (x, half, end, last)", "something else"),
        ("y = Concat <axis = -1>", "y = Concat <axis = 2>", "something else"),
        ("(w, r)", "(r, w)", ""),
        ("RotaryEmbedding (l,", "RotaryEmbedding <rotary_embedding_dim = 4> (l,", "a part of its input"),
        ("float[b, 3, s, 8] x", "float[b, 3, s, d] x", "a known size"),
    ],
)
def test_part_of_a_head_refusals(old, new, expected, parse, reason):
    assert old in part()
    found = reason(parse(part().replace(old, new), check=False), PARTIAL)
    assert expected in found
    assert bool(found) == bool(expected)
