"""Runs a recipe over a model: every pass timed, verified, gated and reported.

A pass is accepted when the model it leaves keeps its interface, passes the ONNX checker, runs, computes
the same function (an exact pass) or keeps its gate (any pass). Otherwise the model goes back to what it
was, and the run goes on or stops as the recipe says. With ``verify: false`` no model is run and no weight
is read: interface, checker and gates that need no numbers are what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graphopt import data, explain, io, limits, registry
from graphopt._collector import collector_held
from graphopt.analyses import costs
from graphopt.errors import DefectError, GateError, GraphoptError, InputError, UserError, VerificationError
from graphopt.recipe import Gate, Recipe, Step
from graphopt.report import RunReport, Status, StepReport
from graphopt.runtime import evaluate
from graphopt.verification import Verdict, Verifier, lowest

__all__ = ["Pipeline", "Progress"]

#: Called before each pass with its number from 0, how many there are, and its name.
Progress = Callable[[int, int, str], None]


def _silent(number: int, total: int, name: str) -> None:
    """The default: no progress is shown."""


@dataclass
class _Rejection(Exception):  # noqa: N818 - control flow inside this module, never seen outside
    """Why the model that a pass left is not accepted."""

    reason: str
    error: type[GraphoptError]


@dataclass
class Pipeline:
    """One run. ``model`` is the accepted model at any time; the caller's model is never touched.

    ``reported`` tells whether anyone will read the report: without, of the costs only the nodes are counted,
    and refusals are not gone through.
    """

    recipe: Recipe
    model: ir.Model
    source: str = "<model>"
    progress: Progress = _silent
    reported: bool = True
    report: RunReport = field(init=False)
    _axes: dict[str, int] = field(init=False)
    _verifier: Verifier | None = field(init=False, default=None)  # None: nothing is run
    _interface: io.Interface = field(init=False)
    _given: ir.Model = field(init=False)  # the caller's
    _untouched: ir.Model | None = field(init=False, default=None)  # equal to ``model`` while it is not None

    def run(self) -> RunReport:
        """Run all passes.

        Raises:
            VerificationError, GateError: a pass was rejected and the recipe says ``on_failure: stop``; the
                error's ``report`` attribute holds what happened until then.
        """
        with collector_held():
            self._start()
        number = 0
        for chain in _chains(self.recipe):
            if len(chain) == 1 or not self._run_chain(number, chain):
                for offset, step in enumerate(chain):
                    self._announce(number + offset, step)
                    with collector_held():  # not over several: what an undone pass leaves is to go
                        self._run_step(step)
            number += len(chain)
        if self.reported:
            self._explain()
        self._finish()
        return self.report

    def _announce(self, number: int, step: Step) -> None:
        self.progress(number, len(self.recipe.passes), step.name)

    def plan(self) -> RunReport:
        """Everything that :meth:`run` does before its first pass; the passes are listed as planned."""
        self._start()
        self._start_verifying()
        costs_now = self.report.before
        self.report.passes = [
            StepReport(step.name, "planned", costs_now, costs_now, summary=repr(step.pass_))
            for step in self.recipe.passes
        ]
        return self.report

    def _start(self) -> None:
        self._given = self._untouched = self.model
        self.model = self.model.clone()
        self._interface = io.interface(self.model)
        self._check_pinned()
        self._axes = self._pinned_axes()
        before = self._measure()
        self.report = RunReport(self.source, before, before, verified=self.recipe.verified)
        if self.recipe.verify.each:  # a chain may turn out to change nothing
            self._start_verifying()
        if self.recipe.verified:
            self.report.metric_name = data.metric_name(self.recipe)
        self.report.metric_before = self.report.metric_after = self._metric()

    def _start_verifying(self) -> None:
        """Draw the samples and run the model as it came, unless that was done or nothing is to be run."""
        if self.recipe.verified and self._verifier is None:
            self._verifier = Verifier.start(self.recipe, self._given)
            self.report.notes += self._verifier.notes

    def _measure(self) -> costs.Costs:
        return costs.measure(self.model, self._axes) if self.reported else costs.count(self.model)

    def _metric(self) -> float | None:
        return data.metric(self.recipe, self.model) if self.recipe.verified else None

    def _check_pinned(self) -> None:
        names = {v.name: v for v in self.model.graph.inputs}
        for name, shape in self.recipe.model.inputs.items():
            if name not in names:
                known = ", ".join(str(n) for n in names)
                raise InputError(f"model.inputs names '{name}', but the model's inputs are: {known}")
            declared = names[name].shape
            if declared is not None and len(declared) != len(shape):
                raise InputError(
                    f"model.inputs gives '{name}' {len(shape)} axes; the model's input has {len(declared)}"
                )

    def _pinned_axes(self) -> dict[str, int]:
        axes: dict[str, int] = {}
        for value in self.model.graph.inputs:
            pinned = self.recipe.model.inputs.get(str(value.name))
            for dim, size in zip(value.shape or (), pinned or (), strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value and isinstance(size, int):
                    axes[dim.value] = size
        return axes

    def _run_chain(self, number: int, chain: list[Step]) -> bool:
        """Run exact passes and verify what they made together; if that is refused, all of it is taken back.

        Returns False where it was, so that the passes can be run one by one to find the culprit.
        """
        with collector_held():  # between two passes, too
            return self._held_chain(number, chain)

    def _held_chain(self, number: int, chain: list[Step]) -> bool:
        previous, self._untouched = self._untouched or self.model.clone(), None
        entries: list[StepReport] = []
        try:
            for offset, step in enumerate(chain):
                self._announce(number + offset, step)
                before = entries[-1].after if entries else self.report.after
                entries.append(self._run_unverified(step, before))
            applied = [entry for entry in entries if entry.status == "applied"]
            if applied:
                self._accept_chain(applied[-1])
        except _Rejection:
            self.model, self._untouched = previous.clone(), previous
            return False
        self._untouched = None if applied else previous
        self.report.passes += entries
        return True

    def _run_unverified(self, step: Step, before: costs.Costs) -> StepReport:
        entry = StepReport(step.name, "unchanged", before, before, measured=False)
        started = time.perf_counter()
        modified = self._apply(step, entry)
        entry.seconds = time.perf_counter() - started
        if modified:
            nodes = costs.count_nodes(self.model)
            entry.status, entry.after = "applied", replace(before, nodes=nodes)
            entry.summary = entry.summary or f"{nodes - before.nodes:+d} nodes"
        else:
            entry.summary = _nothing_done(entry)
        return entry

    def _accept_chain(self, last: StepReport) -> None:
        """Judge the model that a chain of exact passes left; the verdict goes to its last applied pass."""
        last.verdict = self._checked_verdict()
        if last.verdict and not last.verdict.agrees:
            raise _Rejection(f"changed the numbers: {last.verdict.reason}", VerificationError)
        after = self._measure()
        last.metric_before = self.report.metric_after
        last.metric_after = self.report.metric_after = self._metric()
        self._keep()
        self.report.after = after

    def _run_step(self, step: Step) -> None:
        before = self.report.after
        entry = StepReport(step.name, "unchanged", before, before, metric_before=self.report.metric_after)
        self.report.passes.append(entry)
        previous, self._untouched = self._untouched or self.model.clone(), None
        started = time.perf_counter()
        try:
            modified = self._apply(step, entry)
            entry.seconds = time.perf_counter() - started
            if not modified:
                entry.summary = _nothing_done(entry)
                self._untouched = previous
                return
            self._judge(step, entry)
        except _Rejection as rejection:
            entry.seconds = entry.seconds or time.perf_counter() - started
            self.model, self._untouched = previous.clone(), previous
            self._reject(step, entry, rejection)
            return
        entry.status = "applied"
        self._keep()
        self.report.after = entry.after
        self.report.metric_after = entry.metric_after

    def _apply(self, step: Step, entry: StepReport) -> bool:
        try:
            result = step.pass_(self.model)
        except UserError as error:
            raise _Rejection(str(error), VerificationError) from error
        except Exception as error:
            reason = f"raised {type(error).__name__}: {_one_line(error)} (a defect; please report it)"
            raise _Rejection(reason, DefectError) from error
        self.model = result.model
        if isinstance(result, registry.PassResult):
            entry.summary, entry.refusals = result.summary, result.refusals
        return bool(result.modified)

    def _judge(self, step: Step, entry: StepReport) -> None:
        """Raise a _Rejection unless the model that the pass left may be accepted; fill in the entry."""
        verdict = entry.verdict = self._checked_verdict()
        exact = registry.is_exact(type(step.pass_))
        if verdict and (verdict.broken or (exact and not verdict.agrees)):
            raise _Rejection(f"changed the numbers: {verdict.reason}", VerificationError)
        after = self._measure()
        entry.metric_after = self._metric()
        missed = _missed_gate(step.gate, entry, after) if step.gate else None
        if missed:
            raise _Rejection(f"gate {missed}", GateError)
        entry.after = after
        entry.summary = entry.summary or f"{after.nodes - entry.before.nodes:+d} nodes"

    def _keep(self) -> None:
        """What was judged last is what the next pass is compared with."""
        if self._verifier:
            self._verifier.accept()

    def _checked_verdict(self) -> Verdict | None:
        """How the model compares; raises a _Rejection where it is not valid or has another interface."""
        difference = self._interface.difference(io.interface(self.model))
        if difference:
            raise _Rejection(f"changed the interface: {difference}", VerificationError)
        self._start_verifying()
        try:
            proto = io.check(self.model)
            if self._verifier is None:
                return None
            return self._verifier.judge(evaluate.Structure.of(self.model, proto))
        except UserError as error:
            raise _Rejection(f"left a model that cannot be used: {error}", VerificationError) from error

    def _reject(self, step: Step, entry: StepReport, rejection: _Rejection) -> None:
        stop = self.recipe.verify.on_failure == "stop"
        status: Status = "failed" if stop else "undone"
        entry.status, entry.reason = status, rejection.reason
        if stop:
            where = f"{step.location}: " if step.location and step.location.file != "<recipe>" else ""
            error = rejection.error(f"{where}pass '{step.name}' {rejection.reason}")
            error.report = self.report  # type: ignore[attr-defined]
            raise error from rejection

    def _explain(self) -> None:
        """Keep the refusals that hold for the model as it is now; one for each pass that was taken back."""
        runs = []
        for step, entry in zip(self.recipe.passes, self.report.passes, strict=False):
            refusals = list(entry.refusals)
            if entry.reason:
                refusals.append(
                    registry.Refusal(step.name, "the model", f"the pass was undone: it {entry.reason}")
                )
            runs.append((step.name, repr(step.pass_), refusals))
        self.report.standing = explain.standing(runs, self.model)

    def _finish(self) -> None:
        if self._verifier is None:
            return
        self.report.overall = self._verifier.overall()
        steps = zip(self.recipe.passes, self.report.passes, strict=True)
        if all(registry.is_exact(type(s.pass_)) for s, entry in steps if entry.status == "applied"):
            return  # the input model itself was as near, or as far
        if self.report.after.bytes > limits.SEGMENT_WEIGHTS:
            return  # onnxruntime's optimizer would copy all weights
        optimized = self._verifier.judge_optimized(self.model)
        if not optimized.agrees:
            self.report.notes.append(
                f"onnxruntime's own optimizer changes this model's numbers: {optimized.reason}"
            )


def _chains(recipe: Recipe) -> list[list[Step]]:
    """The passes in groups that are verified together: one by one, or neighbours where ``each`` is false.

    Where nothing is run there is nothing to tell apart: only a gate makes a pass stand alone.
    """
    chains: list[list[Step]] = []
    joins = False
    for step in recipe.passes:
        cls = type(step.pass_)
        each = recipe.verify.each or not registry.is_exact(cls)
        alone = step.gate is not None or bool(getattr(cls, "alone", False)) or (recipe.verified and each)
        if joins and not alone:
            chains[-1].append(step)
        else:
            chains.append([step])
        joins = not alone
    return chains


def _nothing_done(entry: StepReport) -> str:
    left = len(entry.refusals)
    if left == 1 and entry.refusals[0].where == "the model":
        return f"nothing done: {entry.refusals[0].reason}"
    return f"nothing to do; left {left} alone" if left else "nothing to do"


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _missed_gate(gate: Gate, entry: StepReport, after: costs.Costs) -> str | None:
    """The first gate that is not met, with the measured figure; None if all are."""
    if gate.must_shrink and after.bytes >= entry.before.bytes:
        return f"must_shrink: bytes went from {entry.before.bytes} to {after.bytes}"
    if gate.max_metric_drop is not None:
        assert entry.metric_before is not None
        assert entry.metric_after is not None
        drop = entry.metric_before - entry.metric_after
        if drop > gate.max_metric_drop:
            return f"max_metric_drop: {gate.max_metric_drop:g}, measured {drop:.4f}"
    return _missed_minimum(gate, entry.verdict) if entry.verdict else None


def _missed_minimum(gate: Gate, verdict: Verdict) -> str | None:
    outputs = verdict.comparison.outputs
    measured = {
        "min_sqnr_db": lowest([o.sqnr_db for o in outputs]),
        "min_cosine": lowest([o.cosine for o in outputs]),
        "min_top1_agreement": lowest([o.top1_agreement for o in outputs]),
    }
    for name, value in measured.items():
        wanted = getattr(gate, name)
        if wanted is None:
            continue
        if value is None:
            raise InputError(f"gate '{name}' cannot be evaluated: no output of this model has one")
        if value < wanted:
            return f"{name}: {wanted:g}, measured {value:.4g}"
    return None
