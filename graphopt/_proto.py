"""Guards on a model as it came from a file, before anything recurses over it or allocates for it.

They know protobuf messages only; :mod:`graphopt.io` calls them in the order in which they are safe.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from graphopt.errors import InputError, UnsupportedError
from graphopt.limits import EXPANDED_NODES, NESTING_DEPTH

__all__ = ["Place", "guard", "quoted", "tensor_nbytes", "tensors_of"]

FunctionId = tuple[str, str, str]
#: NumPy 1 stops here, and no operator means anything at such ranks.
_MAX_RANK = 32
#: Elements, with empty axes counted as one, that no address space holds.
_MAX_ELEMENTS = 1 << 56


def quoted(name: str | bytes) -> str:
    """A name from a file as messages show it: in quotes, on one line, not endless."""
    text = name if isinstance(name, str) else name.decode("utf-8", "replace")
    return repr(text if len(text) <= 100 else text[:97] + "...")


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
    """Walk a body without recursion.

    Raises:
        InputError: Subgraphs are nested too deeply.
    """
    body = _Body()
    todo: list[tuple[onnx.GraphProto | onnx.FunctionProto, int]] = [(root, 0)]
    while todo:
        graph, depth = todo.pop()
        if depth > NESTING_DEPTH:
            raise InputError(f"subgraphs are nested deeper than {NESTING_DEPTH} (limit NESTING_DEPTH)")
        body.depth = max(body.depth, depth)
        body.nodes += len(graph.node)
        if isinstance(graph, onnx.GraphProto):
            body.tensors.extend(map(Place, graph.initializer))
        for node in graph.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            body.calls[(domain, node.op_type, node.overload), depth] += 1
            for attribute in node.attribute:
                todo.extend((inner, depth + 1) for inner in _graphs(attribute))
                body.tensors.extend(Place(t, node, attribute.name) for t in _tensors(attribute))
    return body


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
    bodies = [_survey(proto.graph), *map(_survey, proto.functions)]
    defaults = (
        Place(tensor, onnx.NodeProto(op_type=function.name), attribute.name)
        for function in proto.functions
        for attribute in function.attribute_proto
        for tensor in _tensors(attribute)
    )
    return [place for body in bodies for place in body.tensors] + list(defaults)


def guard(proto: onnx.ModelProto) -> None:
    """Refuse what would make later steps recurse, expand or allocate without bound, or drop content.

    Raises:
        InputError: Text is no UTF-8; nesting, function calls or a tensor's size are out of bounds; names
            that must be unique are not.
        UnsupportedError: Sparse tensors or map types, which onnx_ir cannot represent.
    """
    _guard_text(proto)
    _guard_expansion(proto)
    _guard_unique([("opset import of domain", _opsets(proto))])
    for function in proto.functions:
        _guard_unique([("opset import of domain", _opsets(function))])
    for place in tensors_of(proto):
        _guard_tensor(place)


def _opsets(proto: onnx.ModelProto | onnx.FunctionProto) -> list[str]:
    return ["" if entry.domain == "ai.onnx" else entry.domain for entry in proto.opset_import]


def _guard_unique(groups: Sequence[tuple[str, list[str]]]) -> None:
    for what, names in groups:
        name, count = next(iter(Counter(names).most_common(1)), ("", 0))
        if count > 1:
            raise InputError(f"{what} {quoted(name)} appears {count} times; it must be unique")


def _guard_text(proto: onnx.ModelProto) -> None:
    """Protobuf hands out invalid UTF-8 as bytes, which everything later takes for text.

    The same walk over all messages finds what onnx_ir would drop or refuse with a traceback.
    """
    todo: list[Message] = [proto]
    while todo:
        message = todo.pop()
        if isinstance(message, onnx.TensorProto):
            todo.extend((*message.external_data, *message.metadata_props))
            _guard_strings("name", [message.name, message.doc_string])
            continue
        if isinstance(message, onnx.SparseTensorProto):
            raise UnsupportedError("the model holds sparse tensors, which are not supported; make them dense")
        if isinstance(message, onnx.TypeProto.Map):
            raise UnsupportedError(
                "the model has an input or output of map type, which is not supported; "
                "export it without ZipMap (skl2onnx: zipmap=False)"
            )
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                todo.extend(value if descriptor.is_repeated else (value,))
            elif descriptor.type == descriptor.TYPE_STRING:
                _guard_strings(descriptor.name, value if descriptor.is_repeated else (value,))


def _guard_strings(what: str, strings: Sequence[str | bytes]) -> None:
    for text in strings:
        if isinstance(text, bytes):
            raise InputError(f"{what} {quoted(text)} is not UTF-8 text: the model is damaged")


def _guard_expansion(proto: onnx.ModelProto) -> None:
    """Bound the model with all function calls expanded, by dynamic programming over the call graph."""
    bodies = {(f.domain, f.name, f.overload): _survey(f) for f in proto.functions}
    if len(bodies) < len(proto.functions):
        raise InputError("two functions of the model have the same domain, name and overload")
    _Expansion(bodies).measure(_survey(proto.graph))


class _Expansion:
    """Sizes of functions after expansion, each computed once."""

    def __init__(self, bodies: dict[FunctionId, _Body]) -> None:
        self._bodies = bodies
        self._known: dict[FunctionId, tuple[int, int]] = {}
        self._open: list[FunctionId] = []

    def measure(self, body: _Body) -> tuple[int, int]:
        """(nodes, depth) of a body with every call in it expanded."""
        nodes, depth = body.nodes, body.depth
        for (callee, site_depth), count in body.calls.items():
            if callee in self._bodies:
                inner_nodes, inner_depth = self._function(callee)
                nodes += count * inner_nodes
                depth = max(depth, site_depth + 1 + inner_depth)
        if nodes > EXPANDED_NODES:
            raise InputError(
                f"the model has more than {EXPANDED_NODES} nodes when its function calls are expanded "
                "(limit EXPANDED_NODES)"
            )
        if depth > NESTING_DEPTH:
            raise InputError(
                f"subgraphs and function calls are nested deeper than {NESTING_DEPTH} (limit NESTING_DEPTH)"
            )
        return nodes, depth

    def _function(self, callee: FunctionId) -> tuple[int, int]:
        if callee not in self._known:
            if callee in self._open:
                raise InputError(f"function {quoted(callee[1])} calls itself; recursion is not allowed in ONNX")
            if len(self._open) >= NESTING_DEPTH:
                raise InputError(f"function calls are nested deeper than {NESTING_DEPTH} (limit NESTING_DEPTH)")
            self._open.append(callee)
            self._known[callee] = self.measure(self._bodies[callee])
            self._open.pop()
        return self._known[callee]


_TYPED_FIELDS = {
    ir.DataType.FLOAT: ("float_data", 1),
    ir.DataType.COMPLEX64: ("float_data", 2),
    ir.DataType.DOUBLE: ("double_data", 1),
    ir.DataType.COMPLEX128: ("double_data", 2),
    ir.DataType.INT64: ("int64_data", 1),
    ir.DataType.UINT32: ("uint64_data", 1),
    ir.DataType.UINT64: ("uint64_data", 1),
    ir.DataType.STRING: ("string_data", 1),
}
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's type and shape ask for; sub-byte types are packed."""
    return math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth / 8)


def _guard_tensor(place: Place) -> None:
    tensor = place.tensor
    shape = list(tensor.dims)
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise InputError(f"{place} has the unknown element type {tensor.data_type}") from None
    if dtype == ir.DataType.UNDEFINED:
        raise InputError(f"{place} has no element type")
    if len(shape) > _MAX_RANK or any(axis < 0 for axis in shape):
        raise InputError(f"{place} has the impossible shape {quoted(str(shape))}")
    if math.prod(max(axis, 1) for axis in shape) > _MAX_ELEMENTS:
        raise InputError(f"{place} has the impossible shape {quoted(str(shape))}")
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _guard_data(place, dtype, shape)


def _guard_data(place: Place, dtype: ir.DataType, shape: list[int]) -> None:
    """The tensor's data field is the one of its type, and as long as its shape says."""
    tensor = place.tensor
    filled = [name for name in _DATA_FIELDS if _filled(tensor, name)]
    name, per_element = _TYPED_FIELDS.get(dtype, ("int32_data", 1))
    if any(other not in ("raw_data", name) for other in filled) or len(filled) > 1:
        raise InputError(f"{place} of type {dtype.name} holds {' and '.join(filled)}: the model is damaged")
    if filled == ["raw_data"] and dtype != ir.DataType.STRING:
        held, needed, unit = len(tensor.raw_data), tensor_nbytes(tensor), "bytes"
    else:
        held, unit = len(getattr(tensor, name)), "values"
        packed = dtype in _PACKED_IN_INT32
        needed = tensor_nbytes(tensor) if packed else math.prod(shape) * per_element
    if held != needed or (dtype == ir.DataType.STRING and filled == ["raw_data"]):
        raise InputError(
            f"{place} holds {held} {unit}, its shape {shape} needs {needed}: the file is truncated or damaged"
        )


_PACKED_IN_INT32 = {
    dtype for dtype in ir.DataType if dtype.name.endswith(("INT4", "INT2")) or dtype.name == "FLOAT4E2M1"
}


def _filled(tensor: onnx.TensorProto, name: str) -> bool:
    return tensor.HasField("raw_data") and bool(tensor.raw_data) if name == "raw_data" else bool(len(getattr(tensor, name)))
