"""The recipe's data: files, folders, functions, and the metric."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import data
from graphopt.errors import InputError
from graphopt.recipe import Data, Evaluation, Recipe

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
classify (float[{batch}, 3] x) => (float[{batch}, 3] y) {{ y = Identity(x) }}"""


@pytest.fixture
def model(parse):
    return parse(MODEL.format(batch="n"))


def recipe(folder, **sections) -> Recipe:
    return Recipe((), data=Data(**sections), folder=folder, allow_code=True)


def test_a_folder_of_arrays_is_joined_by_name(tmp_path, model):
    np.savez(tmp_path / "b.npz", x=np.full((2, 3), 2, np.float32))
    np.savez(tmp_path / "a.npz", x=np.full((1, 3), 1, np.float32))
    (tmp_path / "notes.txt").write_text("not data")
    arrays = data.calibration(recipe(tmp_path.parent, calibration=tmp_path.name), model)
    np.testing.assert_array_equal(arrays["x"][:, 0], [1, 2, 2])


def test_npy_files_are_named_by_their_file(tmp_path, model):
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    assert data.calibration(recipe(tmp_path, calibration="."), model)["x"].shape == (4, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read data file"),
        (b"", "not plain numpy data"),
        (b"PK\x03\x04 damaged", "not plain numpy data"),
    ],
)
def test_what_is_no_data(tmp_path, model, content, message):
    if content is not None:
        (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.calibration(recipe(tmp_path, calibration="c.npz"), model)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_arrays_that_do_not_fit(tmp_path, model):
    with pytest.raises(InputError, match=r"holds no .npz or .npy"):
        data.calibration(recipe(tmp_path, calibration="."), model)
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="cannot be joined"):
        data.calibration(recipe(tmp_path, calibration="."), model)


def test_functions_give_calibration_and_metric(tmp_path, model, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "import numpy as np\n"
        "def samples(): return {'x': np.ones((2, 3), np.float32)}\n"
        "def score(predict): return predict({'x': np.full((1, 3), 0.25, np.float32)})['y'].sum()\n"
        "def text(predict): return 'high'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    chosen = recipe(tmp_path, calibration="my_task:samples", evaluation="my_task:score")
    assert data.calibration(chosen, model)["x"].shape == (2, 3)
    assert data.metric(chosen, model) == 0.75
    assert data.metric_name(chosen) == "my_task:score"
    with pytest.raises(InputError, match="must return a number, not str"):
        data.metric(recipe(tmp_path, evaluation="my_task:text"), model)
    with pytest.raises(InputError, match="'my_task:number' is not a function"):
        data.metric(recipe(tmp_path, evaluation="my_task:number"), model)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_top1_counts_every_sample_once_at_any_batch(tmp_path, parse, batch):
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0]]
    np.savez(tmp_path / "t.npz", x=x, label=np.array([0, 1, 2, 0, 1, 0, 1]))
    chosen = recipe(tmp_path, evaluation=Evaluation("t.npz", "label"))
    assert data.metric(chosen, parse(MODEL.format(batch=batch))) == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(3, np.int64), "7 samples, but 'label' has shape"), (np.zeros((7, 2)), "labels")],
)
def test_labels_must_fit(tmp_path, model, labels, message):
    np.savez(tmp_path / "t.npz", x=np.zeros((7, 3), np.float32), label=labels)
    with pytest.raises(InputError, match=message):
        data.metric(recipe(tmp_path, evaluation=Evaluation("t.npz", "label")), model)
    with pytest.raises(InputError, match="has no array 'class'; it has: label, x"):
        data.metric(recipe(tmp_path, evaluation=Evaluation("t.npz", "class")), model)


def test_rows_go_round_at_the_end():
    taken = data.rows({"x": np.arange(3), "scale": np.array(2.0)}, 2, 3)
    np.testing.assert_array_equal(taken["x"], [2, 0, 1])
    assert taken["scale"] == 2.0
