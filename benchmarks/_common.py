"""What the benchmarks share: measured child processes and printed tables. Standard library only.

A child inherits the peak memory of the process that starts it, so the process that measures must stay
small: models are loaded in children, never here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True)
class Child:
    """How a child process went.

    Attributes:
        code: Exit status; negative for a signal.
        timed_out: Whether it was killed for passing its time limit.
        seconds: Wall time.
        cpu: User plus system CPU seconds.
        peak_rss: Largest resident memory in bytes, pages of mapped files included.
        peak_anonymous: Largest resident memory without mapped files, sampled every 20 ms; None where the
            system does not tell.
        output: stdout and stderr together.
    """

    code: int
    timed_out: bool
    seconds: float
    cpu: float
    peak_rss: int
    peak_anonymous: int | None
    output: str

    @property
    def problem(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        if self.timed_out:
            return f"passed its time limit ({self.seconds:.0f} s)"
        if self.code == 0:
            return ""
        lines = [line for line in self.output.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        return f"{f'signal {-self.code}' if self.code < 0 else f'exit {self.code}'}: {last[:200]}"


def run_child(arguments: Sequence[str | Path], *, limit: float, cwd: Path | None = None) -> Child:
    """Run a command to its end, or kill it and its children after ``limit`` seconds."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(a) for a in arguments], stdout=log, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )
        timed_out, peak = False, None
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = _larger(peak, _anonymous(process.pid))
            if not timed_out and time.perf_counter() - start > limit:
                timed_out = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        cpu = usage.ru_utime + usage.ru_stime
        rss = usage.ru_maxrss * unit
        return Child(process.returncode, timed_out, seconds, cpu, rss, peak, log.read())


def _anonymous(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _larger(first: int | None, second: int | None) -> int | None:
    return max((x for x in (first, second) if x is not None), default=None)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints the script's docstring as it is written, and knows ``--json``."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    made.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    return made


def run_step(script: str, name: str, *arguments: object, limit: float, python: Path | None = None) -> Child:
    """Run one step of a benchmark script in a child of its own: ``script --step name arguments``."""
    command = [python or sys.executable, Path(script).resolve(), "--step", name, *arguments]
    return run_child([str(c) for c in command], limit=limit)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns: the first column to the left, numbers to the right, the last one as it is."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        middle = [c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return "\n".join(lines)


def megabytes(size: int | None) -> str:
    """A size in MiB, or a dash."""
    return "-" if size is None else f"{size / MIB:.0f}"


def write_json(path: Path | None, result: Any) -> None:
    """Write the result where the user asked for it."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
