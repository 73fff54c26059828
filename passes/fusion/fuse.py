"""Apply the fusion rules of this package."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from typing import Any

import onnx_ir as ir

from graphopt.options import nearest, option
from graphopt.registry import Pass, PassResult, register
from graphopt.rewrite import Rule, apply_rules

__all__ = ["Fuse", "fusion_rules"]


@functools.cache
def fusion_rules() -> dict[str, type[Rule[Any]]]:
    """Every rule that a module of this package defines, by name. A rule is a class with its own name."""
    package = __name__.rpartition(".")[0]
    found: dict[str, type[Rule[Any]]] = {}
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for cls in vars(module).values():
            if not _is_rule_of(cls, module.__name__):
                continue
            if cls.name in found:
                raise ValueError(f"two fusion rules are named '{cls.name}'")
            found[cls.name] = cls
    return found


def _is_rule_of(cls: object, module: str) -> bool:
    return inspect.isclass(cls) and issubclass(cls, Rule) and cls.__module__ == module and "name" in vars(cls)


@register
@dataclasses.dataclass(eq=False)
class Fuse(Pass):
    """Fuse operators into fewer ones that compute the same function.

    Rules (names for ``include`` and ``exclude``):

    - ``conv-batch-normalization``: Conv or ConvTranspose, then BatchNormalization at inference
    - ``gemm-batch-normalization``: Gemm or a MatMul of matrices, then BatchNormalization at inference
    - ``conv-mul``, ``conv-add``: Conv or ConvTranspose, then Mul/Div or Add/Sub by constants per channel
    - ``gemm-mul``, ``gemm-add``: the same behind Gemm (``gemm-mul``: or MatMul)
    - ``matmul-add``: MatMul of matrices and Add of a row become Gemm
    - ``pad-conv``, ``pad-average-pool``: a Pad of zeros becomes the padding of what follows
    - ``gelu``: the erf or tanh formula becomes Gelu (opset 20)

    A rule does not fire where an intermediate result is used elsewhere, where a weight is no constant (a
    graph input, computed), is shared and large, or would overflow, and where shapes are not known to fit;
    the report says which.
    """

    name = "fuse"

    include: tuple[str, ...] = option((), help="Names of the rules to apply; none means all.")
    exclude: tuple[str, ...] = option((), help="Names of rules to leave out.")

    def __post_init__(self) -> None:
        known = fusion_rules()
        for name in (*self.include, *self.exclude):
            if name not in known:
                raise ValueError(f"unknown fusion rule '{name}'{nearest(name, known)}")

    def call(self, model: ir.Model) -> PassResult:
        """Apply the chosen rules until none applies any more."""
        chosen = self.include or tuple(fusion_rules())
        rules = [cls() for name, cls in fusion_rules().items() if name in chosen and name not in self.exclude]
        report = apply_rules(model, rules)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(report.applied.items()))
        summary = f"fused {counts}" if counts else "nothing to fuse"
        return PassResult(model, bool(counts), summary, report.refusals)
