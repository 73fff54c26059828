"""Symbolic shape inference: what each operator's outputs are, told by what its inputs are.

One file per family of operators; each rule is registered by :func:`rule` and sees its node through
:class:`Op`. A rule states only what holds in every run that succeeds, whatever the sizes of the axes are;
where it does not know, it says nothing or gives an axis a new name.
"""

from __future__ import annotations

from graphopt.analyses.shape_inference import (  # noqa: F401 - each registers its rules
    elementwise,
    generation,
    indexing,
    linear,
    microsoft,
    movement,
    normalization,
    quantization,
    reduction,
    sequence_models,
    signal,
    vision,
)
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import RULES, Op, Unknown

__all__ = ["RULES", "Inferred", "Op", "Unknown"]
