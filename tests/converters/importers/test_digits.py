"""The demo's network in every format: each import computes what the ONNX file of its weights does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import importing, io
from graphopt.import_options import ImportOptions, InputSpec
from graphopt.runtime import evaluate

FIXTURES = Path(__file__).parents[3] / "fixtures"
FLOAT = ["digits.keras", "digits.h5", "digits_saved_model", "digits.pt2", "digits.pt", "digits.tflite"]
OPTIONS = {
    "digits.pt": ImportOptions(inputs=(InputSpec("image", "float32", ("batch", 1, 8, 8)),)),
}


def imported(name: str):
    return importing.import_source(str(FIXTURES / "sources" / name), OPTIONS.get(name))


def logits(model, channels_last: bool) -> np.ndarray:
    """What a model makes of the 500 test images, a batch of all where it takes one."""
    images = np.load(FIXTURES / "digits" / "test.npz")["image"]
    images = images.transpose(0, 2, 3, 1) if channels_last else images
    (value,) = model.graph.inputs
    fixed = isinstance(value.shape[0], int)
    feeds = [{value.name: image[None]} for image in images] if fixed else [{value.name: images}]
    return np.concatenate([next(iter(o.values())) for o in evaluate.run(model, feeds).outputs])


@pytest.mark.parametrize("name", FLOAT)
def test_floats_are_the_onnx_model_s(name):
    model, report = imported(name)
    assert [v.name for v in model.graph.inputs] == ["image"]
    assert report.samples >= 2
    assert report.max_rel < 1e-5
    expected = logits(io.load(FIXTURES / "digits" / "digits.onnx"), channels_last=False)
    found = logits(model, channels_last=not name.startswith("digits.pt"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["digits_dynamic.tflite", "digits_int8.tflite"])
def test_quantized_networks_stay_quantized_and_as_good(name):
    model, _ = imported(name)
    assert any(v.dtype == 3 for v in model.graph.initializers.values())  # INT8
    images = np.load(FIXTURES / "digits" / "test.npz")
    value = model.graph.inputs[0]
    if value.dtype == 3:
        model_input = np.clip(np.round(images["image"].transpose(0, 2, 3, 1) * 255) - 128, -128, 127)
        feeds = [{value.name: image[None].astype(np.int8)} for image in model_input]
        scores = np.concatenate([next(iter(o.values())) for o in evaluate.run(model, feeds).outputs])
    else:
        scores = logits(model, channels_last=True)
    assert np.mean(scores.argmax(-1) == images["label"]) >= 0.99
