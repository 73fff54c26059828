"""Guards on a model as it came from a file, before anything recurses over it or allocates for it.

They know protobuf messages only; none of them reads weights or follows a path.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from graphopt.errors import InputError, UnsupportedError
from graphopt.limits import EXPANDED_NODES, NESTING_DEPTH, TENSOR_ELEMENTS, TENSOR_RANK

__all__ = ["Place", "guard", "nbytes_of", "one_line", "quoted", "root_cause", "tensors_of"]

FunctionId = tuple[str, str, str]


def quoted(name: str | bytes) -> str:
    """A name from a file as messages show it: in quotes, on one line, not endless."""
    text = name if isinstance(name, str) else name.decode("utf-8", "replace")
    return repr(text if len(text) <= 100 else text[:97] + "...")


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error of a library on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def root_cause(error: BaseException) -> str:
    """What onnx_ir's chain of errors began with, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


class Place(NamedTuple):
    """A tensor of a model, and where it is: an initializer, or an attribute of ``node``."""

    tensor: onnx.TensorProto
    node: onnx.NodeProto | None = None
    attribute: str = ""

    def __str__(self) -> str:
        if self.node is None:
            return f"initializer {quoted(self.tensor.name)}"
        name = self.node.name or next(iter(self.node.output), "?")
        return f"attribute {quoted(self.attribute)} of {self.node.op_type} {quoted(name)}"


@dataclass
class _Body:
    """What one graph or function holds, its subgraphs included."""

    nodes: int = 0
    depth: int = 0
    calls: Counter[tuple[FunctionId, int]] = field(default_factory=Counter)
    tensors: list[Place] = field(default_factory=list)


def _survey(root: onnx.GraphProto | onnx.FunctionProto) -> _Body:
    """Walk a body without recursion."""
    body = _Body()
    todo: list[tuple[onnx.GraphProto | onnx.FunctionProto, int]] = [(root, 0)]
    while todo:
        graph, depth = todo.pop()
        body.depth = max(body.depth, depth)
        body.nodes += len(graph.node)
        if isinstance(graph, onnx.GraphProto):
            body.tensors.extend(map(Place, graph.initializer))
        calls: Counter[FunctionId] = Counter()
        for node in graph.node:
            calls[node.domain, node.op_type, node.overload] += 1
            for attribute in node.attribute:
                if attribute.HasField("g") or attribute.graphs:
                    todo.extend((inner, depth + 1) for inner in _graphs(attribute))
                if attribute.HasField("t") or attribute.tensors:
                    body.tensors.extend(Place(t, node, attribute.name) for t in _tensors(attribute))
        for (domain, op_type, overload), count in calls.items():
            body.calls[("" if domain == "ai.onnx" else domain, op_type, overload), depth] += count
    if isinstance(root, onnx.FunctionProto):
        body.tensors.extend(_defaults(root))
    return body


def _defaults(function: onnx.FunctionProto) -> Iterator[Place]:
    """Tensors that are default values of the function's attributes."""
    for attribute in function.attribute_proto:
        for tensor in _tensors(attribute):
            yield Place(tensor, onnx.NodeProto(op_type="function", name=function.name), attribute.name)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def tensors_of(proto: onnx.ModelProto) -> list[Place]:
    """Every tensor of the model: initializers and attributes, of subgraphs and functions too."""
    return [place for root in (proto.graph, *proto.functions) for place in _survey(root).tensors]


def guard(proto: onnx.ModelProto) -> list[Place]:
    """Refuse what would make later steps recurse, expand or allocate without bound, or drop content.

    Returns:
        Every tensor of the model. The data of those that are not external has the length that its type
        and shape ask for.

    Raises:
        InputError: Text is no UTF-8; nesting, function calls or a tensor's size are out of bounds; names
            that must be unique are not.
        UnsupportedError: Sparse tensors or map types, which onnx_ir cannot represent.
    """
    _guard_text(proto)
    _guard_opsets("the model", proto.opset_import)
    for function in proto.functions:
        if not function.domain or not function.name:
            raise InputError(f"function {quoted(function.name)} has no domain or no name")
        _guard_opsets(f"function {quoted(function.name)}", function.opset_import)
    main = _survey(proto.graph)
    functions = {(f.domain, f.name, f.overload): _survey(f) for f in proto.functions}
    if len(functions) < len(proto.functions):
        raise InputError("two functions of the model have the same domain, name and overload")
    _Expansion(functions).measure(main)
    places = [place for body in (main, *functions.values()) for place in body.tensors]
    for place in places:
        _guard_tensor(place)
    return places


def _guard_opsets(what: str, entries: Iterable[onnx.OperatorSetIdProto]) -> None:
    versions: dict[str, int] = {}
    for entry in entries:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise InputError(
                f"{what} imports domain {quoted(domain)} at versions {versions[domain]} and {entry.version}"
            )


def _guard_text(proto: onnx.ModelProto) -> None:
    """Protobuf hands out invalid UTF-8 as bytes, which everything later would take for text.

    The walk over all messages also finds what onnx_ir would drop or refuse without saying where.
    """
    todo: list[Any] = [proto]
    tensor = onnx.TensorProto
    while todo:
        message = todo.pop()
        kind = type(message)
        if kind is tensor:  # not by its fields: that would copy the weights
            todo.extend((*message.external_data, *message.metadata_props))
            _guard_strings("name", [message.name, message.doc_string])
            continue
        if kind in _NOT_ALWAYS_SUPPORTED:
            _guard_supported(message)
        for descriptor, value in message.ListFields():
            field = descriptor.type
            if field == _STRING:
                if type(value) is not str:
                    _guard_strings(descriptor.name, value if descriptor.is_repeated else (value,))
            elif field == _MESSAGE:
                todo.extend(value if descriptor.is_repeated else (value,))


def _guard_supported(message: Message) -> None:
    if isinstance(message, onnx.SparseTensorProto):
        raise UnsupportedError("the model holds sparse tensors, which are not supported; make them dense")
    if isinstance(message, onnx.TypeProto.Map):
        raise UnsupportedError(
            "the model has values of map type, which are not supported; "
            "export it without ZipMap (skl2onnx: options={'zipmap': False})"
        )
    if isinstance(message, onnx.AttributeProto) and message.type in _GRAPH_TYPES and message.ref_attr_name:
        raise UnsupportedError(
            "a function of the model takes a subgraph as its attribute, which is not supported; "
            "inline the functions first"
        )
    if isinstance(message, onnx.NodeDeviceConfigurationProto) and not message.configuration_id:
        raise InputError("a device configuration of a node has no id, so it could not be saved again")


_STRING, _MESSAGE = FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE
_NOT_ALWAYS_SUPPORTED = frozenset(
    {
        onnx.AttributeProto,
        onnx.NodeDeviceConfigurationProto,
        onnx.SparseTensorProto,
        onnx.TypeProto.Map,
    }
)
_GRAPH_TYPES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _guard_strings(what: str, strings: Iterable[str | bytes]) -> None:
    for text in strings:
        if type(text) is bytes:
            raise InputError(f"{what} {quoted(text)} is not UTF-8 text: the file is damaged")


class _Expansion:
    """Size of the model with every function call expanded, by dynamic programming over the call graph."""

    def __init__(self, functions: dict[FunctionId, _Body]) -> None:
        self._functions = functions
        self._known: dict[FunctionId, tuple[int, int]] = {}
        self._open: list[FunctionId] = []

    def measure(self, body: _Body) -> tuple[int, int]:
        """(nodes, nesting depth) of a body with every call in it expanded."""
        nodes, depth = body.nodes, body.depth
        for (callee, call_depth), count in body.calls.items():
            if callee in self._functions:
                inner_nodes, inner_depth = self._function(callee)
                nodes += count * inner_nodes
                depth = max(depth, call_depth + 1 + inner_depth)
        if nodes > EXPANDED_NODES:
            raise InputError(
                f"the model has more than {EXPANDED_NODES} nodes when its function calls are expanded "
                "(limit EXPANDED_NODES)"
            )
        if depth > NESTING_DEPTH:
            raise InputError(_TOO_DEEP)
        return nodes, depth

    def _function(self, callee: FunctionId) -> tuple[int, int]:
        if callee not in self._known:
            if callee in self._open:
                raise InputError(f"function {quoted(callee[1])} calls itself: ONNX functions cannot recurse")
            if len(self._open) >= NESTING_DEPTH:
                raise InputError(_TOO_DEEP)
            self._open.append(callee)
            self._known[callee] = self.measure(self._functions[callee])
            self._open.pop()
        return self._known[callee]


_TOO_DEEP = f"subgraphs and function calls are nested deeper than {NESTING_DEPTH} (limit NESTING_DEPTH)"

_DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
#: The typed field of an element type, where it is not int32_data, and its values per element.
_TYPED_FIELD = {
    ir.DataType.FLOAT: ("float_data", 1),
    ir.DataType.COMPLEX64: ("float_data", 2),
    ir.DataType.DOUBLE: ("double_data", 1),
    ir.DataType.COMPLEX128: ("double_data", 2),
    ir.DataType.INT64: ("int64_data", 1),
    ir.DataType.UINT32: ("uint64_data", 1),
    ir.DataType.UINT64: ("uint64_data", 1),
    ir.DataType.STRING: ("string_data", 1),
}


def nbytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's type and shape ask for; sub-byte types are packed."""
    elements: int = math.prod(tensor.dims)
    return (elements * ir.DataType(tensor.data_type).bitwidth + 7) // 8


def _guard_tensor(place: Place) -> None:
    tensor = place.tensor
    shape = list(tensor.dims)
    if tensor.data_type not in _ELEMENT_TYPES:
        raise InputError(f"{place} has the unknown element type {tensor.data_type}: the file is damaged")
    negative = any(axis < 0 for axis in shape)
    if negative or len(shape) > TENSOR_RANK or math.prod(max(axis, 1) for axis in shape) > TENSOR_ELEMENTS:
        raise InputError(f"{place} has the impossible shape {str(shape)[:100]}: the file is damaged")
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _guard_data(place)


_ELEMENT_TYPES = {dtype.value for dtype in ir.DataType} - {ir.DataType.UNDEFINED.value}


def _guard_data(place: Place) -> None:
    """The tensor's data is in the field of its type, and as long as its shape says."""
    tensor, dtype = place.tensor, ir.DataType(place.tensor.data_type)
    typed, per_element = _TYPED_FIELD.get(dtype, ("int32_data", 1))
    raw = tensor.HasField("raw_data")
    filled = [name for name in _DATA_FIELDS if getattr(tensor, name)]
    if (raw and (filled or dtype == ir.DataType.STRING)) or any(name != typed for name in filled):
        fields = " and ".join(["raw_data"] * raw + filled)
        raise InputError(f"{place} of type {dtype.name} holds {fields}: the file is damaged")
    if raw:
        held, needed, unit = len(tensor.raw_data), nbytes_of(tensor), "bytes"
    else:
        packed = dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4)
        held, unit = len(getattr(tensor, typed)), "values"
        needed = nbytes_of(tensor) if packed else math.prod(tensor.dims) * per_element
    if held != needed:
        shape = list(tensor.dims)
        raise InputError(
            f"{place} holds {held} {unit}, its shape {shape} needs {needed}: the file is truncated or damaged"
        )
