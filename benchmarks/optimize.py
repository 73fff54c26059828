"""graphopt and its peers side by side, in one run, on any models.

    python benchmarks/optimize.py fixtures/models fixtures/digits
    python benchmarks/optimize.py PATH... --target-opset 24 --json optimize.json --plot optimize.svg
    python benchmarks/optimize.py --synthetic 4000 --synthetic 30000 --synthetic 120000

The peers (onnxsim, onnxslim, onnxscript's optimizer, onnxruntime's offline optimization at level basic) live
in a virtual environment of their own, which is made where it is missing and used again where it is not.
Every tool runs on a copy of the model in a child with a time limit. "graphopt" proves its result, as
"onnxsim, checked" does (check_n=3); "graphopt, passes" is the passes of `graphopt optimize` without any
verification, as "onnxsim" is. The last table pairs these.

Columns: nodes (subgraphs included, Constant not); CPU seconds of the call, from a model in memory to a model
in memory, behind a first call on a tiny model, so that no tool's imports count (onnxruntime: from bytes to a
file, it has no other way); CPU seconds of the whole process, imports, loading and saving included; peak
resident memory; bytes and latency as a share of the original's. Latency is measured with onnxruntime's
default settings, original and results taking turns: the median, and in brackets the quartiles' distance over
the median. The verdict comes from zoo.py's checks; "own domain" marks a result with operators that its
input's domains do not have. What the tools print is dropped.

Exits 1 if a result of graphopt fails a check.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _common import Child, megabytes, parser, run_step, table, write_json

PEERS = {"onnxsim": "0.8.1", "onnxslim": "0.1.98", "onnxscript": "0.7.2", "onnxruntime": "1.31.1"}
OURS = ("graphopt", "graphopt, passes")
TOOLS = (*OURS, "onnxsim", "onnxsim, checked", "onnxslim", "onnxscript", "onnxruntime")
#: What does the same work, with proof and without.
PAIRS = (("graphopt", "onnxsim, checked"), ("graphopt, passes", "onnxsim"))
COSTS = ("call_cpu", "process_cpu", "peak_rss")
HEADER = ("model", "tool", "nodes", "call s", "process s", "MiB", "bytes", "latency", "verdict")
ROUNDS, SECONDS = 31, 10.0


# The steps; each runs in a child of its own, with the peers' interpreter where a peer is measured.


class Tool(NamedTuple):
    """How one tool is used: ``work`` is what is measured.

    Attributes:
        load: A model in the form that the tool takes.
        work: From what was loaded to the result.
        save: Write the result.
    """

    load: Callable[[Path], Any]
    work: Callable[[Any], Any]
    save: Callable[[Any, Path], Any]


def call(name: str, source: Path, target: Path, target_opset: int | None, recipe: Any) -> float:
    """Optimize with one tool and save the result; CPU seconds of the call."""
    makers = {
        "graphopt": lambda: _graphopt(target_opset),
        "graphopt, passes": lambda: _passes(target_opset),
        "onnxsim": _onnxsim,
        "onnxsim, checked": lambda: _checked_onnxsim(recipe),
        "onnxslim": _onnxslim,
        "onnxscript": _onnxscript,
        "onnxruntime": lambda: _onnxruntime(target),
    }
    tool = makers[name]()
    with _silence():
        with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
            tiny = Path(folder, "tiny.onnx")
            _write_tiny(tiny)
            tool.work(tool.load(tiny))
        model = tool.load(source)
        start = time.process_time()
        result = tool.work(model)
        seconds = time.process_time() - start
    tool.save(result, target)
    return seconds


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed, by native code neither: thousands of warnings would take time and memory."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def _write_tiny(path: Path) -> None:
    """A model that is optimized at once, and lets the tool load what it loads when it is first used."""
    import onnx
    from onnx import parser

    text = """<ir_version: 8, opset_import: ["" : 17]> tiny (float[n, 4] x) => (float[n, 4] y)
    <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float one = {1}, float two = {2}> {
        i = Identity(x) m = MatMul(i, w) t = Add(one, two) a = Add(m, t) s = Shape(a) y = Reshape(a, s) }"""
    onnx.save(parser.parse_model(text), path)


def _graphopt(target_opset: int | None) -> Tool:
    import graphopt
    from graphopt import registry

    registry.pass_classes()  # imports every pass
    return Tool(graphopt.load, lambda m: graphopt.optimize(m, target_opset=target_opset), graphopt.save)


def _passes(target_opset: int | None) -> Tool:
    import graphopt
    from graphopt import builtin, registry
    from graphopt._collector import collector_held

    registry.pass_classes()

    def work(model: Any) -> Any:
        with collector_held():  # as the pipeline does
            for step in builtin.optimize_recipe(target_opset).passes:
                model = step.pass_(model).model
        return model

    return Tool(graphopt.load, work, graphopt.save)


def _onnxsim() -> Tool:
    import onnx
    import onnxsim

    return Tool(onnx.load, lambda model: onnxsim.simplify(model)[0], onnx.save)


def _checked_onnxsim(recipe: Any) -> Tool:
    import onnx
    import onnxsim

    def load(path: Path) -> tuple[Any, dict[str, Any]]:
        """The model, and the inputs of its recipe; without one onnxsim draws them, open axes at 2."""
        import _checks

        model = onnx.load(path)
        if recipe and path.name != "tiny.onnx":
            return model, {"input_data": _checks.draw(recipe, {}, 0)}
        shapes = {
            value.name: [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        return model, {"test_input_shapes": shapes}

    def work(given: tuple[Any, dict[str, Any]]) -> Any:
        model, inputs = given
        result, same = onnxsim.simplify(model, check_n=3, **inputs)
        if not same:
            raise SystemExit("onnxsim's own check failed")
        return result

    return Tool(load, work, onnx.save)


def _onnxslim() -> Tool:
    import onnx
    import onnxslim

    return Tool(onnx.load, onnxslim.slim, onnx.save)


def _onnxscript() -> Tool:
    import onnx
    from onnxscript import optimizer

    return Tool(onnx.load, optimizer.optimize, onnx.save)


def _onnxruntime(target: Path) -> Tool:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4

    def work(model: bytes) -> Any:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    return Tool(Path.read_bytes, work, lambda result, path: None)


def has_own_domain(source: Path, target: Path) -> bool:
    """Whether the result uses operators of a domain that the original does not use."""
    import _checks
    import onnx

    def domains(path: Path) -> set[str]:
        graph = onnx.load(path, load_external_data=False).graph
        return {node.domain for g in _checks.graphs(graph) for node in g.node} - {"", "ai.onnx"}

    return bool(domains(target) - domains(source))


def check(source: Path, target: Path, recipe: Any) -> dict[str, Any]:
    """zoo.py's checks, and whether the result stays in the domains of the original."""
    import zoo

    outcome = zoo.check(source, target, recipe)
    return {**outcome, "own_domain": has_own_domain(source, target)}


def latency(recipe: Any, paths: Sequence[Path]) -> list[list[float]]:
    """Seconds of every run of every model, which take turns, under onnxruntime's default settings."""
    import _checks
    import onnx
    import onnxruntime as ort
    import zoo

    original = onnx.load(paths[0], load_external_data=False)
    drawn = recipe or zoo._drawn_recipe(paths[0])
    settled = _checks.settle(_checks.Runner(paths[0]), drawn, _checks.dynamic_axes(original, drawn))
    feeds = _checks.draw(settled or drawn, {}, 0)
    sessions = [ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in paths]
    for session in sessions:
        session.run(None, feeds)
    times: list[list[float]] = [[] for _ in paths]
    end = time.perf_counter() + SECONDS
    while len(times[0]) < ROUNDS and (time.perf_counter() < end or len(times[0]) < 3):
        for session, seconds in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - start)
    return times


def do_step(name: str, arguments: Sequence[str]) -> None:
    """A step, in the child; what it finds goes to the file named last."""
    if name == "prepare":
        import zoo

        zoo.prepare(Path(arguments[0]), Path(arguments[1]))
    elif name == "synthesize":
        import _synthetic

        _synthetic.make(int(arguments[0]), Path(arguments[1]))
    else:
        *given, result = arguments
        Path(result).write_text(json.dumps(_measured(name, given)))


def _measured(name: str, given: Sequence[str]) -> Any:
    if name == "call":
        recipe = json.loads(Path(given[4]).read_text())
        return call(given[0], Path(given[1]), Path(given[2]), int(given[3]) or None, recipe)
    recipe = json.loads(Path(given[0]).read_text())
    if name == "check":
        return check(Path(given[1]), Path(given[2]), recipe)
    return latency(recipe, [Path(p) for p in given[1:]])


# The parent, which loads no model.


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    found = f"{{p: v(p) for p in {list(PEERS)!r}}}"
    probe = f"from importlib.metadata import version as v; assert {PEERS!r} == {found}"
    if python.exists() and not subprocess.run([python, "-c", probe], capture_output=True).returncode:
        return python
    if folder.exists():
        sys.exit(f"{folder} exists but does not hold {PEERS}; remove it or name another with --peers-venv")
    print(f"making {folder} ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = [f"{name}=={version}" for name, version in PEERS.items()]
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", *wanted], check=True)
    return python


class Bench:
    """One model: every tool on it, in a folder that is gone afterwards."""

    def __init__(self, folder: Path, recipe: Any, options: Any) -> None:
        self.folder, self.limit, self.peers = folder, options.limit, options.peers_python
        self.target_opset = options.target_opset
        self.source, self.result, self.recipe = (
            folder / "original.onnx",
            folder / "result.json",
            folder / "in.json",
        )
        self.recipe.write_text(json.dumps(recipe))

    def step(self, name: str, *arguments: object, python: Path | None = None) -> tuple[Child, Any]:
        """Run a step; how its child went, and what it found."""
        child = run_step(__file__, name, *arguments, self.result, limit=self.limit, python=python)
        return child, None if child.problem else json.loads(self.result.read_text())

    def target(self, tool: str) -> Path:
        """Where a tool writes its result: a folder for each, as external data would lie beside it."""
        return self.folder / tool.replace(", ", "-") / "model.onnx"

    def measure(self, tool: str) -> dict[str, Any]:
        """Cost and result of one tool."""
        target = self.target(tool)
        target.parent.mkdir()
        python = None if tool in OURS else self.peers
        given = (tool, self.source, target, self.target_opset or 0, self.recipe)
        child, seconds = self.step("call", *given, python=python)
        found = {"tool": tool, "process_cpu": child.cpu, "peak_rss": child.peak_rss}
        if child.problem:
            return {**found, "failed": [child.problem]}
        checking, outcome = self.step("check", self.recipe, self.source, target)
        if checking.problem:
            return {**found, "call_cpu": seconds, "failed": [f"check: {checking.problem}"]}
        return {**found, "call_cpu": seconds, **outcome}

    def add_latency(self, outcomes: Sequence[dict[str, Any]]) -> None:
        """Add the median of each result as a share of the original's, and its spread."""
        able = [o for o in outcomes if "margin" in o and self.target(o["tool"]).exists()]
        paths = [self.source, *(self.target(o["tool"]) for o in able)]
        _, times = self.step("latency", self.recipe, *paths)
        if times is None:
            return
        base = statistics.median(times[0])
        for outcome, seconds in zip(able, times[1:], strict=True):
            low, middle, high = statistics.quantiles(seconds, n=4)
            outcome |= {"latency_ratio": middle / base, "latency_spread": (high - low) / middle}


def bench(
    name: str, recipe: Any, options: Any, tools: Sequence[str], prepare: Sequence[object]
) -> list[dict[str, Any]]:
    """All tools on one model, which the step ``prepare`` makes."""
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        one = Bench(Path(folder), recipe, options)
        made = run_step(__file__, *prepare, one.source, limit=options.limit)
        if made.problem:
            return [{"model": name, "tool": "-", "failed": [made.problem]}]
        outcomes = []
        for tool in tools:
            print(f"{name}: {tool} ...", file=sys.stderr, flush=True)
            outcomes.append({"model": name, **one.measure(tool)})
        if not options.no_latency:
            one.add_latency(outcomes)
        return outcomes


def _row(outcome: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return format(outcome[key], form) if key in outcome else "-"

    spread = f" ({outcome['latency_spread']:.2f})" if "latency_spread" in outcome else ""
    verdict = "FAILED: " + "; ".join(outcome["failed"]) if outcome["failed"] else "ok"
    return [
        outcome["model"].removesuffix(".onnx"),
        outcome["tool"],
        number("nodes_after", "d"),
        number("call_cpu", ".2f"),
        number("process_cpu", ".2f"),
        megabytes(outcome.get("peak_rss")),
        number("bytes_ratio", ".3f"),
        number("latency_ratio", ".3f") + spread,
        verdict + (", own domain" if outcome.get("own_domain") else ""),
    ]


def summary(outcomes: Sequence[Mapping[str, Any]], tools: Sequence[str]) -> str:
    """For each tool: on how many models it was right, and medians of its costs over onnxsim's."""
    cells = {(o["model"], o["tool"]): o for o in outcomes}
    models = list(dict.fromkeys(o["model"] for o in outcomes))
    rows = []
    for tool in tools:
        own = [cells[m, tool] for m in models if (m, tool) in cells]
        rows.append(
            (
                tool,
                f"{sum(not o['failed'] for o in own)}/{len(own)}",
                str(sum(o.get("nodes_after", 0) for o in own)),
                *(_median_ratio(cells, models, tool, key) for key in COSTS),
                "",
            )
        )
    return table(
        ("tool", "right", "nodes", "call / onnxsim", "process / onnxsim", "memory / onnxsim", ""), rows
    )


def _ratios(cells: Mapping[Any, Any], models: Sequence[str], pair: tuple[str, str], key: str) -> list[float]:
    """A figure of the first tool over that of the second, on the models where both have it."""
    found = [[cells.get((m, tool), {}).get(key) for tool in pair] for m in models]
    return [a / b for a, b in found if a is not None and b]


def _median_ratio(cells: Mapping[Any, Any], models: Sequence[str], tool: str, key: str) -> str:
    ratios = _ratios(cells, models, (tool, "onnxsim"), key)
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def pairs(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """Tools that do the same work: the medians of their ratios, the least, the greatest; the nodes."""
    cells = {(o["model"], o["tool"]): o for o in outcomes}
    models = list(dict.fromkeys(o["model"] for o in outcomes))
    rows = []
    for ours, theirs in PAIRS:
        nodes = _ratios(cells, models, (ours, theirs), "nodes_after")
        if nodes:
            costs = [_spread(_ratios(cells, models, (ours, theirs), key)) for key in COSTS]
            counts = [sum(r < 1 for r in nodes), sum(r == 1 for r in nodes), sum(r > 1 for r in nodes)]
            rows.append((f"{ours} / {theirs}", *costs, *map(str, counts), ""))
    header = ("pair", "call", "process", "memory", "fewer nodes", "as many", "more", "")
    return table(header, rows) if rows else ""


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def find_models(paths: Sequence[Path], only: str) -> list[tuple[Path, Any]]:
    """Every model with its input recipe, where there is one."""
    from zoo import find_recipes

    files = [f for p in paths for f in (sorted(p.glob("*.onnx")) if p.is_dir() else [p]) if only in f.name]
    return [(file.resolve(), find_recipes(file.parent).get(file.name)) for file in files]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("models", nargs="*", type=Path, metavar="PATH", help="models, or folders of them")
    options.add_argument("--only", default="", metavar="TEXT", help="only file names that contain TEXT")
    options.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    options.add_argument(
        "--target-opset", type=int, metavar="N", help="graphopt converts to this opset first"
    )
    options.add_argument(
        "--synthetic", type=int, action="append", default=[], metavar="N", help="a graph of N nodes"
    )
    options.add_argument("--peers-venv", type=Path, metavar="DIR", help="the peers' virtual environment")
    options.add_argument("--no-latency", action="store_true", help="leave the latencies out")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw nodes and call times to an SVG file")
    options.add_argument("--limit", type=float, default=600, help="seconds a step may take (600)")
    arguments = options.parse_args()
    if arguments.step:
        do_step(arguments.step[0], arguments.step[1:])
        return 0
    if not arguments.models and not arguments.synthetic:
        options.error("give at least one model, folder or --synthetic N")
    venv = arguments.peers_venv or Path.home() / ".cache" / "graphopt" / "peers"
    needs_peers = not set(arguments.tools) <= set(OURS)
    arguments.peers_python = peers_python(venv.absolute()) if needs_peers else None
    outcomes: list[dict[str, Any]] = []
    for model, recipe in find_models(arguments.models, arguments.only):
        outcomes += bench(model.name, recipe, arguments, arguments.tools, ("prepare", model))
    for count in arguments.synthetic:
        outcomes += bench(f"synthetic {count}", None, arguments, arguments.tools, ("synthesize", count))
    print(table(HEADER, [_row(o) for o in outcomes]))
    print(f"\n{summary(outcomes, arguments.tools)}\n\n{pairs(outcomes)}".rstrip())
    write_json(arguments.json, outcomes)
    if arguments.plot:
        import _svg

        arguments.plot.write_text(_svg.draw(outcomes, arguments.tools), encoding="utf-8")
    return int(not outcomes or any(o["failed"] for o in outcomes if o["tool"] in (*OURS, "-")))


if __name__ == "__main__":
    sys.exit(main())
