"""Draw sample inputs from the graph alone, such that the model runs on them.

The rules, in the order of what they decide:

- Sizes. Static axes are as they are and axes of one name have one size; the recipe's ``model.inputs`` pins
  or ties further ones. Free axes are probed: likely sizes are tried by running the model until one works,
  then another one near it, so that every free axis is exercised at two sizes where the model can. An axis
  that is declared free and works at one size only (a size baked into a Reshape) is reported.
- Integers stay inside what they index; masks are rows of ones then zeros; lengths lie within the time axis
  of the input they belong to; positions count up; bytes use their whole range; others are 0 and 1.
- Floats are standard normal, or uniform in [0, 1) where the model makes no finite outputs of these.
- Sizes are small: what a rewrite may get wrong (an axis, an order, a constant, one size taken for all) shows
  at any two sizes that are not special. The second size of a short series is no multiple of the first, which
  a baked-in size would divide.

Without ``repeats``, sizes do not come again only to fill ``count`` (two samples there are in any case) where
every input is noise of at least :data:`ENOUGH_ELEMENTS` elements and nothing in the model branches or loops.
Each such sample has both signs, small and large magnitudes at every channel and uses every weight; a third
draw of one distribution at the same sizes goes the same ways. Where integers, booleans, masks or short
vectors come in, each draw selects other rows, branches and active units, and all ``count`` samples are drawn.

The same model, count and seed give the same samples, whatever the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.graph import all_nodes
from graphopt.runtime._axes import InputSpec, baked_sizes, elements, specs_of
from graphopt.runtime._probing import Prober
from graphopt.runtime._roles import Role, role_of
from graphopt.runtime.evaluate import Evaluation, Session

__all__ = ["ENOUGH_ELEMENTS", "Samples", "draw"]

#: Elements of an input that make it data (an image, a spectrogram) rather than a vector of features.
ENOUGH_ELEMENTS = 1 << 14
_BRANCHES = frozenset({"If", "Loop", "Scan", "SequenceMap"})


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
    model: ir.Model,
    count: int,
    seed: int,
    pinned: Mapping[str, Sequence[int | str]] | None = None,
    *,
    repeats: bool = True,
) -> Samples:
    """Draw ``count`` samples for ``model``.

    Args:
        model: The model; it is run, not changed.
        count: How many samples.
        seed: Seed of the values; sizes do not depend on it.
        pinned: Sizes or names for the axes of some inputs, as in the recipe's ``model.inputs``.
        repeats: Whether there are ``count`` samples in any case; else there may be fewer, as the module says.

    Raises:
        InputError: ``pinned`` does not fit the model's inputs.
        UnsupportedError: An input cannot be drawn, or no sizes were found that the model runs on.
    """
    specs = specs_of(model, pinned or {})
    values = {value.name: value for value in model.graph.inputs}
    roles = {spec.name: role_of(model, values[spec.name]) for spec in specs}
    with Session(model) as session:
        prober = Prober(session, specs, roles, baked_sizes(model), seed)
        trials, fixed = prober.find(
            count, lambda sizes: repeats or _needs_repeats(model, specs, roles, sizes)
        )
        feeds = [prober.feed(trial) for trial in trials]
        evaluation = Evaluation(prober.outputs(trials, feeds), session.engine, session.reason)
    axes = [prober.labelled(trial.sizes) for trial in trials]
    return Samples(feeds, axes, fixed, evaluation)


def _needs_repeats(
    model: ir.Model, specs: Sequence[InputSpec], roles: Mapping[str, Role], sizes: Mapping[str, int]
) -> bool:
    """Whether one sample of these sizes leaves ways of the model untried that another draw might go."""
    noise = all(
        spec.dtype.is_floating_point()
        and roles[spec.name].kind == "any"
        and elements(spec.shape(sizes)) >= ENOUGH_ELEMENTS
        for spec in specs
    )
    return not noise or any(node.op_type in _BRANCHES for node in all_nodes(model))
