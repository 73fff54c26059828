"""onnxruntime's optimizer as a pass: what it does, what must stay, and every way it can fail."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import builtin, io
from graphopt.errors import InputError
from graphopt.passes.interop import _ort_optimize_child as optimizer
from graphopt.passes.interop.ort_optimize import OrtOptimize
from graphopt.pipeline import Pipeline
from graphopt.recipe import Recipe, Step, Verify
from graphopt.runtime import child, evaluate, latency

X = np.arange(-9, 9, dtype=np.float32).reshape(1, 2, 3, 3)

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2,H,W] x, float[2] unused, float[1] w) => (float[N,2,H,W] y)
<float[1] w = {3}, float[1] two = {2}, float[2,2,1,1] k = {1, 2, 3, 4}> {
    six = Mul(two, two)
    [conv] c = Conv(x, k)
    [relu] r = Relu(c)
    [scale] s = Mul(r, six)
    [last] y = Add(s, w)
}"""


@pytest.fixture
def measured(monkeypatch):
    """Let the pass measure a given ratio, so that no test depends on time."""

    def set_ratio(ratio: float) -> None:
        monkeypatch.setattr(
            latency, "compare", lambda *_, **__: latency.Latency(ratio, ratio, ratio + 0.01, 31)
        )

    set_ratio(0.5)
    return set_ratio


def domains(model):
    return {node.domain for node in model.graph}


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        ("basic", ["Conv", "Relu", "Mul", "Add"]),
        ("extended", ["FusedConv", "Mul", "Add"]),
        ("all-without-layout", ["FusedConv", "Mul", "Add"]),
    ],
)
def test_optimizes_and_keeps_interface_names_and_metadata(level, wanted, parse, ops, run, measured):
    model = parse(TEXT)
    model.metadata_props["author"] = "me"
    for node in model.graph:
        node.metadata_props["was"] = str(node.name)
    before, interface = model.clone(), io.interface(model)
    result = OrtOptimize(level=level)(model)
    assert result.modified
    assert result.summary == f"5 to {len(wanted)} nodes, 0.50x the time (0.50 to 0.51 in half of 31 rounds)"
    assert ops(model) == wanted
    assert io.interface(model) == interface
    assert dict(model.metadata_props) == {"author": "me"}
    assert (model.graph[-1].name, model.graph[-1].metadata_props["was"]) == ("last", "last")
    assert all("was" in node.metadata_props for node in model.graph)
    assert set(model.graph.opset_imports) == {"", *domains(model)}
    io.check(model)
    feed = {"x": X, "unused": np.zeros(2, np.float32)}
    for given in (feed, {**feed, "w": np.float32([7])}):
        np.testing.assert_allclose(run(model, given), run(before, given), rtol=1e-5, atol=1e-6)


def test_what_the_fused_operators_make_has_the_type_it_had(parse, measured):
    model = parse(TEXT)
    OrtOptimize()(model)
    (output,) = model.graph[0].outputs
    assert output.dtype == ir.DataType.FLOAT
    assert [str(d) for d in output.shape] == ["N", "2", "H", "W"]


def test_tensors_that_have_not_changed_are_the_same_objects(parse, measured):
    text = TEXT.replace(
        "k = {1, 2, 3, 4}", f"k = {{1, 2, 3, 4}}, float[600] big = {{{', '.join('1' * 600)}}}"
    )
    model = parse(
        text.replace("=> (float[N,2,H,W] y)", "=> (float[N,2,H,W] y, float[600] z)").replace(
            "six =", "z = Relu(big) six ="
        )
    )
    model.graph.node(0).replace_input_with(0, model.graph.initializers["big"])
    kernel = model.graph.initializers["k"].const_value
    OrtOptimize()(model)
    assert model.graph.initializers["k"].const_value is kernel
    folded = [v.const_value for v in model.graph.initializers.values() if v.const_value.size == 600]
    assert all(not isinstance(t, ir.ExternalTensor) for t in folded)
    assert all(t.numpy().all() for t in folded)


def test_a_slower_result_is_left(parse, measured):
    measured(1.2)
    model = parse(TEXT)
    graph = model.graph
    result = OrtOptimize()(model)
    assert not result.modified
    assert model.graph is graph
    (refusal,) = result.refusals
    assert (refusal.where, refusal.reason) == (
        "the model",
        "the result takes 1.20x the time (1.20 to 1.21 in half of 31 rounds); allowed is 1.05x",
    )
    assert OrtOptimize(tolerance=0.3)(model).modified


def test_more_nodes_must_be_faster(parse, measured, monkeypatch):
    answer = parse(TEXT.replace("y = Add(s, w)", "t = Identity(s) y = Add(t, w)"))

    def run(module, arguments, limits):
        io.save(answer, arguments[1], external_data=False)
        return child.Ended(0, "")

    monkeypatch.setattr(child, "run_module", run)
    measured(1.0)
    assert OrtOptimize()(parse(TEXT)).summary.startswith(
        "the result has 6 nodes for 5, and takes 1.00x the time"
    )
    measured(0.9)
    assert OrtOptimize()(parse(TEXT)).modified


def test_a_file_that_would_grow_is_refused(parse, measured):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[5000] y)
    <int64[1] n = {5000}> {
        c = ConstantOfShape <value = float[1] {1.0}> (n) s = Relu(c) y = Add(s, x) }"""
    model = parse(text)
    assert "the file would grow from" in OrtOptimize()(model).summary
    assert OrtOptimize(growth=1000)(model).modified


@pytest.mark.parametrize("opset", [13, 17])
def test_no_operator_that_the_opset_does_not_have(opset, parse, run, measured):
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,4] x) => (float[N,4] y)
    <float two = {{2}}, float eps = {{1e-5}}, float[4] w = {{1, 2, 3, 4}}, float[4] b = {{1, 2, 3, 4}}> {{
        m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean <axes = [-1]> (p)
        e = Add(v, eps) s = Sqrt(e) n = Div(d, s) sc = Mul(n, w) l = Add(sc, b)
        q = Pow(l, two) u = ReduceMean <axes = [-1]> (q) f = Add(u, eps) t = Sqrt(f) o = Div(l, t)
        y = Mul(o, w)
    }}"""
    model = parse(text)
    OrtOptimize()(model)
    io.check(model)
    assert ("LayerNormalization" in [n.op_type for n in model.graph]) == (opset >= 17)
    assert "SimplifiedLayerNormalization" not in [n.op_type for n in model.graph]
    feed = {"x": X.reshape(-1)[:16].reshape(4, 4)}
    np.testing.assert_allclose(run(model, feed), run(parse(text), feed), rtol=1e-5, atol=1e-5)


def test_nothing_to_optimize_leaves_the_graph_alone(parse, measured):
    model = parse('<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Relu(x) }')
    graph = model.graph
    result = OrtOptimize()(model)
    assert not result.modified
    assert not result.refusals
    assert model.graph is graph


def test_what_onnxruntime_does_not_know_is_refused_by_name(parse, measured):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "mine": 1]>
        g (float[3] x) => (float[3] y) { h = Relu(x) y = mine.Unheard(h) }"""
    )
    graph = model.graph
    result = OrtOptimize()(model)
    assert not result.modified
    assert model.graph is graph
    assert result.summary.startswith("onnxruntime failed: ")
    assert "mine" in result.summary
    assert "\n" not in result.summary


def test_a_hang_and_a_crash_are_refusals(parse, measured, monkeypatch):
    monkeypatch.setattr(child, "run_module", lambda *_: child.Ended(-9, "", timed_out=True))
    assert "did not end within 5 s (option timeout)" in OrtOptimize(timeout=5)(parse(TEXT)).summary
    monkeypatch.setattr(child, "run_module", lambda *_: child.Ended(-11, ""))
    assert OrtOptimize()(parse(TEXT)).summary == "onnxruntime failed: crashed (SIGSEGV)"


def test_the_layout_of_one_cpu_is_refused(parse, measured, monkeypatch):
    text = TEXT.replace('["" : 17]', '["" : 17, "com.microsoft.nchwc" : 1]')
    answer = parse(text.replace("Conv(x, k)", "com.microsoft.nchwc.Conv(x, k)"))

    def run(module, arguments, limits):
        io.save(answer, arguments[1], external_data=False)
        return child.Ended(0, "")

    monkeypatch.setattr(child, "run_module", run)
    assert "the layout of one CPU (com.microsoft.nchwc)" in OrtOptimize()(parse(TEXT)).summary


def test_subgraphs_functions_and_external_data(parse, measured, tmp_path):
    numbers = ", ".join(f"{i % 7 - 3}" for i in range(400))
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N,4] x, bool c) => (float[N,4] y) <float[4,100] v = {NUMBERS}, float[100,4] u = {NUMBERS}> {
        h = f.twice(x)
        y = If(c) <
            then_branch = t () => (float[N,4] a) { m = MatMul(h, v) [inner] r = Relu(m) a = MatMul(r, u) },
            else_branch = e () => (float[N,4] b) { b = Neg(h) }
        >
    }
    <domain: "f", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }"""
    before = parse(text.replace("NUMBERS", numbers))
    inner = next(n for g in before.graph.subgraphs() for n in g if n.name == "inner")
    inner.metadata_props["layer"] = "7"
    io.save(before, tmp_path / "model.onnx", external_data=True)
    model = io.load(tmp_path / "model.onnx")
    assert OrtOptimize()(model).modified
    assert not model.functions
    assert "f" not in domains(model)
    assert isinstance(model.graph.initializers["v"].const_value, ir.ExternalTensor)
    found = [n.name for g in model.graph.subgraphs() for n in g if n.metadata_props.get("layer") == "7"]
    assert found == ["inner"]
    feeds = [{"x": X.reshape(-1)[:16].reshape(4, 4), "c": np.array(c)} for c in (True, False)]
    made = [evaluate.run(m, feeds).outputs for m in (before, model)]
    for want, got in zip(*made, strict=True):
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-5)


def test_a_newer_ir_version_than_onnxruntime_reads(parse, measured):
    model = parse(TEXT)
    model.ir_version = 13
    assert OrtOptimize()(model).modified
    assert model.ir_version == 13


def test_it_is_verified_on_its_own(parse, measured):
    passes = (builtin.optimize_recipe().passes[0], Step("ort-optimize", OrtOptimize()))
    report = Pipeline(Recipe(passes, verify=Verify(each=False)), parse(TEXT)).run()
    assert report.passes[1].measured
    assert report.passes[1].status == "applied"
    assert report.passes[1].verdict.agrees


def test_the_report_says_why_nothing_was_done(parse, measured):
    measured(2.0)
    report = graphopt.run({"version": 1, "passes": ["ort-optimize"]}, parse(TEXT)).report
    assert report.passes[0].summary.startswith("nothing done: the result takes 2.00x the time")
    assert report.left_alone("slow") == []
    assert len(report.left_alone("ort-optimize")) == 1


def test_optimize_for_onnxruntime_ends_with_it(parse, measured):
    assert [s.name for s in builtin.optimize_recipe(target="onnxruntime").passes][-1] == "ort-optimize"
    assert "ort-optimize" not in [s.name for s in builtin.optimize_recipe().passes]
    with pytest.raises(InputError, match="unknown target 'tflite'; known: onnxruntime"):
        builtin.optimize_recipe(target="tflite")
    assert "com.microsoft" in domains(graphopt.optimize(parse(TEXT), target="onnxruntime"))
    assert domains(graphopt.optimize(parse(TEXT))) == {""}


def test_the_child_says_in_one_line_what_is_wrong(tmp_path, capsys):
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    arguments = str(tmp_path / "no.onnx"), str(tmp_path / "out.onnx"), '{"level": "basic", "opset": 17}'
    assert optimizer.main(*arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
