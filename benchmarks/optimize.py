"""graphopt and its peers side by side, in one run, on any models.

    python benchmarks/optimize.py fixtures/models fixtures/digits
    python benchmarks/optimize.py MODEL.onnx FOLDER... --json optimize.json --plot optimize.svg
    python benchmarks/optimize.py --synthetic 4000 --synthetic 30000 --synthetic 120000

The peers (onnxsim, onnxslim, onnxscript's optimizer, onnxruntime's offline optimization at level basic) live
in a virtual environment of their own, which is made where it is missing and used again where it is not.
Every tool runs on a copy of the model in a child with a time limit. "graphopt, passes" is the passes of
`graphopt optimize` without any verification, so that the two lines show what verification costs.

Columns: nodes (subgraphs included, Constant not); CPU seconds of the call (model in memory to model in
memory; of graphopt and onnxruntime, file to model) and of the whole process; peak resident memory; bytes and
latency as a share of the original's. Latency is measured with onnxruntime's default settings, original and
results taking turns: the median, and in brackets the quartiles' distance over the median. The verdict comes
from zoo.py's checks; "own domain" marks a result with operators that its input's domains do not have.

Exits 1 if a result of graphopt fails a check.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import Child, megabytes, parser, run_step, table, write_json

PEERS = {"onnxsim": "0.8.1", "onnxslim": "0.1.98", "onnxscript": "0.7.2", "onnxruntime": "1.31.1"}
OURS = ("graphopt", "graphopt, passes")
HEADER = ("model", "tool", "nodes", "call s", "process s", "MiB", "bytes", "latency", "verdict")
ROUNDS, SECONDS = 31, 10.0


# The steps; each runs in a child of its own, with the peers' interpreter where a peer is measured.


def call(tool: str, source: Path, target: Path) -> float:
    """Optimize with one tool and save the result; CPU seconds of the call."""
    return {
        "graphopt": _graphopt,
        "graphopt, passes": _passes,
        "onnxsim": _onnxsim,
        "onnxslim": _onnxslim,
        "onnxscript": _onnxscript,
        "onnxruntime": _onnxruntime,
    }[tool](source, target)


def _graphopt(source: Path, target: Path) -> float:
    import graphopt
    from graphopt import api

    recipe = api.builtin_recipe("optimize")
    start = time.process_time()
    model = graphopt.run(recipe, source).model
    seconds = time.process_time() - start
    graphopt.save(model, target)
    return seconds


def _passes(source: Path, target: Path) -> float:
    import graphopt
    from graphopt import api
    from graphopt import recipe as recipes

    start = time.process_time()
    steps = recipes.load(api.builtin_recipe("optimize")).passes
    model = graphopt.load(source)
    for step in steps:
        model = step.pass_(model).model
    seconds = time.process_time() - start
    graphopt.save(model, target)
    return seconds


def _onnxsim(source: Path, target: Path) -> float:
    import onnx
    import onnxsim

    model = onnx.load(source)
    start = time.process_time()
    result, same = onnxsim.simplify(model)
    seconds = time.process_time() - start
    if not same:
        raise SystemExit("onnxsim's own check failed")
    onnx.save(result, target)
    return seconds


def _onnxslim(source: Path, target: Path) -> float:
    import onnx
    import onnxslim

    model = onnx.load(source)
    start = time.process_time()
    result = onnxslim.slim(model)
    seconds = time.process_time() - start
    onnx.save(result, target)
    return seconds


def _onnxscript(source: Path, target: Path) -> float:
    import onnx
    from onnxscript import optimizer

    model = onnx.load(source)
    start = time.process_time()
    result = optimizer.optimize(model)
    seconds = time.process_time() - start
    onnx.save(result, target)
    return seconds


def _onnxruntime(source: Path, target: Path) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    start = time.process_time()
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return time.process_time() - start


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
        return call(given[0], Path(given[1]), Path(given[2]))
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

    def __init__(self, folder: Path, recipe: Any, limit: float, peers: Path | None) -> None:
        self.folder, self.limit, self.peers = folder, limit, peers
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
        child, seconds = self.step(
            "call", tool, self.source, target, python=None if tool in OURS else self.peers
        )
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
        one = Bench(Path(folder), recipe, options.limit, options.peers_python)
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
                *(_median_ratio(cells, models, tool, key) for key in ("call_cpu", "process_cpu", "peak_rss")),
                "",
            )
        )
    return table(
        ("tool", "right", "nodes", "call / onnxsim", "process / onnxsim", "memory / onnxsim", ""), rows
    )


def _median_ratio(cells: Mapping[Any, Any], models: Sequence[str], tool: str, key: str) -> str:
    pairs = [(cells.get((m, tool), {}).get(key), cells.get((m, "onnxsim"), {}).get(key)) for m in models]
    ratios = [a / b for a, b in pairs if a is not None and b]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def find_models(paths: Sequence[Path], only: str) -> list[tuple[Path, Any]]:
    """Every model with its input recipe, where there is one."""
    from zoo import find_recipes

    files = [f for p in paths for f in (sorted(p.glob("*.onnx")) if p.is_dir() else [p]) if only in f.name]
    return [(file.resolve(), find_recipes(file.parent).get(file.name)) for file in files]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("models", nargs="*", type=Path, metavar="PATH", help="models, or folders of them")
    options.add_argument("--only", default="", metavar="TEXT", help="only file names that contain TEXT")
    options.add_argument("--tools", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
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
    print(f"\n{summary(outcomes, arguments.tools)}")
    write_json(arguments.json, outcomes)
    if arguments.plot:
        import _svg

        arguments.plot.write_text(_svg.draw(outcomes, arguments.tools), encoding="utf-8")
    return int(not outcomes or any(o["failed"] for o in outcomes if o["tool"] in (*OURS, "-")))


if __name__ == "__main__":
    sys.exit(main())
