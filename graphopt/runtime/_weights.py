"""A model as onnxruntime gets it: its structure as a proto, its large weights beside it, never serialized."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt import io
from graphopt.graph import is_used, release

__all__ = ["Structure", "captures"]

_EXTERNAL = onnx.TensorProto.EXTERNAL


@dataclass(frozen=True)
class Structure:
    """A model without its large weights, and where these are.

    Attributes:
        proto: The model; large initializers of the main graph are EXTERNAL placeholders. Weights of
            subgraphs and of attributes are inline, since onnxruntime takes no data for these by name.
        tensors: The tensor of every initializer of the main graph, by name.
    """

    proto: onnx.ModelProto
    tensors: Mapping[str, ir.TensorProtocol]

    @classmethod
    def of(cls, model: ir.Model, proto: onnx.ModelProto | None = None) -> Structure:
        """The structure of a model, which is left as it is.

        Args:
            model: The model.
            proto: What :func:`graphopt.io.structure_proto` makes of it now, if that is at hand; it is
                taken over and changed.
        """
        proto = io.structure_proto(model) if proto is None else proto
        _drop_unused(proto.graph, model.graph)
        _inline_nested(proto.graph.node, model.graph)
        for function in proto.functions:
            key = (function.domain, function.name, function.overload)
            _inline_nested(function.node, model.functions[key])
        values = model.graph.initializers.items()
        return cls(proto, {name: v.const_value for name, v in values if v.const_value is not None})

    def placeholders(self) -> list[str]:
        """Names of the initializers whose data the proto does not hold."""
        return [t.name for t in self.proto.graph.initializer if t.data_location == _EXTERNAL]

    def weight_bytes(self) -> int:
        """Bytes of all placeholders' data."""
        return sum(self.tensors[name].nbytes for name in self.placeholders())

    def folder(self) -> str | None:
        """The folder with most of the weights' data files, absolute; None if no weights lie in files."""
        sizes: Counter[str] = Counter()
        for name in self.placeholders():
            tensor = self.tensors[name]
            if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir:
                sizes[os.path.abspath(tensor.base_dir)] += tensor.nbytes  # noqa: PTH100 (no resolving of links)
        return max(sizes, key=lambda folder: sizes[folder]) if sizes else None

    def with_all_data(self) -> onnx.ModelProto:
        """A copy of the proto with every weight inline."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.data_location == _EXTERNAL:
                _inline(tensor, self.tensors[tensor.name])
        return proto


def _drop_unused(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    """Remove initializers that nothing uses; onnxruntime refuses data for what it has pruned itself."""
    kept = [t for t in proto.initializer if _is_needed(graph.initializers[t.name])]
    if len(kept) < len(proto.initializer):
        del proto.initializer[:]
        proto.initializer.extend(kept)


def _is_needed(value: ir.Value) -> bool:
    return is_used(value) or value.is_graph_input()


def _inline(proto: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> None:
    assert tensor is not None, f"initializer '{proto.name}' has no data"
    proto.ClearField("data_location")
    proto.ClearField("external_data")
    proto.raw_data = tensor.tobytes()
    release(tensor)


def _inline_nested(protos: Iterable[onnx.NodeProto], nodes: Iterable[ir.Node]) -> None:
    for proto, node in zip(protos, nodes, strict=True):
        for attribute in proto.attribute:
            if attribute.ref_attr_name:
                continue
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_location == _EXTERNAL:
                _inline(attribute.t, node.attributes[attribute.name].as_tensor())
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _inline_graph(attribute.g, node.attributes[attribute.name].as_graph())
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                graphs = node.attributes[attribute.name].as_graphs()
                for inner, graph in zip(attribute.graphs, graphs, strict=True):
                    _inline_graph(inner, graph)


def _inline_graph(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    for tensor in proto.initializer:
        if tensor.data_location == _EXTERNAL:
            _inline(tensor, graph.initializers[tensor.name].const_value)
    _inline_nested(proto.node, graph)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes, not those inside them."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def captures(node: onnx.NodeProto) -> Iterator[str]:
    """Names of outer values that the node's subgraphs use; a name may come more than once."""
    for graph in subgraphs(node):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own.update(t.values.name for t in graph.sparse_initializer)
        for inner in graph.node:
            yield from (n for n in (*inner.input, *captures(inner)) if n and n not in own)
            own.update(inner.output)
        yield from (v.name for v in graph.output if v.name not in own)
