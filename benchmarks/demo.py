"""Time the README's demo, and how fast the command line answers.

    python benchmarks/demo.py
    python benchmarks/demo.py --fresh

Runs `graphopt run fixtures/digits/passes.yaml fixtures/digits/digits.onnx` in an empty folder and prints its
seconds, the two files' sizes and their accuracy on the 500 test images, computed here with onnxruntime alone;
then the CPU time of `graphopt --help`, and of `import graphopt.api`, which a program pays once: medians of
ten. With --fresh, all this in a new virtual environment into which the project is installed first (needs the
package index), and the seconds of that.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from _common import Child, parser, run_child, run_step, table, write_json

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "fixtures" / "digits"
HELP_RUNS = 10
IMPORT = "import time; t = time.process_time(); import graphopt.api; print(time.process_time() - t)"


def accuracy(model: Path, result: Path) -> None:
    """Write the share of test images whose largest logit is the label."""
    import numpy as np
    import onnxruntime as ort

    test = np.load(DIGITS / "test.npz")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": test["image"]})
    result.write_text(json.dumps(float((logits.argmax(axis=1) == test["label"]).mean())))


def install(folder: Path, limit: float) -> tuple[Path, float]:
    """A new environment with the project in it: its Python, and the seconds it took."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    child = run_child([python, "-m", "pip", "install", "--quiet", ROOT], limit=limit)
    _demand(child, "pip install")
    return python, child.seconds


def measure(python: Path, folder: Path, limit: float) -> dict[str, Any]:
    """Run the demo and `--help` with this Python's graphopt; the figures as plain data."""
    command = python.with_name("graphopt")
    source, target = DIGITS / "digits.onnx", folder / "digits.opt.onnx"
    child = run_child([command, "run", DIGITS / "passes.yaml", source], limit=limit, cwd=folder)
    _demand(child, "graphopt run")
    print(child.output)
    helps = [run_child([command, "--help"], limit=limit, cwd=folder) for _ in range(HELP_RUNS)]
    for answer in helps:
        _demand(answer, "graphopt --help")
    imports = [run_child([python, "-c", IMPORT], limit=limit, cwd=folder) for _ in range(HELP_RUNS)]
    for child in imports:
        _demand(child, "import graphopt.api")
    accuracies = [_accuracy(python, model, folder / "accuracy.json", limit) for model in (source, target)]
    return {
        "seconds": child.seconds,
        "cpu": child.cpu,
        "bytes": source.stat().st_size,
        "bytes_after": target.stat().st_size,
        "accuracy": accuracies[0],
        "accuracy_after": accuracies[1],
        "help_cpu": statistics.median(a.cpu for a in helps),
        "import_cpu": statistics.median(float(child.output.split()[-1]) for child in imports),
        "help_seconds": statistics.median(a.seconds for a in helps),
    }


def _accuracy(python: Path, model: Path, result: Path, limit: float) -> float:
    _demand(run_step(__file__, "accuracy", model, result, limit=limit, python=python), "computing accuracy")
    return float(json.loads(result.read_text()))


def _demand(child: Child, what: str) -> None:
    if child.problem:
        print(child.output, file=sys.stderr)
        sys.exit(f"{what} failed: {child.problem}")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--fresh", action="store_true", help="install into a new virtual environment first")
    options.add_argument("--limit", type=float, default=600, help="seconds a step may take (600)")
    arguments = options.parse_args()
    if arguments.step:
        accuracy(*(Path(a) for a in arguments.step[1:]))
        return 0
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-demo-") as name:
        folder, python = Path(name), Path(sys.executable)
        if arguments.fresh:
            python, figures["install_seconds"] = install(folder / "venv", arguments.limit)
        (folder / "run").mkdir()
        figures |= measure(python, folder / "run", arguments.limit)
    ratio = figures["bytes_after"] / figures["bytes"]
    rows = [
        ("run", f"{figures['seconds']:.1f} s, {figures['cpu']:.1f} s of CPU"),
        ("file", f"{figures['bytes']:,} -> {figures['bytes_after']:,} bytes, ratio {ratio:.3f}"),
        ("top-1 accuracy", f"{100 * figures['accuracy']:.2f} % -> {100 * figures['accuracy_after']:.2f} %"),
        ("graphopt --help", f"{figures['help_cpu']:.3f} s of CPU, {figures['help_seconds']:.3f} s"),
        ("import graphopt.api", f"{figures['import_cpu']:.3f} s of CPU"),
    ]
    if arguments.fresh:
        rows.insert(0, ("install", f"{figures['install_seconds']:.1f} s"))
    print(table(("figure", "value"), rows))
    write_json(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
