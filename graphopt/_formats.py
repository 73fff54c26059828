"""The file formats of an ONNX model: binary protobuf, and three text forms chosen by suffix."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError, Message

from graphopt._proto import one_line, tensors_of
from graphopt.errors import InputError, OutputError
from graphopt.limits import MIB, NESTING_DEPTH, PROTOBUF_MAX, TEXT_MODEL

__all__ = ["BINARY_SUFFIXES", "TEXT_SUFFIXES", "read", "to_text"]

BINARY_SUFFIXES = (".onnx", ".pb")
TEXT_SUFFIXES = (".onnxtxt", ".textproto", ".pbtxt", ".json")

_FOREIGN_SUFFIXES = {
    ".tflite": "TensorFlow Lite",
    ".keras": "Keras",
    ".h5": "Keras",
    ".hdf5": "Keras",
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".pt2": "PyTorch",
    ".ort": "onnxruntime's ORT",
    ".mindir": "MindSpore",
    ".safetensors": "safetensors",
    ".gguf": "GGUF",
}
#: (offset, bytes there, what such a file is)
_FOREIGN_CONTENT = (
    (4, b"TFL3", "is a TensorFlow Lite file"),
    (4, b"ORTM", "is in onnxruntime's ORT format"),
    (0, b"\x89HDF", "is an HDF5 file, as Keras writes it"),
    (0, b"PK\x03\x04", "is a ZIP archive, as Keras and PyTorch write it"),
    (0, b"version https://git-lfs", "is a Git LFS pointer (run: git lfs pull)"),
)


def read(path: Path) -> onnx.ModelProto:
    """Read a model file; external data is not looked at.

    Args:
        path: An absolute path. A text form is known by its suffix; anything else is read as protobuf.

    Raises:
        InputError: There is no such file, or it is no ONNX model; the message does not name the file.
    """
    suffix = path.suffix.lower()
    try:
        _guard_file(path, suffix)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}") from error
    for offset, magic, what in _FOREIGN_CONTENT:
        if content[offset : offset + len(magic)] == magic:
            raise InputError(f"this is not an ONNX model: it {what}")
    proto = _from_text(content, suffix) if suffix in TEXT_SUFFIXES else _from_bytes(content)
    if not proto.HasField("graph") or not proto.ir_version:
        raise InputError("this is not an ONNX model: it has no graph or no IR version")
    if not proto.opset_import:
        raise InputError("the model imports no operator set: the file is truncated, or not an ONNX model")
    return proto


def _guard_file(path: Path, suffix: str) -> None:
    """A regular file of a possible size: a pipe or device could block or never end."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("there is no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError("this is a folder; name the model file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError("this is not a regular file")
    if status.st_size == 0:
        raise InputError("the file is empty")
    if suffix in _FOREIGN_SUFFIXES:
        kind = _FOREIGN_SUFFIXES[suffix]
        raise InputError(f"this is a {kind} file, not an ONNX model; convert it to ONNX first")
    if status.st_size > PROTOBUF_MAX:
        raise InputError("the file is larger than the 2 GiB an ONNX file can have; use external data")
    if status.st_size > TEXT_MODEL and suffix in TEXT_SUFFIXES:
        raise InputError(f"the file is larger than {TEXT_MODEL // MIB} MiB, too large for text; use .onnx")


def _from_bytes(content: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise InputError("this is not an ONNX model, or it is truncated or nested too deeply") from None
    return proto


def _from_text(content: bytes, suffix: str) -> onnx.ModelProto:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the file is not UTF-8 text (byte {error.start})") from None
    _guard_brackets(text)
    if suffix == ".onnxtxt":
        return _from_onnx_text(text)
    proto = onnx.ModelProto()
    parse = json_format.Parse if suffix == ".json" else text_format.Parse
    try:
        parse(text, proto)
    except (json_format.ParseError, text_format.ParseError, RecursionError) as error:
        raise InputError(f"this is not an ONNX model as {suffix[1:]}: {one_line(error)}") from None
    return proto


def _from_onnx_text(text: str) -> onnx.ModelProto:
    try:
        return onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        detail = error.args[0] if error.args else ""
        message = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise InputError(f"this is not valid ONNX text: {one_line(message)}") from None
    except DecodeError:
        raise InputError(_TOO_DEEP) from None
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:  # C++ exceptions about numbers
        raise InputError(f"this is not valid ONNX text: {one_line(error)}") from None


_TOO_DEEP = "the file is nested too deeply for an ONNX model"


def _guard_brackets(text: str) -> None:
    """The parsers recurse natively: onnx's crashes the process on deep nesting."""
    depth = 0
    for match in re.finditer(r"[][(){}]", text):
        depth = depth + 1 if match[0] in "[({" else max(depth - 1, 0)
        if depth > 8 * NESTING_DEPTH:
            raise InputError(_TOO_DEEP)


def to_text(proto: onnx.ModelProto, suffix: str) -> bytes:
    """The model, with no external data, in the text form of ``suffix``.

    The ONNX text syntax leaves out doc strings and metadata of nodes and values; JSON and text protobuf
    hold everything.

    Raises:
        OutputError: The ONNX text syntax cannot express the model; the message does not name the file.
    """
    text: str
    if suffix == ".json":
        text = json_format.MessageToJson(proto, preserving_proto_field_name=True)
        return text.encode()
    if suffix in (".textproto", ".pbtxt"):
        text = text_format.MessageToString(proto)
        return text.encode()
    for place in tensors_of(proto):
        if place.node is not None:  # the name means nothing, and onnx's parser takes no quoted one here
            place.tensor.ClearField("name")
    text = onnx.printer.to_text(proto)
    try:
        same = _computes_the_same(proto, onnx.parser.parse_model(text))
    except onnx.parser.ParseError:
        same = False
    if not same:
        raise OutputError("the ONNX text syntax cannot express all of this model; write .textproto or .json")
    return text.encode()


def _computes_the_same(proto: onnx.ModelProto, parsed: onnx.ModelProto) -> bool:
    """Whether text kept everything that computes: onnx's printer abbreviates what it cannot print."""
    a, b = _bare(proto), _bare(parsed)
    same_graph = a.graph == b.graph and list(a.opset_import) == list(b.opset_import)
    return same_graph and list(a.functions) == list(b.functions)


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what text leaves out, every tensor's data in the same field."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for place in tensors_of(bare):
        if place.tensor.data_type != onnx.TensorProto.STRING:
            tensor = ir.serde.deserialize_tensor(place.tensor)
            place.tensor.CopyFrom(ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype)))
    todo: list[Message] = [bare.graph, *bare.functions]
    while todo:
        message = todo.pop()
        for name in _LEFT_OUT & set(message.DESCRIPTOR.fields_by_name):
            message.ClearField(name)
        if isinstance(message, onnx.NodeProto) and not message.domain:
            message.ClearField("domain")
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                todo.extend(value if descriptor.is_repeated else (value,))
    return bare


_LEFT_OUT = {"doc_string", "metadata_props", "value_info", "quantization_annotation"}
