"""Fourier transforms, segments, diagonals, against LiteRT."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_models import Graph, Op, Tensor, constant

from graphopt.errors import UnsupportedError


def spectrum(draw, last: str, rows: int = 1) -> Graph:
    shape = (2, rows, 8)
    complex_ = Tensor(np.zeros((2, rows, 5), np.float32), type="COMPLEX64")
    tensors = [Tensor(draw(*shape)), constant([rows, 8], np.int32), complex_, Tensor(draw(2, rows, 5))]
    return Graph(tensors, [Op("RFFT2D", [0, 1], [2], "Rfft2d"), Op(last, [2], [3])])


@pytest.mark.parametrize("last", ["COMPLEX_ABS", "REAL", "IMAG"])
@pytest.mark.parametrize("rows", [1, 4])
def test_rfft2d(last, rows, agrees, draw):
    assert "DFT" in agrees(spectrum(draw, last, rows), atol=1e-5).ops


def test_complex_numbers_are_refused_elsewhere(imported, draw):
    with pytest.raises(UnsupportedError, match=r"NEG.*complex numbers"):
        imported(spectrum(draw, "NEG"))


@pytest.mark.parametrize("kind", ["SUM", "PROD", "MAX", "MIN"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_unsorted_segments(kind, dtype, agrees, draw):
    name = {
        "SUM": "UNSORTED_SEGMENT_SUM",
        "PROD": "UNSORTED_SEGMENT_PROD",
        "MAX": "UNSORTED_SEGMENT_MAX",
        "MIN": "UNSORTED_SEGMENT_MIN",
    }[kind]
    data = (draw(5, 2) * 4).astype(dtype)
    tensors = [Tensor(data), constant([2, 0, 2, 1, 0], np.int32), constant(4, np.int32), Tensor(data)]
    agrees(Graph(tensors, [Op(name, [0, 1, 2], [3])]))


def test_segment_sum(agrees, draw):
    tensors = [Tensor(draw(5, 2)), constant([0, 0, 1, 2, 2], np.int32), Tensor(draw(3, 2))]
    agrees(Graph(tensors, [Op("SEGMENT_SUM", [0, 1], [2])]))


def test_sparse_to_dense(agrees):
    tensors = [
        constant([[0, 1], [2, 0]], np.int32),
        constant([3, 2], np.int32),
        Tensor(np.float32([5, 7])),
        constant(-1, np.float32),
        Tensor(np.zeros((3, 2), np.float32)),
    ]
    agrees(Graph(tensors, [Op("SPARSE_TO_DENSE", [0, 1, 2, 3], [4], "SparseToDense")]))


def test_bucketize(agrees):
    tensors = [Tensor(np.float32([-5, 0, 1, 9.5, 10, 11])), Tensor(np.zeros(6, np.int32))]
    options = {"boundaries": np.float32([0, 2, 10])}
    agrees(Graph(tensors, [Op("BUCKETIZE", [0], [1], "Bucketize", options)]))


def test_unique(agrees):
    tensors = [
        Tensor(np.float32([3, 1, 3, 2, 1])),
        Tensor(np.zeros(3, np.float32)),
        Tensor(np.zeros(5, np.int32)),
    ]
    agrees(Graph(tensors, [Op("UNIQUE", [0], [1, 2], "Unique", {"idxOutType": 2})]))


def test_diagonals(agrees, draw):
    agrees(Graph([Tensor(draw(2, 3)), Tensor(draw(2, 3, 3))], [Op("MATRIX_DIAG", [0], [1], "MatrixDiag")]))
    for rows, columns in ((3, 3), (3, 5), (5, 3)):
        tensors = [Tensor(draw(2, rows, columns)), Tensor(draw(2, 3)), Tensor(draw(2, rows, columns))]
        agrees(Graph(tensors, [Op("MATRIX_SET_DIAG", [0, 1], [2], "MatrixSetDiag")]))


def test_atan2(agrees):
    y, x = np.float32([1, 1, -1, -1, 0, 0, 2, -2, 0]), np.float32([1, -1, 1, -1, 3, -3, 0, 0, 0])
    agrees(Graph([Tensor(y), Tensor(x), Tensor(y)], [Op("ATAN2", [0, 1], [2])]))
