"""A plot as SVG text, without a library: one row a model, one dot a tool, in two panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLORS = ("#0b6e4f", "#7bc8a4", "#d1495b", "#e8998d", "#edae49", "#30638e", "#8d5a97")
LEFT, PANEL, GAP, ROW, TOP = 260, 380, 60, 18, 60


def draw(outcomes: Sequence[Mapping[str, Any]], tools: Sequence[str]) -> str:
    """Nodes as a share of the original's, and CPU seconds of the call on a logarithmic axis.

    A ring in place of a dot is a result that failed a check.
    """
    models = list(dict.fromkeys(o["model"] for o in outcomes))
    rows = {model: TOP + ROW * (i + 1) for i, model in enumerate(models)}
    bottom = TOP + ROW * (len(models) + 1)
    width = LEFT + 2 * PANEL + GAP + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 40}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    parts += [_text(LEFT - 8, y + 4, model, "end") for model, y in rows.items()]
    parts += _legend(tools)
    parts += _axes(bottom)
    for outcome in outcomes:
        parts += _dots(outcome, rows[outcome["model"]], tools)
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(tools: Sequence[str]) -> list[str]:
    parts = []
    for i, tool in enumerate(tools):
        x = 20 + 150 * i
        parts += [
            f'<circle cx="{x}" cy="16" r="4" fill="{COLORS[i % len(COLORS)]}"/>',
            _text(x + 8, 20, tool),
        ]
    return parts


def _share_at(share: float) -> float:
    return LEFT + PANEL * min(share, 1.2) / 1.2


def _seconds_at(seconds: float) -> float:
    """0.01 s to 1000 s, logarithmic."""
    place = (math.log10(max(seconds, 0.01)) + 2) / 5
    return LEFT + PANEL + GAP + PANEL * min(place, 1.0)


def _axes(bottom: int) -> list[str]:
    marks = [(_share_at(i / 5), f"{20 * i} %") for i in range(7)]
    marks += [(_seconds_at(10.0**i), f"{10.0**i:g} s") for i in range(-2, 4)]
    parts = [
        _text(LEFT, TOP - 14, "nodes, share of the original's"),
        _text(LEFT + PANEL + GAP, TOP - 14, "CPU seconds of the call"),
    ]
    for x, label in marks:
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(_text(x, bottom + 14, label, "middle"))
    return parts


def _dots(outcome: Mapping[str, Any], y: int, tools: Sequence[str]) -> list[str]:
    if outcome["tool"] not in tools:
        return []
    color = COLORS[list(tools).index(outcome["tool"]) % len(COLORS)]
    fill = "none" if outcome["failed"] else color
    places = []
    if "nodes_after" in outcome:
        places.append(_share_at(outcome["nodes_after"] / max(outcome["nodes"], 1)))
    if "call_cpu" in outcome:
        places.append(_seconds_at(outcome["call_cpu"]))
    return [f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{fill}" stroke="{color}"/>' for x in places]
