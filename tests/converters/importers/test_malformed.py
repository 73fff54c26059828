"""Damaged and hostile files of every kind: one line that names the file, nothing executed, nothing written.

What is hostile in the ways of one format is tested beside that format; here is what all have in common.
"""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from graphopt import api
from graphopt.api import ImportOptions
from graphopt.converters.importers._keras.inspection import inspect_file, inspect_saved_model
from graphopt.errors import GraphoptError, InputError

SOURCES = Path(__file__).parents[3] / "fixtures" / "sources"
FILES = ["digits.keras", "digits.h5", "digits.pt2", "digits.pt", "digits.tflite"]
PICTURE = ImportOptions.from_json(
    {"inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}], "custom_objects": []}
)


def refused(source: Path, tmp_path: Path) -> str:
    target = tmp_path / "out.onnx"
    with pytest.raises(GraphoptError) as caught:
        api.convert(source, target, importing=PICTURE)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    assert list(tmp_path.glob("out*")) == []
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut(name, tmp_path):
    whole = (SOURCES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, tmp_path)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".pt2", ".pt", ".tflite"])
def test_a_file_that_is_empty_or_something_else(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"")
    refused(path, tmp_path)
    path.write_bytes(b"<html>404</html>" * 100)
    refused(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "suffix"), [("digits.keras", ".tflite"), ("digits.h5", ".pt"), ("digits.tflite", ".keras"),
                         ("digits.pt2", ".keras"), ("digits.pt", ".pt2"), ("digits.keras", ".h5")],
)  # fmt: skip
def test_a_wrong_suffix_is_told_with_the_right_one(name, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    shutil.copyfile(SOURCES / name, path)
    assert Path(name).suffix in refused(path, tmp_path)


@pytest.mark.parametrize("name", ["digits.keras", "digits.pt2", "digits.pt"])
def test_an_archive_that_grows(name, tmp_path):
    path = tmp_path / name
    with zipfile.ZipFile(SOURCES / name) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            content = old.read(member)
            grown = (
                bytes(300 << 20) if member.endswith(("config.json", "model.json", "data.pkl")) else content
            )
            new.writestr(member, grown)
    assert path.stat().st_size < 2 << 20
    assert "times its size" in refused(path, tmp_path)


def test_hdf5_that_reaches_outside(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.ones(4)
    for number, reach in enumerate(
        [
            lambda file: file.__setitem__("x", h5py.ExternalLink(str(secret), "/data")),
            lambda file: file.__setitem__("x", h5py.SoftLink("/model_weights")),
            lambda file: file.create_dataset("x", (4,), "f4", external=[(str(secret), 0, 16)]),
            lambda file: file.create_dataset("x", (1 << 40,), "f4", chunks=(1 << 16,)),
        ]
    ):
        path = tmp_path / f"model{number}.h5"
        shutil.copyfile(SOURCES / "digits.h5", path)
        with h5py.File(path, "r+") as file:
            reach(file)
        with pytest.raises(InputError, match=r"refused|another file|larger than the file"):
            inspect_file(path, ImportOptions())


@pytest.mark.parametrize("name", ["digits.keras", "digits.h5"])
def test_bytes_that_are_changed_at_random(name, tmp_path):
    whole, draw, path = (SOURCES / name).read_bytes(), random.Random(0), tmp_path / name
    refusals = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 8, 64])):
            content[draw.randrange(8, len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            inspect_file(path, ImportOptions())
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals


def test_a_saved_model_that_is_damaged(tmp_path):
    folder = tmp_path / "saved"
    shutil.copytree(SOURCES / "digits_saved_model", folder)
    graph = folder / "saved_model.pb"
    whole, draw = graph.read_bytes(), random.Random(0)
    for _ in range(50):
        content = bytearray(whole[: draw.randrange(1, len(whole))])
        content[draw.randrange(len(content))] = draw.randrange(256)
        graph.write_bytes(content)
        try:
            inspect_saved_model(folder, ImportOptions())
        except InputError as error:
            assert "\n" not in str(error)
    graph.write_bytes(whole[:1000])
    refused(folder, tmp_path)
    graph.unlink()
    graph.symlink_to("/etc/passwd")
    refused(folder, tmp_path)
