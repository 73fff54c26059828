"""What a saved model consists of, byte by byte, with its weights left where they are.

A file is planned as pieces: bytes, and tensors whose data goes there. Their lengths are known without
reading a weight, so sizes are exact, and writing streams one tensor at a time: a protobuf message is its
fields one after the other, and only the weights' bytes are large.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError, Message

from graphopt._proto import quoted, root_cause, tensors_of
from graphopt._streams import StreamedTensor
from graphopt._structure import copy_data, initializers, placeholder, read, swapped_tensors
from graphopt.errors import InputError, OutputError
from graphopt.limits import EXTERNAL_DATA_ABOVE, EXTERNAL_DATA_KEPT_ABOVE, EXTERNAL_DATA_MIN_TENSOR, MIB

__all__ = ["Plan", "full_proto", "plan", "write"]

#: Where a tensor starts in a data file: large ones at a page, as ONNX recommends for memory mapping.
_LARGE, _PAGE, _ALIGNMENT = MIB, 4096, 64

Piece = bytes | ir.TensorProtocol


def _length(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


@dataclass
class Plan:
    """The model file and, if the model has external data, the data file."""

    model: list[Piece]
    data: list[Piece] = field(default_factory=list)

    @property
    def model_bytes(self) -> int:
        """Size of the model file."""
        return sum(map(_length, self.model))

    @property
    def total_bytes(self) -> int:
        """Size of both files."""
        return self.model_bytes + sum(map(_length, self.data))


def plan(model: ir.Model, data_name: str, external_data: bool | None) -> Plan:
    """Plan the files of a model.

    Args:
        model: The model; it is not changed and its weights are not read.
        data_name: Name of the data file, should there be one.
        external_data: Whether there is a data file; None: if the model is larger than
            ``limits.EXTERNAL_DATA_ABOVE``, or its weights than ``limits.EXTERNAL_DATA_KEPT_ABOVE`` and some
            of them still lie in a data file. Initializers below ``limits.EXTERNAL_DATA_MIN_TENSOR`` never go
            there.
    """
    if external_data is None:
        tensors = [value.const_value for value in initializers(model)]
        weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        in_files = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
        external_data = weights > (EXTERNAL_DATA_KEPT_ABOVE if in_files else EXTERNAL_DATA_ABOVE)
        if not external_data:
            single = _single_file(model)
            return single if single.model_bytes <= EXTERNAL_DATA_ABOVE else _two_files(model, data_name)
    return _two_files(model, data_name) if external_data else _single_file(model)


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= EXTERNAL_DATA_MIN_TENSOR


def _small_from_files(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Small tensors that lie in a data file come into the model file."""
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor) and not _is_large(value):
            yield value, read(value.const_value)


def _single_file(model: ir.Model) -> Plan:
    """One file: all fields but the graph, then the graph with its initializers last, as protobuf has them."""
    large = {value.name: value.const_value for value in model.graph.initializers.values() if _is_large(value)}
    swaps = dict(_small_from_files(model))
    for value in initializers(model):
        tensor = value.const_value
        if value.graph is model.graph and tensor is not None and _is_large(value):
            swaps[value] = placeholder(tensor, value.name)
        elif isinstance(tensor, ir.ExternalTensor) and value not in swaps:
            swaps[value] = read(tensor)
    proto = _serialized(model, swaps)
    weights: list[Piece] = []
    for header in proto.graph.initializer:
        tensor = large.get(header.name) if header.data_location == onnx.TensorProto.EXTERNAL else None
        weights += _tensor_field(header, tensor)
    del proto.graph.initializer[:]
    graph: list[Piece] = [_bytes_of(proto.graph), *weights]
    proto.ClearField("graph")
    return Plan([_bytes_of(proto), _MODEL_GRAPH + _varint(sum(map(_length, graph))), *graph])


#: Keys of length-delimited protobuf fields: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = (bytes([number << 3 | 2]) for number in (7, 5, 9))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _tensor_field(header: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> list[Piece]:
    """An initializer of a graph; its data is ``tensor``'s, or in ``header`` if that is None."""
    if tensor is None:
        content = _bytes_of(header)
        return [_GRAPH_INITIALIZER + _varint(len(content)) + content]
    header.ClearField("data_location")
    header.ClearField("external_data")
    content = _bytes_of(header) + _TENSOR_RAW_DATA + _varint(tensor.nbytes)
    return [_GRAPH_INITIALIZER + _varint(len(content) + tensor.nbytes) + content, tensor]


def full_proto(model: ir.Model) -> onnx.ModelProto:
    """The model with all its weights in it, those of data files too."""
    tensors = ((value, value.const_value) for value in initializers(model))
    return _serialized(model, {value: read(t) for value, t in tensors if isinstance(t, ir.ExternalTensor)})


def _two_files(model: ir.Model, data_name: str) -> Plan:
    """The model with placeholders, and a data file with the tensors one after the other."""
    swaps = dict(_small_from_files(model))
    data: list[Piece] = []
    end = 0
    for value in initializers(model):
        tensor = value.const_value
        if tensor is None or not _is_large(value):
            continue
        padding = -end % (_PAGE if tensor.nbytes >= _LARGE else _ALIGNMENT)
        swaps[value] = placeholder(tensor, value.name, data_name, end + padding)
        data += [bytes(padding), tensor]
        end += padding + tensor.nbytes
    return Plan([_bytes_of(_serialized(model, swaps))], data)


def _serialized(model: ir.Model, swaps: Mapping[ir.Value, ir.TensorProtocol]) -> onnx.ModelProto:
    """The model's proto, without type entries for initializers: these have their type and shape anyway."""
    with swapped_tensors(swaps.items()):
        try:
            proto = ir.to_proto(model)
        except ir.serde.SerdeError as error:
            raise OutputError(f"the model cannot be serialized: {root_cause(error)}") from error
    for place in tensors_of(proto):
        if place.node is not None and place.tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise OutputError(
                f"{place} is in an external file; load the model with graphopt.load, which maps it"
            )
    implied = {tensor.name for tensor in proto.graph.initializer}
    told = onnx.GraphProto()
    told.value_info.extend(
        info
        for info in proto.graph.value_info
        if info.name not in implied or info.metadata_props or info.doc_string
    )
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(told.value_info)
    return proto


def _bytes_of(message: Message) -> bytes:
    try:
        content: bytes = message.SerializeToString()
    except EncodeError:
        raise OutputError(
            "the model without its initializers is larger than 2 GiB or nested too deeply for an ONNX file"
        ) from None
    return content


def write(pieces: Iterable[Piece], file: BinaryIO) -> None:
    """Write a planned file, one tensor at a time."""
    for piece in pieces:
        start = file.tell()
        if isinstance(piece, bytes):
            file.write(piece)
            continue
        _write_tensor(piece, file)
        if file.tell() - start != piece.nbytes:
            raise InputError(
                f"the data of tensor {quoted(piece.name or '')} has another length than its shape"
            )


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        copy_data(tensor, file)
        return
    if isinstance(tensor, StreamedTensor):
        tensor.tofile(file)
        return
    if isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()  # tobytes() would hold what is computed and a copy of it
    array = tensor.raw if isinstance(tensor, ir.Tensor) else None
    if isinstance(array, np.ndarray) and _is_stored_as_is(tensor, array):
        file.write(array.reshape(-1).view(np.uint8).data)
    else:
        file.write(tensor.tobytes())


def _is_stored_as_is(tensor: ir.TensorProtocol, array: np.ndarray) -> bool:
    """Whether the array's memory is what ONNX stores, so that it need not be copied."""
    whole = tensor.dtype.bitwidth >= 8 and array.nbytes == tensor.nbytes and array.flags.c_contiguous
    return bool(whole and sys.byteorder == "little")
