"""Inferred types and shapes are written where nothing better is declared, and nowhere else."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt.passes.cleanup.infer_shapes import InferShapes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.fixture
def infer(parse):
    def run_pass(text):
        model = parse(HEAD + text if not text.startswith("<") else text, check=False)
        ports = [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
        result = InferShapes()(model)
        assert ports == [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
        return result, {v.name: v for node in model.graph.all_nodes() for v in node.outputs}

    return run_pass


def test_fills_what_is_missing(infer, assert_same, parse):
    result, values = infer("g (float[N, 4] x) => (float[a, b] y) { r = Relu(x)  s = Shape(r)  y = Neg(r) }")
    assert result.modified
    assert result.summary == "typed 3 of 3 values"
    assert result.refusals == []
    assert str(values["r"].shape) == "[N,4]"
    assert values["r"].dtype == ir.DataType.FLOAT
    assert (values["s"].dtype, str(values["s"].shape)) == (ir.DataType.INT64, "[2]")


def test_result_passes_checker_and_runs(parse, assert_same):
    import numpy as np

    text = HEAD + "g (float[N, 4] x) => (float[a, b] y) { r = Relu(x)  c = Concat<axis=0>(r, x)  y = Neg(c) }"
    before, model = parse(text), parse(text)
    assert InferShapes()(model).modified
    assert str(model.graph[1].outputs[0].shape) == "[2*N,4]"
    assert_same(before, model, *({"x": np.ones((n, 4), np.float32)} for n in (1, 3)))


def test_second_run_changes_nothing(parse):
    model = parse(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x)  n = NonZero(r)  y = Neg(r) }")
    assert InferShapes()(model).modified
    text = ir.to_proto(model).SerializeToString()
    again = InferShapes()(model)
    assert not again.modified
    assert again.summary == "typed 3 of 3 values"
    assert ir.to_proto(model).SerializeToString() == text


def test_open_axes_get_sizes_and_declared_names_stay(infer):
    _, values = infer(
        "g (float[N, 4] x) => (float[N, 4] y) <float[rows, cols] r> { r = Relu(x)  y = Neg(r) }"
    )
    assert str(values["r"].shape) == "[rows,4]"


def test_made_up_names_are_not_written(infer):
    """Two runs would use the same name for different axes."""
    _, values = infer(
        "g (float[N, 4] x) => (float[a, b] y) { n = NonZero(x)  c = Cast<to=1>(n)  y = Neg(c) }"
    )
    assert values["n"].shape[0] == 2
    assert values["n"].shape[1].value is None


def test_contradiction_is_reported_and_left(infer):
    result, values = infer("g (float[2, 4] x) => (float[2, 4] y) <float[3, 4] r> { r = Relu(x)  y = Neg(r) }")
    assert not result.modified
    assert str(values["r"].shape) == "[3,4]"
    assert str(result.refusals[0]) == "infer-shapes at 'r': declared is [3,4], inferred is [2,4]"


def test_contradicting_output_is_reported_and_never_changed(infer):
    result, values = infer("g (float[2, 4] x) => (float[7, 4] y) { y = Relu(x) }")
    assert not result.modified
    assert str(values["y"].shape) == "[7,4]"
    assert "'y'" in str(result.refusals[0])


def test_inner_values_of_subgraphs_are_typed_and_of_functions_not(infer):
    result, values = infer(
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[2] x, bool b) => (float[2] y)
        { z = f.F(x)
          y = If(b) <then_branch = t () => (float[2] p) { k = Neg(z)  p = Abs(k) },
                     else_branch = e () => (float[2] q) { q = Neg(x) }> }
        <domain: "f", opset_import: ["" : 17]> F (a) => (c) { m = Neg(a)  c = Abs(m) }"""
    )
    assert result.summary == "typed 5 of 5 values"
    assert str(values["k"].shape) == "[2]"
    assert str(values["z"].shape) == "[2]"
    assert "m" not in values


def test_model_that_cannot_be_inferred_is_said_so(infer):
    result, _ = infer("g (float[2, 3] x) => (float[2, 3] y) { r = Relu(x)  m = MatMul(r)  y = Neg(m) }")
    assert result.modified  # what lies before the fault
    assert "MatMul" in str(result.refusals[0])
    assert result.summary == "typed 2 of 3 values"
