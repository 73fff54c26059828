"""What an import of TFLite is compared with, and how near it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.conversion import Runner, Tolerance
from graphopt.converters.importers._tflite.convert import Converted
from graphopt.converters.importers._tflite.custom_kernels import KERNELS, Cut, WithKernels
from graphopt.converters.importers._tflite.detections import filled
from graphopt.converters.importers._tflite.litert import LiteRT, Named, Variable
from graphopt.converters.importers._tflite.model import Model, Operator, Subgraph
from graphopt.converters.importers._tflite.rewrite import (
    Rewriter,
    has_custom,
    has_dynamic_range,
    has_variables,
)
from graphopt.converters.importers._tflite.states import check_states
from graphopt.errors import UnsupportedError

__all__ = ["Truth", "quantized_steps", "truth"]

_FLOAT = Tolerance(rtol=1e-4)
#: Operators that hand on the numbers of their first input.
_MOVES = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "STRIDED_SLICE", "SLICE", "GATHER"})


@dataclass(frozen=True)
class Truth:
    """Ways in which LiteRT runs the file.

    Attributes:
        run: What decides.
        others: What is noted.
        tolerance: How near the ONNX model must be to ``run``.
        notes: What the user should know.
    """

    run: Runner
    tolerance: Tolerance = _FLOAT
    others: Mapping[str, Runner] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def truth(file: Model, converted: Converted, content: bytes) -> Truth:
    """The runs of LiteRT for a converted file.

    The plain kernels decide; of a model that computes with quantized numbers XNNPACK, which LiteRT uses if
    it is not told otherwise. Against exact rounding, one int8 convolution with drawn weights is a step off in
    none of its elements under XNNPACK, in 0.06 % under the plain kernels, 0.03 % under the reference ones; a
    network can make several steps of that. What LiteRT cannot run as it is gets rewritten (see
    :mod:`rewrite`); its own run of dynamic-range weights is noted.
    """
    if any(op.custom in KERNELS for op in converted.subgraph.operators):
        return _with_kernels(file, converted, content)
    notes, original, (content, rewritten) = [], content, _runnable(file, converted, content)
    quantized = quantized_steps(converted)
    named = _named(converted)
    variables = _variable_tensors(converted)
    plain, fast = (
        LiteRT(
            content,
            [name for name in converted.inputs if name not in {v.given for v in variables}],
            [name for name in converted.outputs if name not in {v.made for v in variables}],
            delegate=delegate,
            signature=named,
            variables=variables,
        )
        for delegate in (False, True)
    )
    if converted.variables:
        check_states(original, plain, converted)
    if rewritten:
        notes.append(f"compared with LiteRT's kernels on a rewritten file: {', '.join(rewritten)}")
    if quantized:
        tolerance = Tolerance(_FLOAT.rtol, quantized)
        return Truth(
            filled(fast, converted), tolerance, {"LiteRT without XNNPACK": filled(plain, converted)}, notes
        )
    others: dict[str, Runner] = {}
    if has_dynamic_range(file) and not (has_custom(file) or converted.variables):
        itself = LiteRT(original, converted.inputs, converted.outputs, delegate=False, signature=named)
        others["LiteRT on the file as it is, activations rounded to 8 bits,"] = itself
    others |= {"LiteRT with XNNPACK": filled(fast, converted)}
    return Truth(filled(plain, converted), _FLOAT, others, notes)


def _with_kernels(file: Model, converted: Converted, content: bytes) -> Truth:
    """LiteRT on what is left of a file without the custom operators that it has no kernels for."""
    if converted.variables or converted.subgraph.index:
        raise UnsupportedError(
            "custom operators of MediaPipe in a model with variables or other signatures cannot be compared; "
            "--no-verify imports it all the same"
        )
    rewriter = Rewriter(content, file, converted.subgraph.index)
    cuts = [
        Cut(
            op,
            [f"read {number} {index}" for index in op.inputs],
            [f"made {number} {index}" for index in op.outputs],
            [converted.subgraph.tensors[index].shape for index in op.outputs],
        )
        for number, op in enumerate(rewriter.cut_out(KERNELS))
    ]
    inputs = [*converted.inputs, *(name for cut in cuts for name in cut.makes)]
    outputs = [*converted.outputs, *(name for cut in cuts for name in cut.reads)]
    rest = LiteRT(rewriter.content(), inputs, outputs, delegate=False)
    found = ", ".join(sorted({cut.op.custom for cut in cuts}))
    notes = [f"{found}: LiteRT has no kernel; computed by the definition in MediaPipe, the rest by LiteRT"]
    return Truth(WithKernels(rest, cuts, converted.outputs), _FLOAT, {}, notes)


def _named(converted: Converted) -> Named | None:
    """The signature by which LiteRT runs a subgraph other than the first.

    Raises:
        UnsupportedError: It has variables, whose rewriting leaves no signatures.
    """
    graph, signature = converted.subgraph, converted.signature
    if signature is None or not graph.index:
        return None
    if converted.variables:
        raise UnsupportedError(
            f"signature '{signature.key}' has variables and is not the first subgraph, where LiteRT cannot "
            "be compared with; --no-verify imports it all the same"
        )
    inputs = [signature.inputs.get(index, "") for index in graph.inputs]
    return Named(signature.key, inputs, [signature.outputs.get(index, "") for index in graph.outputs])


def _variable_tensors(converted: Converted) -> list[Variable]:
    """The variable tensors among the variables: LiteRT lets them be set and read."""
    tensors = {tensor.name: tensor.index for tensor in converted.subgraph.tensors if tensor.variable}
    count = len(converted.inputs) - len(converted.variables)
    names = zip(
        converted.variables,
        converted.inputs[count:],
        converted.outputs[-len(converted.variables) :],
        strict=False,
    )
    return [Variable(tensors[name], given, made) for name, given, made in names if name in tensors]


def _runnable(file: Model, converted: Converted, content: bytes) -> tuple[bytes, list[str]]:
    """The file as LiteRT can run it, and what was rewritten."""
    rewritten: list[str] = []
    if not (has_dynamic_range(file) or has_custom(file) or has_variables(file)):
        return content, rewritten
    rewriter = Rewriter(content, file, converted.subgraph.index)
    if has_dynamic_range(file):
        rewriter.float_weights()
        rewritten.append("weights of 8 bits as the numbers they stand for")
    if has_custom(file):
        rewriter.builtin_transpositions()
        rewritten.append("Convolution2DTransposeBias as TRANSPOSE_CONV")
    if has_variables(file):
        rewriter.open_variables()
        rewritten.append("variables as inputs and outputs")
    return rewriter.content(), rewritten


def quantized_steps(converted: Converted) -> dict[str, float]:
    """The size of one step of each output that is made of quantized numbers."""
    graph = converted.subgraph
    makers = {index: op for op in graph.operators for index in op.outputs}
    steps = {}
    for index, name in zip(graph.outputs, converted.outputs, strict=False):
        if graph.tensors[index].quantized:
            steps[name] = 1.0
            continue
        scale = _scale_behind(graph, makers, index)
        if scale:
            steps[name] = scale
    return steps


def _scale_behind(graph: Subgraph, makers: Mapping[int, Operator], index: int) -> float:
    """The scale of the quantized numbers that a float output shows; 0 where it shows none."""
    while index in makers:
        op = makers[index]
        if op.name == "DEQUANTIZE":
            source = graph.tensors[op.inputs[0]]
            q = source.quantization
            return float(np.max(q.scale)) if source.quantized and q is not None else 0.0
        if op.name not in _MOVES:
            return 0.0
        index = op.inputs[0]
    return 0.0
