"""Optimize every ONNX model in some folders and check what must hold, one child process a model and step.

    python benchmarks/zoo.py fixtures/models fixtures/digits
    python benchmarks/zoo.py FOLDER... --only resnet --json zoo.json

For each model: the result passes the ONNX checker, loads in onnxruntime, gives the original's outputs on
the base sizes and on a second size of every dynamic axis, keeps the names, order, types and dynamic axes of
inputs and outputs, has no more nodes and at most 1.05 times the bytes. The checks share no code with
graphopt.

A folder's index.json (or its parent's) tells how to draw the inputs: entries with "name" or "file" and
"inputs", each with name, dtype, shape, lo, hi. Without one, graphopt.runtime.samples draws them. Models whose
random weights were taken out (metadata entry "weightless") get them back first.

Exits 1 if any check of any model fails.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import megabytes, parser, run_child, run_step, table, write_json

if TYPE_CHECKING:
    import _checks  # the parent must stay small: the steps import it

HEADER = ["model", "nodes", "after", "bytes", "s", "cpu s", "MiB", "max rel", "margin", "sizes", "verdict"]
MAX_BYTES = 1.05

Recipe = Sequence[Mapping[str, Any]]  # for each input its name, dtype, base shape and range [lo, hi)


# The three steps; each runs in a child of its own.


def prepare(source: Path, target: Path) -> None:
    """Copy the model; one without weights gets them, its structure is not touched."""
    import _checks
    import onnx

    model = onnx.load(source, load_external_data=False)
    if _checks.refill(model):
        onnx.save(model, target)
        return
    model_file, *data_files = _checks.files_of(source)
    shutil.copyfile(model_file, target)
    for file in data_files:
        shutil.copyfile(file, target.parent / file.relative_to(source.parent))


def optimize(source: Path, target: Path) -> None:
    """Optimize through the Python API."""
    import graphopt

    graphopt.save(graphopt.optimize(source), target)


def check(source: Path, target: Path, recipe: Recipe | None) -> dict[str, Any]:
    """Everything that must hold; what does not is named in ``failed``."""
    import _checks
    import onnx

    before, after = (onnx.load(p, load_external_data=False) for p in (source, target))
    failed = []
    try:
        onnx.checker.check_model(target)
    except onnx.checker.ValidationError as error:
        failed.append(f"checker: {str(error).splitlines()[0][:120]}")
    if _checks.interface(before) != _checks.interface(after):
        failed.append("interface changed")
    nodes = _checks.node_count(before), _checks.node_count(after)
    if nodes[1] > nodes[0]:
        failed.append(f"{nodes[1] - nodes[0]} more nodes")
    ratio = _checks.file_bytes(target) / _checks.file_bytes(source)
    if ratio > MAX_BYTES:
        failed.append("too many bytes")
    numbers = _check_numbers(source, target, before, recipe or _drawn_recipe(source))
    failed += numbers.pop("failed")
    return {"nodes": nodes[0], "nodes_after": nodes[1], "bytes_ratio": ratio, **numbers, "failed": failed}


def _drawn_recipe(source: Path) -> list[dict[str, Any]]:
    import _checks

    import graphopt
    from graphopt.runtime import samples

    return _checks.recipe_of(samples.draw(graphopt.load(source), 1, 0).feeds[0])


def _check_numbers(source: Path, target: Path, model: Any, recipe: Recipe) -> dict[str, Any]:
    import _checks
    import numpy as np

    runs, notes = _reference_runs(source, model, recipe)
    if not runs:
        return {"failed": ["the original does not run"], "notes": notes}
    base = [run.outputs for run in runs[:2]]
    if all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*base, strict=True)):
        notes.append("same output for any input")
    try:
        runner = _checks.Runner(target)
    except _checks.ORT_ERRORS as error:
        return {"failed": [f"does not load: {str(error).split('failed:')[-1].strip()[:120]}"], "notes": notes}
    failed, margin, relative = [], 0.0, 0.0
    for label, feeds, reference in runs:
        result = runner(feeds)
        if result is None or len(result) != len(reference):
            failed.append(f"does not run at {label}")
            continue
        gaps = [_checks.difference(a, b) for a, b in zip(reference, result, strict=True)]
        margin = max([margin, *(g.margin for g in gaps)])
        relative = max([relative, *(g.relative for g in gaps)])
        if any(g.margin > 1 for g in gaps):
            failed.append(f"outputs differ at {label}")
    sizes = [run.label for run in runs]
    return {"failed": failed, "margin": margin, "max_rel": relative, "sizes": sizes, "notes": notes}


def _reference_runs(source: Path, model: Any, recipe: Recipe) -> tuple[list[_checks.Run], list[str]]:
    """The original's outputs: twice at the base sizes, then with each dynamic axis resized, then with all.

    Sizes that the original itself does not take are skipped, and noted.
    """
    import _checks

    original = _checks.Runner(source)
    groups = _checks.dynamic_axes(model, recipe)
    settled = _checks.settle(original, recipe, groups)
    if settled is None:
        return [], []
    base = {r["name"]: r["shape"] for r in settled}
    runs = [r for seed in (0, 1) if (r := original.reference(f"base {seed}", settled, {}, seed))]
    notes: list[str] = []
    together: dict[_checks.Axis, int] = {}
    for group in groups:
        name, place = min(group)
        for size in _checks.other_sizes(base[name][place]):
            sizes = dict.fromkeys(group, size)
            if run := original.reference(f"{name}[{place}]={size}", settled, sizes, 0):
                runs.append(run)
                together |= sizes
                break
        else:
            notes.append(
                f"{name}[{place}] is declared dynamic, but of the sizes tried only {base[name][place]} runs"
            )
    if len(groups) > 1 and (run := original.reference("all together", settled, together, 2)):
        runs.append(run)
    return (runs if len(runs) > 1 else []), notes


# The parent, which loads no model.


def find_recipes(folder: Path) -> dict[str, Any]:
    """File name to input recipe, from the index.json of the folder or of its parent."""
    index = next((f for f in (folder / "index.json", folder.parent / "index.json") if f.exists()), None)
    if index is None:
        return {}
    entries = json.loads(index.read_text())
    if isinstance(entries, dict):
        return {Path(name).name: e["inputs"] for name, e in entries.items() if "inputs" in e}
    return {Path(e.get("file") or e["name"]).name: e["inputs"] for e in entries if "inputs" in e}


def examine(model: Path, recipe: Any, via: str, limit: float) -> dict[str, Any]:
    """Run the three steps on one model; the outcome as plain data."""
    with tempfile.TemporaryDirectory(prefix="graphopt-zoo-") as name:
        folder = Path(name)
        source, target, result = folder / "original.onnx", folder / "optimized.onnx", folder / "result.json"
        (folder / "recipe.json").write_text(json.dumps(recipe))
        outcome: dict[str, Any] = {"model": model.name}
        made = run_step(__file__, "prepare", model, source, limit=limit)
        if made.problem:
            return {**outcome, "failed": [f"prepare: {made.problem}"]}
        if via == "cli":
            graphopt = [sys.executable, "-m", "graphopt"]
            child = run_child([*graphopt, "optimize", str(source), "-o", str(target), "-q"], limit=limit)
        else:
            child = run_step(__file__, "optimize", source, target, limit=limit)
        outcome |= {"seconds": child.seconds, "cpu": child.cpu, "peak_rss": child.peak_rss}
        if child.problem:
            return {**outcome, "failed": [f"optimize: {child.problem}"]}
        arguments = (source, target, folder / "recipe.json", result)
        checked = run_step(__file__, "check", *arguments, limit=limit)
        if checked.problem:
            return {**outcome, "failed": [f"check: {checked.problem}"]}
        return {**outcome, **json.loads(result.read_text())}


def do_step(name: str, paths: Sequence[Path]) -> None:
    """A step, in the child."""
    if name == "prepare":
        prepare(*paths)
    elif name == "optimize":
        optimize(*paths)
    else:
        source, target, recipe, result = paths
        result.write_text(json.dumps(check(source, target, json.loads(recipe.read_text()))))


def _row(outcome: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return format(outcome[key], form) if key in outcome else "-"

    notes = [f"({n})" for n in outcome.get("notes", [])]
    return [
        outcome["model"].removesuffix(".onnx"),
        number("nodes", "d"),
        number("nodes_after", "d"),
        number("bytes_ratio", ".3f"),
        number("seconds", ".1f"),
        number("cpu", ".1f"),
        megabytes(outcome.get("peak_rss")),
        number("max_rel", ".1e"),
        number("margin", ".2f"),
        str(len(outcome.get("sizes", []))),
        " ".join(["FAILED: " + "; ".join(outcome["failed"]) if outcome["failed"] else "ok", *notes]),
    ]


def _totals(outcomes: Sequence[Mapping[str, Any]]) -> str:
    whole = [o for o in outcomes if "nodes" in o]
    before, after = sum(o["nodes"] for o in whole), sum(o["nodes_after"] for o in whole)
    bad = sum(bool(o["failed"]) for o in outcomes)
    share = f", {100 * (1 - after / before):.1f} % fewer" if before else ""
    return (
        f"{len(outcomes)} models, {bad} failed; nodes {before} -> {after}{share}; "
        f"cpu {sum(o.get('cpu', 0) for o in outcomes):.0f} s; "
        f"largest peak {megabytes(max((o.get('peak_rss', 0) for o in outcomes), default=0))} MiB"
    )


def main() -> int:
    options = parser(__doc__)
    options.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders of .onnx files")
    options.add_argument("--only", default="", metavar="TEXT", help="only file names that contain TEXT")
    options.add_argument("--via", choices=("api", "cli"), default="api", help="call the API or the command")
    options.add_argument("--limit", type=float, default=600, help="seconds a step may take (600)")
    arguments = options.parse_args()
    if arguments.step:
        do_step(arguments.step[0], [Path(p) for p in arguments.step[1:]])
        return 0
    if not arguments.folders:
        options.error("give at least one folder")
    start = time.perf_counter()
    outcomes = []
    for folder in arguments.folders:
        recipes = find_recipes(folder)
        for model in sorted(folder.glob("*.onnx")):
            if arguments.only in model.name:
                print(f"{model.name} ...", file=sys.stderr, flush=True)
                recipe = recipes.get(model.name)
                outcomes.append(examine(model.resolve(), recipe, arguments.via, arguments.limit))
    print(table(HEADER, [_row(o) for o in outcomes]))
    print(f"\n{_totals(outcomes)}; {time.perf_counter() - start:.0f} s in all")
    write_json(arguments.json, outcomes)
    return int(not outcomes or any(o["failed"] for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
