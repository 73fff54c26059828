"""Weights that are computed a block at a time."""

from __future__ import annotations

import io

import numpy as np
import onnx_ir as ir
import pytest

from graphopt._streams import StreamedTensor

NUMBERS = np.arange(7 * 30, dtype=np.float32).reshape(7, 30)


def streamed(blocks):
    return StreamedTensor(blocks, ir.DataType.FLOAT, ir.Shape(NUMBERS.shape))


def test_it_is_read_and_written_alike():
    tensor = streamed(lambda: (NUMBERS[start : start + 2].reshape(-1) for start in range(0, 7, 2)))
    file = io.BytesIO()
    tensor.tofile(file)
    assert file.getvalue() == tensor.tobytes() == NUMBERS.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), NUMBERS)
    np.testing.assert_array_equal(tensor.whole().numpy(), NUMBERS)


def test_its_blocks_may_share_one_buffer():
    def blocks():
        buffer = np.empty(30, np.float32)
        for row in NUMBERS:
            np.multiply(row, 3, out=buffer)
            yield buffer

    np.testing.assert_array_equal(streamed(blocks).numpy(), NUMBERS * 3)


def test_only_what_is_read_is_computed():
    asked = []

    def blocks():
        for row in NUMBERS:
            asked.append(row)
            yield row

    class File:
        def write(self, chunk):
            raise BlockingIOError

    with pytest.raises(BlockingIOError):
        streamed(blocks).tofile(File())
    assert len(asked) == 1
