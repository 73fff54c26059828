"""Transposes move behind the operators that do not mind, where they meet their inverse and both go."""

from __future__ import annotations

from collections import ChainMap, deque
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.passes.layout._transposed import MOVABLE, Moved, Order, Reshaped, move, settled
from graphopt.rewrite import Context, Rule, is_op, producer

__all__ = ["PushTranspose"]

#: A region is not followed any further than this many operators.
_LARGEST: Final = 200
#: Nor are Transposes that would join it looked for any farther up.
_FAR: Final = 16


@dataclass
class _Region:
    """Operators that can do without the Transposes before them.

    Attributes:
        orders: The values that are, or can be, transposed ones, each with its order.
        entries: The Transposes before the region, by their output.
        nodes: What each operator becomes, in an order in which they can be made. One whose output is in the
            old order all the same (a reduction over all axes but those in order) ends the region: the output
            is not among ``orders``.
    """

    context: Context
    orders: dict[ir.Value, Order] = field(default_factory=dict)
    entries: dict[ir.Value, ir.Node] = field(default_factory=dict)
    nodes: dict[ir.Node, Moved] = field(default_factory=dict)

    def grow(self, start: ir.Node, *, joined: bool) -> None:
        """Take in all that can be reached from one Transpose.

        Args:
            start: The Transpose.
            joined: Whether to begin anew at the Transposes above an operator that is stopped by an operand in
                the old order (a gate: ``x * sigmoid(y)``, both transposed).
        """
        queue = deque([self.enter(start)])
        stopped: list[ir.Node] = []
        while queue and len(self.nodes) < _LARGEST:
            value = queue.popleft()
            for node in value.consumers():
                if node not in self.nodes and node.graph is start.graph and not is_op(node, "Transpose"):
                    taken = self._take(node)
                    queue.extend(taken)
                    if not taken:
                        stopped.append(node)
            if joined and not queue:
                above = [t for node in stopped if node not in self.nodes for t in self._above(node)]
                queue.extend(self.enter(t) for t in dict.fromkeys(above))
                stopped = []

    def _above(self, node: ir.Node) -> list[ir.Node]:
        """Transposes above a stopped node's operands in the old order, behind operators that could move."""
        found: list[ir.Node] = []
        seen: set[ir.Node] = set()
        queue = deque(value for value in node.inputs if value is not None and value not in self.orders)
        while queue and len(seen) < _FAR:
            above = queue.popleft().producer()
            if above is None or above in seen or above.graph is not node.graph:
                continue
            seen.add(above)
            if _order_of(above) is not None:
                if above.outputs[0] not in self.orders:
                    found.append(above)
            elif above.op_type in MOVABLE:
                queue.extend(v for v in above.inputs if v is not None and v not in self.orders)
        return found

    def enter(self, transpose: ir.Node) -> ir.Value:
        """Make a Transpose an entry; its output."""
        output, order = transpose.outputs[0], _order_of(transpose)
        assert order is not None
        self.entries[output], self.orders[output] = transpose, order
        return output

    def _take(self, node: ir.Node) -> list[ir.Value]:
        """Take a node in where it can be; the values that are new among the transposed ones."""
        joining = [value for value in node.inputs if value is not None and self._could_enter(value, node)]
        joined = {value: order for value in joining if (order := _order_of(value.producer()))}
        moved = move(node, ChainMap(joined, self.orders), self.context)
        if moved is None:
            return []
        for value in joining:
            transpose = value.producer()
            assert transpose is not None
            self.enter(transpose)
        self.nodes[node] = moved
        if moved.order == tuple(range(len(moved.order))):
            return joining
        self.orders[node.outputs[0]] = moved.order
        return [*joining, node.outputs[0]]

    def _could_enter(self, value: ir.Value, node: ir.Node) -> bool:
        transpose = producer(value, node, "Transpose")
        return value not in self.orders and transpose is not None and _order_of(transpose) is not None

    def prune(self) -> None:
        """Give back operators at the end whose inputs have to be there in their old order anyway."""
        for node in reversed(list(self.nodes)):
            output = node.outputs[0]
            users = output.consumers() if output in self.orders else ()
            if any(user in self.nodes or self.cancels(user, output) for user in users):
                continue
            inputs = [value for value in node.inputs if value is not None and value in self.orders]
            if all(self._is_needed(value, without=node) for value in inputs):
                del self.nodes[node]
                self.orders.pop(output, None)

    def cancels(self, user: ir.Node, value: ir.Value) -> bool:
        """Whether ``user`` is a Transpose that brings ``value`` back to the order it has without."""
        order = _order_of(user) if user.graph is not None else None
        return order is not None and _composed(self.orders[value], order) == tuple(range(len(order)))

    def _is_needed(self, value: ir.Value, without: ir.Node | None = None) -> bool:
        """Whether the value in its old order is used outside the region by anything but a Transpose."""
        users = (user for user in value.consumers() if user is not without)
        return value.is_graph_output() or any(
            user not in self.nodes and not self._is_transpose(user, value) for user in users
        )

    def _is_transpose(self, user: ir.Node, value: ir.Value) -> bool:
        made_by = value.producer()
        same_graph = made_by is not None and user.graph is made_by.graph
        return same_graph and is_op(user, "Transpose") and _order_of(user) is not None

    def needed(self) -> list[ir.Value]:
        """The values that a Transpose has to make behind the region."""
        outputs = (node.outputs[0] for node in self.nodes)
        return [value for value in outputs if value in self.orders and self._is_needed(value)]

    def settled(self) -> list[ir.Node]:
        """The operators whose output is in the old order without a Transpose."""
        return [node for node in self.nodes if node.outputs[0] not in self.orders]

    def exits(self) -> list[tuple[ir.Node, ir.Value]]:
        """The Transposes behind the region, with what they read."""
        found = [(user, value) for value in self.orders for user in value.consumers()]
        return [(user, value) for user, value in found if self._is_transpose(user, value)]

    def saved(self) -> int:
        """How many Transposes fewer there would be."""
        gone = sum(not self._is_needed(value) for value in self.entries)
        cancelled = sum(
            self.cancels(user, value) and not user.outputs[0].is_graph_output()
            for user, value in self.exits()
        )
        return gone + cancelled - len(self.needed())


def _order_of(node: ir.Node | None) -> Order | None:
    """The permutation of a Transpose that says it."""
    if node is None or not is_op(node, "Transpose") or "perm" not in node.attributes:
        return None
    return tuple(node.attributes.get_ints("perm", ()))


def _composed(first: Order, second: Order) -> Order:
    return tuple(first[axis] for axis in second) if len(first) == len(second) else ()


class PushTranspose(Rule[ir.Node]):
    """Transposes before and behind a region of operators cancel: the operators work in the other order.

    Such operators: elementwise ones, among themselves or with constants, quantization with one scale, MatMul
    by a constant (the operands change places), Softmax, LayerNormalization over an axis that stays the last,
    reductions, Concat, Pad and Slice with constant axes. A reduction that leaves axes in order needs no
    Transpose behind it.

    Left alone: where the number of Transposes would not fall.
    """

    name = "push-transpose"
    roots = ("Transpose",)

    def match(self, node: ir.Node) -> ir.Node | None:
        """A Transpose before anything else than Transposes."""
        others = any(not is_op(user, "Transpose") for user in node.outputs[0].consumers())
        return node if others and _order_of(node) is not None else None

    def check(self, match: ir.Node, context: Context) -> str | None:
        """Fewer Transposes."""
        saved = _region_of(match, context).saved()
        return None if saved > 0 else "no inverse Transpose is met, or as many would be needed elsewhere"

    def rewrite(self, match: ir.Node, context: Context) -> None:
        """The region without Transposes, those behind it that are left."""
        region = _region_of(match, context)
        exits, needed, ends = region.exits(), region.needed(), region.settled()
        new: dict[ir.Value, ir.Value] = {}
        for output, entry in region.entries.items():
            assert entry.inputs[0] is not None
            new[output] = entry.inputs[0]
        for node, moved in region.nodes.items():
            new[node.outputs[0]] = _make(node, moved, new, context)
        for transpose, value in exits:
            _replace_exit(transpose, new[value], region.orders[value], context)
        for value in needed:
            made_by = value.producer()
            assert made_by is not None
            order = [ir.AttrInt64s("perm", region.orders[value])]
            context.replace(value, "Transpose", [new[value]], order, like=made_by)
        for node in ends:
            context.redirect(node.outputs[0], new[node.outputs[0]], like=node)


def _region_of(transpose: ir.Node, context: Context) -> _Region:
    """The region behind one Transpose; with those that join it where it is worth nothing alone."""
    region = _grown(transpose, context, joined=False)
    return region if region.saved() > 0 else _grown(transpose, context, joined=True)


def _grown(transpose: ir.Node, context: Context, *, joined: bool) -> _Region:
    region = _Region(context)
    region.grow(transpose, joined=joined)
    region.prune()
    return region


def _make(node: ir.Node, moved: Moved, new: dict[ir.Value, ir.Value], context: Context) -> ir.Value:
    inputs: list[ir.Value | None] = []
    for index, operand in enumerate(moved.inputs):
        if operand is None or isinstance(operand, ir.Value):
            inputs.append(None if operand is None else new.get(operand, operand))
            continue
        if isinstance(operand, Reshaped):
            inputs.append(_reshape(operand, node, moved.order, context))
            continue
        old = _constant_before(node, index, moved)
        wanted = (old.name if old is not None else None) or f"{node.outputs[0].name}_{index}"
        inputs.append(context.constant(wanted, settled(operand), heir_of=old))
    output = node.outputs[0]
    known = _without_order(context.infer(output), moved.order)
    return context.add(
        node.op_type, inputs, moved.attributes, before=node, like=output, known=known, name=node.name
    )


def _reshape(operand: Reshaped, before: ir.Node, order: Order, context: Context) -> ir.Value:
    target = context.constant(f"{operand.value.name}_shape", operand.target)
    known = _without_order(context.infer(operand.value), order)
    return context.add("Reshape", [operand.source, target], before=before, like=operand.value, known=known)


def _without_order(known: Inferred, order: Order) -> Inferred:
    """What is known of a value before it is transposed, from what is known of it behind."""
    if known.shape is None or len(known.shape) != len(order):
        return Inferred(known.dtype)
    dims = dict(zip(order, known.shape, strict=True))
    return Inferred(known.dtype, ir.Shape([dims[axis] for axis in range(len(dims))]))


def _constant_before(node: ir.Node, index: int, moved: Moved) -> ir.Value | None:
    """The constant that a new one stands in for; a MatMul has changed its operands' places."""
    if node.op_type == "MatMul":
        index = 1 - index
    return node.inputs[index] if index < len(node.inputs) else None


def _replace_exit(transpose: ir.Node, value: ir.Value, order: Order, context: Context) -> None:
    behind = _order_of(transpose)
    assert behind is not None
    composed = _composed(order, behind)
    if composed == tuple(range(len(composed))):
        context.redirect(transpose.outputs[0], value, like=transpose)
        return
    attribute = ir.AttrInt64s("perm", composed)
    context.replace(transpose.outputs[0], "Transpose", [value], [attribute], like=transpose)
