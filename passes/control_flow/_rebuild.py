"""Change the number of inputs and outputs of a node with subgraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

__all__ = ["rebuild"]


def rebuild(
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    outputs: Iterable[int],
    attributes: Iterable[ir.Attr] | None = None,
) -> ir.Node:
    """Put a node with other inputs, and only some of the outputs, in the place of ``node``.

    Args:
        node: The node; outputs that are not kept must be unused. It is in no graph afterwards.
        inputs: The inputs of the new node.
        outputs: Which outputs are kept, in order. They keep names, types and uses.
        attributes: The attributes of the new node, those of ``node`` by default; subgraphs move to it.
    """
    graph = node.graph
    assert graph is not None
    kept = [node.outputs[index] for index in outputs]
    new = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values() if attributes is None else attributes),
        outputs=[_twin(value) for value in kept],
        overload=node.overload,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, new)
    for old, twin in zip(kept, new.outputs, strict=True):
        old.replace_all_uses_with(twin, replace_graph_outputs=True)
        old.name = None
    graph.remove(node, safe=True)
    return new


def _twin(value: ir.Value) -> ir.Value:
    return ir.Value(
        name=value.name,
        type=value.type,
        shape=value.shape,
        doc_string=value.doc_string,
        metadata_props=dict(value.metadata_props),
    )
