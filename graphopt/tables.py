"""The tables that the command line prints, and the data behind them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import registry
from graphopt.options import Option, options_of, type_name
from graphopt.report import count, human_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.api import Inspection
    from graphopt.runtime.compare import Comparison

__all__ = ["comparison", "inspection", "one_pass", "pass_data", "passes"]


def inspection(found: Inspection, name: str) -> Group:
    """What a model is: its figures, its interface, its operators."""
    costs = found.costs
    facts = Table(show_header=False, box=None)
    for label, text in (
        ("model", name),
        ("nodes", f"{costs.nodes}"),
        ("parameters", count(costs.parameters)),
        ("MACs", _macs(costs.macs, costs.unknown_macs)),
        ("bytes", human_bytes(costs.bytes)),
        ("opset", f"{costs.opset}"),
        ("inputs", "\n".join(str(v) for v in found.interface.inputs)),
        ("outputs", "\n".join(str(v) for v in found.interface.outputs)),
    ):
        facts.add_row(Text(label, style="bold"), Text(text))
    operators = Table("operator", "nodes", header_style="bold", box=None)
    for operator, number in sorted(costs.operators.items(), key=lambda item: (-item[1], item[0])):
        operators.add_row(operator, str(number))
    return Group(facts, Text(), operators)


def _macs(macs: int, unknown: int) -> str:
    text = f"{count(macs)} (symbolic axes count as 1 unless --axis gives a size)"
    return f"at least {text}; {unknown} nodes of unknown shape" if unknown else text


def comparison(found: Comparison) -> Table:
    """The differences of two models, one row an output."""
    table = Table("output", header_style="bold")
    for name in ("max abs", "max rel", "SQNR dB", "cosine", "top-1 agreement"):
        table.add_column(name, justify="right")
    table.add_column("note")
    for o in found.outputs:
        figures = (_figure(v) for v in (o.max_abs, o.max_rel, o.sqnr_db, o.cosine, o.top1_agreement))
        table.add_row(o.name, *figures, Text(o.note))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def pass_data(name: str, cls: type[ir.passes.PassBase]) -> dict[str, Any]:
    """A pass as plain data: name, what it does, its kind, source and options."""
    return {
        "name": name,
        "summary": _summary(cls),
        "exact": registry.is_exact(cls),
        "source": getattr(cls, "source", ""),
        "options": [
            {
                "name": o.name,
                "type": type_name(o.type),
                "default": None if o.required else o.default,
                "required": o.required,
                "help": o.help,
            }
            for o in options_of(cls)
        ],
    }


def passes(classes: dict[str, type[ir.passes.PassBase]]) -> Table:
    """All passes, a line each."""
    table = Table("pass", "kind", "what it does", header_style="bold")
    for name, cls in classes.items():
        table.add_row(Text(name, no_wrap=True), _kind(cls), Text(_summary(cls)))
    return table


def one_pass(name: str, cls: type[ir.passes.PassBase]) -> Group:
    """One pass: its documentation, source and options."""
    parts: list[Any] = [
        Text(f"{name} ({_kind(cls)})", style="bold"),
        Text(inspect.cleandoc(cls.__doc__ or "")),
    ]
    source = getattr(cls, "source", "")
    if source:
        parts.append(Text(f"\nSource: {source}"))
    table = Table("option", "type", "default", "what it means", header_style="bold")
    for o in options_of(cls):
        table.add_row(o.name, type_name(o.type), _default(o), Text(o.help))
    return Group(*parts, Text(), table if table.row_count else Text("no options"))


def _default(declared: Option) -> str:
    if declared.default is dataclasses.MISSING:
        return "required"
    if declared.default in ((), ""):
        return "none"
    return str(declared.default)


def _kind(cls: type[ir.passes.PassBase]) -> str:
    return "exact" if registry.is_exact(cls) else "approximate"


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
