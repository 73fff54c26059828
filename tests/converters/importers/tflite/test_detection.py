"""The last step of object detectors against LiteRT."""

from __future__ import annotations

import numpy as np
import pytest
from flatbuffers import flexbuffers
from tflite_models import Graph, Op, Tensor, constant

from graphopt.errors import InputError, UnsupportedError

BOXES, CLASSES, DETECTIONS = 40, 3, 10


def detector(draw, background: int = 1, **options) -> Graph:
    given = {
        "max_detections": DETECTIONS,
        "max_classes_per_detection": 1,
        "use_regular_nms": False,
        "nms_score_threshold": 0.5,
        "nms_iou_threshold": 0.4,
        "num_classes": CLASSES,
        "y_scale": 10.0,
        "x_scale": 10.0,
        "h_scale": 5.0,
        "w_scale": 5.0,
        **options,
    }
    rng = np.random.default_rng(0)
    anchors = rng.uniform(0.2, 0.8, (BOXES, 4)).astype(np.float32)
    scores = rng.random((1, BOXES, CLASSES + background)).astype(np.float32)
    tensors = [
        Tensor(draw(1, BOXES, 4)),
        Tensor(scores),
        constant(anchors),
        Tensor(np.zeros((1, DETECTIONS, 4), np.float32)),
        Tensor(np.zeros((1, DETECTIONS), np.float32)),
        Tensor(np.zeros((1, DETECTIONS), np.float32)),
        Tensor(np.zeros(1, np.float32)),
    ]
    packed = bytes(flexbuffers.Dumps(given))
    name = "TFLite_Detection_PostProcess"
    return Graph(tensors, [Op("CUSTOM", [0, 1, 2], [3, 4, 5, 6], custom=name, custom_options=packed)])


@pytest.mark.parametrize("background", [0, 1])
@pytest.mark.parametrize(("threshold", "iou"), [(0.5, 0.4), (0.9, 0.4), (0.0, 0.99), (2.0, 0.5)])
def test_fast_suppression(background, threshold, iou, agrees, draw):
    """With as many boxes as fit, with fewer, with none: what LiteRT leaves unwritten counts as zero."""
    graph = detector(draw, background, nms_score_threshold=threshold, nms_iou_threshold=iou)
    assert "NonMaxSuppression" in agrees(graph).ops


@pytest.mark.parametrize("options", [{"use_regular_nms": True}, {"max_classes_per_detection": 2}])
def test_other_ways_are_refused(options, imported, draw):
    with pytest.raises(UnsupportedError, match=r"TFLite_Detection_PostProcess.*several classes"):
        imported(detector(draw, **options))


@pytest.mark.parametrize("options", [b"", b"\x01\x02\x03", b"\xff" * 40])
def test_damaged_options(options, imported, draw):
    graph = detector(draw)
    graph.ops[0].custom_options = options
    with pytest.raises(InputError, match="TFLite_Detection_PostProcess"):
        imported(graph)


def suppression(version: int, limit: float = 0.3, sigma: float = 0.0) -> Graph:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (30, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.5, (30, 2))], 1).astype(np.float32)
    tensors = [
        Tensor(boxes),
        Tensor(rng.random(30).astype(np.float32)),
        constant(8, np.int32),
        constant(0.4, np.float32),
        constant(limit, np.float32),
        *([constant(sigma, np.float32)] if version == 5 else []),
    ]
    inputs = list(range(len(tensors)))
    tensors += [Tensor(np.zeros(8, np.int32)), *([Tensor(np.zeros(8, np.float32))] if version == 5 else [])]
    tensors.append(Tensor(np.zeros((), np.int32)))
    name = {4: "NON_MAX_SUPPRESSION_V4", 5: "NON_MAX_SUPPRESSION_V5"}[version]
    return Graph(tensors, [Op(name, inputs, list(range(len(inputs), len(tensors))))])


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("limit", [0.0, 0.8, 2.0])
def test_suppression(version, limit, agrees):
    agrees(suppression(version, limit))


def test_soft_suppression_is_refused(imported):
    with pytest.raises(UnsupportedError, match="soft suppression"):
        imported(suppression(5, sigma=0.5))
