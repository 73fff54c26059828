"""What a model costs: nodes, parameters, multiply-accumulates, bytes.

Counting rules, so that figures can be compared:

* **Nodes**: as written in the file, those of subgraphs and of function bodies included, Constant excluded.
  A function's body counts once however often it is called.
* **Parameters**: elements of initializers and Constant tensors of more than one element whose type is
  floating point or an integer of at most 32 bits (int64 and bool tensors are shapes, indices and masks); a
  tensor used in several places counts once.
* **MACs**: multiply-accumulates of convolutions, matrix products, recurrent layers and attention. Everything
  else (elementwise, normalization, pooling, Resize) counts 0. Bodies of If, Loop and Scan count once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.graph import all_nodes, is_default_domain, scopes

__all__ = ["Costs", "count", "count_nodes", "macs_of", "measure"]

#: The static shape of a value, or None where it is not known.
Lookup = Callable[[ir.Value | None], tuple[int, ...] | None]


@dataclass(frozen=True)
class Costs:
    """The costs of one model.

    Attributes:
        nodes: Nodes without Constant, subgraphs and function bodies included.
        parameters: Elements of weights.
        macs: Multiply-accumulates of one inference.
        unknown_macs: Nodes whose MACs could not be counted, because a shape is unknown or the operator is.
        bytes: Size of the serialized model, external data included.
        opset: Version of the standard operator set.
        operators: How many nodes of each operator; of another domain as ``com.microsoft.QLinearAdd``.
    """

    nodes: int
    parameters: int
    macs: int
    unknown_macs: int
    bytes: int
    opset: int
    operators: dict[str, int]


def measure(model: ir.Model, axes: Mapping[str, int] | None = None) -> Costs:
    """Count the costs of ``model`` at one size of its inputs.

    Args:
        model: The model; it is left as it is.
        axes: Sizes of symbolic axes by name; every other open axis counts as 1.
    """
    from graphopt.io import serialized_size

    nodes = [n for n in all_nodes(model) if not (n.op_type == "Constant" and is_default_domain(n))]
    macs, unknown = _count_macs(model, nodes, axes or {})
    operators = Counter(_operator_name(n) for n in nodes)
    return Costs(
        nodes=len(nodes),
        parameters=_count_parameters(model),
        macs=macs,
        unknown_macs=unknown,
        bytes=serialized_size(model),
        opset=model.opset_imports.get("", 0),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    )


def count(model: ir.Model) -> Costs:
    """The nodes and the opset alone, for whom the rest is not worth its time; all else is 0."""
    return Costs(count_nodes(model), 0, 0, 0, 0, model.opset_imports.get("", 0), {})


def count_nodes(model: ir.Model) -> int:
    """The nodes of ``model`` as :func:`measure` counts them."""
    return sum(not (n.op_type == "Constant" and is_default_domain(n)) for n in all_nodes(model))


def _operator_name(node: ir.Node) -> str:
    return node.op_type if is_default_domain(node) else f"{node.domain}.{node.op_type}"


def _count_parameters(model: ir.Model) -> int:
    tensors: dict[int, ir.TensorProtocol] = {}
    for graph, _ in scopes(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                tensors[id(value.const_value)] = value.const_value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and not attribute.is_ref():
                tensor = attribute.as_tensor()
                tensors[id(tensor)] = tensor
    return sum(t.size for t in tensors.values() if t.size > 1 and _is_weight(t.dtype))


def _is_weight(dtype: ir.DataType) -> bool:
    if dtype in (ir.DataType.STRING, ir.DataType.BOOL, ir.DataType.UNDEFINED):
        return False
    return dtype.is_floating_point() or dtype.bitwidth <= 32


def _count_macs(model: ir.Model, nodes: list[ir.Node], axes: Mapping[str, int]) -> tuple[int, int]:
    """The sum of what is known, and how many nodes are not."""
    inferred = shapes.infer(model, axes=axes, unnamed=1, declared=True)

    def lookup(value: ir.Value | None) -> tuple[int, ...] | None:
        return inferred[value].static if value is not None else None

    calls = {(function.domain, function.name) for function in model.functions.values()}
    counts = [macs_of(n, lookup) for n in nodes if (n.domain, n.op_type) not in calls]
    return sum(c for c in counts if c is not None), sum(c is None for c in counts)


def macs_of(node: ir.Node, lookup: Lookup) -> int | None:
    """Multiply-accumulates of one node; None where they cannot be known, 0 for operators without any.

    Args:
        node: A node of the standard domain or of ``com.microsoft``; of other domains nothing is known.
        lookup: Gives the static shape of a value, or None.
    """
    rule = _RULES.get((node.domain if not is_default_domain(node) else "", node.op_type))
    if rule is None:
        known = is_default_domain(node) or node.domain in ("ai.onnx.ml", "com.microsoft")
        return 0 if known else None
    count = rule(node, lookup)
    return None if count is None or count < 0 else count


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _size(dims: tuple[int, ...] | None) -> int | None:
    return None if dims is None else math.prod(dims)


def _product(*factors: int | None) -> int | None:
    known = [f for f in factors if f is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _int(node: ir.Node, name: str, default: int = 0) -> int | None:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else attribute.as_int()


def _convolution(weight: int) -> Callable[[ir.Node, Lookup], int | None]:
    """Every output element sums over the weight's axes but the first: [out, in/group, *kernel]."""

    def count(node: ir.Node, lookup: Lookup) -> int | None:
        kernel = lookup(_input(node, weight))
        return None if kernel is None else _product(_size(lookup(node.outputs[0])), *kernel[1:])

    return count


def _transposed_convolution(node: ir.Node, lookup: Lookup) -> int | None:
    """Every input element is spread over the weight's axes but the first: [in, out/group, *kernel]."""
    kernel = lookup(_input(node, 1))
    return None if kernel is None else _product(_size(lookup(_input(node, 0))), *kernel[1:])


def _product_over_last(node: ir.Node, lookup: Lookup) -> int | None:
    """MatMul: every output element sums over the last axis of A, or the one before where it is transposed."""
    left = lookup(_input(node, 0))
    if not left:
        return None
    transposed = _int(node, "transA")
    if transposed is None or _int(node, "transBatchA"):
        return None
    depth = left[-2] if transposed and len(left) > 1 else left[-1]
    return _product(_size(lookup(node.outputs[0])), depth)


def _packed_product(node: ir.Node, lookup: Lookup) -> int | None:
    return _product(_size(lookup(_input(node, 0))), _int(node, "N", -1))


def _recurrent(node: ir.Node, lookup: Lookup) -> int | None:
    """X is [sequence, batch, input]; W and R hold the weights of all gates and directions."""
    sequence = lookup(_input(node, 0))
    weights, recurrence = _size(lookup(_input(node, 1))), _size(lookup(_input(node, 2)))
    if sequence is None or len(sequence) != 3 or weights is None or recurrence is None:
        return None
    return sequence[0] * sequence[1] * (weights + recurrence)


def _attention(node: ir.Node, lookup: Lookup) -> int | None:
    """Q·Kᵀ and P·V; [batch, heads, sequence, size], or [batch, sequence, heads·size]."""
    query, key, value = (lookup(_input(node, i)) for i in range(3))
    if query is None or key is None or value is None:
        return None
    past = lookup(_input(node, 4)) if _input(node, 4) is not None else (0, 0)
    if past is None or not len(query) == len(key) == len(value) or len(query) not in (3, 4):
        return None
    length = key[-2] + past[-2]
    if len(query) == 4:
        return query[0] * query[1] * query[2] * length * (query[3] + value[3])
    heads, shared = _int(node, "q_num_heads"), _int(node, "kv_num_heads")
    if not heads or not shared:
        return None
    return query[0] * query[1] * length * (query[2] + heads * value[2] // shared)


def _einsum(node: ir.Node, lookup: Lookup) -> int | None:
    """The product of the sizes of all distinct labels: one multiply-accumulate per point of that space."""
    equation = node.attributes.get("equation")
    if equation is None or equation.is_ref():
        return None
    terms = equation.as_string().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        dims = lookup(value)
        if dims is None:
            return None
        for label, dim in zip(_labels(term, len(dims)), dims, strict=False):
            sizes[label] = max(sizes.get(label, 1), dim)
    return math.prod(sizes.values())


def _labels(term: str, rank: int) -> list[str]:
    """One label per axis; the axes of an ellipsis are counted from their right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]


def _unknown(node: ir.Node, lookup: Lookup) -> int | None:
    return None


_MICROSOFT = "com.microsoft"
_RULES: dict[tuple[str, str], Callable[[ir.Node, Lookup], int | None]] = {
    ("", "Conv"): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "DeformConv"): _convolution(1),
    ("", "QLinearConv"): _convolution(3),
    (_MICROSOFT, "FusedConv"): _convolution(1),
    (_MICROSOFT, "NhwcFusedConv"): _convolution(1),
    (_MICROSOFT, "QLinearConv"): _convolution(3),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "Gemm"): _product_over_last,
    ("", "MatMul"): _product_over_last,
    ("", "MatMulInteger"): _product_over_last,
    ("", "QLinearMatMul"): _product_over_last,
    **{
        (_MICROSOFT, name): _product_over_last
        for name in (
            "DynamicQuantizeMatMul",
            "FusedGemm",
            "FusedMatMul",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "QGemm",
            "QLinearMatMul",
        )
    },
    (_MICROSOFT, "MatMulNBits"): _packed_product,
    (_MICROSOFT, "MatMulBnb4"): _packed_product,
    ("", "RNN"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "LSTM"): _recurrent,
    (_MICROSOFT, "DynamicQuantizeLSTM"): _unknown,
    ("", "Attention"): _attention,
    ("", "Einsum"): _einsum,
    **{
        (_MICROSOFT, name): _unknown
        for name in (
            "Attention",
            "DecoderMaskedMultiHeadAttention",
            "GroupQueryAttention",
            "LongformerAttention",
            "MoE",
            "MultiHeadAttention",
            "PackedAttention",
            "PackedMultiHeadAttention",
            "PagedAttention",
            "QAttention",
            "QMoE",
            "SparseAttention",
        )
    },
}
