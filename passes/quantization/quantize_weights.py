"""Store weights as int8; the arithmetic stays in float."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.graph import constant_of, describe, release, scopes, subgraphs_of
from graphopt.options import option
from graphopt.registry import Pass, PassResult, Refusal, register
from graphopt.rewrite import Context, is_op

__all__ = ["QuantizeWeights"]

Array = np.ndarray[Any, np.dtype[Any]]

#: The largest code; -128 is not used, so that the range is symmetric and the zero point 0.
_LARGEST: Final = 127
#: DequantizeLinear makes float32 since opset 10 (13: per axis) and float16 since opset 19.
_MIN_OPSET: Final = {"per-tensor": 10, "per-channel": 13}
_FLOAT16_OPSET: Final = 19
#: Elements that are converted at a time.
_BLOCK: Final = 1 << 20
#: Bytes that one more node and one more initializer take in a file, names aside.
_NODE_BYTES: Final = 100
_WEIGHT_TYPES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_PARAMETER_TYPES: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}
)
#: Transposes and reshapes between a weight and the operator that it belongs to.
_DEPTH: Final = 4


@register
@dataclasses.dataclass(eq=False)
class QuantizeWeights(Pass):
    """Quantize weights to int8, symmetric and uniform; a DequantizeLinear gives the float weight back.

    For a weight ``w`` of one tensor or one output channel::

        scale = max|w| / 127,   q = clip(round_half_even(w / scale), -127, 127),   w' = scale * q

    so that ``|w - w'| <= scale / 2``. Only the storage changes (weight-only quantization): activations and
    arithmetic stay in float. The dequantized value keeps the weight's name.

    onnxruntime with its default optimizations turns such a MatMul into MatMulNBits, which rounds activations
    to 8 bits as well (about 45 dB); ``session.qdq_matmulnbits_accuracy_level = 1`` keeps them in float.

    Weights are constants of float32 (float16 from opset 19) that feed nothing but Conv, ConvTranspose,
    Gemm, MatMul, Gather (an embedding table), LSTM, GRU or RNN, directly or through Transpose, Reshape or
    Identity. The channel axis is that of the outputs (for Gather: of the rows). A weight has one scale where
    its users disagree on the axis, where a grouped ConvTranspose mixes channels on it, or behind a Reshape.

    Left alone: weights with other uses, graph inputs and outputs, numbers that are not finite, and weights
    that would not become smaller.
    """

    name = "quantize-weights"
    exact = False
    source = "ONNX DequantizeLinear; Jacob et al., https://arxiv.org/abs/1712.05877 (symmetric, weights only)"

    bits: Literal[8] = option(8, help="Bits of a stored weight.")
    granularity: Literal["per-tensor", "per-channel"] = option(
        "per-channel", help="One scale for the whole weight, or one for each output channel."
    )
    include: str = option(
        ".*",
        help="Regular expression that the whole name of the weight or of a node that uses it must match.",
    )
    exclude: str = option("", help="The same, for what to leave out.")
    min_elements: int = option(1024, help="Smaller weights stay in float.", min=1)

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"'{name}' is not a regular expression: {error}") from error

    def call(self, model: ir.Model) -> PassResult:
        """Quantize every chosen weight, one at a time."""
        refusals: list[Refusal] = []
        constants = list(_constants(model))
        total = sum(weight.tensor.size for weight in constants)
        plan = [w for w in constants if self._is_chosen(w) and self._is_possible(w, refusals)]
        self._require_opset(plan)
        surgeon = _Surgeon(model)
        sizes = [w.tensor.size for w in plan if surgeon.quantize(w, refusals)]
        if not sizes:
            return PassResult(model, False, "no weight to quantize", refusals)
        noun, share = "weights" if len(sizes) > 1 else "weight", 100 * sum(sizes) / total
        return PassResult(
            model, True, f"quantized {len(sizes)} {noun}, {share:.0f} % of parameters", refusals
        )

    def _is_chosen(self, weight: _Weight) -> bool:
        if weight.tensor.size < self.min_elements or weight.tensor.dtype not in _WEIGHT_TYPES:
            return False
        names = [weight.value.name or "", *(node.name or "" for node in weight.value.consumers())]
        chosen = any(re.fullmatch(self.include, name) for name in names)
        return chosen and not (self.exclude and any(re.fullmatch(self.exclude, name) for name in names))

    def _is_possible(self, weight: _Weight, refusals: list[Refusal]) -> bool:
        uses = list(_uses(weight.value, len(weight.tensor.shape.numpy())))
        if all(use.reason for use in uses):
            return False  # no weight at all: a bias, a mask, the scale of a quantized weight
        reason = next((use.reason for use in uses if use.reason), "")
        if weight.tensor.dtype == ir.DataType.FLOAT16 and weight.opset < _FLOAT16_OPSET:
            reason = reason or f"float16 needs opset {_FLOAT16_OPSET}, the model has {weight.opset}"
        if reason:
            refusals.append(weight.refusal(reason))
            return False
        axes = {use.axis for use in uses}
        weight.axis = axes.pop() if len(axes) == 1 and self.granularity == "per-channel" else None
        return True

    def _require_opset(self, plan: list[_Weight]) -> None:
        needed = _MIN_OPSET[self.granularity]
        opset = min((weight.opset for weight in plan), default=needed)
        if opset < needed:
            raise UnsupportedError(
                f"{self.name}: {self.granularity} quantization needs opset {needed}, the model has {opset}; "
                f"put 'convert-opset: {{target: {needed}}}' before it, or a higher target"
            )


@dataclasses.dataclass
class _Weight:
    """A float constant, where it lives, and the axis of its scales (None: one scale)."""

    value: ir.Value
    graph: ir.Graph
    opset: int
    tensor: ir.TensorProtocol
    axis: int | None = None

    def refusal(self, reason: str) -> Refusal:
        return Refusal(QuantizeWeights.name, f"weight '{self.value.name}'", reason)


def _constants(model: ir.Model) -> Iterator[_Weight]:
    """Every constant of numbers with a fraction: initializers and Constant nodes of all graphs."""
    for graph, opset in scopes(model):
        made = (node.outputs[0] for node in graph if is_op(node, "Constant"))
        for value in (*graph.initializers.values(), *made):
            tensor = constant_of(value)
            if tensor is not None and tensor.dtype in _PARAMETER_TYPES:
                yield _Weight(value, graph, opset, tensor)


class _Use(NamedTuple):
    """One use of a weight: the weight's axis of output channels, or why it is no weight there."""

    axis: int | None
    reason: str = ""


def _uses(value: ir.Value, rank: int, depth: int = _DEPTH) -> Iterator[_Use]:
    """How the value is used, seen through what only moves its elements."""
    if value.is_graph_output():
        yield _Use(None, "it is a graph output")
    for node, index in value.uses():
        moved = index == 0 and is_op(node, "Identity", "Reshape", "Transpose")
        if moved and depth:
            for use in _uses(node.outputs[0], rank, depth - 1):
                yield use._replace(axis=_axis_before(node, use.axis, rank))
        elif is_op(node, node.op_type) and (node.op_type, index) in _AXES:
            yield _Use(_AXES[node.op_type, index](node, rank))
        else:
            yield _Use(None, f"it is no weight to {describe(node)}")


def _axis_before(node: ir.Node, axis: int | None, rank: int) -> int | None:
    """The axis of a Transpose's or Identity's input that became ``axis``; a Reshape mixes axes."""
    if axis is None or node.op_type == "Reshape":
        return None
    if node.op_type == "Identity":
        return axis
    return node.attributes.get_ints("perm", tuple(reversed(range(rank))))[axis]


def _gather_axis(node: ir.Node, rank: int) -> int:
    return node.attributes.get_int("axis", 0) % rank


#: Operator and input -> the weight's axis of output channels (of rows for an embedding table).
_AXES: Final[dict[tuple[str, int], Callable[[ir.Node, int], int | None]]] = {
    ("Conv", 1): lambda node, rank: 0,
    ("ConvTranspose", 1): lambda node, rank: 1 if node.attributes.get_int("group", 1) == 1 else None,
    ("Gemm", 1): lambda node, rank: 1 - int(node.attributes.get_int("transB", 0) != 0),
    ("MatMul", 0): lambda node, rank: rank - 2 if rank > 1 else None,
    ("MatMul", 1): lambda node, rank: rank - 1 if rank > 1 else None,
    ("Gather", 0): _gather_axis,
    **{(op_type, index): lambda node, rank: 1 for op_type in ("LSTM", "GRU", "RNN") for index in (1, 2)},
}


class _Surgeon:
    """Replaces weights in one model."""

    def __init__(self, model: ir.Model) -> None:
        self._context = Context(model)
        self._owners = {
            body: node for scope in scopes(model) for node in scope.graph for body in subgraphs_of(node)
        }
        self._order: dict[ir.Graph, dict[ir.Node, int]] = {}

    def quantize(self, weight: _Weight, refusals: list[Refusal]) -> bool:
        """Store the weight as int8 where that makes it smaller; whether it did."""
        array = weight.tensor.numpy()
        scale = _scales(array, weight.axis)
        if scale is None:
            refusals.append(weight.refusal("it holds numbers that are not finite, or too large"))
        elif weight.tensor.nbytes <= weight.tensor.size + scale.nbytes + _overhead(weight):
            refusals.append(weight.refusal("int8 with its scales would not be smaller"))
        else:
            self._replace(weight, _codes(array, scale, weight.axis), scale)
        del array
        release(weight.tensor)
        return scale is not None and weight.value.uses() == ()

    def _replace(self, weight: _Weight, codes: Array, scale: Array) -> None:
        old, graph, context = weight.value, weight.graph, self._context
        name = old.name or "weight"
        first = self._first_user(old, graph)
        context.enter(graph)
        inputs = [context.constant(f"{name}_quantized", codes), context.constant(f"{name}_scale", scale)]
        attributes = [] if weight.axis is None else [ir.AttrInt64("axis", weight.axis)]
        output = ir.Value(name=old.name, type=ir.TensorType(weight.tensor.dtype), shape=old.shape)
        node_name = context.fresh_name(f"{name}_dequantize")
        node = ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[output], name=node_name)
        made_by = old.producer()
        if made_by is None:
            graph.initializers.pop(name)
        graph.insert_before(first, node)
        old.replace_all_uses_with(output)
        if made_by is not None:
            graph.remove(made_by, safe=True)

    def _first_user(self, value: ir.Value, graph: ir.Graph) -> ir.Node:
        """The first node of ``graph`` that uses the value, itself or in a subgraph."""
        if graph not in self._order:
            self._order[graph] = {node: position for position, node in enumerate(graph)}
        users = (self._ancestor(node, graph) for node in value.consumers())
        return min(users, key=self._order[graph].__getitem__)

    def _ancestor(self, node: ir.Node, graph: ir.Graph) -> ir.Node:
        while node.graph is not graph:
            assert node.graph is not None
            node = self._owners[node.graph]
        return node


def _overhead(weight: _Weight) -> int:
    return _NODE_BYTES + 4 * len(weight.value.name or "")


def _grouped(array: Array, axis: int | None) -> Array:
    """The array as [outer, channels, inner]; without an axis there is one channel."""
    if axis is None:
        return array.reshape(-1, 1, 1)
    outer, inner = array.shape[:axis], array.shape[axis + 1 :]
    return array.reshape(int(np.prod(outer)), array.shape[axis], int(np.prod(inner)))


def _scales(array: Array, axis: int | None) -> Array | None:
    """max|w| / 127 in the type of the weight, [channels] or a scalar; None where that is not finite.

    A channel of zeros has scale 1; no scale is denormal, since runtimes may flush such numbers to zero.
    """
    grouped = _grouped(array, axis)
    largest = np.maximum(grouped.max(axis=(0, 2)), -grouped.min(axis=(0, 2))).astype(np.float64)
    limits = np.finfo(array.dtype)
    if not np.all(largest < 0.99 * float(limits.max)):  # 127 * scale may be rounded up
        return None
    exact = np.where(largest == 0, 1.0, np.maximum(largest / _LARGEST, float(limits.smallest_normal)))
    scale: Array = exact.astype(array.dtype)
    return scale if axis is not None else scale.reshape(())


def _codes(array: Array, scale: Array, axis: int | None) -> Array:
    """round(w / scale) as int8, computed block by block in float64."""
    grouped = _grouped(array, axis)
    codes = np.empty(grouped.shape, np.int8)
    factors = scale.astype(np.float64).reshape(1, -1, 1)
    outer, channels, inner = grouped.shape
    rows, columns = max(1, _BLOCK // max(1, channels * inner)), max(1, _BLOCK // inner)
    for i in range(0, outer, rows):
        for j in range(0, channels, columns):
            part = grouped[i : i + rows, j : j + columns] / factors[:, j : j + columns]
            codes[i : i + rows, j : j + columns] = np.clip(np.rint(part), -_LARGEST, _LARGEST)
    return codes.reshape(array.shape)
