"""The rewrite driver: rules of one class each, run from a worklist to a fixed point.

The driver visits every node with a root of a rule once; a rewrite puts the new node, its neighbours, and
what it released back on the worklist. So the cost grows with the number of nodes plus that of rewrites.

Example::

    class AbsNeg(Rule[tuple[ir.Node, ir.Node]]):
        name, roots = "abs-neg", ("Abs",)

        def match(self, node):
            neg = producer(node.inputs[0], node, "Neg")
            return None if neg is None else (node, neg)

        def check(self, match, context):
            return None  # |-x| = |x|

        def rewrite(self, match, context):
            node, neg = match
            context.replace(node.outputs[0], "Abs", [neg.inputs[0]], like=node)
"""

from __future__ import annotations

import abc
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import DefectError
from graphopt.graph import (
    Names,
    add_initializer,
    constant_of,
    describe,
    is_default_domain,
    scopes,
    subgraphs_of,
)

if TYPE_CHECKING:
    from graphopt.analyses.shapes import Inferred, Shapes

__all__ = [
    "Context",
    "Refusal",
    "RewriteReport",
    "Rule",
    "apply_rules",
    "input_at",
    "is_exclusive",
    "is_op",
    "producer",
    "why_not_constant",
]

M = TypeVar("M")

#: More rewrites than this per node (plus a constant) mean that two rules undo each other.
_REWRITES_PER_NODE: Final = 16


@dataclass(frozen=True)
class Refusal:
    """Why a rule or pass left something alone: the rule, the node or tensor, the reason."""

    rule: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.where}: {self.reason}"


@dataclass
class RewriteReport:
    """What :func:`apply_rules` did.

    Attributes:
        applied: How often each rule was applied, by name.
        refusals: Patterns that matched and were left alone in the end, one for each rule and node.
        visits: Nodes taken from the worklist; linear in nodes plus rewrites.
    """

    applied: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    visits: int = 0


class Rule(abc.ABC, Generic[M]):
    """One rewrite: a pattern, the conditions that make it right, and what replaces it."""

    #: The rule's one name (kebab-case), used to include, exclude and report it.
    name: ClassVar[str]
    #: Op types of the default domain that the pattern starts from.
    roots: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def match(self, node: ir.Node) -> M | None:
        """What the rule found at ``node``, by the shape of the pattern alone; None for nothing."""

    @abc.abstractmethod
    def check(self, match: M, context: Context) -> str | None:
        """Why the match must be left alone, naming what is in the way; None where it is right."""

    @abc.abstractmethod
    def rewrite(self, match: M, context: Context) -> None:
        """Put new nodes in place of the match through ``context``; tensors are never changed in place."""


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these standard operators, with all of its attributes known.

    Inside a model-local function an attribute may refer to the caller's; nothing can be said of such a node.
    """
    return (
        node is not None
        and node.op_type in op_types
        and is_default_domain(node)
        and not any(a.is_ref() for a in node.attributes.values())
    )


def producer(value: ir.Value | None, user: ir.Node, *op_types: str) -> ir.Node | None:
    """The node of one of these op types that makes ``value`` in the same graph as ``user``.

    A producer in an outer graph is none: fusing it would move its work into a branch or a loop.
    """
    node = None if value is None else value.producer()
    return node if node is not None and node.graph is user.graph and is_op(node, *op_types) else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_exclusive(value: ir.Value) -> bool:
    """Whether the value has exactly one use and is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def why_not_constant(value: ir.Value, role: str) -> str | None:
    """Why no rewrite may read ``value``, which is ``role`` ("the weight"); None where it is constant."""
    if constant_of(value) is not None:
        return None
    if value.is_graph_input():
        return f"{role} '{value.name}' is a graph input"
    node = value.producer()
    made = f"computed by {describe(node)}" if node is not None else "not known here"
    return f"{role} '{value.name}' is {made}"


class Context:
    """The model around a match: what is known of its values, and the only way to change it.

    Attributes:
        model: The model that is rewritten.
        opset: Version of the standard operators in the graph of the match.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = 1
        self._opsets = {scope.graph: scope.opset for scope in scopes(model)}
        self._function_graphs = {function.graph for function in model.functions.values()}
        self._names: Names | None = None
        self._shapes: Shapes | None = None
        self._graph: ir.Graph = model.graph
        self._added: list[ir.Node] = []
        self._replaced: list[ir.Node] = []
        self._heirs: list[tuple[ir.Value, ir.Value]] = []

    def enter(self, graph: ir.Graph) -> None:
        """Make ``graph`` the one that new constants belong to."""
        self._graph = graph
        self.opset = self._opsets[graph]

    def infer(self, value: ir.Value) -> Inferred:
        """What shape inference knows of the value; the inference runs when first asked."""
        from graphopt.analyses import shapes

        tensor = constant_of(value)
        if tensor is not None:
            return shapes.Inferred(tensor.dtype, ir.Shape(tensor.shape.numpy()))
        if self._shapes is None:
            self._shapes = shapes.infer(self.model)
        return self._shapes[value]

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes of the value; None where unknown."""
        shape = self.infer(value).shape
        return None if shape is None else len(shape)

    def fresh_name(self, wanted: str) -> str:
        """``wanted``, or a name like it that no value of the model has."""
        if self._names is None:
            self._names = Names(self.model)
        return self._names.fresh(wanted)

    def constant(
        self, wanted: str, data: np.ndarray | ir.TensorProtocol, *, heir_of: ir.Value | None = None
    ) -> ir.Value:
        """A new constant in the graph of the match: an initializer, or a Constant node in a function.

        Args:
            wanted: The name wished for.
            data: The numbers; a tensor must be a new one, it gets the name.
            heir_of: The constant that this one stands in for; if that one becomes unused, its name passes on.
        """
        name = self.fresh_name(wanted)
        tensor = ir.tensor(data) if isinstance(data, np.ndarray) else data
        tensor.name = name
        in_function = self._graph in self._function_graphs  # which have no initializers
        value = (_add_constant_node if in_function else add_initializer)(self._graph, name, tensor)
        if heir_of is not None:
            self._heirs.append((value, heir_of))
        return value

    def replace(
        self,
        output: ir.Value,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
        *,
        like: ir.Node,
    ) -> ir.Node:
        """Let a new node make ``output`` in place of its producer, which must have no other used output.

        The new node stands where the producer stood, its output takes over name, type, shape and all uses
        of ``output``, graph outputs included. Name and metadata come from ``like``, the main one of the
        nodes that are replaced.
        """
        old = output.producer()
        if old is None or old.graph is None or any(o.uses() for o in old.outputs if o is not output):
            raise DefectError(f"'{output.name}' cannot be replaced alone; please report this model")
        value = ir.Value(
            name=output.name,
            type=output.type,
            shape=output.shape,
            doc_string=output.doc_string,
            metadata_props=dict(output.metadata_props),
        )
        node = ir.Node(
            "",
            op_type,
            inputs,
            list(attributes),
            outputs=[value],
            name=like.name,
            doc_string=like.doc_string,
            metadata_props=dict(like.metadata_props),
        )
        old.graph.insert_before(old, node)
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        output.name = None
        if self._shapes is not None:
            self._shapes[value] = self._shapes[output]
        self._added.append(node)
        self._replaced.append(old)
        return node

    def finish(self) -> list[ir.Node]:
        """Remove what the rewrite left unused, hand names on; the nodes that deserve another visit."""
        again = dict.fromkeys(self._added)
        for node in self._added:
            again.update(dict.fromkeys((*node.predecessors(), *node.successors())))
        for value in _remove_unused(self._replaced):
            made_by, users = value.producer(), value.consumers()
            again.update(dict.fromkeys([made_by] if made_by is not None else []))
            again.update(dict.fromkeys(users if len(users) == 1 else ()))
        for old, heir in {old: heir for heir, old in self._heirs}.items():
            if _is_gone(old):
                heir.name = old.name
        self._added, self._replaced, self._heirs = [], [], []
        return [node for node in again if node.graph is not None]


def _add_constant_node(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape)
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name=name)
    graph.insert_before(graph[0], node)
    return value


def _is_gone(value: ir.Value) -> bool:
    node = value.producer()
    return node.graph is None if node is not None else not value.is_initializer()


def _remove_unused(nodes: list[ir.Node]) -> list[ir.Value]:
    """Remove those nodes that nothing uses, then what only they used; the values that lost a use."""
    pending = list(nodes)
    released: dict[ir.Value, None] = {}
    while pending:
        node = pending.pop()
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        if next(subgraphs_of(node), None) is not None:
            continue  # its body uses outer values; dead-code elimination knows how to take it out
        inputs = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for value in inputs:
            made_by = value.producer()
            released[value] = None
            if made_by is not None:
                pending.append(made_by)
            elif value.is_initializer() and not value.uses():
                _remove_initializer(value)
    return list(released)


def _remove_initializer(value: ir.Value) -> None:
    graph, name = value.graph, value.name
    if graph is not None and name is not None and not (value.is_graph_input() or value.is_graph_output()):
        graph.initializers.pop(name)


def apply_rules(model: ir.Model, rules: Sequence[Rule[Any]]) -> RewriteReport:
    """Apply ``rules`` to every graph of the model until none of them applies any more.

    Where several rules have a root in common, the first that applies wins.

    Raises:
        DefectError: The rules undo each other, so that no fixed point exists.
    """
    if any(f.domain in ("", "ai.onnx") for f in model.functions.values()):
        reason = "a function of the model redefines standard operators"
        return RewriteReport(refusals=[Refusal(rule.name, "the model", reason) for rule in rules])
    return _Driver(model, rules).run()


class _Driver:
    """One run over one model."""

    def __init__(self, model: ir.Model, rules: Sequence[Rule[Any]]) -> None:
        self.context = Context(model)
        self.report = RewriteReport()
        self.index: dict[str, list[Rule[Any]]] = {}
        for rule in rules:
            for op_type in rule.roots:
                self.index.setdefault(op_type, []).append(rule)
        self.queue: deque[ir.Node] = deque()
        self.queued: set[ir.Node] = set()
        self.refused: dict[tuple[str, ir.Node], str] = {}

    def run(self) -> RewriteReport:
        nodes = [node for scope in scopes(self.context.model) for node in scope.graph]
        budget = _REWRITES_PER_NODE * len(nodes) + 1000
        self.push(nodes)
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is None:
                continue
            self.report.visits += 1
            rule = self.apply_first(node)
            if rule is not None and self.report.applied.total() > budget:
                raise DefectError(
                    f"rule '{rule.name}' finds no end at {describe(node)}; please report this model"
                )
        self.report.refusals = [
            Refusal(rule, describe(node), reason)
            for (rule, node), reason in self.refused.items()
            if node.graph is not None
        ]
        return self.report

    def push(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            if node not in self.queued and node.op_type in self.index and is_op(node, node.op_type):
                self.queued.add(node)
                self.queue.append(node)

    def apply_first(self, node: ir.Node) -> Rule[Any] | None:
        """Apply the first rule that may be applied at ``node``."""
        assert node.graph is not None
        self.context.enter(node.graph)
        for rule in self.index[node.op_type]:
            match = rule.match(node)
            if match is None:
                self.refused.pop((rule.name, node), None)
                continue
            reason = rule.check(match, self.context)
            if reason is not None:
                self.refused[rule.name, node] = reason
                continue
            rule.rewrite(match, self.context)
            self.refused.pop((rule.name, node), None)
            self.report.applied[rule.name] += 1
            self.push((*self.context.finish(), node))
            return rule
        return None
