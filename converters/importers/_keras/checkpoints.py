"""Operators that read and write checkpoints, where only the saver of a SavedModel may use them.

Every SavedModel has two functions with SaveV2 and RestoreV2 for its own saver, which nothing else calls.
Called by anything that loading or a signature runs, they would write and read files that the model names.
"""

from __future__ import annotations

from typing import Any

__all__ = ["misused"]

_CHECKPOINTS = ("Save", "Restore", "MergeV2Checkpoints")


def misused(graph: Any) -> str:
    """What in a MetaGraphDef reads or writes checkpoints and is not the saver; empty if nothing does."""
    if not graph.HasField("object_graph_def"):
        return "is a SavedModel of TensorFlow 1, whose initializers are not looked at"
    bodies = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    touching = {name for name, nodes in bodies.items() if any(_touches(node) for node in nodes)}
    while True:  # what calls them touches them as well
        more = {n for n, nodes in bodies.items() if n not in touching and _called(nodes) & touching}
        if not more:
            break
        touching |= more
    saver = graph.saver_def
    own = {saver.save_tensor_name.split(":")[0], saver.restore_op_name.split(":")[0]}
    for node in graph.graph_def.node:
        if node.name not in own and (_touches(node) or _called([node]) & touching):
            return f"operator '{node.name}' reads or writes files"
    for name in graph.object_graph_def.concrete_functions:
        if name in touching or name not in bodies:
            return f"function '{name}' reads or writes files, or is missing"
    return ""


def _touches(node: Any) -> bool:
    return str(node.op).startswith(_CHECKPOINTS)


def _called(nodes: Any) -> set[str]:
    """Functions that nodes call, by attribute or by name."""
    found: set[str] = set()
    for node in nodes:
        found.add(str(node.op))
        for attribute in node.attr.values():
            found.add(attribute.func.name)
            found |= {function.name for function in attribute.list.func}
    return found
