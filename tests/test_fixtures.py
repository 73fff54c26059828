"""The fixtures are what their README and index say they are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

FOLDER = Path(__file__).parents[1] / "fixtures"
INDEX = json.loads((FOLDER / "index.json").read_text())
README = (FOLDER / "README.md").read_text()
PERMISSIVE = {"MIT", "Apache-2.0", "BSD-3-Clause"}

each_fixture = pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])


def load(entry) -> onnx.ModelProto:
    path = FOLDER / entry["file"]
    if path.suffix == ".onnxtxt":
        return onnx.parser.parse_model(path.read_text())
    return onnx.load(path, load_external_data=False)


def draw(recipe, rng) -> np.ndarray:
    low, high, shape = recipe["lo"], recipe["hi"], recipe["shape"]
    if recipe["dtype"].startswith("float"):
        return np.asarray(rng.uniform(low, high, shape), recipe["dtype"])
    return np.asarray(rng.integers(low, high, shape), recipe["dtype"])


@each_fixture
def test_fixture_is_the_file_that_was_indexed(entry):
    content = (FOLDER / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


@each_fixture
def test_fixture_passes_the_checker_and_is_self_contained(entry):
    model = load(entry)
    onnx.checker.check_model(model, full_check=True)
    assert not [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


@each_fixture
def test_fixture_runs_on_its_recipe(entry, run):
    rng = np.random.default_rng(0)
    outputs = run(load(entry), {i["name"]: draw(i, rng) for i in entry["inputs"]})
    assert outputs
    for output in outputs:
        assert output.size > 0
        assert np.isfinite(output).all()


@each_fixture
def test_recipe_covers_the_inputs_of_the_model(entry):
    model = load(entry)
    optional = {t.name for t in model.graph.initializer}
    assert {i["name"] for i in entry["inputs"]} == {i.name for i in model.graph.input} - optional


@each_fixture
def test_recipe_gives_outputs_that_depend_on_the_inputs(entry, run):
    rng = np.random.default_rng(0)
    first, second = ({i["name"]: draw(i, rng) for i in entry["inputs"]} for _ in range(2))
    model = load(entry)
    pairs = zip(run(model, first), run(model, second), strict=True)
    assert any(a.shape != b.shape or not np.array_equal(a, b) for a, b in pairs)


@each_fixture
def test_licence_is_permissive_and_named_beside_the_file(entry):
    assert entry["licence"] in PERMISSIVE
    if not entry["file"].startswith("models/"):
        return
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{entry['file']}`"))
    _, _, origin, licence, _, _ = row.split("|")
    assert licence.strip().startswith(entry["licence"])
    package, version = re.fullmatch(r"\w+:(.+)==(.+)", entry["origin"]).groups()
    assert f"{package} {version}" in origin
    for notice in re.findall(r"`(licences/\S+)`", licence):
        assert "Copyright" in (FOLDER / notice).read_text()
    assert entry["licence"] != "MIT" or "`licences/" in licence


def test_readme_names_every_data_file():
    kinds = {".onnx", ".onnxtxt", ".npz", ".yaml"}
    present = {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.suffix in kinds}
    named = set(re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)) - {"digits/train.py"}
    named = {name for name in named if not name.startswith("sources/")}
    assert named == present
    sources = {p.name for p in (FOLDER / "sources").iterdir() if p.name != "make.py"}
    assert set(re.findall(r"`sources/(digits[^`/]+)/?`", README)) == sources


def test_index_lists_every_model():
    models = {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.onnx*")}
    assert {entry["file"] for entry in INDEX} == models


def test_fixtures_stay_small():
    kinds = {".onnx", ".onnxtxt", ".npz", ".yaml", ".json", ".md", ".txt", ".py"}
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.suffix in kinds) <= 6_000_000


def test_digits_accuracy_is_what_the_readme_claims(run):
    test = np.load(FOLDER / "digits" / "test.npz")
    assert test["image"].shape == (500, 1, 8, 8)
    assert test["image"].dtype == np.float32
    assert test["label"].dtype == np.int64
    (logits,) = run(onnx.load(FOLDER / "digits" / "digits.onnx"), {"image": test["image"]})
    correct = int((logits.argmax(axis=1) == test["label"]).sum())
    percent, claimed, total = re.search(r"test accuracy: ([\d.]+) % \((\d+) of (\d+)\)", README).groups()
    assert (correct, len(test["label"])) == (int(claimed), int(total))
    assert float(percent) == pytest.approx(100 * correct / len(test["label"]))


def test_digits_calibration_images_are_not_test_images():
    folder = FOLDER / "digits"
    calibration, test = np.load(folder / "calibration.npz")["image"], np.load(folder / "test.npz")["image"]
    assert calibration.shape == (128, 1, 8, 8)
    assert calibration.dtype == np.float32
    assert not {i.tobytes() for i in calibration} & {i.tobytes() for i in test}


def test_digits_model_leaves_batch_normalization_to_the_passes():
    model = onnx.load(FOLDER / "digits" / "digits.onnx")
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 3
    (image,), (logits,) = model.graph.input, model.graph.output
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_fixtures_name_no_file_outside_the_project():
    texts = [
        p.read_text() for p in FOLDER.rglob("*") if p.suffix in {".py", ".yaml", ".json", ".md", ".onnxtxt"}
    ]
    assert not [m for text in texts for m in re.findall(r"(?<![\w.])/(?:home|work|tmp|root)/\S*", text)]
