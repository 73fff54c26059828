"""Merge products of one input with several constant weights into one product."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.graph import Names, Scope, add_initializer, constant_of, describe, release, scopes
from graphopt.limits import MIB
from graphopt.options import option
from graphopt.registry import Pass, PassResult, Refusal, register
from graphopt.rewrite import input_at, is_exclusive, is_op

__all__ = ["MergeParallel"]

Array = np.ndarray[Any, np.dtype[Any]]

#: Split has no ``num_outputs`` to be told before; sizes are an input since opset 13.
_OPSET: Final = 13
#: Joined weights above this size are joined when they are read or written.
_LAZY_ABOVE: Final = 16 * MIB
#: Joined weights that are held in memory in total: the undo copy of the model may hold the old ones.
_HELD: Final = 64 * MIB
_OPERATORS: Final = ("MatMul", "Gemm", "Conv")


class _Product:
    """One MatMul, Gemm or Conv with constant weights, and the Add of a bias behind a MatMul."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.weight = node.inputs[1]
        self.add = _bias_add(node)
        self.bias = _addend(self.add, node) if self.add is not None else input_at(node, 2)
        self.output = node.outputs[0] if self.add is None else self.add.outputs[0]

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight."""
        tensor = constant_of(self.weight)
        assert tensor is not None
        return tensor

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that runs over output channels."""
        rows = self.node.op_type == "Conv" or self.node.attributes.get_int("transB", 0) != 0
        return 0 if rows else 1

    @property
    def output_axis(self) -> int:
        """The axis of the output that runs over output channels."""
        return -1 if self.node.op_type == "MatMul" else 1

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(self.tensor.shape.numpy()[self.weight_axis])

    def kind(self) -> tuple[Any, ...]:
        """Products of one kind differ in their numbers and in the count of their channels alone."""
        shape = list(self.tensor.shape.numpy())
        shape[self.weight_axis] = 0
        attributes = sorted((a.name, str(a.value)) for a in self.node.attributes.values())
        with_bias = "add" if self.add is not None else "bias" if self.bias is not None else ""
        return (self.node.op_type, self.tensor.dtype, tuple(shape), with_bias, tuple(attributes))

    def refuse(self) -> str | None:
        """Why the product stays alone."""
        name = self.weight.name if self.weight is not None else ""
        tensor = constant_of(self.weight)
        if tensor is None:
            return f"the weight '{name}' is not constant"
        rank = len(tensor.shape.numpy())
        if tensor.size == 0 or (rank != 2 if self.node.op_type != "Conv" else rank < 3):
            return f"the weight '{name}' is empty or has rank {rank}"
        if self.node.attributes.get_int("group", 1) != 1:
            return f"{describe(self.node)} has groups"
        if self.weight is None or not is_exclusive(self.weight):
            return f"the weight '{name}' is used elsewhere"
        if self.bias is not None and not self._bias_is_a_row():
            return f"the bias '{self.bias.name}' is not one number per output channel"
        return None

    def _bias_is_a_row(self) -> bool:
        tensor = constant_of(self.bias)
        return tensor is not None and tuple(tensor.shape.numpy()) == (self.channels,)


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add behind a MatMul that adds a constant row."""
    if node.op_type != "MatMul" or not is_exclusive(node.outputs[0]):
        return None
    (user,) = node.outputs[0].consumers()
    if not is_op(user, "Add") or user.graph is not node.graph:
        return None
    tensor = constant_of(_addend(user, node))
    return user if tensor is not None and len(tensor.shape.numpy()) == 1 else None


def _addend(add: ir.Node, node: ir.Node) -> ir.Value | None:
    left, right = add.inputs
    return right if left is node.outputs[0] else left


@register
@dataclasses.dataclass(eq=False)
class MergeParallel(Pass):
    """Merge parallel products of one input into one product and a Split.

    Q, K and V of an attention, gate and up of a gated unit, branches of a network by 1x1 Conv: ``x W1, x W2,
    x W3`` is ``Split(x [W1 W2 W3])``. One large product is faster than several small ones, and fewer nodes.

    MatMul (with an Add of a constant row behind it, or without), Gemm, and Conv without groups are merged,
    where they read the same input in the same graph and have the same attributes, kernel and type. A product
    stays alone where its weight is no constant, is a graph input, or has another use (merged, it would be
    stored twice), where its bias is not one number per output channel, and inside model-local functions.
    Large weights are joined when the model is saved.
    """

    name = "merge-parallel"

    min_products: int = option(2, help="Fewest products of one input that are merged.", min=2)

    def call(self, model: ir.Model) -> PassResult:
        """Merge in every graph of the model."""
        self._left = _HELD
        refusals: list[Refusal] = []
        if any(f.domain in ("", "ai.onnx") for f in model.functions.values()):
            reason = "a function of the model redefines standard operators"
            return PassResult(model, False, "nothing to merge", [Refusal(self.name, "the model", reason)])
        names = Names(model)
        functions = {f.graph for f in model.functions.values()}
        merged = [self._merge_in(s, names, refusals) for s in scopes(model) if s.graph not in functions]
        products, count = sum(sum(m) for m in merged), sum(len(m) for m in merged)
        summary = f"merged {products} products into {count}" if count else "nothing to merge"
        return PassResult(model, count > 0, summary, refusals)

    def _merge_in(self, scope: Scope, names: Names, refusals: list[Refusal]) -> list[int]:
        """The size of every group that was merged."""
        if scope.opset < _OPSET:
            return []
        sizes: list[int] = []
        for group in self._groups(scope.graph, refusals):
            size = sum(p.tensor.nbytes for p in group)
            lazy = size > min(_LAZY_ABOVE, self._left)
            self._left -= 0 if lazy else size
            _merge(group, scope.graph, names, lazy=lazy)
            sizes.append(len(group))
        return sizes

    def _groups(self, graph: ir.Graph, refusals: list[Refusal]) -> list[list[_Product]]:
        by_input: dict[tuple[Any, ...], list[_Product]] = {}
        for node in graph:
            if not is_op(node, *_OPERATORS) or len(node.inputs) < 2 or node.inputs[0] is None:
                continue
            by_input.setdefault((node.inputs[0],), []).append(_Product(node))
        groups: dict[tuple[Any, ...], list[_Product]] = {}
        for (source,), products in by_input.items():
            for product in products if len(products) >= self.min_products else ():
                reason = product.refuse()
                if reason is None:
                    groups.setdefault((source, *product.kind()), []).append(product)
                elif product.weight is not None and product.weight.producer() is None:
                    refusals.append(Refusal(self.name, describe(product.node), reason))
        return [g for g in groups.values() if len(g) >= self.min_products]


def _merge(group: Sequence[_Product], graph: ir.Graph, names: Names, *, lazy: bool) -> None:
    """Put one product and a Split in place of the group, where its first product stands."""
    first = group[0]
    inputs = [first.node.inputs[0], _joined_weight(group, graph, names, lazy=lazy)]
    bias = None if first.bias is None else _joined_bias(group, graph, names)
    if bias is not None and first.add is None:
        inputs.append(bias)
    product = _node(first.node.op_type, inputs, first.node, names, list(first.node.attributes.values()))
    new = [product]
    if bias is not None and first.add is not None:
        new.append(_node("Add", [product.outputs[0], bias], first.add, names))
    sizes = np.array([p.channels for p in group], np.int64)
    wanted = names.fresh(f"{first.output.name}_sizes")
    split = ir.Node(
        "",
        "Split",
        [new[-1].outputs[0], add_initializer(graph, wanted, sizes)],
        [ir.AttrInt64("axis", first.output_axis)],
        outputs=[_successor(p.output) for p in group],
        name=f"{first.node.name}_split" if first.node.name else None,
        metadata_props=dict(first.node.metadata_props),
    )
    graph.insert_before(first.node, [*new, split])
    for old, value in zip(group, split.outputs, strict=True):
        name = old.output.name
        old.output.replace_all_uses_with(value, replace_graph_outputs=True)
        old.output.name, value.name = None, name
    _remove(group, graph)


def _node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Node,
    names: Names,
    attributes: Sequence[ir.Attr] = (),
) -> ir.Node:
    name = names.fresh(f"{like.outputs[0].name}_merged")
    value = ir.Value(name=name, type=like.outputs[0].type)
    metadata = dict(like.metadata_props)
    return ir.Node("", op_type, inputs, attributes, outputs=[value], name=like.name, metadata_props=metadata)


def _successor(old: ir.Value) -> ir.Value:
    return ir.Value(
        type=old.type,
        shape=old.shape,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )


def _remove(group: Sequence[_Product], graph: ir.Graph) -> None:
    for product in group:
        constants = [v for v in (product.weight, product.bias) if v is not None]
        graph.remove([n for n in (product.add, product.node) if n is not None], safe=True)
        for value in dict.fromkeys(constants):
            made_by, owner = value.producer(), value.graph
            if value.uses() or value.is_graph_output():
                continue
            if made_by is not None and made_by.graph is not None:
                made_by.graph.remove(made_by, safe=True)
            elif made_by is None and owner is not None and value.name is not None:
                owner.initializers.pop(value.name)


def _joined_weight(group: Sequence[_Product], graph: ir.Graph, names: Names, *, lazy: bool) -> ir.Value:
    first = group[0]
    assert first.weight is not None
    name, tensors = names.fresh(f"{first.weight.name}_merged"), [p.tensor for p in group]
    return _joined(tensors, first.weight_axis, name, graph, lazy=lazy)


def _joined_bias(group: Sequence[_Product], graph: ir.Graph, names: Names) -> ir.Value:
    tensors = [t for p in group if (t := constant_of(p.bias)) is not None]
    assert group[0].bias is not None
    return _joined(tensors, 0, names.fresh(f"{group[0].bias.name}_merged"), graph, lazy=False)


def _joined(
    tensors: Sequence[ir.TensorProtocol], axis: int, name: str, graph: ir.Graph, *, lazy: bool
) -> ir.Value:
    """An initializer with the tensors side by side; ``lazy``: joined whenever its numbers are read."""

    def join() -> ir.TensorProtocol:
        joined = np.concatenate([t.numpy() for t in tensors], axis=axis)
        for tensor in tensors:
            release(tensor)
        return ir.tensor(joined, dtype=tensors[0].dtype)

    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(int(t.shape.numpy()[axis]) for t in tensors)
    if lazy:
        return add_initializer(graph, name, ir.LazyTensor(join, tensors[0].dtype, ir.Shape(shape), name=name))
    tensor = join()
    tensor.name = name
    return add_initializer(graph, name, tensor)
