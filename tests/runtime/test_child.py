"""A module in a process of its own: its end, its time, its memory."""

from __future__ import annotations

import sys
import time

import pytest

from graphopt.limits import GIB, MIB
from graphopt.runtime import child


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that a child can import; its name."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(body: str) -> str:
        (tmp_path / "for_the_child.py").write_text(body, encoding="utf-8")
        return "for_the_child"

    return write


def test_a_good_end(module):
    ended = child.run_module(module("import sys; print(sys.argv[1:])"), ["a", "b c"], child.Limits(60))
    assert ended == child.Ended(0, "['a', 'b c']\n")


def test_a_failure_is_its_last_line(module):
    ended = child.run_module(module("raise ValueError('no')"), [], child.Limits(60))
    assert ended.code == 1
    assert ended.reason() == "ValueError: no"
    assert not ended.out_of_memory


def test_a_crash_has_a_name(module):
    body = "import os, signal; print('before'); os.kill(os.getpid(), signal.SIGSEGV)"
    ended = child.run_module(module(body), [], child.Limits(60))
    assert ended.reason() == "crashed (SIGSEGV)"


def test_a_silent_failure_is_its_exit_code(module):
    assert child.run_module(module("raise SystemExit(7)"), [], child.Limits(60)).reason() == "exit code 7"


def test_a_hang_ends_with_its_own_children(module, tmp_path):
    body = f"""
import subprocess, sys, time
code = "import time; time.sleep(2); open({str(tmp_path / "alive")!r}, 'w').close()"
subprocess.Popen([sys.executable, "-c", code])
time.sleep(60)
"""
    started = time.monotonic()
    ended = child.run_module(module(body), [], child.Limits(1))
    assert ended.timed_out
    assert time.monotonic() - started < 30
    time.sleep(2.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are kept on Linux only")
def test_memory_is_limited(module):
    body = "from graphopt.runtime.child import limit_memory\nlimit_memory()\nprint(len(bytearray({size})))"
    small = child.run_module(module(body.format(size=MIB)), [], child.Limits(60, GIB))
    assert small.code == 0
    large = child.run_module(module(body.format(size=4 * GIB)), [], child.Limits(60, GIB))
    assert large.out_of_memory


def test_only_the_end_of_much_output_is_kept(module):
    ended = child.run_module(module("print('x' * 1000000); print('end')"), [], child.Limits(60))
    assert len(ended.printed) <= 64 * 1024
    assert ended.printed.endswith("end\n")


def test_the_memory_of_this_machine():
    assert child.physical_memory() > 256 * MIB
