"""Draw sample inputs from the graph alone, such that the model runs on them.

The rules, in the order of what they decide:

- Sizes. Static axes are as they are and axes of one name have one size; the recipe's ``model.inputs`` pins
  or ties further ones. Free axes are probed: likely sizes are tried by running the model until one works,
  then another one near it, so that every free axis is exercised at two sizes where the model can. An axis
  that is declared free and works at one size only (a size baked into a Reshape) is reported.
- Integers stay inside what they index; masks are rows of ones then zeros; lengths lie within the time axis
  of the input they belong to; positions count up; bytes use their whole range; others are 0 and 1.
- Floats are standard normal, or uniform in [0, 1) where the model makes no finite outputs of these.

The same model, count and seed give the same samples, whatever the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.runtime._axes import baked_sizes, specs_of
from graphopt.runtime._probing import Prober
from graphopt.runtime._roles import role_of
from graphopt.runtime.evaluate import Evaluation, Session

__all__ = ["Samples", "draw"]


@dataclass(frozen=True)
class Samples:
    """Inputs that a model runs on.

    Attributes:
        feeds: Arrays by input name, one mapping for each sample.
        axes: Sizes of the free axes in each sample, by the axis' name; an axis without a name is called
            ``input[axis]``.
        fixed_axes: Axes that are declared free but work at one size only, with that size.
    """

    feeds: list[dict[str, np.ndarray]]
    axes: list[dict[str, int]]
    fixed_axes: dict[str, int] = field(default_factory=dict)
    #: What the model made of the samples.
    evaluation: Evaluation | None = None


def draw(
    model: ir.Model, count: int, seed: int, pinned: Mapping[str, Sequence[int | str]] | None = None
) -> Samples:
    """Draw ``count`` samples for ``model``.

    Args:
        model: The model; it is run, not changed.
        count: How many samples.
        seed: Seed of the values; sizes do not depend on it.
        pinned: Sizes or names for the axes of some inputs, as in the recipe's ``model.inputs``.

    Raises:
        InputError: ``pinned`` does not fit the model's inputs.
        UnsupportedError: An input cannot be drawn, or no sizes were found that the model runs on.
    """
    specs = specs_of(model, pinned or {})
    values = {value.name: value for value in model.graph.inputs}
    roles = {spec.name: role_of(model, values[spec.name]) for spec in specs}
    with Session(model) as session:
        prober = Prober(session, specs, roles, baked_sizes(model), seed)
        trials, fixed = prober.find(count)
        feeds = [prober.feed(trial) for trial in trials]
        evaluation = Evaluation(prober.outputs(trials, feeds), session.engine, session.reason)
    axes = [prober.labelled(trial.sizes) for trial in trials]
    return Samples(feeds, axes, fixed, evaluation)
