"""Remove quantization steps that change no number.

``q = saturate(round(x / s) + z)`` undoes ``x = (q' - z) * s`` exactly: with ``n = q' - z``, floating point
gives ``n (1 + d1) (1 + d2)``, each ``d`` at most half a unit in the last place, so that rounding returns
``n`` as long as ``|n| * 3 * 2^-p < 1/2`` for p bits of precision (the third error allows a kernel that
multiplies by ``1 / s``) and neither product nor quotient leaves the range of normal numbers. For 255 steps
this holds in float32 (p = 24) and in float16 (p = 11); for the 65,535 steps of 16 bits in float32 only. The
other order rounds, and is never removed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of
from graphopt.options import option
from graphopt.passes.quantization._linear_quantization import LARGEST_STEPS, Parameters, parameters_of
from graphopt.registry import Pass, PassResult, register
from graphopt.rewrite import Context, Rule, apply_rules, input_at, is_exclusive, is_op, producer

__all__ = ["SimplifyQdq"]

#: They move or choose elements and compute nothing; onnxruntime has kernels of them for 8-bit integers.
_MOVERS: Final = ("Concat", "Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: Since then MaxPool takes 8-bit integers.
_MAX_POOL_OPSET: Final = 12
#: Since then Clip takes its bounds as inputs.
_CLIP_INPUTS_OPSET: Final = 11
#: Movers between a DequantizeLinear and a QuantizeLinear.
_DEPTH: Final = 8
#: How far beyond the last value a bound must be, in steps: rounding of the quotient is far below that.
_MARGIN: Final = 0.25


class Chain(NamedTuple):
    """QuantizeLinear of movers (the last one first) of DequantizeLinears."""

    quantize: ir.Node
    movers: tuple[ir.Node, ...]
    dequantize: tuple[ir.Node, ...]


class DequantizeQuantize(Rule[Chain]):
    """DequantizeLinear, then operators that only move numbers, then the same QuantizeLinear: the movers."""

    name = "dequantize-quantize"
    roots = ("QuantizeLinear",)

    def __init__(self, keep_format: bool = False) -> None:
        self._keep_format = keep_format

    def match(self, node: ir.Node) -> Chain | None:
        """Walk up from the QuantizeLinear; only the last mover up may take several tensors."""
        value = node.inputs[0]
        movers: list[ir.Node] = []
        while value is not None and len(movers) < _DEPTH:
            found = producer(value, node, "DequantizeLinear")
            if found is not None:
                return Chain(node, tuple(movers), (found,))
            mover = producer(value, node, *_MOVERS)
            if mover is None or not is_exclusive(value) or len(mover.outputs) != 1:
                return None
            movers.append(mover)
            if mover.op_type == "Concat":
                sources = [producer(v, node, "DequantizeLinear") for v in mover.inputs]
                whole = [n for n in sources if n is not None]
                return Chain(node, tuple(movers), tuple(whole)) if len(whole) == len(sources) else None
            value = mover.inputs[0]
        return None

    def check(self, match: Chain, context: Context) -> str | None:
        """Both directions have the same constant parameters, and integers survive the way through floats."""
        wanted = parameters_of(match.quantize, context)
        if isinstance(wanted, str):
            return wanted
        if self._keep_format and match.movers and _is_in_format(match):
            return (
                "the operators beside it stand between quantization steps, where onnxruntime looks for them"
            )
        for node in match.dequantize:
            found = parameters_of(node, context)
            if isinstance(found, str):
                return found
            source = node.inputs[0]
            if source is None or context.infer(source).dtype != found.dtype:
                return "the type of its integers is not known"
            if not found.agrees(wanted):
                return "the two have different scales, zero points, axes or types"
        return _why_not_exact(wanted) or _why_not_movable(match, wanted, context)

    def rewrite(self, match: Chain, context: Context) -> None:
        """The movers on integers; without any, the integers themselves."""
        output, sources = match.quantize.outputs[0], [n.inputs[0] for n in match.dequantize]
        if not match.movers:
            assert sources[0] is not None
            context.redirect(output, sources[0], like=match.quantize)
            return
        values: list[ir.Value | None] = sources
        for mover in reversed(match.movers[1:]):
            values = [_moved(mover, values, match.quantize, context)]
        last = match.movers[0]
        context.replace(output, last.op_type, _inputs(last, values), last.attributes.values(), like=last)


def _is_in_format(match: Chain) -> bool:
    """Whether what makes the integers, or what reads them, stands between quantization steps itself."""
    makers = [node.inputs[0].producer() for node in match.dequantize if node.inputs[0] is not None]
    readers = match.quantize.outputs[0].consumers()
    return any(node is None or is_op(node, "QuantizeLinear") for node in makers) or any(
        is_op(node, "DequantizeLinear") for node in readers
    )


def _inputs(mover: ir.Node, values: list[ir.Value | None]) -> list[ir.Value | None]:
    return [*values, *mover.inputs[len(values) :]]


def _moved(mover: ir.Node, values: list[ir.Value | None], before: ir.Node, context: Context) -> ir.Value:
    """The output of a mover that works on integers."""
    source, output = values[0], mover.outputs[0]
    assert source is not None
    known = context.infer(output).with_dtype(context.infer(source).dtype)
    return context.add(
        mover.op_type,
        _inputs(mover, values),
        list(mover.attributes.values()),
        before=before,
        like=output,
        known=known,
        name=mover.name,
    )


def _why_not_exact(parameters: Parameters) -> str | None:
    """Why rounding might not return the integer; None where it always does."""
    steps, scale = LARGEST_STEPS[parameters.dtype], parameters.scale
    limits = np.finfo(scale.dtype)
    if steps * 3 * 2.0 ** -(limits.nmant + 1) >= 0.5:
        return f"{scale.dtype} is too coarse for {parameters.dtype.name}"
    widest = float(np.max(scale)) * (steps + 1)
    if float(np.min(scale)) < float(limits.smallest_normal) or widest > float(limits.max):
        return "the scale is at the edge of its type's range"
    return None


def _why_not_movable(match: Chain, parameters: Parameters, context: Context) -> str | None:
    if not match.movers:
        return None
    if parameters.axis is not None:
        return "the scales belong to an axis that is moved"
    if parameters.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return "only 8-bit integers are moved"
    if any(m.op_type == "MaxPool" for m in match.movers) and context.opset < _MAX_POOL_OPSET:
        return f"MaxPool of integers needs opset {_MAX_POOL_OPSET}, the model has {context.opset}"
    return None


class Bounded(NamedTuple):
    """QuantizeLinear of a Relu or Clip."""

    quantize: ir.Node
    bound: ir.Node


class ClipQuantize(Rule[Bounded]):
    """Relu or Clip, then a QuantizeLinear that saturates at these bounds, or within: the QuantizeLinear."""

    name = "clip-quantize"
    roots = ("QuantizeLinear",)

    def match(self, node: ir.Node) -> Bounded | None:
        """A Relu or Clip that nothing else reads."""
        value = node.inputs[0]
        bound = producer(value, node, "Relu", "Clip")
        return (
            Bounded(node, bound) if bound is not None and value is not None and is_exclusive(value) else None
        )

    def check(self, match: Bounded, context: Context) -> str | None:
        """What lies beyond a bound becomes the last integer with it and without it."""
        parameters = parameters_of(match.quantize, context)
        if isinstance(parameters, str):
            return parameters
        bounds = _bounds(match.bound, context.opset)
        if bounds is None:
            return "the bounds of Clip are not constant"
        low, high = bounds
        if not low <= high:
            return "the bounds of Clip are in the wrong order"
        scale = parameters.scale.astype(np.float64)
        lowest = low / scale + parameters.zero_point
        highest = high / scale + parameters.zero_point
        if match.bound.op_type == "Relu":  # 0 / scale is exact
            saturates = bool(np.all(lowest <= parameters.lowest))
        else:
            saturates = _beyond(lowest, highest, parameters)
        return None if saturates else "the integers reach beyond the bounds"

    def rewrite(self, match: Bounded, context: Context) -> None:
        """QuantizeLinear of what the bound took."""
        node = match.quantize
        inputs = [match.bound.inputs[0], *node.inputs[1:]]
        context.replace(node.outputs[0], node.op_type, inputs, node.attributes.values(), like=node)


def _beyond(lowest: np.ndarray, highest: np.ndarray, parameters: Parameters) -> bool:
    """Whether both bounds become the last integers, whichever way the quotient is rounded."""
    return bool(
        np.all(lowest <= parameters.lowest + _MARGIN) and np.all(highest >= parameters.highest - _MARGIN)
    )


def _bounds(node: ir.Node, opset: int) -> tuple[float, float] | None:
    """The bounds of Relu or Clip; None where they are not constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if opset < _CLIP_INPUTS_OPSET:
        low, high = (node.attributes.get(name) for name in ("min", "max"))
        return (low.as_float() if low else -math.inf), (high.as_float() if high else math.inf)
    bounds = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        value = input_at(node, index)
        array = array_of(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(default if array is None else float(array.reshape(-1)[0]))
    return bounds[0], bounds[1]


@register
@dataclasses.dataclass(eq=False)
class SimplifyQdq(Pass):
    """Remove quantization steps that change no number.

    1. DequantizeLinear, then QuantizeLinear with the same scale, zero point, axis and type: nothing.
    2. The same with operators between them that only move or choose numbers (Reshape, Transpose, Squeeze,
       Unsqueeze, Flatten, MaxPool, Concat of such): these work on the integers. One scale for all, 8 bits.
       With ``keep_format``, as in ``optimize``, only between operators on integers such as QLinearConv:
       onnxruntime looks for the others between DequantizeLinear and QuantizeLinear, and runs those beside a
       MaxPool of integers as floats (1.6 times the time of a keyword spotter).
    3. Relu or Clip before a QuantizeLinear that saturates there anyway: the QuantizeLinear alone.

    It does not fire on QuantizeLinear, then DequantizeLinear (that rounds), where scales or zero points are
    not constant, where the float type is too coarse to carry the integers, and where something else reads
    the floats between.
    """

    name = "simplify-qdq"
    source = "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"

    keep_format: bool = option(
        False, help="Leave operators between quantization steps where their neighbours are, too."
    )

    def call(self, model: ir.Model) -> PassResult:
        """Apply the rules until none applies any more."""
        report = apply_rules(model, [DequantizeQuantize(self.keep_format), ClipQuantize()])
        counts = ", ".join(f"{count} {name}" for name, count in sorted(report.applied.items()))
        return PassResult(
            model, bool(counts), f"removed {counts}" if counts else "nothing to remove", report.refusals
        )
