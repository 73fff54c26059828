from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

CONV, POOL = "pad-conv", "pad-average-pool"


def model_text(
    node="Conv (p, w)",
    *,
    pads=(0, 0, 1, 2, 0, 0, 3, 0),
    fill="0",
    axes=None,
    mode="constant",
    more="",
    outputs=("y",),
    opset=17,
    x="1, 2, 5, 6",
):
    """x -> Pad -> node -> y; opset 11 and later (pads is an input)."""
    rank = x.count(",") + 1
    declared = ", ".join(f"float[{', '.join('pqrst'[:rank])}] {name}" for name in outputs)
    inputs = ["x", "pads"]
    constants = [_constant("pads", pads)]
    if fill is not None:
        inputs.append("fill")
        constants.append(f"fill = Constant <value = float {{{fill}}}> ()")
    if axes is not None:
        inputs.append("axes")
        constants.append(_constant("axes", axes))
    kernel = ", ".join(["2"] * (rank - 2))
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[{x}] x, float[3, 2, {kernel}] w)
        => ({declared}) {{
            {" ".join(constants)}
            p = Pad <mode = "{mode}"> ({", ".join(inputs)})
            [main] y = {node}
            {more}
        }}"""


def _constant(name, numbers):
    return f"{name} = Constant <value = int64[{len(numbers)}] {{{', '.join(map(str, numbers))}}}> ()"


def old_text(pads: str, node="Conv (p, w)", opset=10, value=""):
    """The attribute form of Pad."""
    return f"""<ir_version: 5, opset_import: ["" : {opset}]> g (float[1, 2, 5, 6] x, float[3, 2, 2, 2] w)
        => (float[p, q, r, s] y) {{ p = Pad <pads = {pads}{value}> (x) y = {node} }}"""


def attributes(model) -> dict:
    return {a.name: a.value for a in model.graph.node(-1).attributes.values()}


@pytest.mark.parametrize(
    ("options", "pads"),
    [
        ({}, (1, 2, 3, 0)),
        ({"fill": None}, (1, 2, 3, 0)),
        ({"fill": "-0.0"}, (1, 2, 3, 0)),
        ({"node": "Conv <pads = [1, 1, 0, 2]> (p, w)"}, (2, 3, 3, 2)),
        ({"node": 'Conv <auto_pad = "VALID"> (p, w)'}, (1, 2, 3, 0)),
        ({"node": 'Conv <auto_pad = "NOTSET", strides = [2, 1]> (p, w)'}, (1, 2, 3, 0)),
        ({"pads": (0,) * 8}, (0, 0, 0, 0)),
        ({"pads": (0, 0, 9, 9, 0, 0, 9, 9)}, (9, 9, 9, 9)),
        ({"opset": 11}, (1, 2, 3, 0)),
        ({"opset": 18}, (1, 2, 3, 0)),
        ({"opset": 18, "axes": (3,), "pads": (1, 2)}, (0, 1, 0, 2)),
        ({"opset": 18, "axes": (-1, 2), "pads": (1, 2, 3, 4)}, (2, 1, 4, 3)),
        ({"opset": 19, "axes": (0, 1, 2, 3)}, (1, 2, 3, 0)),
        ({"x": "1, 2, 7", "pads": (0, 0, 1, 0, 0, 2)}, (1, 2)),
    ],
)
def test_pad_goes_into_conv(options, pads, parse, bind, draw, fuse, ops, assert_same):
    text = model_text(**options)
    before, after = (bind(parse(text), w=None) for _ in range(2))
    result = fuse(after, CONV)
    assert [n.op_type for n in after.graph] == ["Conv"]  # the Constants of the Pad are gone as well
    assert attributes(after)["pads"] == pads
    assert "auto_pad" not in attributes(after)
    assert after.graph.node(0).name == "main"
    assert result.refusals == []
    assert_same(before, after, {"x": draw(*map(int, options.get("x", "1, 2, 5, 6").split(",")))})


@pytest.mark.parametrize("opset", [7, 10])
def test_attribute_form(opset, parse, bind, draw, fuse, ops, assert_same):
    before, after = (bind(parse(old_text("[0, 0, 1, 2, 0, 0, 3, 0]", opset=opset)), w=None) for _ in range(2))
    fuse(after, CONV)
    assert ops(after) == ["Conv"]
    assert_same(before, after, {"x": draw(1, 2, 5, 6)})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fill": "1"}, "does not pad with zero"),
        ({"fill": "nan"}, "does not pad with zero"),
        ({"mode": "reflect", "pads": (0, 0, 1, 1, 0, 0, 1, 1)}, "has mode reflect"),
        ({"mode": "edge"}, "has mode edge"),
        ({"pads": (0, 0, -1, 2, 0, 0, 3, 0)}, "crops"),
        ({"pads": (1, 0, 1, 2, 0, 0, 3, 0)}, "pads the batch or channel axis"),
        ({"pads": (0, 0, 1, 2, 0, 1, 3, 0)}, "pads the batch or channel axis"),
        ({"opset": 18, "axes": (1, 3), "pads": (1, 2, 0, 0)}, "pads the batch or channel axis"),
        ({"opset": 18, "axes": (3, -1), "pads": (1, 2, 0, 0)}, "do not name the axes"),
        ({"node": 'Conv <auto_pad = "SAME_UPPER"> (p, w)'}, "has auto_pad SAME_UPPER"),
        ({"node": 'Conv <auto_pad = "SAME_LOWER"> (p, w)'}, "has auto_pad SAME_LOWER"),
        (
            {"more": "z = Relu (p)", "outputs": ("y", "z")},
            "the output 'p' of Pad (output 'p') is used elsewhere",
        ),
        ({"outputs": ("y", "p")}, "the output 'p' of Pad (output 'p') is used elsewhere"),
    ],
)
def test_refuses(options, expected, parse, bind, reason):
    text = model_text(**options).replace("nan", "0")
    model = bind(parse(text, check=False), w=None)
    if options.get("fill") == "nan":
        _set_fill(model, np.nan)
    assert expected in reason(model, CONV)


def _set_fill(model, number: float) -> None:
    node = next(n for n in model.graph if n.outputs[0].name == "fill")
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(number)))


@pytest.mark.parametrize("value", [", value = 1.0", ", value = -0.5"])
def test_refuses_other_values_of_the_attribute_form(value, parse, bind, reason):
    model = bind(parse(old_text("[0, 0, 1, 2, 0, 0, 3, 0]", value=value)), w=None)
    assert "pads with" in reason(model, CONV)


def test_refuses_opset_1(parse, bind, reason):
    text = old_text("[0, 0, 1, 2, 0, 0, 3, 0]", opset=1).replace("Pad <pads", "Pad <paddings")
    assert "is of opset 1" in reason(bind(parse(text, check=False), w=None), CONV)


@pytest.mark.parametrize("name", ["pads", "fill"])
def test_refuses_computed_pads(name, parse, bind, reason):
    text = model_text().replace(f"{name} = Constant", f"raw_{name} = Constant")
    text = text.replace("p = Pad", f"{name} = Neg (raw_{name}) p = Pad")
    assert f"'{name}' is computed by Neg" in reason(bind(parse(text), w=None), CONV)


@pytest.mark.parametrize(
    "node",
    ["MaxPool <kernel_shape = [2, 2]> (p)", "ConvTranspose (p, v)", "LpPool <kernel_shape = [2, 2]> (p)"],
)
def test_no_match_before_other_operators(node, parse, bind, reason):
    text = model_text(node).replace("float[3, 2, 2, 2] w", "float[2, 3, 2, 2] v")
    assert reason(bind(parse(text), v=None) if "v)" in node else parse(text), CONV, POOL) == ""


def test_no_match_for_a_padded_weight(parse, reason):
    assert reason(parse(model_text("Conv (x, p)", x="3, 2, 2, 2")), CONV) == ""


POOLS = [
    ("AveragePool <kernel_shape = [4, 3]> (p)", {}),
    ("AveragePool <kernel_shape = [4, 3], strides = [2, 2]> (p)", {"opset": 11}),
    ("AveragePool <kernel_shape = [4, 3], count_include_pad = 1> (p)", {}),
    ("AveragePool <kernel_shape = [5, 4], count_include_pad = 1, pads = [1, 1, 1, 0]> (p)", {}),
    ('AveragePool <kernel_shape = [4, 3], auto_pad = "VALID"> (p)', {}),
    ("AveragePool <kernel_shape = [4, 3], pads = [0, 0, 0, 0]> (p)", {"opset": 19}),
]


@pytest.mark.parametrize(("node", "options"), POOLS)
def test_pad_goes_into_average_pool(node, options, parse, bind, draw, fuse, ops, assert_same):
    text = model_text(node, **options)
    before, after = (bind(parse(text), w=None) for _ in range(2))
    fuse(after, POOL)
    assert ops(after) == ["AveragePool"]
    assert attributes(after)["count_include_pad"] == 1
    assert_same(before, after, {"x": draw(1, 2, 5, 6)})


@pytest.mark.parametrize(
    ("node", "options", "expected"),
    [
        ("AveragePool <kernel_shape = [4, 3], ceil_mode = 1> (p)", {}, "has ceil_mode or dilations"),
        (
            "AveragePool <kernel_shape = [4, 3], dilations = [2, 1]> (p)",
            {"opset": 19},
            "has ceil_mode or dilations",
        ),
        (
            "AveragePool <kernel_shape = [4, 3], pads = [1, 0, 0, 0]> (p)",
            {},
            "does not count its own padding",
        ),
        ("AveragePool <kernel_shape = [3, 3]> (p)", {}, "would not be smaller than its kernel"),
        ('AveragePool <kernel_shape = [4, 3], auto_pad = "SAME_UPPER"> (p)', {}, "has auto_pad SAME_UPPER"),
        ("AveragePool <kernel_shape = [4, 3]> (p)", {"fill": "1"}, "does not pad with zero"),
        ("AveragePool <kernel_shape = [4, 3]> (p)", {"opset": 6}, "of opset 6 cannot count"),
    ],
)
def test_average_pool_refuses(node, options, expected, parse, bind, reason):
    model = bind(parse(model_text(node, **options), check=False), w=None)
    assert expected in reason(model, POOL)


def test_two_pads_in_a_row(parse, bind, draw, fuse, ops, assert_same):
    text = model_text("Conv (q, w)").replace("[main]", "q = Pad (p, pads) [main]")
    before, after = (bind(parse(text), w=None) for _ in range(2))
    fuse(after, CONV)
    assert ops(after) == ["Conv"]
    assert_same(before, after, {"x": draw(1, 2, 5, 6)})


INFINITE = """<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2, h, w] x) => (float[a, b, c, d] y) {{
    pads = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 2]> ()
    fill = Constant <value_float = {fill}> ()
    p = Pad (x, pads, fill)
    {node}
}}"""
MAX_POOL = "y = MaxPool <kernel_shape = [3, 3]> (p)"


@pytest.mark.parametrize(
    "node", [MAX_POOL, "y = MaxPool <kernel_shape = [3, 4], strides = [2, 1], pads = [1, 0, 1, 1]> (p)"]
)
def test_infinite_pad_goes_into_max_pool(node, parse, draw, fuse, ops, assert_same):
    source = INFINITE.format(fill="-inf", node=node)
    before, after = parse(source), parse(source)
    fuse(after, "pad-max-pool")
    assert ops(after) == ["MaxPool"]
    assert_same(before, after, *({"x": draw(n, 2, 5, 6) - 3} for n in (1, 3)))


@pytest.mark.parametrize(
    ("fill", "node", "expected"),
    [
        ("0.0", MAX_POOL, "does not pad with minus infinity"),
        ("-3.4e38", MAX_POOL, "does not pad with minus infinity"),
        ("-inf", MAX_POOL.replace("[3, 3]", "[2, 2]"), "smaller than its kernel"),
        ("-inf", MAX_POOL.replace("[3, 3]", "[3, 3], ceil_mode = 1"), "ceil_mode"),
        ("-inf", MAX_POOL.replace("[3, 3]", "[3, 3], dilations = [2, 1]"), "dilations"),
        (
            "-inf",
            "z, i = MaxPool <kernel_shape = [3, 3]> (p)\nf = Cast <to = 1> (i)\ny = Add (z, f)",
            "indices",
        ),
    ],
)
def test_max_pool_refuses(fill, node, expected, parse, reason):
    assert expected in reason(parse(INFINITE.format(fill=fill, node=node)), "pad-max-pool")


def test_max_pool_refuses_a_pad_without_a_value(parse, reason):
    source = INFINITE.format(fill="-inf", node=MAX_POOL).replace("(x, pads, fill)", "(x, pads)")
    assert "does not pad with minus infinity" in reason(parse(source), "pad-max-pool")
