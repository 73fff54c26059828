"""Import many sources through the child process and check each: the table in docs/importers.md.

    python benchmarks/importers.py tflite --models FOLDER --only selfie
    python benchmarks/importers.py keras torch tflite --models FOLDER --markdown docs/importers.md
    python benchmarks/importers.py --rows keras.json torch.json --markdown docs/importers.md

Each source is imported as `graphopt convert` does it. What is checked of the result shares no code
with graphopt but the drawing of inputs: the file passes the ONNX checker, onnxruntime loads it (its optimizer
off, then on) and gives the framework's own outputs, which were computed in the import's child, to the
bound of the case. A difference is relative to the largest element of its output.

Exits 1 if any case fails.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from _common import parser, table, write_json

from graphopt import importing, io
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from _import_case import Case

HEADER = ["source", "format", "imported", "max rel", "optimized", "nodes", "transposes", "s", "notes"]
FAMILIES = ("keras", "torch", "tflite")
BOUNDS = {
    "keras": "Bound: 1e-5, of 16-bit floats 1e-3. Weights are drawn (`benchmarks/_keras_models.py`).",
    "torch": "Bound: 1e-5. Weights are drawn (`tests/architectures`).",
    "tflite": "Bound: 1e-4; quantized: one step on average and the same largest element.",
}


class Row(NamedTuple):
    """One source. ``max_rel`` with onnxruntime's optimizer off, ``optimized`` with it on."""

    family: str
    source: str
    format: str
    imported: bool
    max_rel: float | None
    optimized: float | None
    nodes: int | None
    transposes: int | None
    seconds: float | None
    notes: str


def measure(family: str, case: Case, folder: Path) -> Row:
    """Import one source and check the result."""
    target = folder / "imported.onnx"
    try:
        model, report = importing.import_source(case.source, case.options)
    except GraphoptError as error:
        return Row(family, case.name, case.format, False, None, None, None, None, None, str(error))
    assert report is not None
    assert report.references is not None
    io.save(model, target)
    problems = _problems(target)
    found = [_difference(target, report.references, level) for level in ("DISABLE", "ENABLE")]
    if case.bound:
        problems += [f"differs by {rel:.1e}" for rel in found[:1] if not rel <= case.bound]
    else:
        problems += _quantized_problems(target, report.references)
    return Row(
        family,
        case.name,
        case.format,
        not problems,
        *found,
        report.nodes,
        report.transposes,
        report.seconds,
        "; ".join([*problems, *report.notes]),
    )


def _problems(target: Path) -> list[str]:
    try:
        onnx.checker.check_model(target, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"checker: {str(error).splitlines()[0][:100]}"]
    return []


def _run(target: Path, feed: Mapping[str, Any], level: str) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    options.log_severity_level = 4
    session = ort.InferenceSession(str(target), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def _difference(target: Path, references: Any, level: str) -> float:
    """The largest max |a - b| / max |a| of all outputs and samples; infinite where something is missing."""
    worst = 0.0
    for feed, wanted in zip(references.feeds, references.outputs, strict=True):
        got = _run(target, feed, level)
        for name, a in wanted.items():
            b = got.get(name)
            if b is None or b.shape != a.shape or b.dtype != a.dtype:
                return float("inf")
            gap = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0.0)
            largest = np.abs(np.asarray(a, np.float64)).max(initial=0.0)
            relative = float(gap / largest if largest else gap)
            if not relative <= worst:  # NaN is no agreement either
                worst = relative if relative > worst else float("inf")
    return worst


def _quantized_problems(target: Path, references: Any) -> list[str]:
    """Integer outputs: at most one step on average, and the same largest element but for ties."""
    problems = []
    for feed, wanted in zip(references.feeds, references.outputs, strict=True):
        got = _run(target, feed, "DISABLE")
        for name, a in wanted.items():
            first, second = np.asarray(a, np.float64), np.asarray(got[name], np.float64)
            step = 1.0 if a.dtype.kind in "iu" else float(np.abs(first).max(initial=0.0)) / 127
            if not np.mean(np.abs(first - second)) <= step:
                problems.append(f"{name} differs by {np.mean(np.abs(first - second)) / step:.2g} steps")
            chosen = (
                np.take_along_axis(first, second.argmax(-1)[..., None], -1)[..., 0] if first.ndim else first
            )
            if first.ndim > 1 and np.any(first.max(-1) - chosen > step):
                problems.append(f"{name}: another largest element")
    return problems


def _cases(family: str, folder: Path, models: list[Path], only: list[str]) -> Iterator[Case]:
    module = importlib.import_module(f"_import_{family}")
    for source in models or [folder]:
        yield from module.cases(source, only)


def markdown(rows: list[Row]) -> str:
    """The page docs/importers.md: how many of each family, and a line for each source."""
    told = __doc__[__doc__.index("Each source") : __doc__.index("Exits 1")].strip()
    command = (
        "`python benchmarks/importers.py keras torch tflite --models FOLDER --markdown docs/importers.md`"
    )
    lines = ["# What imports, and how well", "", told, "", f"Made by {command}.", ""]
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        lines += [f"## {family}: {sum(r.imported for r in mine)} of {len(mine)}", "", BOUNDS[family], ""]
        lines += [
            "| source | format | imported | max rel | nodes | transposes | s |",
            "|---|---|---|--:|--:|--:|--:|",
        ]
        lines += [f"| {' | '.join(_cells(row)[:4] + _cells(row)[5:8])} |" for row in mine]
        lines += ["", *(f"- {r.source} ({r.format}): {r.notes}" for r in mine if not r.imported), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> list[str]:
    def number(value: float | None, text: str) -> str:
        return "-" if value is None else format(value, text)

    return [
        row.source,
        row.format,
        "yes" if row.imported else "NO",
        number(row.max_rel, ".1e"),
        number(row.optimized, ".1e"),
        number(row.nodes, "d"),
        number(row.transposes, "d"),
        number(row.seconds, ".1f"),
        row.notes[:150],
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("families", nargs="*", choices=[*FAMILIES, []])
    arguments.add_argument("--models", nargs="*", default=[], type=Path, help="folders of .tflite files")
    arguments.add_argument("--only", nargs="*", default=[], help="names that contain one of these")
    arguments.add_argument("--rows", nargs="*", default=[], type=Path, help="results of --json of other runs")
    arguments.add_argument("--markdown", type=Path, help="also write the table to this page")
    given = arguments.parse_args()
    rows = [Row(**row) for file in given.rows for row in json.loads(file.read_text(encoding="utf-8"))]
    for family in given.families:
        with tempfile.TemporaryDirectory() as folder:
            for case in _cases(family, Path(folder), given.models, given.only):
                rows.append(measure(family, case, Path(folder)))
                print(" ".join(_cells(rows[-1])), file=sys.stderr, flush=True)
    print(table(HEADER, [_cells(row) for row in rows]))
    if given.markdown:
        given.markdown.write_text(markdown(rows), encoding="utf-8")
    write_json(given.json, [row._asdict() for row in rows])
    print(f"{sum(row.imported for row in rows)} of {len(rows)} imported and right")
    return 0 if all(row.imported for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
