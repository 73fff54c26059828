"""The exact passes on the official ONNX node suite and on random graphs, without the safety net.

    python benchmarks/node_suite.py                          # all variants, 1,000 random graphs
    python benchmarks/node_suite.py --random 10000
    python benchmarks/node_suite.py --only random --case 4711 --save FOLDER

Three variants: ``as-is``, every case of the suite that onnxruntime (its optimizer off) passes; ``constants``,
the same models with all inputs but the first made initializers, those that onnxruntime runs; ``random``,
graphs of many operators, of a seed, on which onnxruntime and the reference evaluator agree.

The passes of the built-in recipe are applied one after the other to the loaded model, and nothing verifies
or undoes them (``--pipeline`` goes through ``graphopt.optimize`` instead). The result must pass the ONNX
checker, load in onnxruntime, give the same outputs (within 1e-5 * max(1, rms) + 1e-4 * |x|, integers all),
and have the same inputs and outputs in name, order, type and axes. Children do the work, many models each;
one that dies is a finding, and the next goes on behind it.

Exits 1 if anything failed.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import parser, run_step, table, write_json

if TYPE_CHECKING:
    import _node_cases  # the parent must stay small: the workers import it
    import onnx

VARIANTS = ("as-is", "constants", "random")
VERDICTS = ("ok", "wrong", "raised", "crashed", "unloadable", "invalid", "interface")
#: Seconds that one model may take before its child is killed.
CASE_LIMIT = 120
#: Random graphs a child does before a fresh one goes on.
BATCH = 2000
#: Places for the official cases (1,884 in onnx 1.23); those behind the last stay empty.
OFFICIAL = 2400

Outcome = dict[str, Any]
Transform = Callable[["onnx.ModelProto"], "onnx.ModelProto"]


# The worker.


def plain_passes(recipe: str = "") -> Transform:
    """The passes of a recipe (none: the built-in one) in a row, without verification."""
    import onnx_ir as ir

    from graphopt import builtin, io
    from graphopt import recipe as recipes

    steps = (recipes.load(recipe) if recipe else builtin.optimize_recipe()).passes

    def transform(proto: onnx.ModelProto) -> onnx.ModelProto:
        model = io.from_proto(proto)
        for step in steps:
            step.pass_(model)
        return ir.to_proto(model)

    return transform


def whole_pipeline() -> Transform:
    """``graphopt.optimize``."""
    import graphopt

    return graphopt.optimize


def judge(case: _node_cases.Case, transform: Transform) -> Outcome:
    """What became of one case."""
    import onnx

    before = case.model.SerializeToString(deterministic=True)
    try:
        after = transform(onnx.load_from_string(before))
    except Exception as error:  # noqa: BLE001 (whatever a pass raises is a finding)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return {"verdict": "raised", "detail": f"{type(error).__name__} at {where}: {str(error)[:200]}"}
    counts = {"nodes": _count(case.model), "nodes_after": _count(after)}
    verdict, detail = _compare(case, after)
    return {**counts, "verdict": verdict, "detail": detail}


def _count(model: onnx.ModelProto) -> int:
    import _checks

    return _checks.node_count(model)


def _interface(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    values = (*model.graph.input, *model.graph.output)
    return [(v.name, v.type.SerializeToString(deterministic=True)) for v in values]


def _compare(case: _node_cases.Case, after: onnx.ModelProto) -> tuple[str, str]:
    import _checks
    import _node_cases

    if _interface(case.model) != _interface(after):
        return "interface", "inputs or outputs changed"
    problem = _checker(after)
    if problem and not _checker(case.model):
        return "invalid", problem
    try:
        run = _node_cases.session(after)
    except _checks.ORT_ERRORS as error:
        return "unloadable", str(error)[:300]
    for number, (feeds, reference) in enumerate(case.runs):
        try:
            outputs = run(feeds)
        except _checks.ORT_ERRORS as error:
            return "wrong", f"run {number} fails: {str(error)[:200]}"
        for value, a, b in zip(case.model.graph.output, reference, outputs, strict=True):
            gap = _node_cases.difference(a, b)
            if not gap <= 1:
                return "wrong", f"run {number}, output '{value.name}': {gap:.3g} times the tolerance"
    return "ok", ""


def _checker(model: onnx.ModelProto) -> str:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)[:300]
    return ""


def _cases(variant: str, seed: int, indices: Sequence[int]) -> Iterator[Callable[[], _node_cases.Case]]:
    import _node_cases

    if variant == "random":
        return _node_cases.randoms(seed, indices)
    return _node_cases.official(indices, constant_inputs=variant == "constants")


def work(variant: str, how: str, seed: int, start: int, stop: int, log: Path, save: str) -> None:
    """Judge the cases from ``start`` to ``stop``; a line in the log before and after each."""
    transform = whole_pipeline() if how == "pipeline" else plain_passes(how.removeprefix("passes"))
    indices, parent = range(start, stop), os.getppid()
    with log.open("a", encoding="utf-8") as file:
        for index, make in zip(indices, _cases(variant, seed, indices), strict=False):
            if os.getppid() != parent:
                raise SystemExit("the parent is gone")
            signal.alarm(CASE_LIMIT)
            print(json.dumps({"index": index, "begun": True}), file=file, flush=True)
            case = make()
            print(json.dumps({"index": index, "begun": True, "name": case.name}), file=file, flush=True)
            if case.skipped:
                outcome: Outcome = {"verdict": "skipped", "detail": case.skipped}
            else:
                outcome = judge(case, transform)
            outcome = {"index": index, "name": case.name, **outcome}
            print(json.dumps(outcome), file=file, flush=True)
            if save and outcome["verdict"] not in ("ok", "skipped"):
                (Path(save) / f"{variant}-{case.name}.onnx").write_bytes(case.model.SerializeToString())
        signal.alarm(0)


# The parent, which loads no model.


def run_range(variant: str, how: str, seed: int, span: range, save: str) -> list[Outcome]:
    """The outcomes of a range of cases; children that die are replaced."""
    outcomes: list[Outcome] = []
    start = span.start
    with tempfile.TemporaryDirectory(prefix="graphopt-nodes-") as folder:
        while start < span.stop:
            log = Path(folder) / f"{start}.jsonl"
            arguments = (variant, how, seed, start, span.stop, log, save)
            child = run_step(__file__, "work", *arguments, limit=24 * 3600)
            found, begun = _read(log)
            outcomes += found
            if not child.problem:
                break
            if begun is None:
                raise SystemExit(f"a child does not work: {child.problem}")
            begun = {"name": f"case {begun['index']}", **begun}
            outcomes.append({**begun, "verdict": "crashed", "detail": child.problem})
            start = begun["index"] + 1
    return outcomes


def _read(log: Path) -> tuple[list[Outcome], Outcome | None]:
    """The outcomes that a child wrote, and the case that it had begun when it died."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    begun = lines[-1] if lines and "begun" in lines[-1] else None
    return [line for line in lines if "begun" not in line], begun


def run_variant(variant: str, how: str, seed: int, span: range, jobs: int, save: str) -> list[Outcome]:
    """All outcomes of a variant, in order."""
    step = min(BATCH, max(1, -(-len(span) // jobs)))
    spans = [range(i, min(i + step, span.stop)) for i in range(span.start, span.stop, step)]
    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        parts = threads.map(lambda part: run_range(variant, how, seed, part, save), spans)
        return [outcome for part in parts for outcome in part]


def _summary(variant: str, outcomes: Sequence[Outcome], seconds: float) -> list[object]:
    counts = Counter(o["verdict"] for o in outcomes)
    done = [o for o in outcomes if "nodes" in o]
    nodes = sum(o["nodes"] for o in done), sum(o["nodes_after"] for o in done)
    total = sum(counts.values()) - counts["skipped"]
    return [variant, total, *(counts[v] for v in VERDICTS), counts["skipped"], *nodes, f"{seconds:.0f} s"]


def _failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if o["verdict"] not in ("ok", "skipped")]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--only", choices=VARIANTS, nargs="+", default=VARIANTS, help="variants to run")
    options.add_argument(
        "--random", type=int, default=1000, metavar="N", help="number of random graphs (1000)"
    )
    options.add_argument("--seed", type=int, default=0, help="seed of the random graphs (0)")
    options.add_argument("--case", type=int, help="only the case with this number")
    options.add_argument("--pipeline", action="store_true", help="go through graphopt.optimize")
    options.add_argument("--recipe", type=Path, metavar="FILE", help="the passes of this recipe instead")
    options.add_argument("--save", type=Path, metavar="FOLDER", help="keep the models that fail here")
    options.add_argument("--jobs", type=int, default=2, help="children at a time (2)")
    arguments = options.parse_args()
    if arguments.step:
        return do_step(*arguments.step[1:])
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
    rows, results = [], {}
    how = "pipeline" if arguments.pipeline else f"passes{arguments.recipe or ''}"
    save = str(arguments.save or "")
    for variant in arguments.only:
        start = time.perf_counter()
        count = arguments.random if variant == "random" else OFFICIAL
        span = range(count) if arguments.case is None else range(arguments.case, arguments.case + 1)
        print(f"{variant} ...", file=sys.stderr, flush=True)
        found = run_variant(variant, how, arguments.seed, span, arguments.jobs, save)
        results[variant] = found
        rows.append(_summary(variant, found, time.perf_counter() - start))
    header = ["variant", "models", *VERDICTS, "skipped", "nodes", "after", "time"]
    print(table(header, rows))
    failed = [(variant, o) for variant, found in results.items() for o in _failures(found)]
    for variant, o in failed:
        print(f"{variant} #{o['index']} {o['name']}: {o['verdict']}: {o['detail']}")
    write_json(arguments.json, results)
    return int(bool(failed))


def do_step(*arguments: str) -> int:
    """The work of a child."""
    import warnings

    warnings.simplefilter("ignore")
    variant, how, seed, start, stop, log, save = arguments
    work(variant, how, int(seed), int(start), int(stop), Path(log), save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
