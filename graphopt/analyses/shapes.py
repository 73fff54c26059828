"""Symbolic shape inference on the IR, without serialization and without trusting what a file claims.

The work is done by the library ``onnx-shape-inference``; this module decides what it may believe. Shapes
that a file declares for intermediate values and outputs are claims that nothing enforces (a stale
``value_info`` after somebody made the batch dynamic is common), so they are hidden from the inference. It
starts from what a runtime does enforce: the declared graph inputs and the tensors themselves. Initializers
that a caller may override count as inputs, and a value that comes out of a Loop has no known shape, since
the carried values of a Loop may change shape from one iteration to the next.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.analyses import shape_rules
from graphopt.analyses.shape_dims import PLACEHOLDER, is_placeholder
from graphopt.analyses.shape_values import LARGE_CONSTANT
from graphopt.graph import constant_of, is_default_domain, scopes

__all__ = ["Inferred", "Shapes", "infer"]

Dims = tuple[int | ir.SymbolicDim, ...]

#: A function's body is inferred anew for every call; above this, it takes too long.
_CALLED_NODES = 20_000
_NO_METADATA: dict[str, str] = {}
#: What may stand as the name of an axis; anything else would be parsed as an expression.
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}")


@dataclass(frozen=True, slots=True)
class Inferred:
    """What is known of one value.

    Attributes:
        dtype: Element type; None where unknown or where the value is no tensor.
        shape: Shape; None where not even the rank is known.
        elements: The numbers inside a small integer tensor, such as the target of a Reshape, in order:
            integers, expressions of axes, or a nameless axis where one is not known. None where nothing is
            known.
        constant: The value itself where it follows from constants and fixed shapes alone and is small; None
            for initializers and outputs of Constant nodes, which hold their own.
    """

    dtype: ir.DataType | None = None
    shape: ir.Shape | None = None
    elements: Dims | None = None
    constant: np.ndarray | None = None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where all of its dimensions are integers."""
        if self.shape is None or not self.shape.is_static():
            return None
        return tuple(self.shape.numpy())


class Shapes(dict[ir.Value, Inferred]):
    """What :func:`infer` found, for every value of every scope.

    Attributes:
        problem: Why the inference stopped early, empty where it did not. What lies behind the node that
            stopped it has no shape, or the declared one where that was asked for.
    """

    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether the inference visited every node."""
        return not self.problem

    def __missing__(self, value: ir.Value) -> Inferred:
        return Inferred()


def infer(
    model: ir.Model,
    *,
    axes: Mapping[str, int] | None = None,
    unnamed: int | None = None,
    declared: bool = False,
) -> Shapes:
    """Infer dtype and shape of every value; the model is left exactly as it was.

    Args:
        model: The model. Values of model-local functions have no shapes, since these differ by call.
        axes: Sizes of symbolic axes of the graph inputs, by name.
        unnamed: The size of every axis of the graph inputs that ``axes`` does not name; None keeps them
            symbolic.
        declared: Whether a value whose shape cannot be inferred may take the one that the file declares for
            it. Good enough for reports, never for a rewrite.
    """
    values = _all_values(model)
    saved = [_State(v) for v in values]
    shapes = Shapes()
    names = _AxisNames(dict(axes or {}), unnamed)
    try:
        _hide_claims(model, values, names)
        shapes.problem = _run(model)
        untrusted = _loop_dependents(model)
        for value in values:
            shapes[value] = _harvest(value, names, value not in untrusted)
    finally:
        for state in saved:
            state.restore()
    if declared:
        _fall_back_to_declared(shapes, names)
    return shapes


class _State:
    """Everything of a value that the library writes to."""

    __slots__ = ("const_value", "metadata", "shape", "type", "value")

    def __init__(self, value: ir.Value) -> None:
        self.value = value
        self.type, self.shape, self.const_value = value.type, value.shape, value.const_value
        self.metadata = dict(value.metadata_props) or _NO_METADATA

    def restore(self) -> None:
        value = self.value
        value.type, value.shape, value.const_value = self.type, self.shape, self.const_value
        if value.metadata_props != self.metadata:
            value.metadata_props.clear()
            value.metadata_props.update(self.metadata)


class _AxisNames:
    """Binds axes to sizes, and stands plain names in for axis names that would be read as expressions."""

    def __init__(self, axes: dict[str, int], unnamed: int | None) -> None:
        self._axes = axes
        self._unnamed = unnamed
        self._stand_in: dict[str, str] = {}
        self._original: dict[str, str] = {}
        self._elements: dict[str, Dims] = {}

    def hide(self, shape: ir.Shape) -> ir.Shape:
        """A new shape for the library, its named axes bound or plainly named."""
        return ir.Shape([self._hidden(d) for d in shape.dims])

    def _hidden(self, dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim if dim >= 0 else self._bind(None)  # some files write -1 for an open axis
        return self._bind(dim.value)

    def _bind(self, name: str | None) -> int | str | None:
        if name is not None and name in self._axes:
            return self._axes[name]
        if self._unnamed is not None:
            return self._unnamed
        if name is None or (_PLAIN_NAME.fullmatch(name) and PLACEHOLDER not in name):
            return name
        if name not in self._stand_in:
            self._stand_in[name] = f"axis_{len(self._stand_in)}__"
            self._original[self._stand_in[name]] = name
        return self._stand_in[name]

    def elements(self, data: str) -> Dims:
        """The elements that the library has noted as JSON; many values share one text."""
        if data not in self._elements:
            self._elements[data] = self.show(ir.Shape(json.loads(data)).dims)
        return self._elements[data]

    def show(self, dims: Dims) -> Dims:
        """The dimensions with the axis names of the file back in place."""
        return tuple([d if isinstance(d, int) else self._shown(d) for d in dims])

    def _shown(self, dim: ir.SymbolicDim) -> ir.SymbolicDim:
        if is_placeholder(dim):
            return ir.SymbolicDim(None)
        return ir.SymbolicDim(self._original[dim.value]) if dim.value in self._original else dim


def _all_values(model: ir.Model) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for graph, _ in scopes(model):
        found.update(dict.fromkeys(graph.inputs))
        found.update(dict.fromkeys(graph.initializers.values()))
        for node in graph:
            found.update(dict.fromkeys(node.outputs))
    return list(found)


def _hide_claims(model: ir.Model, values: list[ir.Value], names: _AxisNames) -> None:
    inputs = set(model.graph.inputs)
    for value in values:
        tensor = value.const_value if value.is_initializer() else None
        value.metadata_props.pop(_elements_key(), None)
        if tensor is not None and not value.is_graph_input():
            value.shape = ir.Shape(tensor.shape.numpy())
            value.const_value = tensor if tensor.size <= LARGE_CONSTANT else None
            continue
        value.const_value = _held_by_constant(value)
        keep = value in inputs and value.shape is not None
        value.shape = names.hide(value.shape) if keep and value.shape is not None else None


def _held_by_constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor inside a Constant node; reading it once here is what makes the inference fast."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or not is_default_domain(node):
        return None
    attribute = node.attributes.get("value")
    return constant_of(value) if attribute is None else attribute.value


def _elements_key() -> str:
    from onnx_shape_inference import SYM_DATA_KEY

    return str(SYM_DATA_KEY)


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("onnx_shape_inference")
    disabled, logger.disabled = logger.disabled, True
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
        logger.setLevel(level)


def _run(model: ir.Model) -> str:
    """Run the library over the model; why it stopped, or an empty string."""
    from onnx_shape_inference import infer_symbolic_shapes

    if any(domain in ("", "ai.onnx") for domain, _, _ in model.functions):
        return "a function of the model takes the place of a standard operator"
    if model.functions and _called_nodes(model) > _CALLED_NODES:
        return f"the functions of the model stand for more than {_CALLED_NODES} nodes"
    with _silence(), shape_rules.active(model):
        try:
            infer_symbolic_shapes(model, policy="skip", warn_on_missing=False, adopt_declared_symbols=False)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            return " ".join(str(error).split())[:300] or type(error).__name__
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


def _loop_dependents(model: ir.Model) -> set[ir.Value]:
    """The carried values inside Loop bodies, the outputs of Loops, and all that is computed from them."""
    found: set[ir.Value] = set()
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        _taint(graph, found)
    return found


def _taint(graph: ir.Graph, found: set[ir.Value]) -> None:
    for node in graph:
        subgraphs = [a.as_graph() for a in node.attributes.values() if _holds_graph(a)]
        for subgraph in subgraphs:
            if node.op_type == "Loop":
                found.update(subgraph.inputs[2:])
            elif any(v in found for v in node.inputs if v is not None):
                found.update(subgraph.inputs)
            _taint(subgraph, found)
        if (
            node.op_type == "Loop"
            or any(v in found for v in node.inputs if v is not None)
            or any(v in found for subgraph in subgraphs for v in subgraph.outputs)
        ):
            found.update(node.outputs)


def _holds_graph(attribute: ir.Attr) -> bool:
    return not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH


def _harvest(value: ir.Value, names: _AxisNames, trusted: bool) -> Inferred:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return Inferred()
    if not trusted:
        return Inferred(value.dtype)
    shape = None if value.shape is None else ir.Shape(names.show(value.shape.dims), frozen=True)
    if value.const_value is not None and _held_by_constant(value) is None and not value.is_initializer():
        array = value.const_value.numpy()
        whole = tuple(int(n) for n in array.reshape(-1)) if array.dtype.kind in "iu" else None
        return Inferred(value.dtype, shape, whole, array)
    data = value.metadata_props.get(_elements_key())
    if data is None:
        return Inferred(value.dtype, shape)
    return Inferred(value.dtype, shape, names.elements(data))


def _fall_back_to_declared(shapes: Shapes, names: _AxisNames) -> None:
    for value, known in shapes.items():
        if known.shape is None and value.shape is not None:
            shapes[value] = Inferred(known.dtype, names.hide(value.shape))
