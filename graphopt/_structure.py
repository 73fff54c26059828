"""The model without its weights: one serialization that every reader of the structure shares."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import onnx
import onnx_ir as ir

from graphopt._proto import one_line, quoted
from graphopt.errors import InputError
from graphopt.graph import scopes
from graphopt.limits import EXTERNAL_DATA_MIN_TENSOR

__all__ = [
    "IN_MEMORY",
    "copy_data",
    "initializers",
    "placeholder",
    "read",
    "structure_proto",
    "swapped_tensors",
]

#: The external-data location of a placeholder whose weights are in memory, not in a file.
IN_MEMORY = "graphopt-in-memory"


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer that holds a tensor: of the main graph first, then of subgraphs and functions."""
    for graph, _ in scopes(model):
        yield from (value for value in graph.initializers.values() if value.const_value is not None)


@contextlib.contextmanager
def swapped_tensors(swaps: Iterable[tuple[ir.Value, ir.TensorProtocol]]) -> Iterator[None]:
    """Give values other tensors for the length of a ``with`` block.

    Values belong to one model, tensors may be shared with its clones: only ``const_value`` is touched.
    """
    pairs = list(swaps)
    originals = [value.const_value for value, _ in pairs]
    try:
        for value, tensor in pairs:
            value.const_value = tensor
        yield
    finally:
        for (value, _), original in zip(pairs, originals, strict=True):
            value.const_value = original


def placeholder(
    tensor: ir.TensorProtocol, name: str | None, location: str = IN_MEMORY, offset: int | None = None
) -> ir.ExternalTensor:
    """A tensor of the same name, type and shape whose data is said to be at ``location``."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _stand_in(value: ir.Value, inline_below: int) -> ir.TensorProtocol | None:
    """What the structure shows instead of the initializer's tensor; None where it shows the tensor."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        return None  # ONNX has no external strings
    external = isinstance(tensor, ir.ExternalTensor)
    if tensor.nbytes >= inline_below:
        return None if external else placeholder(tensor, value.name)
    return read(tensor) if isinstance(tensor, ir.ExternalTensor) else None


def read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The tensor with its bytes read; ``numpy()`` would keep a map of the whole file for each of them."""
    proto = onnx.TensorProto(name=tensor.name, dims=tensor.shape.numpy(), data_type=tensor.dtype.value)
    if tensor.nbytes:
        buffer = io.BytesIO()
        copy_data(tensor, buffer)
        proto.raw_data = buffer.getvalue()
    return ir.serde.deserialize_tensor(proto)


def copy_data(tensor: ir.ExternalTensor, file: BinaryIO) -> None:
    """Append the bytes of a tensor in a data file to ``file``; between real files the kernel copies.

    Raises:
        InputError: The data file is gone, or has become one that must not be read.
    """
    try:
        tensor.tofile(file)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"the data of tensor {quoted(tensor.name)} cannot be read: {one_line(error)}"
        ) from error


def structure_proto(model: ir.Model, inline_below: int = EXTERNAL_DATA_MIN_TENSOR) -> onnx.ModelProto:
    """Serialize the model without its large weights, and without reading or copying them.

    Initializers of ``inline_below`` bytes and more (of the main graph, subgraphs and functions; strings
    aside) become EXTERNAL placeholders with their name, type and shape: one that lies in a file keeps its
    location, offset and length, one in memory has the location :data:`IN_MEMORY`. Smaller ones are inline.
    The model is as it was.
    """
    swaps = [(value, tensor) for value in initializers(model) if (tensor := _stand_in(value, inline_below))]
    with swapped_tensors(swaps):
        return ir.to_proto(model)
