"""Large weights that are computed a block at a time, so that none is in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["StreamedTensor"]

Array = np.ndarray[Any, np.dtype[Any]]


class StreamedTensor(ir.LazyTensor):
    """A tensor whose numbers are computed when it is read, and block by block when it is written."""

    __slots__ = ("_blocks",)

    def __init__(self, blocks: Callable[[], Iterator[Array]], dtype: ir.DataType, shape: ir.Shape) -> None:
        """Make the tensor of what ``blocks`` gives: its numbers in order, as flat little-endian arrays.

        An array may be written to again as soon as the next one is asked for.
        """
        super().__init__(self.whole, dtype, shape)
        self._blocks = blocks

    def whole(self) -> ir.TensorProtocol:
        """The tensor, computed now."""
        whole = np.empty(self.size, self.dtype.numpy())
        place = 0
        for block in self._blocks():
            whole[place : place + block.size] = block
            place += block.size
        return ir.Tensor(whole.reshape(self.shape.numpy()), self.dtype)

    def tofile(self, file: Any) -> None:
        """Write the numbers to a binary file."""
        for block in self._blocks():
            file.write(block.view(np.uint8).data)
