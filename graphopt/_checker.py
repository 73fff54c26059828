"""The ONNX checker on a model without its weights."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.checker
from google.protobuf.message import DecodeError, EncodeError, Message

from graphopt._proto import Place, one_line, tensors_of
from graphopt.errors import InputError

__all__ = ["check_proto"]

_EXTERNAL = onnx.TensorProto.EXTERNAL


def check_proto(proto: onnx.ModelProto, places: Iterable[Place] | None = None) -> None:
    """Run the ONNX checker on a copy without weights; ``proto`` has passed :func:`graphopt._proto.guard`.

    The checker wants external data to exist and serializes what it is given, so every large or external
    tensor of the copy is empty. It does not look at shapes. Operators of domains that onnx does not know
    are taken as they are.

    Args:
        proto: The model, which is left as it is.
        places: Its tensors, where they are known.

    Raises:
        InputError: What the checker found.
    """
    try:
        onnx.checker.check_model(_without_weights(proto, tensors_of(proto) if places is None else places))
    except onnx.checker.ValidationError as error:
        raise InputError(f"not a valid ONNX model: {one_line(error)}") from None
    except (DecodeError, EncodeError):  # protobuf copies by way of its wire format, at most 100 messages deep
        raise InputError("the model is nested too deeply for an ONNX file, or larger than 2 GiB") from None


def _without_weights(proto: onnx.ModelProto, places: Iterable[Place]) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    _copy_fields(proto, bare, leave_out="graph")
    _copy_fields(proto.graph, bare.graph, leave_out="initializer")
    for tensor in proto.graph.initializer:
        _add_empty(tensor, bare.graph.initializer.add())
    external = sum(place.tensor.data_location == _EXTERNAL for place in places)
    external -= sum(tensor.data_location == _EXTERNAL for tensor in proto.graph.initializer)
    for place in tensors_of(bare) if external else ():  # those of attributes and inner graphs
        if place.tensor.data_location == _EXTERNAL:
            empty = onnx.TensorProto()
            _add_empty(place.tensor, empty)
            place.tensor.CopyFrom(empty)
    return bare


def _copy_fields(source: Message, target: Message, leave_out: str) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == leave_out:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _add_empty(tensor: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """The tensor's name and type, with no element: the checker wants data that is as long as the shape."""
    if tensor.HasField("name"):
        target.name = tensor.name
    target.data_type = tensor.data_type
    target.dims.append(0)
