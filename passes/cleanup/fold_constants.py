"""Fold constants: replace nodes that always give the same result by that result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import limits
from graphopt.analyses import constants
from graphopt.graph import constant_of, describe, has_subgraphs, is_default_domain, is_used, subgraphs_below
from graphopt.options import option
from graphopt.passes.cleanup import _fold_plan
from graphopt.registry import Pass, PassResult, Refusal, register

__all__ = ["FoldConstants"]

Array = np.ndarray[Any, np.dtype[Any]]


@register
@dataclasses.dataclass(eq=False)
class FoldConstants(Pass):
    """Replace nodes that always give the same result by that result.

    1. A node whose inputs are all constants is computed; so are Shape and Size of a value whose shape is
       fixed, and what picks only fixed dimensions from a shape that is otherwise open.
    2. Only results that something else needs are stored: as initializers of the graph the node is in, as
       Constant nodes in functions and where the result is a graph output.
    3. The file does not grow: a result is stored if it takes about as many bytes as the nodes and constants
       that go away with it, within 2 % of the model (at least 1 KiB) in all. A broadcast scalar, a table made
       by ConstantOfShape or a transposed copy of an embedding in use stays computed at run time. So does
       the Identity of a constant: eliminate-identity removes it without a copy.

    It does not fire on operators that draw random numbers, on If, Loop and Scan, calls of functions,
    DequantizeLinear and QuantizeLinear, operators of other domains, strings, values that a caller may
    override (an initializer that is also a graph input), or where an attribute is set by the caller of a
    function; nor where runtimes disagree (casts out of range) or integers are divided by zero.
    """

    name = "fold-constants"

    max_result_bytes: int = option(
        limits.FOLD_RESULT,
        help="Largest stored result, unless it replaces as many bytes of constants.",
        min=0,
    )
    max_total_bytes: int = option(limits.FOLD_TOTAL, help="What folding may hold in memory.", min=0)

    def call(self, model: ir.Model) -> PassResult:
        """Fold in all graphs of the model."""
        found = constants.evaluate(
            model, max_result_bytes=self.max_result_bytes, max_total_bytes=self.max_total_bytes
        )
        refusals = [Refusal(self.name, describe(n), reason) for n, reason in found.refused]
        if not found.results:
            return PassResult(model, False, "nothing to fold", refusals)
        plan = _fold_plan.plan(
            found.results, max_result_bytes=self.max_result_bytes, within_budget=_Budget(model).holds
        )
        refusals += [self._too_large(n, found.results[n]) for n in plan.kept if n.op_type != "Identity"]
        if not plan.removed:
            return PassResult(model, False, "nothing to fold", refusals)
        _apply(model, plan)
        summary = f"folded {_count(len(plan.removed), 'node')} into {_count(len(plan.stored), 'constant')}"
        return PassResult(model, True, summary, refusals)

    def _too_large(self, node: ir.Node, results: list[Array]) -> Refusal:
        size = sum(constants.stored_bytes(a) for a in results)
        return Refusal(self.name, describe(node), f"its result of {size} bytes would make the file grow")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _Budget:
    """Bytes by which the file may grow: 1 KiB, or 2 % of its size, which is computed only if it matters."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def holds(self, growth: int) -> bool:
        """Whether the file may grow by ``growth`` bytes."""
        return growth <= limits.KIB or growth <= self._share

    @functools.cached_property
    def _share(self) -> int:
        from graphopt.io import serialized_size

        return serialized_size(self._model) // 50


def _apply(model: ir.Model, plan: _fold_plan.Plan) -> None:
    in_functions = {id(g) for f in model.functions.values() for g in (f.graph, *subgraphs_below(f.graph))}
    for value, array in plan.stored.items():
        node = value.producer()
        assert node is not None
        if value.is_graph_output() or id(node.graph) in in_functions:
            _store_as_node(value, node, array)
        else:
            _store_as_initializer(value, node, array)
    _remove(plan.removed)


def _tensor(value: ir.Value, array: Array) -> ir.TensorProtocol:
    whole = np.ascontiguousarray(array).reshape(array.shape)
    return ir.Tensor(whole, ir.DataType.from_numpy(array.dtype), name=value.name)


def _replacement(value: ir.Value, tensor: ir.TensorProtocol) -> dict[str, Any]:
    """Name, type and notes of ``value`` for the one that takes its place."""
    kind = value.type if value.type is not None else ir.TensorType(tensor.dtype)
    shape = ir.Shape(tensor.shape.numpy())
    return {"name": value.name, "type": kind, "shape": shape, "metadata_props": dict(value.metadata_props)}


def _store_as_initializer(value: ir.Value, node: ir.Node, array: Array) -> None:
    tensor = _tensor(value, array)
    new = ir.Value(**_replacement(value, tensor), doc_string=value.doc_string, const_value=tensor)
    value.replace_all_uses_with(new)
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(new)


def _store_as_node(value: ir.Value, node: ir.Node, array: Array) -> None:
    """A Constant in the place of the node; the name and declared type of a graph output stay."""
    tensor = _tensor(value, array)
    new = ir.Value(**_replacement(value, tensor), doc_string=value.doc_string)
    if value.is_graph_output() and value.shape is not None:
        new.shape = value.shape
    constant = ir.Node(
        "",
        "Constant",
        [],
        [ir.AttrTensor("value", tensor)],
        outputs=[new],
        name=node.name if len(node.outputs) == 1 else None,
        metadata_props=dict(node.metadata_props),
    )
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.insert_before(node, constant)


def _remove(nodes: Iterable[ir.Node]) -> None:
    """Remove folded nodes, and what was there only for them."""
    by_graph: dict[int, list[ir.Node]] = {}
    inputs: dict[ir.Value, None] = {}
    for node in nodes:
        by_graph.setdefault(id(node.graph), []).append(node)
        inputs.update(dict.fromkeys(v for v in node.inputs if v is not None))
    for group in by_graph.values():
        graph = group[0].graph
        assert graph is not None
        graph.remove(group, safe=True)
    _remove_unused(list(inputs))


def _remove_unused(values: list[ir.Value]) -> None:
    while values:
        value = values.pop()
        if is_used(value) or value.is_graph_input():
            continue
        if value.is_initializer():
            if isinstance(value.graph, ir.Graph) and value.name is not None:
                value.graph.initializers.pop(value.name, None)
            continue
        node = value.producer()
        if node is not None and node.graph is not None and _is_unused(node):
            inputs = [v for v in node.inputs if v is not None]
            node.graph.remove(node, safe=True)
            values += inputs


def _is_unused(node: ir.Node) -> bool:
    """Whether nothing needs a node; those with subgraphs are left to others."""
    known = is_default_domain(node) or constant_of(node.outputs[0]) is not None
    return known and not has_subgraphs(node) and not any(map(is_used, node.outputs))
