"""Proof of what a pass did to the numbers: the model before and after, on the same inputs.

The truth is onnxruntime with its optimizer off. Inputs are the recipe's calibration samples, or drawn
from the graph alone at several sizes of its dynamic axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import data, graph, registry
from graphopt.errors import UnsupportedError
from graphopt.recipe import Recipe, Verify
from graphopt.runtime import compare, evaluate, samples

__all__ = ["Verdict", "Verifier"]

Feeds = list[dict[str, np.ndarray]]

_RANDOM_OPS = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)


@dataclass(frozen=True)
class Verdict:
    """The result of comparing two models on the samples.

    Attributes:
        comparison: Differences per output, the worst over all samples.
        agrees: Whether they are the same function within the recipe's tolerance.
        broken: Whether something differs that no tolerance covers: shape, dtype, NaN, the engine.
        engine: What ran the models.
        samples: How many sample inputs were compared.
        reason: Why they do not agree; empty where they do.
    """

    comparison: compare.Comparison
    agrees: bool
    engine: str
    samples: int
    reason: str = ""
    broken: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports."""
        return {
            "agrees": self.agrees,
            "engine": self.engine,
            "samples": self.samples,
            "outputs": self.comparison.to_json(),
        }


def draw_feeds(recipe: Recipe, model: ir.Model) -> tuple[Feeds, evaluate.Evaluation, list[str]]:
    """The sample inputs of a run, what the model makes of them, and notes on what could not be varied.

    Exact passes must agree in every element of every sample; of approximate ones the samples are statistics,
    so that none is left out.
    """
    arrays = data.calibration(recipe, model)
    verify = recipe.verify
    if arrays is not None:
        fixed = data.fixed_batch(model)
        feeds, start = [], 0
        for i in range(verify.samples):
            count = fixed or 1 + i % 4
            feeds.append(data.rows(arrays, start, count))
            start += count
        return feeds, evaluate.run(model, feeds), []
    approximate = not all(registry.is_exact(type(step.pass_)) for step in recipe.passes)
    drawn = samples.draw(model, verify.samples, verify.seed, recipe.model.inputs, repeats=approximate)
    notes = [f"axis '{axis}' is declared dynamic but runs at one size only" for axis in drawn.fixed_axes]
    assert drawn.evaluation is not None
    return drawn.feeds, drawn.evaluation, notes


@dataclass
class Verifier:
    """Holds the samples and the outputs of the last accepted model, and judges the next one.

    Outputs that differ between two runs of the same model (random ops) prove nothing and are left out.
    """

    settings: Verify
    feeds: Feeds
    notes: list[str] = field(default_factory=list)
    _original: evaluate.Evaluation | None = None
    _accepted: evaluate.Evaluation | None = None
    _candidate: evaluate.Evaluation | None = None
    _random: frozenset[str] = frozenset()

    @classmethod
    def start(cls, recipe: Recipe, model: ir.Model) -> Verifier:
        """Draw the samples and run the model as it came."""
        feeds, evaluation, notes = draw_feeds(recipe, model)
        verifier = cls(recipe.verify, feeds, notes)
        verifier._original = verifier._accepted = evaluation
        if any(node.op_type in _RANDOM_OPS for node in graph.all_nodes(model)):
            verifier._find_random_outputs(model)
        return verifier

    def _find_random_outputs(self, model: ir.Model) -> None:
        """Run one sample twice in one session: a new session would begin with the same random numbers."""
        first, second = evaluate.run(model, [self.feeds[0]] * 2).outputs
        outputs = compare.compare(first, second).outputs
        differing = sorted({o.name.partition("[")[0] for o in outputs if o.max_abs != 0})
        self._random = frozenset(differing)
        if len(self._random) == len(first):
            raise UnsupportedError("every output is random, so that nothing can be verified")
        self.notes += [f"output '{name}' is random and was not compared" for name in differing]

    def judge(self, model: ir.Model | evaluate.Structure) -> Verdict:
        """Compare ``model`` with the last accepted one; :meth:`accept` makes it the new one."""
        assert self._accepted is not None
        self._candidate = evaluate.run(model, self.feeds)
        return self._verdict(self._accepted, self._candidate)

    def accept(self) -> None:
        """The judged model is the reference of the next pass."""
        self._accepted, self._candidate = self._candidate, None

    def overall(self) -> Verdict:
        """The last accepted model against the one the run began with."""
        assert self._original is not None
        assert self._accepted is not None
        return self._verdict(self._original, self._accepted)

    def judge_optimized(self, model: ir.Model) -> Verdict:
        """The last accepted model, as verified, against itself under onnxruntime's default optimizer."""
        assert self._accepted is not None
        optimized = evaluate.run(model, self.feeds, optimize=True)
        return self._verdict(self._accepted, optimized)

    def _verdict(self, before: evaluate.Evaluation, after: evaluate.Evaluation) -> Verdict:
        comparison = compare.merge(
            [
                compare.compare(self._fixed(old), self._fixed(new))
                for old, new in zip(before.outputs, after.outputs, strict=True)
            ]
        )
        worst = comparison.worst(self.settings.rtol, self.settings.atol)
        reason, broken = "", bool(worst.note)
        if after.engine != before.engine:
            reason, broken = f"it no longer runs in {before.engine}: {after.reason}", True
        elif not comparison.agrees(self.settings.rtol, self.settings.atol):
            reason = worst.note or f"output '{worst.name}' differs by {worst.max_rel:.2g} relative"
        return Verdict(comparison, not reason, after.engine, len(after.outputs), reason, broken)

    def _fixed(self, outputs: Any) -> Any:
        return {name: value for name, value in outputs.items() if name not in self._random}


def lowest(values: Sequence[float | None]) -> float | None:
    """The smallest of the values that exist."""
    present = [v for v in values if v is not None]
    return min(present) if present else None
