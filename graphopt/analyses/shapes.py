"""Symbolic shape inference on the IR, without serialization and without trusting what a file claims.

Shapes that a file declares for intermediate values and outputs are claims that nothing enforces (a stale
``value_info`` after somebody made the batch dynamic is common), so they are not looked at. The inference
starts from what a runtime does enforce: the declared graph inputs and the tensors themselves. Initializers
that a caller may override count as inputs, and a value that comes out of a Loop has no known shape, since
the carried values of a Loop may change shape from one iteration to the next.

What was found is remembered for as long as the model lives, node by node: the next call looks only at nodes
that are new, or whose inputs or attributes are no longer what they were. Nobody has to tell it of a rewrite.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.analyses.dims import Names, fresh, same
from graphopt.analyses.shape_inference import RULES, Inferred, Op, Unknown
from graphopt.analyses.shape_inference._known import of_constant
from graphopt.analyses.shape_inference._values import FOLLOWED, propagate
from graphopt.graph import constant_of, describe, subgraphs_of

__all__ = ["Inferred", "Shapes", "infer"]

#: A function's body is inferred anew for every call; above this, it takes too long.
_CALLED_NODES = 20_000
_NOTHING = Inferred()
#: What a malformed node makes a rule raise: nothing is known of its outputs then.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


class Shapes(dict[ir.Value, Inferred]):
    """What :func:`infer` found, for every value of every scope.

    Attributes:
        problem: The first node that could not be made sense of, empty where there is none. Nothing is known
            of its outputs, except the declared shape where that was asked for.
    """

    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether every node could be made sense of."""
        return not self.problem

    def __missing__(self, value: ir.Value) -> Inferred:
        tensor = constant_of(value)
        return _NOTHING if tensor is None else of_constant(tensor)


class _Remembered:
    """What is known of the outputs of a node, and of what that follows."""

    __slots__ = ("attributes", "inputs", "op_type", "outputs")

    def __init__(
        self,
        op_type: str,
        inputs: list[Inferred | None],
        attributes: dict[str, ir.Attr],
        outputs: Sequence[Inferred],
    ) -> None:
        self.op_type = op_type
        self.inputs = inputs
        self.attributes = attributes
        self.outputs = outputs

    def holds(
        self, op_type: str, inputs: list[Inferred | None], attributes: dict[str, ir.Attr], outputs: int
    ) -> bool:
        """Whether it follows from these as well."""
        return (
            self.inputs == inputs
            and self.op_type == op_type
            and self.attributes == attributes
            and len(self.outputs) == outputs
        )


@dataclass
class _Memory:
    """What earlier calls found for one model, one binding of its axes, and one opset."""

    nodes: dict[ir.Node, _Remembered] = field(default_factory=dict)
    constants: dict[ir.Value, tuple[ir.TensorProtocol, Inferred]] = field(default_factory=dict)
    inputs: dict[ir.Value, tuple[object, Inferred]] = field(default_factory=dict)


_memories: weakref.WeakKeyDictionary[ir.Model, dict[object, _Memory]] = weakref.WeakKeyDictionary()


def infer(
    model: ir.Model,
    *,
    axes: Mapping[str, int] | None = None,
    unnamed: int | None = None,
    declared: bool = False,
) -> Shapes:
    """Infer dtype and shape of every value; the model is only read.

    Args:
        model: The model. Values of model-local functions have no shapes, since these differ by call.
        axes: Sizes of symbolic axes of the graph inputs, by name.
        unnamed: The size of every axis of the graph inputs that ``axes`` does not name; None keeps them
            symbolic.
        declared: Whether a value whose shape cannot be inferred may take the one that the file declares for
            it. Good enough for reports, never for a rewrite.
    """
    axes = axes or {}
    key = (frozenset(axes.items()), unnamed, model.opset_imports.get(""))
    memory = _memories.setdefault(model, {}).setdefault(key, _Memory())
    names = Names(_declared_axes(model), axes, unnamed)
    shapes = Shapes()
    problem = _refused(model)
    for value in model.graph.inputs:
        shapes[value] = _input(value, names, memory)
    if not problem:
        run = _Run(model, shapes, memory)
        run.graph(model.graph)
        _memories[model][key] = _Memory(run.kept, run.constants, memory.inputs)
    shapes.problem = problem or shapes.problem
    if declared:
        _fall_back_to_declared(model, shapes, names)
    return shapes


def _declared_axes(model: ir.Model) -> set[str]:
    shapes = [v.shape for v in model.graph.inputs if v.shape is not None]
    return {d.value for s in shapes for d in s if isinstance(d, ir.SymbolicDim) and d.value is not None}


def _input(value: ir.Value, names: Names, memory: _Memory) -> Inferred:
    """A graph input; the same one as before, so that its nameless axes stay the same."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return _NOTHING
    seen = (value.dtype, None if value.shape is None else value.shape.dims)
    if value not in memory.inputs or memory.inputs[value][0] != seen:
        shape = None if value.shape is None else names.read(value.shape)
        memory.inputs[value] = seen, Inferred(value.dtype, shape)
    return memory.inputs[value][1]


def _refused(model: ir.Model) -> str:
    """Why the model is not looked into at all."""
    if any(domain in ("", "ai.onnx") for domain, _, _ in model.functions):
        return "a function of the model takes the place of a standard operator"
    if model.functions and _called_nodes(model) > _CALLED_NODES:
        return f"the functions of the model stand for more than {_CALLED_NODES} nodes"
    return ""


def _called_nodes(model: ir.Model) -> int:
    """How many nodes the calls in the main graph stand for, when every call is expanded."""
    sizes: dict[tuple[str, str, str], int] = {}

    def size(key: tuple[str, str, str]) -> int:
        if key not in sizes:
            sizes[key] = _CALLED_NODES  # while it is open, so that a recursive function is too large
            sizes[key] = sum(1 + called(n) for n in model.functions[key].all_nodes())
        return min(sizes[key], _CALLED_NODES + 1)

    def called(node: ir.Node) -> int:
        key = (node.domain, node.op_type, node.overload)
        return size(key) if key in model.functions else 0

    return sum(called(n) for n in model.graph.all_nodes())


class _Run:
    """One walk over one scope and the scopes inside it."""

    def __init__(
        self,
        model: ir.Model,
        shapes: Shapes,
        memory: _Memory,
        opset: int | None = None,
        bound: Mapping[str, ir.Attr] | None = None,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.memory = memory
        self.kept: dict[ir.Node, _Remembered] = {}
        self.constants: dict[ir.Value, tuple[ir.TensorProtocol, Inferred]] = {}
        self.opset = model.opset_imports.get("", 1) if opset is None else opset
        self.bound = bound
        self.functions = model.functions

    def graph(self, graph: ir.Graph) -> None:
        """All nodes of a graph, in order."""
        shapes, remembered, kept = self.shapes, self.memory.nodes, self.kept
        for node in graph:
            inputs = [None if v is None else shapes.get(v) or self.leaf(v) for v in node.inputs]
            attributes, values = node.attributes.data, node.outputs
            found = remembered.get(node)
            if found is None or not found.holds(node.op_type, inputs, attributes, len(values)):
                found = _Remembered(node.op_type, inputs, attributes.copy(), self.outputs(node, inputs))
            if not self.is_entered(node):
                kept[node] = found
            for value, known in zip(values, found.outputs, strict=True):
                shapes[value] = known

    def is_entered(self, node: ir.Node) -> bool:
        """Whether the outputs of the node follow from nodes of another graph, which change on their own."""
        if node.op_type in _CONTROL_FLOW:
            return True
        return bool(self.functions) and (node.domain, node.op_type, node.overload) in self.functions

    def leaf(self, value: ir.Value) -> Inferred:
        """A value that no node before has made: a constant, or one that a malformed model reads too early."""
        tensor = constant_of(value)
        if tensor is None:
            return self.shapes.setdefault(value, _NOTHING if value.producer() else Inferred(value.dtype))
        found = self.memory.constants.get(value)
        if found is None or found[0] is not tensor:
            found = tensor, of_constant(tensor)
        self.constants[value] = found
        self.shapes[value] = found[1]
        return found[1]

    def outputs(self, node: ir.Node, inputs: Sequence[Inferred | None]) -> Sequence[Inferred]:
        """What is known of the outputs of one node."""
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = constant_of(node.outputs[0])
            if tensor is not None:
                return [of_constant(tensor)]
        try:
            found = self.told(node, inputs)
        except Unknown:
            found = []
        except _MALFORMED as error:
            found = []
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.shapes.problem = self.shapes.problem or f"{describe(node)}: {reason}"
        return [_typed(v, found[i] if i < len(found) else _NOTHING) for i, v in enumerate(node.outputs)]

    def told(self, node: ir.Node, inputs: Sequence[Inferred | None]) -> Sequence[Inferred]:
        name, domain = node.op_type, node.domain
        function = self.functions.get((domain, name, node.overload)) if self.functions else None
        if function is not None:
            return self.call(function, node, inputs)
        if domain == "ai.onnx":
            domain = ""
        if name in _CONTROL_FLOW and not domain:
            return _CONTROL_FLOW[name](self, node, inputs)
        rule = RULES.get((domain, name))
        if rule is None:
            return []
        op = Op(node, inputs, self.opset, self.bound)
        made = rule(op)
        outputs = [made] if isinstance(made, Inferred) else made
        if name in FOLLOWED and not domain:
            return propagate(op, outputs)
        return outputs

    # Functions and control flow.

    def call(
        self, function: ir.Function, node: ir.Node, inputs: Sequence[Inferred | None]
    ) -> Sequence[Inferred]:
        """The outputs of a function for these inputs; its values are not part of the result."""
        shapes = Shapes()
        for i, value in enumerate(function.inputs):
            shapes[value] = (inputs[i] if i < len(inputs) else None) or _NOTHING
        bound = {**function.attributes, **node.attributes}
        opset = function.opset_imports.get("", self.opset)
        run = _Run(self.model, shapes, _Memory(), opset, bound)
        run.graph(function.graph)
        self.shapes.problem = self.shapes.problem or shapes.problem
        return [shapes[v] for v in function.outputs]

    def body(self, graph: ir.Graph, inputs: Sequence[Inferred]) -> list[Inferred]:
        """The outputs of a subgraph for these inputs."""
        for i, value in enumerate(graph.inputs):
            self.shapes[value] = inputs[i] if i < len(inputs) else _NOTHING
        self.graph(graph)
        return [self.shapes[v] for v in graph.outputs]

    def branches(self, node: ir.Node, inputs: Sequence[Inferred | None]) -> Sequence[Inferred]:
        """If: what both branches agree on."""
        results = [self.body(graph, ()) for graph in subgraphs_of(node)]
        return [_common(*pair) for pair in zip(*results, strict=True)] if len(results) == 2 else []

    def loop(self, node: ir.Node, inputs: Sequence[Inferred | None]) -> Sequence[Inferred]:
        """Loop: of what it carries, only the type is sure."""
        (graph,) = subgraphs_of(node)
        carried = [Inferred(k.dtype if k is not None else None) for k in inputs[2:]]
        control = [_control(value, graph.inputs[i]) for i, value in enumerate(_CONTROL)]
        results = self.body(graph, [*control, *carried])
        return [Inferred(k.dtype) for k in results[1:]]

    def scan(self, node: ir.Node, inputs: Sequence[Inferred | None]) -> Sequence[Inferred]:
        """Scan: states keep their shape; scanned inputs lose an axis, scanned outputs gain one."""
        (graph,) = subgraphs_of(node)
        op = Op(node, inputs, self.opset, self.bound)
        count = op.integer("num_scan_inputs", 0)
        states = [op[i] for i in range(len(inputs) - count)]
        if self.opset < 9:  # with a batch axis
            self.body(
                graph,
                [Inferred(k.dtype) for k in (*states, *(op[i] for i in range(len(states), len(inputs))))],
            )
            return []
        length, slices = _scanned(op, len(states), count)
        results = self.body(graph, [*(Inferred(k.dtype, k.dims) for k in states), *slices])
        made = results[len(states) :]
        axes = op.integers("scan_output_axes") or (0,) * len(made)
        stacked = [_stacked(k, axis, length) for k, axis in zip(made, axes, strict=True)]
        return [*(Inferred(k.dtype, k.dims) for k in states), *stacked]


_CONTROL_FLOW = {"If": _Run.branches, "Loop": _Run.loop, "Scan": _Run.scan}
_CONTROL = (ir.DataType.INT64, ir.DataType.BOOL)


def _control(dtype: ir.DataType, value: ir.Value) -> Inferred:
    """The number of the iteration, or the condition: of rank 0 or 1, as the body declares it."""
    rank = None if value.shape is None else len(value.shape)
    return Inferred(dtype, None if rank is None or rank > 1 else (1,) * rank)


def _scanned(op: Op, first: int, count: int) -> tuple[object, list[Inferred]]:
    axes = op.integers("scan_input_axes") or (0,) * count
    length: object = None
    slices = []
    for index, axis in zip(range(first, first + count), axes, strict=True):
        dims = op[index].dims
        if dims is None:
            slices.append(Inferred(op[index].dtype))
            continue
        place = axis % len(dims)
        length = dims[place] if length is None or isinstance(dims[place], int) else length
        slices.append(Inferred(op[index].dtype, (*dims[:place], *dims[place + 1 :])))
    return length, slices


def _stacked(known: Inferred, axis: int, length: object) -> Inferred:
    if known.dims is None:
        return Inferred(known.dtype)
    dims: list[object] = list(known.dims)
    dims.insert(axis % (len(dims) + 1), fresh() if length is None else length)
    return Inferred(known.dtype, dims)  # type: ignore[arg-type]


def _common(left: Inferred, right: Inferred) -> Inferred:
    dtype = left.dtype if left.dtype == right.dtype else None
    if left.dims is None or right.dims is None or len(left.dims) != len(right.dims):
        return Inferred(dtype)
    if left == right:
        return left
    pairs = zip(left.dims, right.dims, strict=True)
    return Inferred(dtype, [a if same(a, b) else fresh() for a, b in pairs])


def _typed(value: ir.Value, known: Inferred) -> Inferred:
    """What is known, with the declared element type where none was inferred: runtimes enforce that one."""
    if known.dtype is not None or value.type is None:
        return known
    if not isinstance(value.type, ir.TensorType):
        return _NOTHING
    return Inferred(value.dtype, known.dims, known.elements, known.constant)


def _fall_back_to_declared(model: ir.Model, shapes: Shapes, names: Names) -> None:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *(o for node in graph for o in node.outputs)):
            known = shapes[value]
            if (
                known.dims is None
                and value.shape is not None
                and isinstance(value.type, ir.TensorType | None)
            ):
                shapes[value] = Inferred(known.dtype, names.read(value.shape))
