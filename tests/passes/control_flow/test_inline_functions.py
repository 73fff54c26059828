"""inline-functions: structure, numbers, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io
from graphopt.passes.control_flow.inline_functions import InlineFunctions

X = np.array([-1.5, -0.0, 0.5, 3.0], np.float32)

NESTED = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
g (float[N] x, bool c) => (float[N] y) {
  t = f.Outer <slope = 0.25> (x)
  v = If (c) <
    then_branch = then_ () => (float[N] r) { s = f.Inner (t) r = Neg(s) },
    else_branch = else_ () => (float[N] r) { s = f.Inner (x) r = Abs(s) }
  >
  y = f.Outer (v)
}
<domain: "f", opset_import: ["" : 17, "f" : 1]>
Outer <slope: float = 0.5> (a) => (b) {
  t = LeakyRelu <alpha: float = @slope> (a)
  s = f.Inner (t)
  b = Add(s, a)
}
<domain: "f", opset_import: ["" : 17]>
Inner (a) => (b) {
  one = Constant <value = float {1}> ()
  s = Add(a, one)
  b = Mul(s, s)
}"""


def _flat(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph.all_nodes() if n.op_type != "Constant"]


@pytest.mark.parametrize("c", [True, False])
def test_calls_in_functions_and_branches(parse, assert_same, c):
    before, model = parse(NESTED), parse(NESTED)
    result = InlineFunctions()(model)
    assert result.modified
    assert result.summary == "inlined 5 calls"
    assert not model.functions
    assert all(n.domain == "" for n in model.graph.all_nodes())
    assert [n.attributes["alpha"].as_float() for n in model.graph if n.op_type == "LeakyRelu"] == [0.25, 0.5]
    assert_same(before, model, {"x": X, "c": np.array(c)})
    io.check(model)
    assert not InlineFunctions()(model).modified


def test_names_are_unique_in_every_scope(parse):
    model = parse(NESTED)
    InlineFunctions()(model)
    graphs = [model.graph, *model.graph.subgraphs()]
    names = [o.name for g in graphs for n in g for o in n.outputs]
    names += [v.name for g in graphs for v in g.inputs]
    inner = [n for n in names if n != "r"]  # the branches name their outputs alike, and may
    assert len(set(inner)) == len(inner)


def test_exclude_keeps_a_function_and_its_calls(parse, assert_same):
    before, model = parse(NESTED), parse(NESTED)
    InlineFunctions(exclude=("Inner",))(model)
    assert [key[1] for key in model.functions] == ["Inner"]
    assert _flat(model).count("Inner") == 4
    assert_same(before, model, {"x": X, "c": np.array(True)})


def test_include_names_what_is_inlined(parse, assert_same):
    before, model = parse(NESTED), parse(NESTED)
    result = InlineFunctions(include=("Inner",))(model)
    assert [key[1] for key in model.functions] == ["Outer"]
    assert result.summary == "inlined 3 calls"
    assert_same(before, model, {"x": X, "c": np.array(False)})


def test_body_of_a_loop_in_a_function_is_copied_for_each_call(parse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { i = f.Twice(x) y = f.Twice(i) }
    <domain: "f", opset_import: ["" : 17]>
    Twice (a) => (b) {
      m = Constant <value = int64 {2}> ()
      b = Loop (m, , a) <body = body (int64 i, bool c, float[N] v) => (bool c2, float[N] w) {
        c2 = Identity(c) w = Add(v, a) }>
    }"""
    before, model = parse(text), parse(text)
    InlineFunctions()(model)
    bodies = list(model.graph.subgraphs())
    names = [v.name for b in bodies for v in b.inputs]
    assert len(set(names)) == len(names) == 6
    assert "i" not in names  # it is the name of an outer value
    assert_same(before, model, {"x": X})


def test_optional_input_left_out_and_output_passed_through(parse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y, float[N] z) { y, z = f.Clip(x) }
    <domain: "f", opset_import: ["" : 17]>
    Clip (a, low) => (b, c) { b = Clip(a, low) c = Identity(a) }"""
    before, model = parse(text), parse(text)
    InlineFunctions()(model)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert_same(before, model, {"x": X})


def test_function_that_returns_its_input(parse, ops):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y, float[N] z) { y, z = f.Same(x) }
    <domain: "f", opset_import: ["" : 17]>
    Same (a) => (b, a) { b = Neg(a) }"""
    model = parse(text, check=False)
    InlineFunctions()(model)
    assert ops(model) == ["Neg", "Identity"]
    io.check(model)


def test_metadata_and_call_names(parse):
    text = """<ir_version: 10, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { y = f.Neg2(x) }
    <domain: "f", opset_import: ["" : 17]> Neg2 (a) => (b) { t = Neg(a) b = Neg(t) }"""
    model = parse(text)
    model.graph[0].metadata_props["layer"] = "call"
    next(iter(model.functions.values()))[0].metadata_props["layer"] = "own"
    InlineFunctions()(model)
    assert [n.metadata_props["layer"] for n in model.graph] == ["own", "call"]


def test_types_claimed_in_a_function_do_not_come_along(parse, run):
    text = """<ir_version: 10, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x, double[N] d) => (float[N] y, double[N] e) { y = f.F(x) e = f.F(d) }
    <domain: "f", opset_import: ["" : 17]> F (a) => (b) { t = Neg(a) b = Abs(t) }"""
    model = parse(text)
    function = next(iter(model.functions.values()))
    function[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    function[1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    InlineFunctions()(model)
    y, e = run(model, {"x": X, "d": X.astype(np.float64)})
    assert (y.dtype, e.dtype) == (np.float32, np.float64)


def test_other_opset_is_left(parse):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { y = f.F(x) }
    <domain: "f", opset_import: ["" : 16]> F (a) => (b) { b = Neg(a) }"""
    model = parse(text)
    result = InlineFunctions()(model)
    assert not result.modified
    assert "opset 16" in result.refusals[0].reason
    assert len(model.functions) == 1


def test_other_version_of_a_domain_nobody_uses_is_no_reason(parse):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "unused" : 1]>
    g (float[N] x) => (float[N] y) { y = f.F(x) }
    <domain: "f", opset_import: ["" : 17, "unused" : 2]> F (a) => (b) { b = Neg(a) }"""
    model = parse(text)
    assert InlineFunctions()(model).modified


def test_imports_of_the_function_come_along(parse):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { y = f.F(x) }
    <domain: "f", opset_import: ["" : 17, "ai.onnx.ml" : 2]>
    F (a) => (b) { b = ai.onnx.ml.Binarizer <threshold = 0.0> (a) }"""
    model = parse(text)
    InlineFunctions()(model)
    assert model.opset_imports["ai.onnx.ml"] == 2


def test_recursion_is_left(parse):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { t = f.A(x) y = f.C(t) }
    <domain: "f", opset_import: ["" : 17, "f" : 1]> A (a) => (b) { b = f.B(a) }
    <domain: "f", opset_import: ["" : 17, "f" : 1]> B (a) => (b) { b = f.A(a) }
    <domain: "f", opset_import: ["" : 17, "f" : 1]> C (a) => (b) { b = Neg(a) }"""
    model = parse(text, check=False)
    result = InlineFunctions()(model)
    assert [n.op_type for n in model.graph] == ["A", "Neg"]
    assert {r.reason for r in result.refusals} == {"it calls itself"}


def test_expansion_is_bounded(parse):
    functions = "\n".join(
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{i} (a) => (b) '
        f"{{ t = f.F{i + 1}(a) b = f.F{i + 1}(t) }}"
        for i in range(40)
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) {{ y = f.F0(x) }}
    {functions}
    <domain: "f", opset_import: ["" : 17]> F40 (a) => (b) {{ b = Neg(a) }}"""
    model = parse(text, check=False)
    result = InlineFunctions()(model)
    assert not result.modified
    assert "nodes" in result.refusals[0].reason


def test_function_that_replaces_a_standard_operator_is_left(parse):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N] x) => (float[N] y) { y = Relu(x) }
    <domain: "", opset_import: ["" : 17]> Relu (a) => (b) { b = Neg(a) }"""
    model = parse(text, check=False)
    assert not InlineFunctions()(model).modified


def test_no_functions(parse):
    model = parse('<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Neg(x) }')
    assert not InlineFunctions()(model).modified
