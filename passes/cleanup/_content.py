"""Compare tensors by content without holding what is read in memory."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Final

import onnx_ir as ir

from graphopt._tensors import LoadedTensor

__all__ = ["HEAD_BYTES", "Content", "content", "head"]

#: Tensors that differ mostly differ early; the head is compared before the rest is read at all.
HEAD_BYTES: Final = 4096

#: Most tensors are of these; asking what else one may be takes longer than to compare it.
_IN_MEMORY: Final = (LoadedTensor, ir.Tensor)

#: The bytes of a tensor, their SHA-256, or the strings.
Content = bytes | tuple[bytes, ...]


class _Full(Exception):  # noqa: N818 (a signal, not an error)
    """Enough was written."""


class _Head:
    """A file that takes the first bytes written to it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: bytes) -> None:
        self.data += bytes(memoryview(chunk)[: HEAD_BYTES - len(self.data)])
        if len(self.data) == HEAD_BYTES:
            raise _Full


class _Digest:
    """A file that hashes what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self.hash.update(chunk)


def _write(tensor: ir.TensorProtocol, file: _Head | _Digest) -> None:
    """Write the bytes of a tensor (little endian, packed below 8 bits), external data piece by piece."""
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def head(tensor: ir.TensorProtocol) -> Content:
    """The first :data:`HEAD_BYTES` bytes, all where the tensor has no more; for text, all strings."""
    if tensor.dtype == ir.DataType.STRING:
        return tuple(tensor.string_data())  # type: ignore[attr-defined]
    if type(tensor) in _IN_MEMORY and tensor.nbytes <= HEAD_BYTES:
        return tensor.tobytes()
    file = _Head()
    with contextlib.suppress(_Full):
        _write(tensor, file)
    return file.data


def content(tensor: ir.TensorProtocol) -> Content:
    """A key that two tensors of the same dtype and shape share only if they hold the same bits.

    The bytes themselves up to :data:`HEAD_BYTES`, above that their SHA-256, for text the strings.
    """
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= HEAD_BYTES:
        return head(tensor)
    file = _Digest()
    _write(tensor, file)
    return file.hash.digest()
