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
import functools
import importlib
import inspect
import pkgutil
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt._edits import add_constant_node, is_gone, remove_unused, unname_twins
from graphopt._matching import input_at, is_exclusive, is_op, only_user, origin, producer, why_not_constant
from graphopt.analyses import shapes
from graphopt.analyses.dims import declarable
from graphopt.analyses.shapes import Inferred, Shapes
from graphopt.errors import DefectError
from graphopt.graph import (
    Names,
    Scope,
    add_initializer,
    constant_of,
    describe,
    replace_value,
    scopes,
    use_count,
)

__all__ = [
    "Context",
    "Refusal",
    "RewriteReport",
    "Rule",
    "apply_rules",
    "input_at",
    "is_exclusive",
    "is_op",
    "origin",
    "producer",
    "remove_unused",
    "rules_of",
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


@functools.cache
def rules_of(package: str) -> dict[str, type[Rule[Any]]]:
    """Every rule that a module of ``package`` defines, by name. A rule is a class with its own name.

    Raises:
        ValueError: Two rules have the same name.
    """
    found: dict[str, type[Rule[Any]]] = {}
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for cls in vars(module).values():
            if not _is_rule_of(cls, module.__name__):
                continue
            if cls.name in found:
                raise ValueError(f"two rules of {package} are named '{cls.name}'")
            found[cls.name] = cls
    return found


def _is_rule_of(cls: object, module: str) -> bool:
    return inspect.isclass(cls) and issubclass(cls, Rule) and cls.__module__ == module and "name" in vars(cls)


class Context:
    """The model around a match: what is known of its values, and the only way to change it.

    Attributes:
        model: The model that is rewritten.
        opset: Version of the standard operators in the graph of the match.
    """

    def __init__(self, model: ir.Model, graphs: Iterable[Scope] | None = None) -> None:
        self.model = model
        self.opset = 1
        self._opsets = dict(scopes(model) if graphs is None else graphs)
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
        tensor = constant_of(value)
        if tensor is not None:
            return Inferred(tensor.dtype, tensor.shape.numpy())
        if self._shapes is None:
            self._shapes = shapes.infer(self.model)
        return self._shapes[value]

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes of the value; None where unknown."""
        dims = self.infer(value).dims
        return None if dims is None else len(dims)

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
        tensor = ir.Tensor(data) if isinstance(data, np.ndarray) else data
        tensor.name = name
        in_function = self._graph in self._function_graphs  # which have no initializers
        value = (add_constant_node if in_function else add_initializer)(self._graph, name, tensor)
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
        if old is None or old.graph is None or any(use_count(o) for o in old.outputs if o is not output):
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

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
        *,
        before: ir.Node,
        like: ir.Value,
        known: Inferred,
        name: str | None = None,
    ) -> ir.Value:
        """The output of a new node in front of ``before``, for the nodes that the rewrite puts behind it.

        Args:
            op_type: Of the default domain.
            inputs: Of the node.
            attributes: Of the node.
            before: The node that the new one stands in front of.
            like: The value whose name, made new, and whose producer's metadata the new ones get.
            known: What is known of the output.
            name: Of the node, where it takes the place of another one.
        """
        origin = like.producer()
        type_ = ir.TensorType(known.dtype) if known.dtype is not None else like.type
        value = ir.Value(name=self.fresh_name(like.name or op_type), type=type_, shape=declarable(known.dims))
        node = ir.Node("", op_type, inputs, list(attributes), outputs=[value], name=name)
        node.metadata_props.update(origin.metadata_props if origin is not None else {})
        assert before.graph is not None
        before.graph.insert_before(before, node)
        if self._shapes is not None:
            self._shapes[value] = known
        self._added.append(node)
        return value

    def redirect(self, output: ir.Value, value: ir.Value, *, like: ir.Node) -> None:
        """Let ``value`` take the place of ``output``, its equal; by Identity where a name must stay."""
        old, users = output.producer(), list(output.consumers())
        if old is None or not replace_value(output, value):
            self.replace(output, "Identity", [value], like=like)
            return
        self._added.extend(users)
        self._replaced.append(old)

    def leave_out(self, node: ir.Node, index: int) -> None:
        """Take an optional input from a node that stays, with what only made it."""
        value = node.inputs[index]
        node.replace_input_with(index, None)
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
        made_by = None if value is None else value.producer()
        self._added.append(node)
        self._replaced.extend([made_by] if made_by is not None else [])

    def finish(self) -> list[ir.Node]:
        """Remove what the rewrite left unused, hand names on; the nodes that deserve another visit."""
        again = dict.fromkeys(self._added)
        for node in self._added:
            again.update(dict.fromkeys(node.predecessors()))
            again.update(dict.fromkeys(node.successors()))
        for value in remove_unused(self._replaced).released:
            for neighbour in (value.producer(), only_user(value)):
                if neighbour is not None:
                    again[neighbour] = None
        unname_twins(self._added)
        for old, heir in {old: heir for heir, old in self._heirs}.items():
            if is_gone(old):
                heir.name = old.name
        self._added, self._replaced, self._heirs = [], [], []
        return [node for node in again if node.graph is not None]


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
        self.scopes = list(scopes(model))
        self.context = Context(model, self.scopes)
        self.report = RewriteReport()
        self.index: dict[str, list[Rule[Any]]] = {}
        for rule in rules:
            for op_type in rule.roots:
                self.index.setdefault(op_type, []).append(rule)
        self.queue: deque[ir.Node] = deque()
        self.queued: set[ir.Node] = set()
        self.refused: dict[tuple[str, ir.Node], str] = {}
        self.ever_refused: set[ir.Node] = set()

    def run(self) -> RewriteReport:
        for scope in self.scopes:
            self.push(scope.graph)
        budget = _REWRITES_PER_NODE * sum(len(scope.graph) for scope in self.scopes) + 1000
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
        if self.report.applied:
            for scope in scopes(self.context.model):  # a node may be named like one that stays
                unname_twins(scope.graph)
        self.report.refusals = [
            Refusal(rule, describe(node), reason)
            for (rule, node), reason in self.refused.items()
            if node.graph is not None
        ]
        return self.report

    def push(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            op_type = node.op_type
            if op_type in self.index and node not in self.queued and is_op(node, op_type):
                self.queued.add(node)
                self.queue.append(node)

    def apply_first(self, node: ir.Node) -> Rule[Any] | None:
        """Apply the first rule that may be applied at ``node``."""
        assert node.graph is not None
        self.context.enter(node.graph)
        refused_before = node in self.ever_refused
        for rule in self.index[node.op_type]:
            match = rule.match(node)
            if match is None:
                if refused_before:
                    self.refused.pop((rule.name, node), None)
                continue
            reason = rule.check(match, self.context)
            if reason is not None:
                self.refused[rule.name, node] = reason
                self.ever_refused.add(node)
                continue
            rule.rewrite(match, self.context)
            self.refused.pop((rule.name, node), None)
            self.report.applied[rule.name] += 1
            self.push((*self.context.finish(), node))
            return rule
        return None
