"""Run a module in a process of its own, with limits of time and memory.

Other people's code crashes, hangs and keeps its memory: in a child all of this is one error, and what it took
goes back when it is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.limits import GIB

__all__ = ["Ended", "Limits", "limit_memory", "physical_memory", "run_module"]

#: What is kept of what a child prints: the end, where the error stands.
_PRINTED = 64 * 1024
_MEMORY_VARIABLE = "GRAPHOPT_CHILD_MEMORY"


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    Attributes:
        seconds: Wall-clock time, after which the child and its own children are killed.
        memory: Bytes of private memory; None for no limit. Kept on Linux only.
    """

    seconds: float
    memory: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: Its exit code; negative for the signal that killed it.
        printed: The end of what it wrote to stdout and stderr.
        timed_out: Whether it was killed for its time.
    """

    code: int
    printed: str
    timed_out: bool = False

    @property
    def out_of_memory(self) -> bool:
        """Whether it died for want of memory."""
        return self.code != 0 and any(
            t in self.printed for t in ("MemoryError", "bad_alloc", "out of memory")
        )

    def reason(self) -> str:
        """Why it failed, in one line."""
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"crashed ({signal.Signals(-self.code).name})"
        lines = [line.strip() for line in self.printed.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def run_module(module: str, arguments: Sequence[str], limits: Limits) -> Ended:
    """Run ``python -m module arguments...`` with this process' import path, and wait for its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if limits.memory is not None:
        environment[_MEMORY_VARIABLE] = str(limits.memory)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its own children are killed with it
    )
    try:
        printed, _ = process.communicate(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return Ended(process.returncode, "", timed_out=True)
    except BaseException:
        _kill(process)
        raise
    return Ended(process.returncode, printed[-_PRINTED:])


def limit_memory() -> None:
    """In a child: hold this process to the memory that its parent allows."""
    allowed = os.environ.pop(_MEMORY_VARIABLE, None)
    if allowed is None or sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (int(allowed), int(allowed)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def physical_memory() -> int:
    """Bytes of memory of this machine; 16 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 16 * GIB


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a child with its own children, and collect what is left of it."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
