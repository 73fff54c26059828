"""The pipeline: a pass is accepted only when the model it leaves is right; otherwise nothing of it stays."""

from __future__ import annotations

import dataclasses
import gc
from io import StringIO
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

import graphopt
from graphopt import api, io
from graphopt.analyses import costs
from graphopt.errors import DefectError, GateError, InputError, UnsupportedError, VerificationError
from graphopt.pipeline import Pipeline
from graphopt.recipe import Data, Evaluation, Gate, ModelSection, Recipe, Step, Verify
from graphopt.registry import Pass, PassResult
from graphopt.runtime import evaluate
from graphopt.verification import Verifier

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
classify (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, float[3] b = {0, 0, 0}>
{ h = MatMul(x, w)
  y = Add(h, b) }
"""


@pytest.fixture
def model(parse):
    return parse(MODEL)


def scale_weights(factor: float, model: ir.Model) -> PassResult:
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name="w")
    return PassResult(model, True, f"scaled by {factor:g}")


@dataclasses.dataclass(eq=False)
class Scale(Pass):
    """Multiply the weights: wrong as an exact pass."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def call(self, model):
        return scale_weights(self.factor, model)


@dataclasses.dataclass(eq=False)
class Approximate(Scale):
    """The same, honest about it."""

    name: ClassVar[str] = "approximate"
    exact: ClassVar[bool] = False


@dataclasses.dataclass(eq=False)
class Act(Pass):
    """Do what a test says."""

    name: ClassVar[str] = "act"
    action: object = None

    def call(self, model):
        return self.action(model) or PassResult(model, True)


def go(model, /, *passes, gate=None, **sections) -> Pipeline:
    recipe = Recipe(tuple(Step(p.name, p, gate) for p in passes), **sections)
    pipeline = Pipeline(recipe, model)
    pipeline.run()
    return pipeline


def entries(pipeline):
    return [(s.name, s.status) for s in pipeline.report.passes]


def weights(model):
    return model.graph.initializers["w"].const_value.numpy()


def test_an_exact_pass_within_rounding_is_applied(model):
    pipeline = go(model, Scale(1 + 1e-6))
    assert entries(pipeline) == [("scale", "applied")]
    assert weights(pipeline.model)[0, 0] > 1
    verdict = pipeline.report.passes[0].verdict
    assert verdict.agrees
    assert 0 < verdict.comparison.outputs[0].max_rel < 1e-5


def test_an_exact_pass_that_changes_the_numbers_is_undone_and_the_run_goes_on(model):
    pipeline = go(model, Scale(1.01), Scale(1 + 1e-6))
    assert entries(pipeline) == [("scale", "undone"), ("scale", "applied")]
    assert "changed the numbers: output 'y' differs by" in pipeline.report.passes[0].reason
    assert weights(pipeline.model)[0, 0] == np.float32(1 + 1e-6)


def test_the_callers_model_is_never_touched(model):
    go(model, Approximate(2.0))
    assert weights(model)[0, 0] == 1


def test_stop_ends_the_run_and_keeps_the_report(model):
    with pytest.raises(VerificationError, match="pass 'scale' changed the numbers") as caught:
        go(model, Scale(1 + 1e-6), Scale(1.01), Scale(1.0), verify=Verify(on_failure="stop"))
    assert [s.status for s in caught.value.report.passes] == ["applied", "failed"]


def test_an_approximate_pass_is_measured_not_judged(model):
    pipeline = go(model, Approximate(1.01))
    step = pipeline.report.passes[0]
    assert step.status == "applied"
    assert step.verdict.comparison.outputs[0].sqnr_db == pytest.approx(40, abs=0.01)
    assert step.verdict.comparison.outputs[0].top1_agreement == 1.0


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        (Gate(min_sqnr_db=39), "applied"),
        (Gate(min_sqnr_db=41), "undone"),
        (Gate(min_cosine=0.999), "applied"),
        (Gate(min_top1_agreement=1.0), "applied"),
        (Gate(must_shrink=True), "undone"),
    ],
)
def test_gates(model, gate, status):
    pipeline = go(model, Approximate(1.01), gate=gate)
    assert entries(pipeline) == [("approximate", status)]
    if status == "undone":
        assert weights(pipeline.model)[0, 0] == 1
        assert "gate m" in pipeline.report.passes[0].reason


def test_a_missed_gate_stops_the_run_if_the_recipe_says_so(model):
    with pytest.raises(GateError, match="gate min_sqnr_db: 41, measured 40") as caught:
        go(model, Approximate(1.01), gate=Gate(min_sqnr_db=41), verify=Verify(on_failure="stop"))
    assert caught.value.exit_code == 1


def test_approximate_passes_may_not_leave_the_finite_numbers(model):
    pipeline = go(model, Approximate(float("nan")))
    assert entries(pipeline) == [("approximate", "undone")]


def test_a_pass_that_raises_is_undone(model):
    def damage(model):
        scale_weights(3, model)
        raise KeyError("lost")

    pipeline = go(model, Act(damage))
    assert entries(pipeline) == [("act", "undone")]
    assert "raised KeyError: 'lost' (a defect; please report it)" in pipeline.report.passes[0].reason
    assert weights(pipeline.model)[0, 0] == 1
    with pytest.raises(DefectError):
        go(model, Act(damage), verify=Verify(on_failure="stop"))


def test_a_refusal_of_the_user_is_no_defect(model):
    def refuse(model):
        raise UnsupportedError("needs opset 99")

    assert go(model, Act(refuse)).report.passes[0].reason == "needs opset 99"


def rename_output(model):
    model.graph.outputs[0].name = "z"


def fix_batch(model):
    model.graph.inputs[0].shape = ir.Shape([1, 4])


def drop_add(model):
    del model.graph.initializers["b"]


def add_unknown(model):
    y = model.graph.outputs[0]
    node = ir.node("NoSuchOperator", [model.graph.inputs[0]], num_outputs=1)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y2", y.type, y.shape
    model.graph.append(node)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (rename_output, "changed the interface"),
        (fix_batch, "changed the interface"),
        (drop_add, "left a model that cannot be used"),
        (add_unknown, "left a model that cannot be used"),
    ],
)
def test_a_broken_model_is_taken_back(model, action, reason, run):
    pipeline = go(model, Act(action))
    assert entries(pipeline) == [("act", "undone")]
    assert reason in pipeline.report.passes[0].reason
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(pipeline.model, {"x": x})[0], np.ones((2, 3), np.float32))


def test_a_pass_that_did_nothing_is_unchanged(model):
    pipeline = go(model, Act(lambda model: PassResult(model, False)))
    assert entries(pipeline) == [("act", "unchanged")]
    assert pipeline.report.passes[0].verdict is None


def test_metric_gate(model, tmp_path):
    x = np.eye(4, dtype=np.float32)[:3]
    np.savez(tmp_path / "test.npz", x=x, y=np.arange(3))

    def swap(model):
        weight = model.graph.initializers["w"]
        weight.const_value = ir.tensor(weight.const_value.numpy()[:, ::-1].copy(), name="w")

    class Swap(Act):
        name: ClassVar[str] = "swap"
        exact: ClassVar[bool] = False

    sections = {"data": Data(evaluation=Evaluation("test.npz", "y")), "folder": tmp_path}
    kept = go(model, Swap(swap), gate=Gate(max_metric_drop=0.7), **sections)
    assert entries(kept) == [("swap", "applied")]
    assert (kept.report.metric_before, kept.report.metric_after) == (1.0, pytest.approx(1 / 3))
    undone = go(model, Swap(swap), gate=Gate(max_metric_drop=0.5), **sections)
    assert entries(undone) == [("swap", "undone")]
    assert undone.report.metric_after == 1.0


def test_calibration_samples_are_what_is_compared(model, tmp_path):
    """Weights of the last input do not matter on samples where it is zero."""
    np.savez(tmp_path / "calib.npz", x=np.float32([[1, 0, 0, 0]] * 3))

    def change_second_row(model):
        weight = model.graph.initializers["w"]
        array = weight.const_value.numpy().copy()
        array[1] = 7
        weight.const_value = ir.tensor(array, name="w")

    assert entries(go(model, Act(change_second_row))) == [("act", "undone")]
    with_data = go(model, Act(change_second_row), data=Data(calibration="calib.npz"), folder=tmp_path)
    assert entries(with_data) == [("act", "applied")]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 4), np.float32)}, "has no array for input 'x'; it has: z"),
        ({"x": np.zeros((2, 4))}, "array 'x' is float64, the model's input is FLOAT"),
        ({"x": np.zeros(4, np.float32)}, "array 'x' has 1 axes, the model's input has 2"),
    ],
)
def test_wrong_calibration_data(model, tmp_path, arrays, message):
    np.savez(tmp_path / "calib.npz", **arrays)
    with pytest.raises(InputError, match=message):
        go(model, data=Data(calibration="calib.npz"), folder=tmp_path)


def test_pickled_data_is_refused(model, tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.array([{"code": 1}], dtype=object))
    with pytest.raises(InputError, match="not plain numpy data"):
        go(model, data=Data(calibration="calib.npz"), folder=tmp_path)


def test_pinned_axes_count_in_the_costs(model):
    pipeline = go(model, model=ModelSection({"x": (5, 4)}))
    assert pipeline.report.before.macs == 5 * 4 * 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"q": (1, 4)}, "names 'q', but the model's inputs are: x"),
        ({"x": (1,)}, "gives 'x' 1 axes; the model's input has 2"),
    ],
)
def test_wrong_pinned_inputs(model, inputs, message):
    with pytest.raises(InputError, match=message):
        go(model, model=ModelSection(inputs))


def test_random_outputs_are_left_out_and_named(parse):
    noisy = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        noisy (float[n, 2] x) => (float[n, 2] y, float[n, 2] z)
        { r = RandomNormalLike(x)
          z = Add(x, r)
          y = Relu(x) }"""
    )
    pipeline = go(noisy, Act(lambda model: PassResult(model, True)))
    assert entries(pipeline) == [("act", "applied")]
    assert [o.name for o in pipeline.report.passes[0].verdict.comparison.outputs] == ["y"]
    assert any("output 'z' is random" in note for note in pipeline.report.notes)


def test_a_model_of_nothing_but_random_outputs_is_refused(parse):
    noise = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        noise (float[n, 2] x) => (float[n, 2] y) { y = RandomNormalLike(x) }"""
    )
    with pytest.raises(UnsupportedError, match="every output is random"):
        go(noise, Act())


def test_a_model_proto_in_gives_a_model_proto_back(model):
    proto = ir.to_proto(model)
    before = proto.SerializeToString()
    recipe = Recipe((Step("scale", Scale(1.0)),))
    assert isinstance(graphopt.run(recipe, proto).model, type(proto))
    assert isinstance(graphopt.run(recipe, model).model, ir.Model)
    assert proto.SerializeToString() == before


def test_outputs_and_report_are_written(model, tmp_path, run):
    target = tmp_path / "out.onnx"
    result = api.run(
        {"version": 1, "passes": ["eliminate-dead-code"], "report": {"json": str(tmp_path / "report.json")}},
        model,
        outputs=[target],
    )
    assert result.report.outputs[0].bytes == target.stat().st_size
    assert (tmp_path / "report.json").stat().st_size > 0
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(io.load(target), {"x": x})[0], run(model, {"x": x})[0])


def test_an_unknown_output_format_is_refused_before_anything_runs(model, tmp_path):
    with pytest.raises(graphopt.GraphoptError, match=r"no emitter writes '.xyz' files; known: .onnx"):
        api.run({"version": 1, "passes": []}, model, outputs=[tmp_path / "model.xyz"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_only_the_reference_evaluator_runs_is_taken_back(parse):
    """onnxruntime has no bfloat16 Erf; the reference evaluator has."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 2] x) => (float[n, 2] y) { y = Erf(x) }"""
    )

    def through_bfloat16(model):
        x, y = model.graph.inputs[0], model.graph.outputs[0]
        narrow = ir.node("Cast", [x], {"to": ir.DataType.BFLOAT16.value})
        erf = ir.node("Erf", narrow.outputs)
        wide = ir.node("Cast", erf.outputs, {"to": ir.DataType.FLOAT.value})
        model.graph.remove(model.graph[0])
        model.graph.extend([narrow, erf, wide])
        model.graph.outputs[0] = wide.outputs[0]
        y.name = None
        wide.outputs[0].name, wide.outputs[0].type, wide.outputs[0].shape = "y", y.type, y.shape

    pipeline = go(model, Act(through_bfloat16))
    assert entries(pipeline) == [("act", "undone")]
    assert "no longer runs in onnxruntime" in pipeline.report.passes[0].reason


CHAINED = Verify(each=False)


def test_a_chain_of_exact_passes_is_verified_once(model, monkeypatch):
    judged = []
    judge = Verifier.judge
    monkeypatch.setattr(Verifier, "judge", lambda self, m: judged.append(m) or judge(self, m))
    pipeline = go(
        model, Scale(1 + 1e-6), Act(lambda m: PassResult(m, False)), Scale(1 + 1e-6), verify=CHAINED
    )
    assert entries(pipeline) == [("scale", "applied"), ("act", "unchanged"), ("scale", "applied")]
    assert len(judged) == 1
    first, _, last = pipeline.report.passes
    assert first.verdict is None
    assert last.verdict.agrees
    assert pipeline.report.overall.comparison.outputs[0].max_rel > 1e-6
    assert weights(pipeline.model)[0, 0] > 1 + 1.5e-6
    assert weights(model)[0, 0] == 1


def test_of_a_wrong_chain_the_culprit_alone_is_undone(model):
    passes = Scale(1 + 1e-6), Scale(1.01), Scale(1 + 1e-6)
    pipeline = go(model, *passes, verify=CHAINED)
    assert entries(pipeline) == [("scale", "applied"), ("scale", "undone"), ("scale", "applied")]
    assert "changed the numbers" in pipeline.report.passes[1].reason
    assert 1 + 1.5e-6 < weights(pipeline.model)[0, 0] < 1 + 3e-6
    assert pipeline.report.overall.agrees
    assert weights(model)[0, 0] == 1


def raise_key_error(model):
    scale_weights(3, model)
    raise KeyError("lost")


@pytest.mark.parametrize("action", [rename_output, fix_batch, drop_add, add_unknown, raise_key_error])
def test_of_a_broken_chain_the_culprit_alone_is_undone(model, action):
    pipeline = go(model, Scale(1 + 1e-6), Act(action), Scale(1 + 1e-6), verify=CHAINED)
    assert entries(pipeline) == [("scale", "applied"), ("act", "undone"), ("scale", "applied")]
    assert 1 + 1.5e-6 < weights(pipeline.model)[0, 0] < 1 + 3e-6


def test_two_errors_that_cancel_pass_only_as_a_chain(model):
    passes = Scale(2.0), Scale(0.5)
    assert entries(go(model, *passes)) == [("scale", "undone")] * 2
    pipeline = go(model, *passes, verify=CHAINED)
    assert entries(pipeline) == [("scale", "applied")] * 2
    assert weights(pipeline.model)[0, 0] == 1


def test_stop_names_the_culprit_of_a_chain(model):
    with pytest.raises(VerificationError, match="pass 'scale' changed the numbers") as caught:
        go(model, Scale(1.0), Scale(1.01), verify=Verify(each=False, on_failure="stop"))
    assert [s.status for s in caught.value.report.passes] == ["applied", "failed"]


def test_approximate_and_gated_passes_are_verified_on_their_own(model):
    passes = Scale(1.0), Approximate(1.01), Scale(1.0)
    pipeline = go(model, *passes, verify=CHAINED)
    assert all(s.verdict for s in pipeline.report.passes)
    gated = go(model, Scale(1 + 1e-6), Scale(1 + 1e-6), gate=Gate(must_shrink=True), verify=CHAINED)
    assert entries(gated) == [("scale", "undone")] * 2
    assert "gate must_shrink" in gated.report.passes[0].reason


def test_a_chain_reports_nodes_but_neither_bytes_nor_macs(model):
    report = go(model, Scale(1.0), Scale(1.0), verify=CHAINED).report
    entry = report.passes[0].to_json()
    assert entry["nodes_before"] == entry["nodes_after"] == 2
    assert [entry[key] for key in ("bytes_before", "bytes_after", "macs_before", "macs_after")] == [None] * 4
    assert report.after.macs == report.before.macs == 12
    report.table()


def test_a_rejected_first_pass_leaves_the_callers_model_alone(model):
    pipeline = go(model, Scale(1.01), Scale(1 + 1e-6))
    assert pipeline.model is not model
    assert weights(model)[0, 0] == 1


def unverified(model, *passes, gate=None):
    return go(model, *passes, gate=gate, verified=False)


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a model was run")

    monkeypatch.setattr(evaluate.Session, "__init__", refuse)


def test_without_verification_no_model_is_run_and_the_report_says_so(model, nothing_runs):
    pipeline = unverified(model, Scale(2.0), Approximate(3.0), Act(lambda m: PassResult(m, False)))
    assert entries(pipeline) == [("scale", "applied"), ("approximate", "applied"), ("act", "unchanged")]
    assert weights(pipeline.model)[0, 0] == 6
    assert weights(model)[0, 0] == 1
    report = pipeline.report
    assert report.overall is None
    assert all(entry.verdict is None for entry in report.passes)
    document = report.to_json()
    assert (document["verified"], document["verify"]) == (False, None)
    assert "not verified: no model was run, only its interface and structure were checked" in (
        report.closing_lines()
    )
    assert "not verified" in shown(report)


def test_a_verified_report_says_nothing_of_the_kind(model):
    report = go(model, Scale(1.0)).report
    assert report.to_json()["verified"] is True
    assert "not verified" not in shown(report) + "".join(report.closing_lines())


def shown(report) -> str:
    console = Console(width=160, file=StringIO())
    console.print(report.table())
    return console.file.getvalue()


@pytest.mark.parametrize("action", [rename_output, fix_batch, drop_add, raise_key_error])
def test_interface_and_structure_are_checked_without_verification(model, action, nothing_runs):
    pipeline = unverified(model, Scale(2.0), Act(action), Scale(2.0))
    assert entries(pipeline) == [("scale", "applied"), ("act", "undone"), ("scale", "applied")]
    assert weights(pipeline.model)[0, 0] == 4


def test_a_gate_on_size_holds_without_verification(model, nothing_runs):
    pipeline = unverified(model, Scale(2.0), gate=Gate(must_shrink=True))
    assert entries(pipeline) == [("scale", "undone")]
    assert "gate must_shrink" in pipeline.report.passes[0].reason


def test_the_metric_is_not_computed_without_verification(model, nothing_runs, tmp_path):
    evaluation = Data(evaluation=Evaluation("absent.npz", "y"))
    pipeline = go(model, Scale(2.0), data=evaluation, folder=tmp_path, verified=False)
    assert pipeline.report.metric_before is None
    assert pipeline.report.to_json()["metric"] is None


@pytest.mark.parametrize("verify", [Verify(), CHAINED])
def test_the_collector_is_held_while_a_pass_runs_and_let_go_after_it(model, verify):
    seen = []
    go(model, *[Act(lambda m: seen.append(gc.isenabled()))] * 2, verify=verify)
    assert seen == [False, False]
    assert gc.isenabled()


def test_costs_that_nobody_reads_are_not_measured(model, monkeypatch):
    monkeypatch.setattr(costs, "measure", lambda *arguments: pytest.fail("measured"))
    assert graphopt.optimize(model).graph.name == model.graph.name


def test_a_chain_that_changes_nothing_runs_nothing(model, nothing_runs):
    pipeline = go(model, *[Act(lambda m: PassResult(m, False))] * 2, verify=CHAINED)
    assert entries(pipeline) == [("act", "unchanged")] * 2
    assert pipeline.report.overall is None
    assert "not verified" not in "".join(pipeline.report.closing_lines())


def test_samples_that_cannot_be_drawn_end_a_chain_that_changed_something(parse):
    text = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (string[2] x) => (string[2] y) { y = Identity(x) }"""
    )
    with pytest.raises(UnsupportedError, match="cannot draw input 'x'"):
        go(text, Act(lambda m: None), Act(lambda m: None), verify=CHAINED)


def test_a_dry_run_draws_the_samples(parse):
    text = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (string[2] x) => (string[2] y) { y = Identity(x) }"""
    )
    with pytest.raises(UnsupportedError, match="cannot draw input 'x'"):
        Pipeline(Recipe((), verify=CHAINED), text).plan()
