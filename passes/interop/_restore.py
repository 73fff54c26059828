"""Carry over what a foreign tool drops: names, metadata, doc strings and declared types."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["restore_graph", "restore_metadata", "restore_node", "restore_value", "values_of"]


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs, initializers and node outputs of a graph by name, without those of its subgraphs."""
    found = {v.name: v for v in (*graph.inputs, *graph.initializers.values()) if v.name}
    found.update((v.name, v) for node in graph for v in node.outputs if v.name)
    return found


def restore_graph(new: ir.Graph, old: ir.Graph) -> None:
    """Name, doc string and metadata of a graph."""
    new.name, new.doc_string = old.name, old.doc_string
    restore_metadata(new, old)


def restore_node(new: ir.Node, old: ir.Node) -> None:
    """Name, doc string and metadata of a node."""
    new.name, new.doc_string = old.name, old.doc_string
    restore_metadata(new, old)


def restore_value(new: ir.Value, old: ir.Value) -> None:
    """Type, shape, doc string and metadata of a value, exactly as the original declares them."""
    new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    restore_metadata(new, old)


def restore_metadata(new: ir.Graph | ir.Node | ir.Value, old: ir.Graph | ir.Node | ir.Value) -> None:
    """Metadata alone."""
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
