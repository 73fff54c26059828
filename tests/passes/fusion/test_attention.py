from __future__ import annotations

import numpy as np
import pytest

B, H, Q, K, D = 2, 3, 4, 5, 8
LOWEST = -3.4028234663852886e38
RULE = "attention"


def literal(number: float, dtype: str) -> str:
    """The number as the text syntax wants it: types of 16 bits by their bits."""
    if dtype == "float16":
        return str(np.float16(number).view(np.uint16))
    return str(np.float32(number).view(np.uint32) >> 16) if dtype == "bfloat16" else repr(number)


def text(
    body: str, *, extra="", opset=23, dtype="float", q=f"b, {H}, s, {D}", k=f"b, {H}, t, {D}", v="", **numbers
) -> str:
    """Inputs q, k, v [batch, heads, sequence, size] and more; constants are scalars of the type."""
    numbers = {"c": 0.35, "root": 8**0.5, "half": 8**-0.25, "zero": 0.0, "lowest": LOWEST, **numbers}
    constants = "\n".join(
        f"{n} = Constant <value = {dtype} {{{literal(x, dtype)}}}> ()"
        for n, x in numbers.items()
        if f" {n}" in body
    )
    extra = f", {extra}" if extra else ""
    v = v or k
    return f"""<ir_version: 11, opset_import: ["" : {opset}]>
    g ({dtype}[{q}] q, {dtype}[{k}] k, {dtype}[{v}] v{extra}) => ({dtype}[m, n, o, p] y) {{
        {constants}
        {body}
    }}"""


def lines(body: str) -> str:
    return "\n".join(part.strip() for part in body.split(";"))


INFINITE = "inf = Constant <value_float = -inf> ()"
KT = "kt = Transpose <perm = [0, 1, 3, 2]> (k)"
END = "p = Softmax <axis = -1> (z); y = MatMul (p, v)"
SCALES = {
    "none": f"{KT}; z = MatMul (q, kt); {END}",
    "product by mul": f"{KT}; x = MatMul (q, kt); z = Mul (x, c); {END}",
    "product by mul, swapped": f"{KT}; x = MatMul (q, kt); z = Mul ( c, x); {END}",
    "product by div": f"{KT}; x = MatMul (q, kt); z = Div (x, root); {END}",
    "q": f"{KT}; u = Mul (q, c); z = MatMul (u, kt); {END}",
    "k": f"w = Mul (k, c); kt = Transpose <perm = [0, 1, 3, 2]> (w); z = MatMul (q, kt); {END}",
    "k, transposed": f"{KT}; w = Div (kt, root); z = MatMul (q, w); {END}",
    "both": f"u = Mul (q, half); {KT}; w = Mul (kt, half); z = MatMul (u, w); {END}",
    "axis 3": f"{KT}; x = MatMul (q, kt); z = Mul (x, c); p = Softmax <axis = 3> (z); y = MatMul (p, v)",
    "guard": f"{KT}; z = MatMul (q, kt); p = Softmax <axis = -1> (z); n = IsNaN (p); "
    "w = Where (n, zero, p); y = MatMul (w, v)",
}


@pytest.fixture
def feed(draw):
    """Inputs for some batch and lengths."""

    def make(batch=B, queries=Q, keys=K, **more) -> dict[str, np.ndarray]:
        shapes = {"q": (batch, H, queries, D), "k": (batch, H, keys, D), "v": (batch, H, keys, D)}
        return {n: draw(*s, seed=i) for i, (n, s) in enumerate(shapes.items())} | more

    return make


@pytest.mark.parametrize("spelling", SCALES)
def test_scales(spelling, parse, feed, fuse, ops, assert_same):
    source = text(lines(SCALES[spelling]))
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert after.graph[-1].attributes["scale"].as_float() > 0
    assert_same(before, after, feed(), feed(1, 1, 1), feed(3, 7, 2))


def test_keys_whose_heads_lie_behind(parse, draw, fuse, ops, assert_same):
    body = f"kt = Transpose <perm = [0, 2, 3, 1]> (k); z = MatMul (q, kt); {END}"
    source = text(lines(body), k=f"b, t, {H}, {D}", v=f"b, {H}, t, {D}")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Transpose", "Attention"]
    arrays = {"q": draw(B, H, Q, D), "k": draw(B, K, H, D, seed=1), "v": draw(B, H, K, D, seed=2)}
    assert_same(before, after, arrays)


THREE = (
    "s = Shape (k); a = Constant <value_ints = [-1]> (); i = Constant <value_ints = [2]> (); "
    "j = Constant <value_ints = [3]> (); o = Constant <value_ints = [0]> (); "
    "d = Constant <value_ints = [8]> (); "
    "l = Slice (s, i, j); e = Concat <axis = 0> (a, l, d); f = Reshape (k, e); "
    "r = Transpose <perm = [0, 2, 1]> (f); h = Slice (s, o, i); w = Concat <axis = 0> ({order}); "
    f"kt = Reshape (r, w); z = MatMul (q, kt); {END}"
)


def test_keys_transposed_by_way_of_three_axes(parse, feed, fuse, ops, assert_same):
    source = text(lines(THREE.format(order="h, d, l")))
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, feed(), feed(1, 2, 3))


def test_three_axes_that_transpose_something_else(parse, reason):
    body = (
        THREE.format(order="h, d, l")
        .replace("f = Reshape (k, e)", "g = Concat <axis = 0> (a, d, l); f = Reshape (k, g)")
        .replace("perm = [0, 2, 1]> (f); h", "perm = [0, 2, 1]> (f); h")
    )
    assert "may be no Transpose of 'k'" in reason(parse(text(lines(body))), RULE)


ADDED = f"{KT}; x = MatMul (q, kt); z = Add (x, m); {END}"
KEPT = f"{KT}; x = MatMul (q, kt); i = Where (m, zero, lowest); z = Add (x, i); {END}"
GUARD = "p = Softmax <axis = -1> (z); n = IsNaN (p); w = Where (n, zero, p); y = MatMul (w, v)"
BY_INFINITY = f"{INFINITE}; {KT}; x = MatMul (q, kt); i = Where (m, zero, inf); z = Add (x, i); {GUARD}"
SELECTED = f"{KT}; x = MatMul (q, kt); z = Where (m, x, lowest); {END}"
DROPPED = f"{INFINITE}; {KT}; x = MatMul (q, kt); z = Where (m, inf, x); {GUARD}"


def boolean_masks(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Some keys, all keys, and for one batch element or query no key at all."""
    some = np.random.default_rng(0).random(shape) > 0.4
    some[..., 0] = True
    none = some.copy()
    none[:1] = False
    return [some, np.ones(shape, bool), none]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (KEPT, ["Where", "Attention"]),
        (SELECTED, ["Where", "Attention"]),
        (BY_INFINITY, ["Attention"]),
        (DROPPED, ["Not", "Attention"]),
    ],
)
@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("s, t", (Q, K)),
        ("b, 1, s, t", (B, 1, Q, K)),
        (f"1, {H}, s, t", (1, H, Q, K)),
        (f"b, {H}, s, t", (B, H, Q, K)),
        ("1, s, t", (1, Q, K)),
    ],
)
def test_conditions_with_rows_that_are_masked_as_a_whole(
    body, wanted, dims, shape, parse, feed, fuse, ops, assert_same
):
    source = text(lines(body), extra=f"bool[{dims}] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == wanted
    for mask in boolean_masks(shape):
        assert_same(before, after, feed(m=mask if wanted[0] != "Not" else ~mask))


@pytest.mark.parametrize("body", [KEPT, SELECTED, BY_INFINITY])
@pytest.mark.parametrize(
    ("dims", "shape"),
    [("b, 1, 1, t", (B, 1, 1, K)), ("t", (K,)), ("b, 1, s, 1", (B, 1, Q, 1)), ("1, 1", (1, 1))],
)
def test_short_masks_are_expanded(body, dims, shape, parse, feed, fuse, ops, assert_same):
    source = text(lines(body), extra=f"bool[{dims}] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after)[-2:] == ["Expand", "Attention"]
    masks = boolean_masks(shape) if shape[-1] > 1 else [np.ones(shape, bool), np.zeros(shape, bool)]
    assert_same(before, after, *(feed(m=mask) for mask in masks))


def test_short_mask_of_known_size_needs_one_node(parse, feed, fuse, ops, assert_same):
    sizes = {"q": f"b, {H}, {Q}, {D}", "k": f"b, {H}, {K}, {D}"}
    source = text(lines(BY_INFINITY), extra=f"bool[b, 1, 1, {K}] m", **sizes)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Expand", "Attention"]
    assert_same(before, after, *(feed(m=mask) for mask in boolean_masks((B, 1, 1, K))))


def test_mask_of_which_the_keys_are_not_known(parse, feed, fuse, ops, assert_same):
    source = text(lines(BY_INFINITY), extra="bool[b, 1, s, u] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after)[-2:] == ["Expand", "Attention"]
    assert_same(before, after, *(feed(m=np.ones((B, 1, Q, n), bool)) for n in (K, 1)))


@pytest.mark.parametrize(
    "bias", [np.zeros((Q, K)), np.where(np.tri(Q, K) > 0, 0, -np.inf), np.full((Q, K), -100.0)]
)
def test_constant_mask(bias, parse, bind, feed, fuse, ops, assert_same):
    sizes = {"q": f"b, {H}, {Q}, {D}", "k": f"b, {H}, {K}, {D}"}
    source = text(lines(ADDED), extra=f"float[{Q}, {K}] m", **sizes)
    before, after = (bind(parse(source), m=bias.astype(np.float32)) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, feed(), feed(3))


def test_bias_out_of_a_table_and_a_mask(parse, bind, feed, fuse, ops, assert_same):
    bias = "g = Gather <axis = 0> (table, i); h = Transpose <perm = [2, 0, 1]> (g); "
    wrapped = "a = Constant <value_ints = [0]> (); b = Unsqueeze (h, a); e = Where (m, b, lowest)"
    body = lines(f"{bias}{wrapped}; {KT}; x = MatMul (q, kt); z = Add (x, e); {END}")
    source = text(body, extra=f"float[9, {H}] table, int64[s, t] i, bool[b, 1, s, t] m")
    before, after = (bind(parse(source), table=None) for _ in range(2))
    fuse(after, RULE)
    assert ops(after) == ["Gather", "Transpose", "Unsqueeze", "Where", "Attention"]
    index = np.arange(Q * K).reshape(Q, K) % 9
    assert_same(before, after, *(feed(m=mask, i=index) for mask in boolean_masks((B, 1, Q, K))))


def test_two_attentions_share_the_constants_of_their_masks(parse, feed, fuse, ops, assert_same):
    again = KEPT.replace("; y = MatMul (p, v)", "; f = MatMul (p, v)")
    second = "x2 = MatMul (f, kt); i2 = Where (m, zero, lowest); z2 = Add (x2, i2); p2 = Softmax (z2); "
    source = text(lines(f"{again}; {second}y = MatMul (p2, v)"), extra="bool[s, t] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Where", "Attention", "Where", "Attention"]
    wheres = [n for n in after.graph if n.op_type == "Where"]
    assert wheres[0].inputs == wheres[1].inputs
    assert_same(before, after, *(feed(m=mask) for mask in boolean_masks((Q, K))))


def test_float16(parse, feed, fuse, ops, assert_same):
    source = text(lines(SCALES["product by mul"]), dtype="float16")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    half = {name: array.astype(np.float16) for name, array in feed().items()}
    assert_same(before, after, half, rtol=1e-2, atol=4e-3)  # ten bits


def test_double_needs_a_scale_of_32_bits(parse, reason, fuse, ops, assert_same, feed):
    assert "no number of 32 bits" in reason(parse(text(lines(SCALES["q"]), dtype="double")), RULE)
    source = text(lines(SCALES["q"]), dtype="double", c=0.25)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, {n: a.astype(np.float64) for n, a in feed().items()}, rtol=1e-12, atol=1e-12)


def test_name_and_metadata_are_those_of_softmax(parse, fuse):
    model = parse(text(lines(SCALES["none"])))
    softmax = next(n for n in model.graph if n.op_type == "Softmax")
    softmax.name, softmax.metadata_props["origin"] = "attend", "here"
    fuse(model, RULE)
    assert model.graph[-1].name == "attend"
    assert model.graph[-1].metadata_props == {"origin": "here"}


PLAIN = SCALES["product by mul"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"opset": 22}, "Attention needs opset 23"),
        ({"dtype": "bfloat16"}, "Attention in BFLOAT16 has no kernel"),
        ({"c": -0.5}, "the scale -0.5 is not above 0"),
        ({"c": 0.0}, "the scale 0.0 is not above 0"),
        ({"k": f"a, {H}, t, {D}"}, "batch of Softmax"),
        ({"k": f"b, 1, t, {D}"}, "heads of Softmax"),
        ({"v": f"b, {H}, u, {D}"}, "the keys of Softmax"),
    ],
)
def test_refusals(changes, expected, parse, reason):
    assert expected in reason(parse(text(lines(PLAIN), **changes), check=False), RULE)


@pytest.mark.parametrize(
    ("body", "extra", "expected"),
    [
        (ADDED, "float[s, t] m", "'m' may mask a whole row"),
        (KEPT, "bool[c, 1, s, t] m", "has c for b batch"),
        (KEPT, "bool[2, s, t] m", "has 2 for 3 heads"),
        (KEPT, "bool[u, t] m", "has u for s queries"),
        (KEPT, "bool[1, b, 1, s, t] m", "the rank of the mask"),
        (BY_INFINITY.replace(GUARD, END), "bool[s, t] m", "may mask a whole row"),
        (DROPPED.replace(GUARD, END), "bool[s, t] m", "a row that 'm' masks is NaN"),
        (SELECTED.replace("lowest", "half"), "bool[s, t] m", "is not deep enough"),
    ],
)
def test_masks_that_are_refused(body, extra, expected, parse, reason):
    assert expected in reason(parse(text(lines(body), extra=extra), check=False), RULE)


@pytest.mark.parametrize("row", [-np.inf, LOWEST, np.nan])
def test_constant_mask_of_a_whole_row(row, parse, bind, reason):
    sizes = {"q": f"b, {H}, {Q}, {D}", "k": f"b, {H}, {K}, {D}"}
    model = parse(text(lines(ADDED), extra=f"float[{Q}, {K}] m", **sizes))
    bias = np.zeros((Q, K), np.float32)
    bias[1] = row
    assert "may mask a whole row" in reason(bind(model, m=bias), RULE)


def test_float16_by_a_finite_number(parse, reason):
    model = parse(text(lines(KEPT), dtype="float16", extra="bool[s, t] m", lowest=-65504.0))
    assert "may mask a whole row" in reason(model, RULE)


@pytest.mark.parametrize(
    "body",
    [
        f"{KT}; z = MatMul (q, kt); p = Softmax <axis = 2> (z); y = MatMul (p, v)",
        f"{KT}; z = MatMul (q, kt); p = Softmax (z); y = Add (p, v)",
        f"{KT}; z = MatMul (q, kt); p = Softmax (z); y = MatMul (v, p)",
        f"{KT}; x = MatMul (q, kt); w = Add (x, c); z = Mul (w, c); {END}",
        f"z = MatMul (q, k); {END}",
        f"kt = Transpose <perm = [0, 3, 1, 2]> (k); z = MatMul (q, kt); {END}",
        f"{KT}; z = MatMul (q, kt); p = Softmax (z); w = MatMul (p, v); y = Add (w, p)",
        f"{KT}; z = MatMul (q, kt); p = Softmax (z); w = MatMul (p, v); y = Add (w, z)",
        SCALES["guard"].replace("zero", "c"),
        SCALES["guard"].replace("IsNaN (p)", "IsNaN (z)"),
        SCALES["guard"].replace("zero, p", "p, zero"),
    ],
)
def test_other_things(body, parse, reason):
    assert reason(parse(text(lines(body)), check=False), RULE) == ""


def test_scale_that_is_a_graph_input(parse, reason):
    body = f"{KT}; x = MatMul (q, kt); z = Mul (x, n); {END}"
    assert reason(parse(text(lines(body), extra="float n")), RULE) == ""
