"""The wheel holds what the tree holds, and the top-level folders cannot be imported twice."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tree_files() -> set[str]:
    """The package's files as the wheel should name them; passes/ and converters/ are mapped into it."""
    files = set()
    for folder, prefix in (
        ("graphopt", "graphopt"),
        ("passes", "graphopt/passes"),
        ("converters", "graphopt/converters"),
    ):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "graphopt" and inside.parts[0] in ("passes", "converters")
            if path.is_file() and not linked and "__pycache__" not in inside.parts:
                files.add(f"{prefix}/{inside.as_posix()}")
    return files


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory) -> set[str]:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = ["pyproject.toml", "README.md", "LICENSE", "graphopt", "passes", "converters"]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in tracked), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_is_the_tree(wheel_files):
    assert wheel_files == tree_files()


def test_every_subpackage_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        Path(name).parent.as_posix().replace("/", ".")
        for name in tree_files()
        if name.endswith((".py", ".yaml"))
    }
    assert listed == found


@pytest.mark.parametrize("package", ["passes", "converters"])
def test_a_second_copy_of_the_registry_is_refused(package):
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"import graphopt.{package}, not {package}" in done.stderr
