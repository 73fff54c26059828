"""Why was this not fused? The refusals of a run that still hold for the model it ended with.

A rule or pass that leaves something alone says so with a :class:`~graphopt.rewrite.Refusal`. A recipe runs
many passes, some of them twice, so most of these are history: the node was fused after all, or is gone.
:func:`standing` keeps the others, :func:`grouped` puts together what has the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

from graphopt.graph import all_nodes, describe, scopes
from graphopt.rewrite import Refusal

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["LeftAlone", "Standing", "grouped", "hint", "standing", "table"]

#: How many places of a group the table names.
_SHOWN: Final = 3
_NEWER = re.compile(r"needs opset (\d+), the model has \d+")
_NODE = re.compile(r"\S+ (?:'.*'|\(output '.*'\))")
_TENSOR = re.compile(r"(?:weight )?'(.*)'")


@dataclass(frozen=True)
class Standing:
    """A refusal that holds for the model at the end of a run, and the pass that gave it."""

    pass_name: str
    refusal: Refusal

    def matches(self, text: str) -> bool:
        """Whether pass, rule, node or reason contain the text; upper and lower case are the same."""
        parts = (self.pass_name, self.refusal.rule, self.refusal.where, self.refusal.reason)
        return any(text.lower() in part.lower() for part in parts)


@dataclass(frozen=True)
class LeftAlone:
    """One reason of one rule, and every place where it holds.

    Attributes:
        pass_name: The pass that the rule belongs to.
        rule: The rule; a pass that has no rules gives its own name.
        reason: In words; names of nodes and values are left out where the places differ in them.
        places: The refusals themselves, each with its node and its own reason.
    """

    pass_name: str
    rule: str
    reason: str
    places: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with every place."""
        return {
            "pass": self.pass_name,
            "rule": self.rule,
            "reason": self.reason,
            "count": len(self.places),
            "places": [{"where": p.where, "reason": p.reason} for p in self.places],
        }


def standing(runs: Iterable[tuple[str, str, Sequence[Refusal]]], model: ir.Model) -> list[Standing]:
    """The refusals that still hold for ``model``, each once.

    Args:
        runs: For every pass of the run in order: its name, its options, and its refusals. Only the last run
            of a pass with the same options counts.
        model: The model that the run ended with; a node or tensor that it no longer has is left out.
    """
    last = {(name, options): refusals for name, options, refusals in runs}
    if not any(last.values()):
        return []
    nodes = {describe(node) for node in all_nodes(model)}
    values = (
        _value_names(model) if any(_TENSOR.fullmatch(r.where) for rs in last.values() for r in rs) else set()
    )
    found = (Standing(name, refusal) for (name, _), refusals in last.items() for refusal in refusals)
    return list(dict.fromkeys(s for s in found if _exists(s.refusal.where, nodes, values)))


def _value_names(model: ir.Model) -> set[str]:
    names = {o.name for node in all_nodes(model) for o in node.outputs if o.name}
    for graph, _ in scopes(model):
        names.update(v.name for v in (*graph.inputs, *graph.initializers.values()) if v.name)
    return names


def _exists(where: str, nodes: set[str], values: set[str]) -> bool:
    tensor = _TENSOR.fullmatch(where)
    if tensor is not None:
        return tensor[1] in values
    return where in nodes or _NODE.fullmatch(where) is None  # else the model as a whole, a function …


def grouped(refusals: Iterable[Standing], text: str = "") -> list[LeftAlone]:
    """Refusals by pass, rule and reason, the most frequent reason of a rule first.

    Args:
        refusals: Of :func:`standing`.
        text: Only those whose pass, rule, node or reason contain it.
    """
    groups: dict[tuple[str, str], dict[str, list[Refusal]]] = {}
    for found in refusals:
        if found.matches(text):
            rule = groups.setdefault((found.pass_name, found.refusal.rule), {})
            rule.setdefault(_without_names(found.refusal.reason), []).append(found.refusal)
    return [
        LeftAlone(pass_name, rule, _common(reason, places), tuple(places))
        for (pass_name, rule), reasons in groups.items()
        for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def _without_names(reason: str) -> str:
    """The reason for all nodes alike: ``the output 'a' of Add 'b' has 9000 bytes`` without a, b and 9000."""
    text = re.sub(r" \(output '[^']*'\)|(?<=[^\s,;:]) '[^']*'", "", reason)
    return re.sub(r"\b\d[\d,]{3,}\b", "so many", re.sub(r"'[^']*'", "'…'", text))


def _common(reason: str, places: Sequence[Refusal]) -> str:
    own = {place.reason for place in places}
    return own.pop() if len(own) == 1 else reason


def table(groups: Sequence[LeftAlone], text: str = "") -> RenderableType:
    """The groups for people: each rule, its reasons with how often and where first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not groups:
        where = f" that matches '{text}'" if text else ""
        return Text(f"nothing was left alone{where}: what is there met no rule's pattern, or was rewritten")
    made = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("left alone by, and why", min_width=40)
    made.add_column("places", justify="right", no_wrap=True)
    made.add_column("where", ratio=1)
    title = ""
    for group in groups:
        heading = group.rule if group.rule == group.pass_name else f"{group.rule} ({group.pass_name})"
        if heading != title:
            made.add_row(Text(heading))
            title = heading
        names = [place.where for place in group.places[:_SHOWN]]
        names += ["…"] if len(group.places) > _SHOWN else []
        made.add_row(Text(f"  {group.reason}", style="dim"), str(len(group.places)), Text("\n".join(names)))
    return made


def hint(groups: Sequence[LeftAlone]) -> str:
    """How to get what only waits for a newer opset; empty where nothing does."""
    waiting = [(found[1], group) for group in groups if (found := _NEWER.search(group.reason))]
    if not waiting:
        return ""
    newest, count = max(int(opset) for opset, _ in waiting), sum(len(group.places) for _, group in waiting)
    return f"{count} of these places need a newer opset: graphopt optimize --target-opset {newest}"
