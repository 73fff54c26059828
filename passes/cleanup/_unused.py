"""What would go with a node if nothing used it any more."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.graph import has_subgraphs

__all__ = ["exclusive_nodes"]

#: How far back exclusive nodes are sought; chains that compute shapes are shorter.
_LONGEST_CHAIN = 256


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
    if has_subgraphs(node):
        return False
    return not any(
        output in wanted or output.is_graph_output() or any(user not in dying for user in output.consumers())
        for output in node.outputs
    )
