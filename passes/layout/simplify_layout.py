"""Apply the layout rules of this package."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from graphopt.options import nearest, option
from graphopt.registry import Pass, PassResult, register
from graphopt.rewrite import Rule, apply_rules, rules_of

__all__ = ["SimplifyLayout", "layout_rules"]


def layout_rules() -> dict[str, type[Rule[Any]]]:
    """Every rule that a module of this package defines, by name."""
    return rules_of(__name__.rpartition(".")[0])


@register
@dataclasses.dataclass(eq=False)
class SimplifyLayout(Pass):
    """Replace operators that only arrange numbers, or do simple arithmetic, by fewer ones.

    Rules (names for ``include`` and ``exclude``):

    - ``view-chain``: Reshape, Flatten, Squeeze, Unsqueeze, Transpose in a row become at most Reshape,
      Transpose, Reshape; a channel shuffle becomes one Gather
    - ``reshape-reshape``: a Reshape to a constant target needs no reshaping before it
    - ``push-transpose``: Transposes before and behind a region of other operators cancel
    - ``slice-squeeze``, ``split-squeeze``: single entries become Gathers of a scalar index
    - ``slice-slice``: Slices in a row become one; Slice or Gather of a Gather becomes one Gather
    - ``concat-slices``, ``split-concat``: parts put together again are the tensor, or one Gather (a roll)
    - ``concat-concat``: Concat of Concats along one axis
    - ``cast-cast``: Cast of a lossless Cast
    - ``undone``, ``repeated``: Neg of Neg, Not of Not; Relu of Relu, Abs of Abs and the like
    - ``clip-clip``: Clip of Clip or Relu
    - ``mul-mul``, ``add-add``: Mul/Div or Add/Sub by constants in a row
    - ``matmul-scales``: scalar factors of at most 1 on both sides of a MatMul become one

    Every rule lowers the number of nodes. None fires where an intermediate result that would still be needed
    is used elsewhere, where an axis, index or bound is no constant, or where shapes are not known well
    enough to prove it for all sizes of the open axes; the report says which.
    """

    name = "simplify-layout"

    include: tuple[str, ...] = option((), help="Names of the rules to apply; none means all.")
    exclude: tuple[str, ...] = option((), help="Names of rules to leave out.")

    def __post_init__(self) -> None:
        known = layout_rules()
        for name in (*self.include, *self.exclude):
            if name not in known:
                raise ValueError(f"unknown layout rule '{name}'{nearest(name, known)}")

    def call(self, model: ir.Model) -> PassResult:
        """Apply the chosen rules until none applies any more."""
        chosen = self.include or tuple(layout_rules())
        rules = [cls() for name, cls in layout_rules().items() if name in chosen and name not in self.exclude]
        report = apply_rules(model, rules)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(report.applied.items()))
        summary = f"simplified {counts}" if counts else "nothing to simplify"
        return PassResult(model, bool(counts), summary, report.refusals)
