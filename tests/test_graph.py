"""Helpers on graphs."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt._matching import only_user
from graphopt.graph import (
    Names,
    array_of,
    has_subgraphs,
    is_used,
    scopes,
    subgraphs_below,
    use_count,
)


@pytest.fixture
def nested(parse):
    return parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[1] x) => (float[1] y, float[1] z)
        { r = Relu (x)
          y = If (c) <
            then_branch = t () => (float[1] p) {
              p = If (c) <then_branch = tt () => (float[1] a) { a = Abs (x) },
                          else_branch = te () => (float[1] b) { b = Neg (x) }> },
            else_branch = e () => (float[1] q) { q = Identity (r) }>
          z = If (c) <then_branch = t2 () => (float[1] u) { u = Abs (x) },
                      else_branch = e2 () => (float[1] v) { v = Neg (x) }> }""")


def test_subgraphs_in_the_order_of_onnx_ir(nested):
    found = subgraphs_below(nested.graph)
    assert [g.name for g in found] == ["t", "tt", "te", "e", "t2", "e2"]
    assert found == list(nested.graph.subgraphs())
    assert [scope.graph for scope in scopes(nested)] == [nested.graph, *found]


def test_has_subgraphs(nested):
    assert [has_subgraphs(node) for node in nested.graph] == [False, True, True]


def test_uses_are_counted_through_subgraphs(nested):
    x, r = nested.graph.inputs[1], nested.graph[0].outputs[0]
    assert (use_count(x), use_count(r)) == (len(x.uses()), len(r.uses())) == (5, 1)
    unused = ir.Value(name="unused")
    assert (is_used(x), is_used(nested.graph.outputs[0]), is_used(unused)) == (True, True, False)


def test_only_user(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1] a, float[1] b, float[1] c, float[1] d) => (float[1] y)
        { p = Add (a, a) q = Sum (b, p, b, c) r = Mul (q, c) y = Add (r, a) }""")
    a, b, c, d = model.graph.inputs
    assert [only_user(v) for v in (a, b, c, d)] == [None, model.graph[1], None, None]
    for value in (a, b, c, d, *(node.outputs[0] for node in model.graph)):
        users = value.consumers()
        assert only_user(value) is (users[0] if len(users) == 1 else None)


def test_fresh_names_count_on(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float[1] x_2) { x_2 = Relu (x) }""")
    names = Names(model)
    found = [names.fresh(wanted) for wanted in ("x", "x", "y", "y", "x_1", "x")]
    assert found == ["x_1", "x_3", "y", "y_1", "x_1_1", "x_4"]


def test_numbers_of_a_constant_node_are_made_an_array_once(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
        g () => (int64[2] y) { y = Constant <value_ints = [3, 4]> () }""")
    value = model.graph.outputs[0]
    assert array_of(value) is array_of(value)
    assert array_of(value).tolist() == [3, 4]
