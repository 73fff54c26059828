"""What happened in a run: as data, as JSON, as a table.

The JSON document is a contract: ``input``, ``passes`` and ``outputs`` as documented in
``docs/report.md``; keys are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from graphopt import explain
from graphopt.analyses.costs import Costs
from graphopt.rewrite import Refusal
from graphopt.verification import Verdict, lowest

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["RunReport", "Status", "StepReport", "Written", "count", "human_bytes"]

Status = Literal["applied", "unchanged", "undone", "failed", "planned"]


@dataclass
class StepReport:
    """One pass of a run. ``before`` and ``after`` are the model's costs around it; equal if it was undone.

    ``measured`` is False for a pass inside a chain that was verified as a whole: of its costs only the nodes
    were counted, and the chain's verdict stands at its last applied pass.
    """

    name: str
    status: Status
    before: Costs
    after: Costs
    reason: str = ""
    summary: str = ""
    seconds: float = 0.0
    verdict: Verdict | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    refusals: Sequence[Refusal] = ()
    measured: bool = True

    def to_json(self) -> dict[str, Any]:
        """The pass's entry in the report."""
        known = self.measured
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "summary": self.summary,
            "seconds": round(self.seconds, 4),
            "nodes_before": self.before.nodes,
            "nodes_after": self.after.nodes,
            "bytes_before": self.before.bytes if known else None,
            "bytes_after": self.after.bytes if known else None,
            "macs_before": self.before.macs if known else None,
            "macs_after": self.after.macs if known else None,
            "metric_before": self.metric_before,
            "metric_after": self.metric_after,
            "verify": self.verdict.to_json() if self.verdict else None,
            "refusals": [str(r) for r in self.refusals],
        }


@dataclass(frozen=True)
class Written:
    """One artefact that a run wrote."""

    format: str
    path: str
    bytes: int


@dataclass
class RunReport:
    """A whole run. ``standing`` are the refusals that hold for the model it ended with; where ``verified`` is
    False no model was run. ``imported`` says what the import of a source of another framework did.
    """

    source: str
    before: Costs
    after: Costs
    passes: list[StepReport] = field(default_factory=list)
    outputs: list[Written] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    overall: Verdict | None = None
    metric_name: str = ""
    metric_before: float | None = None
    metric_after: float | None = None
    standing: Sequence[explain.Standing] = ()
    verified: bool = True
    imported: dict[str, Any] | None = None

    def left_alone(self, text: str = "") -> list[explain.LeftAlone]:
        """Why was this not fused? What the passes left alone, by rule and reason, in the final model.

        Args:
            text: Only what has it in its pass, rule, node or reason.
        """
        return explain.grouped(self.standing, text)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "input": {"path": self.source, **asdict(self.before), "metric": self.metric_before},
            "passes": [step.to_json() for step in self.passes],
            "outputs": [vars(written) for written in self.outputs],
            "result": {**asdict(self.after), "metric": self.metric_after},
            "verified": self.verified,
            "verify": self.overall.to_json() if self.overall else None,
            "metric": self.metric_name or None,
            "notes": self.notes,
            "import": self.imported,
        }

    def table(self) -> RenderableType:
        """The passes as a table: what each did, what it left, in which time, how near, and the verdict."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("pass, and what it did", min_width=22)
        for name in ("nodes", "MACs", "bytes", "time", "agreement"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        table.add_row(Text("(input)", style="dim"), *_sizes(self.before))
        for step in self.passes:
            table.add_row(
                Text.assemble(step.name, "\n", ("  " + (step.reason or step.summary), "dim")),
                *(_sizes(step.after) if step.measured else (str(step.after.nodes), "-", "-")),
                f"{step.seconds:.2f} s",
                agreement(step.verdict) if self.verified or step.status != "applied" else "not verified",
                Text(step.status, style=_STYLES[step.status]),
            )
        return table

    def closing_lines(self) -> list[str]:
        """The lines below the table: the whole change, the metric, what was written, notes."""
        lines = []
        if self.before.bytes:
            lines.append(
                f"nodes {self.before.nodes} -> {self.after.nodes}, "
                f"MACs {count(self.before.macs)} -> {count(self.after.macs)}, "
                f"bytes {human_bytes(self.before.bytes)} -> {human_bytes(self.after.bytes)} "
                f"({self.after.bytes / self.before.bytes:.2f}x)"
            )
        if self.overall:
            lines.append(f"against the input: {agreement(self.overall)} over {self.overall.samples} samples")
        if not self.verified:
            lines.append("not verified: no model was run, only its interface and structure were checked")
        if self.metric_before is not None and self.metric_after is not None:
            lines.append(f"{self.metric_name} {self.metric_before:.4f} -> {self.metric_after:.4f}")
        lines += [f"wrote {w.path} ({w.format}, {human_bytes(w.bytes)})" for w in self.outputs]
        return lines + [f"note: {note}" for note in self.notes]


_STYLES: dict[Status, str] = {
    "applied": "green",
    "unchanged": "dim",
    "undone": "yellow",
    "failed": "bold red",
    "planned": "cyan",
}


def agreement(verdict: Verdict | None) -> str:
    """How near two models are, in one cell: ``equal``, ``max rel 3e-07``, or ``SQNR 41.2 dB``."""
    if verdict is None:
        return "-"
    outputs = verdict.comparison.outputs
    if all(o.max_abs == 0 for o in outputs):
        return "equal"
    if verdict.agrees:
        return f"max rel {max(o.max_rel for o in outputs if o.max_rel is not None):.1g}"
    sqnr = lowest([o.sqnr_db for o in outputs])
    return "differs" if sqnr is None else f"SQNR {sqnr:.1f} dB"


def _sizes(costs: Costs) -> tuple[str, str, str]:
    return str(costs.nodes), count(costs.macs), human_bytes(costs.bytes)


def human_bytes(number: int) -> str:
    """Bytes for people, in decimal units: ``193.5 kB``."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB"), " ")


def count(number: int) -> str:
    """A large count for people: ``4.09 G``."""
    return _scaled(number, ("", "k", "M", "G", "T", "P"), " ").strip()


def _scaled(number: float, units: Sequence[str], gap: str) -> str:
    for unit in units[:-1]:
        if abs(number) < 1000:
            return f"{number:.3g}{gap}{unit}" if unit != units[0] else f"{number:.0f}{gap}{unit}"
        number /= 1000
    return f"{number:.3g}{gap}{units[-1]}"
