"""Put back into a converted graph what a trip through onnx's version converter loses.

Nodes are matched by numbers that stand as their names on the trip, values by their names. What comes back:
the tensors of initializers and Constant nodes, node names, metadata and doc strings, types and shapes as the
original declares them, and readable names for what the converter added.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from graphopt.graph import Names, subgraphs_of
from graphopt.passes.interop._restore import restore_graph, restore_node, restore_value, values_of

__all__ = ["HELD_DOMAIN", "nodes_of", "number", "transplant"]

#: The domain of nodes during the trip that the converter must leave alone.
HELD_DOMAIN = "graphopt.held"
_PREFIX = "graphopt:"


def nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes of a graph, those of subgraphs right after the node that holds them."""
    for node in graph:
        yield node
        for subgraph in subgraphs_of(node):
            yield from nodes_of(subgraph)


def _protos_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs) if _holds_graphs(attribute) else ():
                yield from _protos_of(subgraph)


def _holds_graphs(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def number(proto: onnx.ModelProto, held: set[int]) -> None:
    """Name the nodes of a serialized model by their place in :func:`nodes_of`, and hold some of them back."""
    for index, node in enumerate(_protos_of(proto.graph)):
        node.name = f"{_PREFIX}{index}"
        if index in held:
            node.domain = HELD_DOMAIN
    if held:
        proto.opset_import.add(domain=HELD_DOMAIN, version=1)


def transplant(new: ir.Graph, old: ir.Graph, numbered: list[ir.Node], names: Names) -> dict[ir.Node, ir.Node]:
    """Restore everything in the converted graph; the original's node for each node that came from one."""
    pairs: dict[ir.Node, ir.Node] = {}
    restore_graph(new, old)
    _restore_values(new, old)
    for node in new:
        index = (node.name or "").removeprefix(_PREFIX)
        if index == node.name or not index.isdecimal():
            continue
        pairs[node] = numbered[int(index)]
        _restore_node(node, pairs[node])
        for inner, original in zip(subgraphs_of(node), subgraphs_of(pairs[node]), strict=True):
            pairs |= transplant(inner, original, numbered, names)
    _name_additions(new, set(values_of(old)), pairs, names)
    return pairs


def _restore_values(new: ir.Graph, old: ir.Graph) -> None:
    originals = values_of(old)
    for name, value in values_of(new).items():
        if name not in originals:
            continue
        restore_value(value, originals[name])
        if originals[name].const_value is not None:
            value.const_value = originals[name].const_value


def _restore_node(new: ir.Node, old: ir.Node) -> None:
    restore_node(new, old)
    if new.domain == HELD_DOMAIN:
        new.domain = old.domain
    for name, attribute in old.attributes.items():
        if name in new.attributes and attribute.type == ir.AttributeType.TENSOR:
            new.attributes[name] = attribute


def _name_additions(graph: ir.Graph, known: set[str], pairs: dict[ir.Node, ir.Node], names: Names) -> None:
    """The converter numbers what it adds; name it after the node that reads it."""
    added = [v for v in graph.initializers.values() if v.name not in known]
    for node in graph:
        if node not in pairs:
            added.extend(v for v in node.outputs if v.name not in known)
    for value in added:
        reader = next((use.node for use in value.uses()), None)
        base = reader.outputs[0].name if reader is not None else value.name
        producer = value.producer()
        what = producer.op_type.lower() if producer is not None else "operand"
        value.name = names.fresh(f"{base}_{what}")
        if producer is not None:
            producer.name = value.name
