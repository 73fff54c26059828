"""Taking out what a rewrite left unused, as far back as it goes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.graph import subgraphs_of
from graphopt.passes.cleanup._common import is_used

__all__ = ["exclusive_nodes", "remove_unused"]

#: How far back exclusive nodes are sought; chains that compute shapes are shorter.
_LONGEST_CHAIN = 256


def remove_unused(nodes: Iterable[ir.Node]) -> int:
    """Remove those nodes that nothing uses, then the nodes and initializers that only they used.

    A node with subgraphs stays: its body uses outer values, which dead-code elimination knows to release.
    """
    pending, count = list(nodes), 0
    while pending:
        node = pending.pop()
        if (
            node.graph is None
            or any(map(is_used, node.outputs))
            or next(subgraphs_of(node), None) is not None
        ):
            continue
        inputs = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        count += 1
        for value in inputs:
            made_by = value.producer()
            if made_by is not None:
                pending.append(made_by)
            elif value.is_initializer() and not (is_used(value) or value.is_graph_input()):
                _remove_initializer(value)
    return count


def _remove_initializer(value: ir.Value) -> None:
    if value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name, None)


def exclusive_nodes(node: ir.Node, kept: Iterable[ir.Value]) -> int:
    """How many nodes would go with ``node``, Constants not counted, if ``kept`` stay in use."""
    wanted = set(kept)
    dying: dict[ir.Node, None] = {node: None}
    pending = [node]
    while pending and len(dying) < _LONGEST_CHAIN:
        for value in pending.pop().inputs:
            made_by = value.producer() if value is not None else None
            if made_by is not None and made_by not in dying and _dies(made_by, dying, wanted):
                dying[made_by] = None
                pending.append(made_by)
    return sum(n.op_type != "Constant" for n in dying)


def _dies(node: ir.Node, dying: dict[ir.Node, None], wanted: set[ir.Value]) -> bool:
    if next(subgraphs_of(node), None) is not None:
        return False
    return not any(
        output in wanted or output.is_graph_output() or any(user not in dying for user in output.consumers())
        for output in node.outputs
    )
