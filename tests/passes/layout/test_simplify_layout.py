from __future__ import annotations

import re

import pytest

from graphopt.options import ConversionError, build
from graphopt.passes.layout.simplify_layout import SimplifyLayout, layout_rules

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 4] x) => (float[N, 3, 4] y) {
        a = Neg (x)
        b = Neg (a)
        t = Transpose <perm = [0, 2, 1]> (b)
        u = Transpose <perm = [0, 2, 1]> (t)
        y = Relu (u)
    }"""


@pytest.mark.parametrize("name", sorted(layout_rules()))
def test_every_rule_is_named_documented_and_rooted(name):
    rule = layout_rules()[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert f"``{name}``" in SimplifyLayout.__doc__
    assert rule.__doc__.strip()
    assert rule.roots


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["Relu"]),
        ({"include": ["undone"]}, ["Transpose", "Transpose", "Relu"]),
        ({"exclude": ["undone"]}, ["Neg", "Neg", "Relu"]),
        ({"exclude": list(layout_rules())}, ["Neg", "Neg", "Transpose", "Transpose", "Relu"]),
    ],
)
def test_include_and_exclude(options, left, parse, ops, assert_same, draw):
    before, after = parse(CHAIN), parse(CHAIN)
    result = build(SimplifyLayout, options)(after)
    assert ops(after) == left
    assert result.modified == (len(left) < 5)
    assert_same(before, after, {"x": draw(2, 3, 4)})


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_unknown_rule_names_the_nearest(option):
    with pytest.raises(ConversionError, match="unknown layout rule 'mul-mull'; did you mean 'mul-mul'"):
        build(SimplifyLayout, {option: ["mul-mull"]})


def test_inside_a_branch_and_a_function(parse, simplify):
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[3] x, bool c) => (float[3] y) {
            f = local.Twice (x)
            y = If (c) <then_branch = p () => (float[3] o) { a = Neg (f)  b = Neg (a)  o = Abs (b) },
                        else_branch = q () => (float[3] i) { i = Exp (f) }>
        }
        <domain: "local", opset_import: ["" : 17]>
        Twice (u) => (v) { a = Relu (u)  b = Relu (a)  v = Exp (b) }""")
    result = simplify(model)
    assert result.summary == "simplified 1 repeated, 1 undone"
    branch = model.graph[1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Abs"]
    assert [node.op_type for node in next(iter(model.functions.values()))] == ["Relu", "Exp"]


def test_idempotent_on_what_is_simple(parse, simplify):
    model = parse(CHAIN)
    assert simplify(model).modified
    assert simplify(model).summary == "nothing to simplify"
