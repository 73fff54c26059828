"""Find sizes and values that a model runs on, by running it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import limits
from graphopt.errors import UnsupportedError
from graphopt.runtime import _values
from graphopt.runtime._axes import InputSpec, axes_of, candidates, elements, neighbours
from graphopt.runtime._roles import Role
from graphopt.runtime.evaluate import InputsRefused, Session

__all__ = ["Plan", "Prober", "Quality", "Trial"]

Sizes = dict[str, int]
_Key = tuple[tuple[tuple[str, int], ...], _values.Draw]

#: Batch sizes to try, until one works.
_BATCHES = (1, 2, 4, 8, 16, 3, 32)
#: Runs that the search for the first working sizes may take.
_MOST_RUNS = 500
#: Sizes at which a model may make infinities or NaN before that counts as what it does.
_MOST_NOT_FINITE = 3


class Quality(IntEnum):
    """What a model made of some inputs, from bad to good."""

    REFUSED = 0
    EMPTY = 1
    NOT_FINITE = 2
    GOOD = 3


@dataclass(frozen=True)
class Trial:
    """One sample and how the model took it.

    Attributes:
        sizes: Sizes of the free axes.
        how: How its values are drawn.
        quality: What the model made of it.
        reason: Why the model refused it.
    """

    sizes: Sizes
    how: _values.Draw
    quality: Quality
    reason: str = ""


@dataclass
class Plan:
    """The sizes that samples take.

    Attributes:
        base: Sizes that work.
        batch: Other sizes of the batch axes, empty where none work.
        others: Other sizes of further axes; several where they do not work together.
        fixed: Axes that no other size was found for, with their size.
    """

    base: Trial
    batch: Sizes = field(default_factory=dict)
    others: list[Sizes] = field(default_factory=list)
    fixed: Sizes = field(default_factory=dict)

    def sizes(self, count: int, repeats: bool = True) -> list[Sizes]:
        """Sizes for ``count`` samples, each axis at two sizes as early as can be.

        Without ``repeats`` there are only as many as are different, and two at least.
        """
        base, others = self.base.sizes, self.others or [{}]
        if count == 2:
            return [base, {**base, **others[0], **self.batch}]
        series = [base, {**base, **self.batch}]
        series += [{**base, **other} for other in others]
        series += [{**base, **other, **self.batch} for other in others]
        distinct = [sizes for index, sizes in enumerate(series) if sizes not in series[:index]]
        length = count if repeats else min(count, max(len(distinct), 2))
        return list(itertools.islice(itertools.cycle(distinct), length))


def _key(sizes: Sizes, how: _values.Draw) -> _Key:
    return tuple(sorted(sizes.items())), how


class Prober:
    """Tries samples on a model; each is run once."""

    def __init__(
        self,
        session: Session,
        specs: Sequence[InputSpec],
        roles: Mapping[str, Role],
        baked: Sequence[int],
        seed: int,
    ) -> None:
        self._session, self._specs, self._roles, self._baked = session, specs, roles, baked
        self._draw = _values.Draw(seed, 0)
        self._axes = axes_of(specs)
        self._known: dict[_Key, Trial] = {}
        self._outputs: dict[_Key, Mapping[str, Any]] = {}
        self._kept_bytes = 0

    def feed(self, trial: Trial) -> dict[str, np.ndarray]:
        """The arrays of a trial, by input name."""
        return _values.draw(self._specs, self._roles, trial.sizes, trial.how)

    def outputs(self, trials: Sequence[Trial], feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the model makes of the trials' feeds; those that the search has run are not run again."""
        kept = [self._outputs.get(_key(trial.sizes, trial.how)) for trial in trials]
        missing = [feed for feed, outputs in zip(feeds, kept, strict=True) if outputs is None]
        made = iter(self._session.run_all(missing) if missing else [])
        return [dict(next(made) if outputs is None else outputs) for outputs in kept]

    def labelled(self, sizes: Sizes) -> Sizes:
        """The sizes of all axes that are not static, those that follow from others included."""
        shapes = [(spec.dims, spec.shape(sizes)) for spec in self._specs]
        pairs = (pair for dims, shape in shapes for pair in zip(dims, shape, strict=True))
        return {dim: size for dim, size in pairs if isinstance(dim, str)}

    def attempt(self, sizes: Sizes, how: _values.Draw | None = None) -> Trial:
        """Draw and run a sample; floats that make the outputs infinite or NaN are drawn again, uniform."""
        how = how or self._draw
        trial = self._run(sizes, how)
        if trial.quality == Quality.NOT_FINITE:
            uniform = self._run(sizes, replace(how, uniform=True))
            return uniform if uniform.quality > Quality.EMPTY else trial
        return trial

    def _run(self, sizes: Sizes, how: _values.Draw) -> Trial:
        key = _key(sizes, how)
        if key not in self._known:
            self._known[key] = self._judge(sizes, how)
        return self._known[key]

    def _judge(self, sizes: Sizes, how: _values.Draw) -> Trial:
        trial = Trial(sizes, how, Quality.REFUSED, self._impossible(sizes))
        if trial.reason:
            return trial
        try:
            outputs = self._session.run(self.feed(trial))
        except InputsRefused as error:
            return replace(trial, reason=str(error))
        self._keep(trial, outputs)
        return replace(trial, quality=_quality(outputs))

    def _keep(self, trial: Trial, outputs: Mapping[str, Any]) -> None:
        size = sum(array.nbytes for value in outputs.values() for array in _arrays(value))
        self._kept_bytes += size
        if self._kept_bytes <= limits.SAMPLE_OUTPUTS:
            self._outputs[_key(trial.sizes, trial.how)] = outputs

    def _impossible(self, sizes: Sizes) -> str:
        for spec in self._specs:
            shape = spec.shape(sizes)
            if any(size < 0 for size in shape):
                return f"input '{spec.name}' has no sizes for its axes"
            if elements(shape) > limits.SAMPLE_ELEMENTS:
                limit = f"SAMPLE_ELEMENTS ({limits.SAMPLE_ELEMENTS})"
                return f"input '{spec.name}' of shape {list(shape)} passes the limit {limit}"
        return ""

    def find(self, count: int, repeats: Callable[[Sizes], bool]) -> tuple[list[Trial], Sizes]:
        """``count`` trials that the model runs on, and the axes that no other size was found for.

        Args:
            count: How many; there are fewer where sizes would have to be repeated that need not be.
            repeats: Whether the model needs several samples at sizes like these.

        Raises:
            UnsupportedError: The model runs on none of the sizes tried.
        """
        guessed = self._guess(count, repeats) if self._session.segmented else []
        if guessed:
            return guessed, {}
        plan = self._plan()
        wanted = plan.sizes(count, repeats(plan.base.sizes))
        return [self._settle(plan, sizes, sample) for sample, sizes in enumerate(wanted)], plan.fixed

    def _guess(self, count: int, repeats: Callable[[Sizes], bool]) -> list[Trial]:
        """Trials at the likeliest sizes, run in one go, which reads a segmented model's weights once.

        Empty where the model does not take one of them.
        """
        others = next(candidates([axis for axis in self._axes if axis.kind != "batch"], mixed=False))
        batches = self._labels(True)
        base = Trial({**dict.fromkeys(batches, 1), **others}, self._draw, Quality.REFUSED)
        near = {label: neighbours(size)[0] for label, size in others.items()}
        wanted = Plan(base, dict.fromkeys(batches, 2), [near]).sizes(count, repeats(base.sizes))
        trials = [replace(base, sizes=s, how=replace(base.how, sample=i)) for i, s in enumerate(wanted)]
        if any(self._impossible(trial.sizes) for trial in trials):
            return []
        try:
            results = self._session.run_all([self.feed(trial) for trial in trials])
        except InputsRefused:
            return []
        for trial, result in zip(trials, results, strict=True):
            self._keep(trial, result)
        judged = [replace(t, quality=_quality(r)) for t, r in zip(trials, results, strict=True)]
        return judged if all(trial.quality == Quality.GOOD for trial in judged) else []

    def _plan(self) -> Plan:
        plan = Plan(self._find_base())
        self._draw = plan.base.how
        batch, others = (self._labels(is_batch) for is_batch in (True, False))
        # the values of the sample that will have these sizes, so that it has been run by then
        self._draw = replace(plan.base.how, sample=1)
        found = self._vary(plan.base, batch, _other_batches)
        plan.batch = found[0] if found else {}
        self._draw = replace(plan.base.how, sample=2 if plan.batch else 1)
        plan.others = self._vary(plan.base, others, neighbours)
        varied = set(plan.batch).union(*plan.others)
        plan.fixed = {label: plan.base.sizes[label] for label in (*batch, *others) if label not in varied}
        return plan

    def _labels(self, is_batch: bool) -> list[str]:
        return [axis.label for axis in self._axes if (axis.kind == "batch") == is_batch]

    def _find_base(self) -> Trial:
        first: Trial | None = None
        trials = itertools.islice(self._first_trials(), _MOST_RUNS)
        for _, group in itertools.groupby(trials, key=lambda trial: (trial.how.level, self._batch(trial))):
            best = self._best(group)
            first = first or best
            if best.quality > Quality.REFUSED:
                return best
        assert first is not None
        listed = ", ".join(map(str, self._specs)) or "none"
        raise UnsupportedError(
            f"found no sample inputs that the model runs on (inputs: {listed}): {first.reason}; "
            "pin the axes under model.inputs or give data.calibration"
        )

    def _batch(self, trial: Trial) -> tuple[int, ...]:
        return tuple(trial.sizes[label] for label in self._labels(True))

    def _best(self, trials: Iterable[Trial]) -> Trial:
        """The first good trial, else the first of the best; a slow model's first that runs at all."""
        seen: list[Trial] = []
        for trial in trials:
            seen.append(trial)
            infinite = sum(t.quality == Quality.NOT_FINITE for t in seen)
            slow = self._session.segmented and trial.quality > Quality.REFUSED
            if trial.quality == Quality.GOOD or infinite == _MOST_NOT_FINITE or slow:
                break
        return max(seen, key=lambda t: t.quality)

    def _first_trials(self) -> Iterator[Trial]:
        """Trials of all sizes with the values that the roles allow, then with more careful values."""
        others = [axis for axis in self._axes if axis.kind != "batch"]
        batches = _BATCHES[1:] if self._labels(True) else ()
        yield from self._trials(1, candidates(others, mixed=True))
        if others:
            yield from self._trials(1, (dict.fromkeys(self._labels(False), s) for s in self._baked))
        for batch in batches:
            yield from self._trials(batch, candidates(others, mixed=False))
        for batch in self._baked if batches else ():
            yield from self._trials(batch, itertools.islice(candidates(others, mixed=False), 1))
        for level in _values.LEVELS[1:]:
            yield from self._trials(1, candidates(others, mixed=False), level)

    def _trials(self, batch: int, others: Iterable[Sizes], level: _values.Level = "all") -> Iterator[Trial]:
        batches = dict.fromkeys(self._labels(True), batch)
        for sizes in others:
            yield self.attempt({**batches, **sizes}, replace(self._draw, level=level))

    def _vary(self, base: Trial, labels: Sequence[str], options: Callable[[int], list[int]]) -> list[Sizes]:
        """Other sizes for the axes: of all together, else of one alone, else of two, and these together."""
        if not labels:
            return []
        together = self._change(base, labels, options)
        if together:
            return [together]
        found: list[Sizes] = []
        groups = [(label,) for label in labels], itertools.combinations(labels, 2)
        for group in itertools.chain(*groups):
            if len(group) < len(labels) and set(group).isdisjoint(itertools.chain(*found)):
                changed = self._change(base, group, options)
                found += [changed] if changed else []
        joined = {label: size for sizes in found for label, size in sizes.items()}
        if len(found) > 1 and self.attempt({**base.sizes, **joined}).quality >= base.quality:
            return [joined]
        return found

    def _change(
        self, base: Trial, labels: Sequence[str], options: Callable[[int], list[int]]
    ) -> Sizes | None:
        """The first other sizes of some axes that work as well as the base."""
        for sizes in zip(*(options(base.sizes[label]) for label in labels), strict=False):
            changed = dict(zip(labels, sizes, strict=True))
            if self.attempt({**base.sizes, **changed}).quality >= base.quality:
                return changed
        return None

    def _settle(self, plan: Plan, sizes: Sizes, sample: int) -> Trial:
        levels = _values.LEVELS[_values.LEVELS.index(self._draw.level) :]
        for wanted, level in itertools.product((sizes, plan.base.sizes), levels):
            trial = self.attempt(wanted, replace(self._draw, sample=sample, level=level))
            if trial.quality > Quality.REFUSED:
                return trial
        return plan.base


def _other_batches(size: int) -> list[int]:
    return [n for n in dict.fromkeys((2 * size, size + 1, 3 * size, 1)) if n != size]


def _quality(outputs: Mapping[str, Any]) -> Quality:
    arrays = [array for value in outputs.values() for array in _arrays(value)]
    if any(array.size == 0 for array in arrays):
        return Quality.EMPTY
    return Quality.GOOD if all(_is_finite(array) for array in arrays) else Quality.NOT_FINITE


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _arrays(item)


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind in "fc":
        return bool(np.isfinite(array).all())
    if array.dtype.kind == "V" and ir.DataType.from_numpy(array.dtype).is_floating_point():
        return bool(np.isfinite(array.astype(np.float32)).all())
    return True
