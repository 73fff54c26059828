"""Optimize a model of a few gigabytes and measure the memory that it takes.

    python benchmarks/large_model.py
    python benchmarks/large_model.py --no-verify
    python benchmarks/large_model.py --gigabytes 5 --folder /mnt/scratch

Makes a model with external data in a temporary folder (40 blocks for 2.5 GB, each
MatMul-Add-Relu-MatMul-Add with a constant chain, an Identity and a computed Reshape, and small constants
that all blocks repeat; at the end a Gemm with BatchNormalization), runs `graphopt optimize` on it as a
child process, compares the result's outputs with the original's, and removes everything again.
Needs four times the model's size on disk and once in memory (onnxruntime runs it whole to compare).

The CPU time is compared with that of a plain load and save by onnx_ir, in processes that take turns; the
ratio is that of the medians. Half of the weights are rewritten, since a factor is folded into them; `--plain`
makes a model without that factor, whose weights are only copied.

Peak memory is what the system reports as the largest resident set, pages of the memory-mapped weights
included; "without mapped files" is what the program itself held.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import MIB, Child, megabytes, parser, run_child, run_step, table, write_json

WIDTH = 1408
HIDDEN = 4 * WIDTH
CLASSES = 1000
#: Weights of one block; 40 blocks make 2.5 GB.
BLOCK_BYTES = 2 * WIDTH * HIDDEN * 4

_BLOCK = """
  up{i} = MatMul (x{i}, w_up{i})
  up_biased{i} = Add (up{i}, b_up{i})
  hidden{i} = Relu (up_biased{i})
  down{i} = MatMul (hidden{i}, w_down{i})
  down_biased{i} = Add (down{i}, b_down{i})
  factor{i} = Mul (half{i}, half{i})
  scaled{i} = Mul (down_biased{i}, factor{i})
  same{i} = Identity (scaled{i})
  summed{i} = Add (x{i}, same{i})
  shape{i} = Shape (summed{i})
  rows{i} = Gather (shape{i}, zero{i})
  target{i} = Concat <axis = 0> (rows{i}, width{i})
  x{next} = Reshape (summed{i}, target{i})
"""
_BLOCK_CONSTANTS = """
  float half{i} = {{0.5}},
  int64[1] zero{i} = {{0}},
  int64[1] width{i} = {{{width}}},
"""
_HEAD = """
  plain = Gemm (x{last}, w_head, b_head)
  logits = BatchNormalization (plain, gain, shift, mean, variance)
"""


class _Weights:
    """External data written tensor by tensor, declared as text."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self._file = path.open("wb")
        self._location = path.name
        self._rng = np.random.default_rng(0)

    def declare(self, name: str, shape: tuple[int, ...], mean: float, spread: float) -> str:
        """Write one normal tensor; returns its declaration."""
        import numpy as np

        array = self._rng.standard_normal(shape, dtype=np.float32)
        array *= np.float32(spread)
        array += np.float32(mean)
        start = self._file.tell()
        self._file.write(array.data)
        size = self._file.tell() - start
        dims = ", ".join(map(str, shape))
        place = f'["location": "{self._location}", "offset": "{start}", "length": "{size}"]'
        return f"  float[{dims}] {name} = {place}"

    def close(self) -> None:
        """All is written."""
        self._file.close()


def _declarations(weights: _Weights, blocks: int) -> Iterator[str]:
    for i in range(blocks):
        yield _BLOCK_CONSTANTS.format(i=i, width=WIDTH).strip().rstrip(",")
        yield weights.declare(f"w_up{i}", (WIDTH, HIDDEN), 0, WIDTH**-0.5)
        yield weights.declare(f"b_up{i}", (HIDDEN,), 0.05, 0)  # the same in every block
        yield weights.declare(f"w_down{i}", (HIDDEN, WIDTH), 0, HIDDEN**-0.5)
        yield weights.declare(f"b_down{i}", (WIDTH,), 0, 0.02)
    yield weights.declare("w_head", (WIDTH, CLASSES), 0, WIDTH**-0.5)
    for name, mean in (("b_head", 0), ("gain", 1), ("shift", 0), ("mean", 0), ("variance", 3)):
        yield weights.declare(name, (CLASSES,), mean, 0.1)


def make(path: Path, blocks: int, plain: bool) -> None:
    """Write the model to ``path`` and its weights beside it."""
    import onnx.parser

    block = (
        _BLOCK.replace("Mul (down_biased{i}, factor{i})", "Identity (down_biased{i})") if plain else _BLOCK
    )

    weights = _Weights(path.parent / "weights.bin")
    declared = ",\n".join(_declarations(weights, blocks))
    weights.close()
    body = "".join(block.format(i=i, next=i + 1) for i in range(blocks)) + _HEAD.format(last=blocks)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
large (float[batch, {WIDTH}] x0) => (float[batch, {CLASSES}] logits)
<
{declared}
>
{{{body}}}
"""
    onnx.save(onnx.parser.parse_model(text), path)


def check(source: Path, target: Path, result: Path) -> None:
    """Compare the outputs at two batch sizes, and count nodes and bytes of both."""
    import _checks
    import onnx

    onnx.checker.check_model(target)
    recipe = [{"name": "x0", "dtype": "float32", "shape": [1, WIDTH], "lo": -1, "hi": 1}]
    feeds = [_checks.draw(recipe, {("x0", 0): batch}, batch) for batch in (1, 3)]
    outputs = []
    for path in (source, target):
        runner = _checks.Runner(path)
        outputs.append([runner(f) for f in feeds])
        del runner  # one model in memory at a time
    gaps = [
        _checks.difference(a, b)
        for reference, got in zip(*outputs, strict=True)
        for a, b in zip(reference or [], got or [], strict=True)
    ]
    nodes = [_checks.node_count(onnx.load(p, load_external_data=False)) for p in (source, target)]
    figures = {
        "nodes": nodes[0],
        "nodes_after": nodes[1],
        "bytes": _checks.file_bytes(source),
        "bytes_after": _checks.file_bytes(target),
        "margin": max((g.margin for g in gaps), default=float("inf")),
        "max_rel": max((g.relative for g in gaps), default=float("inf")),
    }
    result.write_text(json.dumps(figures))


def copy(source: Path, target: Path) -> None:
    """What loading and saving alone take."""
    import onnx_ir as ir

    ir.save(ir.load(source), target, external_data=f"{target.name}.data")


def _turns(command: list[str], source: Path, target: Path, limit: float, rounds: int) -> tuple[Child, float]:
    """The last run of graphopt, and its CPU time over that of a copy: medians of processes in turn."""
    ours, plain = [], []
    for _ in range(rounds):
        child = run_child(command, limit=limit)
        _demand(child, "graphopt optimize")
        ours.append(child.cpu)
        copied = target.with_name("copy.onnx")
        copying = run_step(__file__, "copy", source, copied, limit=limit)
        _demand(copying, "loading and saving")
        plain.append(copying.cpu)
        for file in target.parent.glob("copy.onnx*"):
            file.unlink()
    return child, statistics.median(ours) / statistics.median(plain)


def measure(folder: Path, arguments: Any, options: list[str]) -> dict[str, Any]:
    """Make, optimize, check; the figures as plain data."""
    gigabytes, limit = arguments.gigabytes, arguments.limit
    blocks = math.ceil(gigabytes * 1e9 / BLOCK_BYTES)
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    source, target = folder / "in" / "large.onnx", folder / "out" / "large.opt.onnx"
    made = run_step(__file__, "make", source, blocks, int(arguments.plain), limit=limit)
    _demand(made, "making the model")
    command = [sys.executable, "-m", "graphopt", "optimize", str(source), "-o", str(target), *options]
    child, ratio = _turns(command, source, target, limit, arguments.rounds)
    print(child.output)
    result = folder / "result.json"
    _demand(run_step(__file__, "check", source, target, result, limit=limit), "checking the result")
    used = {"seconds": child.seconds, "cpu": child.cpu, "cpu_ratio": ratio}
    memory = {"peak_rss": child.peak_rss, "peak_anonymous": child.peak_anonymous}
    return {"blocks": blocks, **used, **memory, **json.loads(result.read_text())}


def _demand(child: Child, what: str) -> None:
    if child.problem:
        print(child.output, file=sys.stderr)
        sys.exit(f"{what} failed: {child.problem}")


def do_step(name: str, arguments: list[str]) -> None:
    """A step, in the child."""
    if name == "make":
        make(Path(arguments[0]), int(arguments[1]), bool(int(arguments[2])))
    elif name == "copy":
        copy(Path(arguments[0]), Path(arguments[1]))
    else:
        check(*(Path(a) for a in arguments))


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--gigabytes", type=float, default=2.5, help="size of the weights (2.5)")
    options.add_argument("--no-verify", action="store_true", help="let graphopt run no model")
    options.add_argument("--plain", action="store_true", help="a model none of whose large weights change")
    options.add_argument("--rounds", type=int, default=3, help="runs of each process (3)")
    options.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options.add_argument("--limit", type=float, default=1800, help="seconds a step may take (1800)")
    arguments = options.parse_args()
    if arguments.step:
        do_step(arguments.step[0], arguments.step[1:])
        return 0
    with tempfile.TemporaryDirectory(prefix="graphopt-large-", dir=arguments.folder) as name:
        free = shutil.disk_usage(name).free
        if free < 4e9 * arguments.gigabytes:
            sys.exit(f"{name} has {free / 1e9:.1f} GB free; {4 * arguments.gigabytes:.1f} GB are needed")
        flags = ["--no-verify"] if arguments.no_verify else []
        figures = measure(Path(name), arguments, flags)
    same = figures["margin"] <= 1
    rows = [
        ("model", f"{figures['bytes'] / 1e9:.2f} GB, {figures['blocks']} blocks, {figures['nodes']} nodes"),
        ("result", f"{figures['bytes_after'] / 1e9:.2f} GB, {figures['nodes_after']} nodes"),
        ("wall time", f"{figures['seconds']:.1f} s"),
        ("CPU time", f"{figures['cpu']:.1f} s"),
        ("CPU time over load + save", f"{figures['cpu_ratio']:.2f}x"),
        ("peak memory", f"{figures['peak_rss'] / 1e6:.0f} MB ({figures['peak_rss'] / MIB:.0f} MiB)"),
        ("without mapped files", f"{megabytes(figures['peak_anonymous'])} MiB"),
        ("outputs", f"{'same' if same else 'DIFFERENT'}, largest relative error {figures['max_rel']:.1e}"),
    ]
    print(table(("figure", "value"), rows))
    write_json(arguments.json, figures)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
