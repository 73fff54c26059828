from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.options import ConversionError, build
from graphopt.passes.fusion.fuse import Fuse, fusion_rules

CONV_CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 2, 5, 5] x, float[2, 2, 3, 3] w, float[2, 1, 1] k) => (float[1, 2, 5, 5] y) {
        pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
        p = Pad (x, pads)
        c = Conv (p, w)
        m = Mul (c, k)
        y = Add (m, k)
    }"""


def test_rules_are_found_by_listing_the_package():
    names = set(fusion_rules())
    families = "batch-normalization", "mul", "add"
    assert names >= {f"{linear}-{family}" for linear in ("conv", "gemm") for family in families}
    assert names >= {"matmul-add", "pad-conv", "pad-average-pool", "gelu"}


@pytest.mark.parametrize("name", sorted(fusion_rules()))
def test_every_rule_is_named_documented_and_rooted(name):
    rule = fusion_rules()[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert f"``{name}``" in Fuse.__doc__
    assert rule.__doc__.strip()
    assert rule.roots


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["Conv"]),
        ({"exclude": ["conv-add"]}, ["Conv", "Add"]),
        ({"include": ["conv-mul"]}, ["Pad", "Conv", "Add"]),
        ({"include": ["conv-mul", "pad-conv"], "exclude": ["pad-conv"]}, ["Pad", "Conv", "Add"]),
        ({"exclude": list(fusion_rules())}, ["Pad", "Conv", "Mul", "Add"]),
    ],
)
def test_include_and_exclude(options, left, parse, bind, draw, ops, assert_same):
    before, after = (bind(parse(CONV_CHAIN), w=None, k=None) for _ in range(2))
    result = build(Fuse, options)(after)
    assert ops(after) == left
    assert result.modified == (len(left) < 4)
    assert_same(before, after, {"x": draw(1, 2, 5, 5)}, atol=1e-5)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_unknown_rule_names_the_nearest(option):
    with pytest.raises(ConversionError, match="unknown fusion rule 'conv-mull'; did you mean 'conv-mul'"):
        build(Fuse, {option: ["conv-mull"]})


def test_summary_and_refusals(parse, bind):
    model = bind(parse(CONV_CHAIN), w=None, k=None)
    assert Fuse()(model).summary == "fused 1 conv-add, 1 conv-mul, 1 pad-conv"
    again = Fuse()(model)
    assert (again.summary, again.modified, again.refusals) == ("nothing to fuse", False, [])


def test_interface_is_kept(parse, bind):
    model = bind(parse(CONV_CHAIN), w=None, k=None)
    Fuse()(model)
    assert [(v.name, v.shape) for v in model.graph.inputs] == [("x", ir.Shape([1, 2, 5, 5]))]
    output = model.graph.outputs[0]
    assert (output.name, output.dtype, output.shape) == ("y", ir.DataType.FLOAT, ir.Shape([1, 2, 5, 5]))


def test_inside_a_function(parse, assert_same):
    text = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y) { y = own.F (x) }
        <domain: "own", opset_import: ["" : 17]> F (u) => (r) {
            w = Constant <value = float[1, 1, 2, 2] {1, 2, 3, 4}> ()
            k = Constant <value_float = 2.0> ()
            c = Conv (u, w)
            m = Mul (c, k)
            r = Add (m, k)
        }"""
    before, after = parse(text), parse(text)
    Fuse()(after)
    function = next(iter(after.functions.values()))
    assert [n.op_type for n in function] == ["Constant", "Constant", "Conv"]
    assert_same(before, after, {"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)})
