"""Which of the foldable nodes to fold, so that the file does not grow.

The unit is the node. A foldable node whose result is needed at run time is either *stored* (its outputs
become constants) or *kept* (then its own inputs are needed). Storing costs the bytes of the outputs; keeping
costs the node, and whatever constants would otherwise have died with it. The cheaper way is found by one
sweep forward that shares the cost of a value among its uses (the "area flow" of technology mapping for FPGAs:
Manohararajah, Brown and Vranesic, 2006) and one sweep backward that decides. A last count is exact: where the
file would grow beyond the budget, folding is made less eager and planned again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.constants import stored_bytes
from graphopt.graph import constant_of

__all__ = ["Plan", "node_bytes", "plan"]

Array = np.ndarray[Any, np.dtype[Any]]
Results = Mapping[ir.Node, list[Array]]

#: What a removed node may cost in bytes, from the most eager plan to the least.
_EAGERNESS = (*(2**k for k in range(14, 4, -1)), 0)
#: A graph output that is constant becomes a Constant node, which always lies inside the model file.
_OUTPUT_BYTES = 64 * 1024
#: Protobuf's own bytes around a node, an attribute, a tensor.
_OVERHEAD = 16
_ROUNDS = 24


@dataclass
class Plan:
    """What to fold.

    Attributes:
        stored: Values that become constants, with these.
        removed: Foldable nodes that go away.
        kept: Foldable nodes that stay, since storing their results would make the file grow.
        growth: Bytes by which the file grows; negative where it shrinks.
    """

    stored: dict[ir.Value, Array] = field(default_factory=dict)
    removed: list[ir.Node] = field(default_factory=list)
    kept: list[ir.Node] = field(default_factory=list)
    growth: int = 0


def plan(results: Results, *, max_result_bytes: int, within_budget: Callable[[int], bool]) -> Plan:
    """Choose among the foldable nodes.

    Args:
        results: The foldable nodes in topological order, with one array per output.
        max_result_bytes: A larger constant is stored only in the place of as many bytes of other constants.
        within_budget: Whether the file may grow by so many bytes in all.
    """
    banned: set[ir.Node] = set()
    uses = _Uses(results)
    for eagerness in (*_EAGERNESS, *(0,) * _ROUNDS):
        found = _Planner(results, uses, eagerness, max_result_bytes, banned).run()
        if within_budget(found.growth):
            return found
        if eagerness == 0:
            banned |= _largest(found, results)
    return Plan(kept=list(results))


def _largest(found: Plan, results: Results) -> set[ir.Node]:
    """The nodes whose stored results are at least half as large as the largest."""
    sizes = {v: stored_bytes(a) for v, a in found.stored.items()}
    bound = max(sizes.values(), default=0) / 2
    return {n for n in results if any(sizes.get(v, -1) >= bound for v in n.outputs)}


class _Uses:
    """Who uses a value, counted once for all plans: a constant may have thousands of users."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._of: dict[ir.Value, tuple[int, bool]] = {}
        #: What a node takes in the file, likewise.
        self.node_bytes = functools.cache(node_bytes)

    def count(self, value: ir.Value) -> int:
        """Nodes that use the value."""
        return self._facts(value)[0]

    def outside(self, value: ir.Value) -> bool:
        """Whether the value is needed at run time whatever is folded."""
        return self._facts(value)[1]

    def _facts(self, value: ir.Value) -> tuple[int, bool]:
        if value not in self._of:
            users = value.consumers()
            outside = value.is_graph_output() or any(u not in self._results for u in users)
            self._of[value] = len(users), outside
        return self._of[value]


class _Planner:
    def __init__(
        self, results: Results, uses: _Uses, eagerness: int, max_result: int, banned: set[ir.Node]
    ) -> None:
        self._results = results
        self._uses = uses
        self._eagerness = eagerness
        self._max_result = max_result
        self._banned = banned
        #: Per node: the cheapest way to have its results, and the constants that die when it is folded.
        self._cost: dict[ir.Node, float] = {}
        self._dying: dict[ir.Node, float] = {}

    def run(self) -> Plan:
        """Weigh forward, decide backward, count."""
        storable = {n: self._weigh(n) for n in self._results}
        found, kept = Plan(), set[ir.Node]()
        for node in reversed(list(self._results)):
            needed = [v for v in node.outputs if self._is_needed(v, kept)]
            if not any(self._is_used(v) for v in node.outputs) or (needed and not storable[node]):
                kept.add(node)
                continue
            arrays = dict(zip(node.outputs, self._results[node], strict=True))
            found.stored.update((v, arrays[v]) for v in needed)
            found.removed.append(node)
        found.kept = [n for n in self._results if n in kept and any(map(self._is_used, n.outputs))]
        found.growth = self._growth(found)
        return found

    def _is_used(self, value: ir.Value) -> bool:
        return self._uses.count(value) > 0 or value.is_graph_output()

    def _is_needed(self, value: ir.Value, kept: set[ir.Node]) -> bool:
        return self._uses.outside(value) or any(user in kept for user in value.consumers())

    def _weigh(self, node: ir.Node) -> bool:
        """Whether to store the node's results if they are needed."""
        outputs = list(zip(node.outputs, self._results[node], strict=True))
        size = sum(stored_bytes(a) for v, a in outputs if self._is_used(v))
        shares = [self._share(v) for v in dict.fromkeys(node.inputs) if v is not None]
        self._dying[node] = sum(dying for _, dying in shares)
        keeping = self._uses.node_bytes(node) + self._eagerness + sum(cost for cost, _ in shares)
        legal = node not in self._banned and self._is_legal(node, size)
        self._cost[node] = min(size, keeping) if legal else keeping
        return legal and size <= keeping

    def _is_legal(self, node: ir.Node, size: int) -> bool:
        if node.op_type == "Identity":
            return False  # a copy of a constant: eliminate-identity lets its users share the one there is
        if any(v.is_graph_output() and v.graph is not node.graph for v in node.outputs):
            return False  # the output of a subgraph from outside of it: nothing that should be touched
        if size > _OUTPUT_BYTES and any(v.is_graph_output() for v in node.outputs):
            return False
        return size <= self._max_result or size <= self._dying[node]

    def _share(self, value: ir.Value) -> tuple[float, float]:
        """(cost, dying constants) of one use of a value that only foldable nodes need."""
        if self._uses.outside(value):
            return 0.0, 0.0
        users = max(1, self._uses.count(value))
        producer = value.producer()
        if producer is not None and producer in self._results:
            if any(self._uses.outside(v) for v in producer.outputs):
                return 0.0, 0.0
            users = max(1, sum(self._uses.count(v) for v in producer.outputs))
            return self._cost[producer] / users, self._dying[producer] / users
        tensor = constant_of(value)
        size = 0.0 if tensor is None else tensor.nbytes / users
        return size, size

    def _growth(self, found: Plan) -> int:
        """The exact change of the file's size, but for a few bytes of names and lengths."""
        removed = set(found.removed)
        grown = sum(stored_bytes(a) + _OVERHEAD for a in found.stored.values())
        freed = sum(map(self._uses.node_bytes, removed))
        for value in {v for n in removed for v in n.inputs if v is not None}:
            if not value.is_graph_output() and removed.issuperset(value.consumers()):
                tensor = constant_of(value)
                freed += 0 if tensor is None else tensor.nbytes + _OVERHEAD
        return grown - freed


def node_bytes(node: ir.Node) -> int:
    """About what a node takes in a model file, the type entries of its outputs included."""
    names = [node.name, node.op_type, node.domain, node.doc_string]
    names += [v.name for v in node.inputs if v is not None] + [v.name for v in node.outputs]
    size = _OVERHEAD + sum(len(n) + 2 for n in names if n)
    size += sum(len(k) + len(v) + 6 for k, v in node.metadata_props.items())
    size += sum(len(v.name or "") + 4 * len(v.shape or ()) + 12 for v in node.outputs if v.type is not None)
    return size + sum(_attribute_bytes(a) for a in node.attributes.values())


def _attribute_bytes(attribute: ir.Attr) -> int:
    value = attribute.value
    size = _OVERHEAD + len(attribute.name)
    if attribute.type == ir.AttributeType.TENSOR and value is not None:
        return size + int(value.nbytes)
    if isinstance(value, str | bytes):
        return size + len(value)
    return size + (2 * len(value) if isinstance(value, Sequence) else 0)
