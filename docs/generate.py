#!/usr/bin/env python3
"""Write docs/passes.md from the pass classes, and the table of operators in docs/importers/tflite.md from the
reader's registry: ``python docs/generate.py``. Tests keep them current.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from graphopt import registry, tables

TARGET = Path(__file__).with_name("passes.md")
TFLITE = Path(__file__).parent / "importers" / "tflite.md"
MARK = "<!-- operators: python docs/generate.py -->\n"


def text() -> str:
    """The whole page."""
    parts = [
        "# Passes\n",
        "Made by `python docs/generate.py` from the pass classes; `graphopt passes NAME` shows the same.\n",
    ]
    for name, cls in registry.pass_classes().items():
        if not cls.__module__.startswith("graphopt."):
            continue  # installed by somebody else
        data = tables.pass_data(name, cls)
        kind = "exact" if data["exact"] else "approximate"
        parts += [f"## `{name}`\n", f"*{kind}*\n", "```text", inspect.cleandoc(cls.__doc__ or ""), "```\n"]
        if data["source"]:
            parts.append(f"Source: {data['source']}\n")
        if data["options"]:
            parts += ["| option | type | default | what it means |", "|---|---|---|---|"]
            parts += [row(option) for option in data["options"]]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def tflite_text(page: str) -> str:
    """The page with the operators that the reader's registry has now."""
    from graphopt.converters.importers._tflite import registry as operators

    before, _, rest = page.partition(MARK)
    _, _, after = rest.partition(MARK)
    lines = ["", "| family | operators |", "|---|---|"]
    lines += [f"| {title} | {', '.join(names)} |" for title, names in operators.families().items()]
    return before + MARK + "\n".join(lines) + "\n\n" + MARK + after


def row(option: dict[str, object]) -> str:
    """One option as a table row; a pipe inside a cell is escaped."""
    default = "required" if option["required"] else f"`{option['default']!r}`"
    cells = (f"`{option['name']}`", str(option["type"]), default, str(option["help"]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    TFLITE.write_text(tflite_text(TFLITE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {TARGET} and {TFLITE}")
