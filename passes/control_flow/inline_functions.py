"""Put the bodies of model-local functions in the place of their calls."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from graphopt import limits
from graphopt.graph import describe
from graphopt.options import option
from graphopt.passes.control_flow._splice import ScopeNames, copy_of, splice, substitute
from graphopt.registry import Pass, PassResult, Refusal, register

__all__ = ["InlineFunctions"]

_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})


@register
@dataclasses.dataclass(eq=False)
class InlineFunctions(Pass):
    """Put the bodies of model-local functions in the place of their calls.

    1. Calls in the main graph, in subgraphs and in other functions; the innermost functions first.
    2. Attributes of the call, or else their defaults, take the place of references to them. A reference to an
       attribute that is given nowhere is left out, as ONNX says.
    3. Every copy has names of its own; the call's metadata goes to the nodes that have none under that key.
    4. A function that nothing calls any more is removed.

    It does not fire where the function was written for other opset versions than its caller, on functions
    that call themselves or replace standard operators, where an attribute of the call is a graph, and where
    the model would grow beyond the limit of nodes.
    """

    name = "inline-functions"
    source = "https://onnx.ai/onnx/repo-docs/IR.html#functions"

    include: tuple[str, ...] = option((), help="Names of the functions to inline; none means all.")
    exclude: tuple[str, ...] = option((), help="Names of functions to leave.")
    max_nodes: int = option(
        limits.EXPANDED_NODES,
        help="Nodes that the model may have afterwards.",
        min=1,
        max=limits.EXPANDED_NODES,
    )

    def call(self, model: ir.Model) -> PassResult:
        """Inline what may be inlined; all of it or, above the limit of nodes, nothing."""
        if not model.functions:
            return PassResult(model, False, "no functions")
        run = _Run(model, {key for key, f in model.functions.items() if self._is_chosen(f)})
        if run.expanded_nodes() > self.max_nodes:
            run.refuse("model", f"it would have more than {self.max_nodes:,} nodes")
            return PassResult(model, False, "nothing inlined", run.refusals)
        run.run()
        summary = f"inlined {run.inlined} call{'s' if run.inlined != 1 else ''}"
        return PassResult(model, bool(run.inlined), summary, run.refusals)

    def _is_chosen(self, function: ir.Function) -> bool:
        return function.name not in self.exclude and (not self.include or function.name in self.include)


class _Run:
    """One run over one model."""

    def __init__(self, model: ir.Model, chosen: set[ir.OperatorIdentifier]) -> None:
        self.model = model
        self.refusals: list[Refusal] = []
        self.inlined = 0
        self.order = self._order()
        self.chosen = {key for key in chosen if self._may_be_inlined(model.functions[key])}

    def refuse(self, where: str, reason: str) -> None:
        self.refusals.append(Refusal(InlineFunctions.name, where, reason))

    def _order(self) -> list[ir.OperatorIdentifier]:
        """The functions, each behind those that it calls; without those that (indirectly) call themselves."""
        functions = self.model.functions
        calls = {
            key: {n.op_identifier() for n in f.all_nodes()} & functions.keys() for key, f in functions.items()
        }
        while calls:
            try:
                return list(graphlib.TopologicalSorter(calls).static_order())
            except graphlib.CycleError as error:
                cycle = set(error.args[1])
                for key in cycle:
                    self.refuse(f"function '{key[1]}'", "it calls itself")
                calls = {key: called - cycle for key, called in calls.items() if key not in cycle}
        return []

    def _may_be_inlined(self, function: ir.Function) -> bool:
        if function.identifier() not in self.order:
            return False
        if function.domain in _DEFAULT_DOMAINS:
            self.refuse(f"function '{function.name}'", "it replaces a standard operator")
            return False
        parameters = set(function.inputs)
        if len(parameters) != len(function.inputs) or any(v is None for v in function.outputs):
            self.refuse(f"function '{function.name}'", "its interface is damaged")
            return False
        return True

    def expanded_nodes(self) -> int:
        """The nodes of the model after all calls are inlined."""
        sizes: dict[ir.OperatorIdentifier, int] = {}
        for key in self.order:
            sizes[key] = self._size(self.model.functions[key].all_nodes(), sizes)
        return self._size(self.model.graph.all_nodes(), sizes) + sum(sizes.values())

    def _size(self, nodes: Iterable[ir.Node], sizes: Mapping[ir.OperatorIdentifier, int]) -> int:
        chosen = self.chosen
        return sum(sizes[key] if (key := node.op_identifier()) in chosen else 1 for node in nodes)

    def run(self) -> None:
        """Flatten the functions, callees first, then the main graph; remove what nothing calls any more."""
        functions = self.model.functions
        called = set[ir.OperatorIdentifier]()
        for key in self.order:
            called |= self._flatten(functions[key].graph, functions[key].opset_imports, in_function=True)
        called |= self._flatten(self.model.graph, self.model.opset_imports, in_function=False)
        for key in called - self._reachable(self.model.graph, functions.keys() - called):
            del functions[key]

    def _reachable(
        self, top: ir.Graph, others: Iterable[ir.OperatorIdentifier]
    ) -> set[ir.OperatorIdentifier]:
        """The functions that the main graph and ``others`` call, directly or through functions."""
        functions = self.model.functions
        found = set[ir.OperatorIdentifier]()
        pending = [top, *(functions[key].graph for key in others)]
        while pending:
            keys = {node.op_identifier() for node in pending.pop().all_nodes()} & functions.keys() - found
            found |= keys
            pending += (functions[key].graph for key in keys)
        return found

    def _flatten(
        self, top: ir.Graph, imports: dict[str, int], *, in_function: bool
    ) -> set[ir.OperatorIdentifier]:
        """Inline the calls in a graph and its subgraphs; the functions that were inlined."""
        done = set[ir.OperatorIdentifier]()
        names = ScopeNames(top)
        for node in list(top.all_nodes()):
            key = node.op_identifier()
            if key not in self.chosen:
                continue
            function = self.model.functions[key]
            reason = _why_not(node, function, imports)
            if reason:
                self.refuse(describe(node), reason)
                continue
            for domain, version in _versions(function):
                if _version(imports, domain) is None:
                    imports[domain] = version
            _inline(node, function, names, as_nodes=in_function and node.graph is top)
            self.inlined += 1
            done.add(key)
        return done


def _versions(function: ir.Function) -> Iterator[tuple[str, int]]:
    """The domains of the operators that the function uses, each with the version it imports."""
    for domain in dict.fromkeys(node.domain for node in function.all_nodes()):
        version = _version(function.opset_imports, domain)
        if version is not None:
            yield domain, version


def _version(imports: Mapping[str, int], domain: str) -> int | None:
    """The imported version of a domain; the default one has two names."""
    names = sorted(_DEFAULT_DOMAINS) if domain in _DEFAULT_DOMAINS else [domain]
    return next((imports[name] for name in names if name in imports), None)


def _why_not(node: ir.Node, function: ir.Function, imports: Mapping[str, int]) -> str:
    for domain, own in _versions(function):
        callers = _version(imports, domain)
        if callers not in (None, own):
            return f"it is written for opset {own} of '{domain or 'ai.onnx'}', its caller for {callers}"
    if any(a.type in _GRAPHS for a in node.attributes.values()):
        return "an attribute of the call is a graph"
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        return "the call has more inputs or outputs than the function"
    missing = {p for p, v in _arguments(node, function) if v is None}
    if any(output in missing for output in function.outputs):
        return "the function returns an input that the call leaves out"
    return ""


def _arguments(node: ir.Node, function: ir.Function) -> list[tuple[ir.Value, ir.Value | None]]:
    """The function's inputs, each with the call's; None where the call leaves one out."""
    given = [*node.inputs, *[None] * (len(function.inputs) - len(node.inputs))]
    return list(zip(function.inputs, given, strict=True))


def _inline(node: ir.Node, function: ir.Function, names: ScopeNames, *, as_nodes: bool) -> None:
    body = copy_of(function.graph, names)
    attributes = {a.name: a for a in function.attributes.values() if a.value is not None}
    attributes.update(node.attributes)
    for inner in body.all_nodes():
        _resolve(inner, attributes)
        _forget_types(inner, body)
    arguments = [value for _, value in _arguments(node, function)]
    nodes, outputs = splice(body, arguments, node, names, as_nodes=as_nodes)
    for inner in nodes:
        for key, value in node.metadata_props.items():
            inner.metadata_props.setdefault(key, value)
    substitute(node, outputs, names)


def _resolve(node: ir.Node, given: Mapping[str, ir.Attr]) -> None:
    """Put the call's attributes in the place of references to them."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        del node.attributes[name]
        known = given.get(str(attribute.ref_attr_name))
        if known is None:
            continue  # left out by the call: then it is left out here
        if known.is_ref():
            node.attributes.add(ir.RefAttr(name, str(known.ref_attr_name), known.type))
        else:
            node.attributes.add(ir.Attr(name, known.type, known.value))


def _forget_types(node: ir.Node, body: ir.Graph) -> None:
    """What a function says of types holds for one of its calls, not for all."""
    for value in node.outputs:
        if node.graph is body or not value.is_graph_output():
            value.type, value.shape = None, None
