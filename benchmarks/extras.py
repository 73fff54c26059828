"""Does each importer work with only its own extra installed, and say which extra is missing without?

    python benchmarks/extras.py
    python benchmarks/extras.py tflite --keep FOLDER

For each extra a fresh virtual environment gets graphopt with that extra and nothing else. In it every file
of fixtures/sources is converted through the command line: those of the extra's own formats must import, all
others must be refused in one line that names their extra. Exits 1 if one does not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from _common import parser, run_child, table, write_json

ROOT = Path(__file__).resolve().parents[1]
HEADER = ["extra", "source", "s", "as it should be", "said"]
SOURCES = {
    "keras": ("digits.keras", "digits.h5", "digits_saved_model"),
    "torch": ("digits.pt2", "digits.pt"),
    "tflite": ("digits.tflite", "digits_dynamic.tflite", "digits_int8.tflite"),
}


def install(extra: str, folder: Path) -> Path:
    """A virtual environment with graphopt and one extra; its folder of programs."""
    programs = folder / extra / "bin"
    if not (programs / "graphopt").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / extra)], check=True)
        command = [programs / "pip", "install", "-q", "-c", "constraints.txt", f".[{extra}]"]
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    return programs


def measure(extra: str, owner: str, name: str, programs: Path, target: Path) -> list[object]:
    """Convert one source; the row, whose fourth cell says whether that went as it should."""
    command = [programs / "graphopt", "convert", ROOT / "fixtures" / "sources" / name, target]
    if name == "digits.pt":  # a TorchScript file does not say what it takes
        command += ["--input", "image=float32[batch,1,8,8]"]
    ended = run_child([str(part) for part in command], limit=600)
    said = ended.output.strip().splitlines()[-1] if ended.output.strip() else "nothing"
    if owner == extra:
        right = ended.code == 0 and target.exists()
    else:
        right = ended.code == 2 and f"graphopt[{owner}]" in said and not target.exists()
    target.unlink(missing_ok=True)
    return [extra, name, f"{ended.seconds:.1f}", "yes" if right else "NO", said[:160]]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("extras", nargs="*", choices=[*SOURCES, []], help="all, if none is named")
    arguments.add_argument("--keep", type=Path, help="make the environments in this folder, and leave them")
    given = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for extra in given.extras or SOURCES:
            programs = install(extra, given.keep or Path(scratch))
            for owner, names in SOURCES.items():
                rows += [measure(extra, owner, n, programs, Path(scratch) / "out.onnx") for n in names]
    print(table(HEADER, rows))
    write_json(given.json, [dict(zip(HEADER, row, strict=True)) for row in rows])
    return 0 if all(row[3] == "yes" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
