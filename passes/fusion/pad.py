"""A Pad becomes the padding of the operator behind it.

Conv pads with zeros, so a Pad of zeros before it only adds to its ``pads``. AveragePool counts padded zeros
exactly where ``count_include_pad`` says so; a Pad before it is always counted. MaxPool pads with minus
infinity, so that a Pad of zeros before it stays. ConvTranspose crops: any Pad before it stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import onnx_ir as ir

from graphopt.graph import array_of, describe
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, producer, why_not_constant

__all__ = ["PadAveragePool", "PadConv", "PadMaxPool"]


_NAMES: Final = {0.0: "zero", -math.inf: "minus infinity"}


class Match(NamedTuple):
    """A Pad and the node behind it."""

    pad: ir.Node
    node: ir.Node


class _Pad(Rule[Match]):
    #: What the operator pads with.
    fill: ClassVar[float] = 0.0

    def match(self, node: ir.Node) -> Match | None:
        """The node with a Pad as its data input."""
        pad = producer(input_at(node, 0), node, "Pad")
        return None if pad is None or input_at(pad, 0) is None else Match(pad, node)

    def check(self, match: Match, context: Context) -> str | None:
        """The operator's own value, by known and not negative pads of spatial axes, into explicit pads."""
        pad, node = match
        reason = _why_not_filled(pad, context.opset, self.fill)
        if reason is None and not is_exclusive(pad.outputs[0]):
            reason = f"the output '{pad.outputs[0].name}' of {describe(pad)} is used elsewhere"
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        if reason is None and auto_pad not in ("NOTSET", "VALID"):
            reason = f"{describe(node)} has auto_pad {auto_pad}"
        return reason or self._why_not_pads(match, context)

    def _why_not_pads(self, match: Match, context: Context) -> str | None:
        pad, node = match
        data = pad.inputs[0]
        assert data is not None
        rank = context.rank(data)
        pads = _pads_by_axis(pad, context.opset, rank)
        if pads is None:
            return f"the pads of {describe(pad)} do not name the axes of a known rank"
        if min(map(min, pads)) < 0:
            return f"{describe(pad)} crops"
        if any(max(axis) for axis in pads[:2]):
            return f"{describe(pad)} pads the batch or channel axis"
        if len(pads) < 3 or len(_own_pads(node, len(pads) - 2)) != 2 * (len(pads) - 2):
            return f"{describe(node)} has no pads for {len(pads) - 2} spatial axes"
        return self.why_not_here(node, _joined_pads(node, pads))

    def why_not_here(self, node: ir.Node, pads: list[int]) -> str | None:
        """Why this operator cannot take these pads, its own included."""
        raise NotImplementedError

    def new_attributes(self, node: ir.Node) -> list[ir.Attr]:
        """Attributes that change along with the pads."""
        raise NotImplementedError

    def rewrite(self, match: Match, context: Context) -> None:
        """Add the Pad's pads to the node's own."""
        pad, node = match
        data = pad.inputs[0]
        assert data is not None
        pads = _pads_by_axis(pad, context.opset, context.rank(data))
        assert pads is not None
        new = [ir.AttrInt64s("pads", _joined_pads(node, pads)), *self.new_attributes(node)]
        changed = {"auto_pad", *(a.name for a in new)}
        kept = [a for a in node.attributes.values() if a.name not in changed]
        context.replace(node.outputs[0], node.op_type, [data, *node.inputs[1:]], [*kept, *new], like=node)


class PadConv(_Pad):
    """Pad by zeros on spatial axes, then Conv with explicit pads: one Conv."""

    name = "pad-conv"
    roots = ("Conv",)

    def why_not_here(self, node: ir.Node, pads: list[int]) -> str | None:
        """Conv takes any pads."""
        return None

    def new_attributes(self, node: ir.Node) -> list[ir.Attr]:
        """Nothing but the pads."""
        return []


class PadAveragePool(_Pad):
    """Pad by zeros on spatial axes, then AveragePool: one AveragePool that counts its padding.

    Left alone: a pool with pads of its own that it does not count, ``ceil_mode``, dilations, and pads that
    are not smaller than the kernel (onnxruntime refuses these).
    """

    name = "pad-average-pool"
    roots = ("AveragePool",)
    min_opset: ClassVar[int] = 7

    def check(self, match: Match, context: Context) -> str | None:
        """As for any Pad, where ``count_include_pad`` exists."""
        if context.opset < self.min_opset:
            return f"AveragePool of opset {context.opset} cannot count its padding"
        return super().check(match, context)

    def why_not_here(self, node: ir.Node, pads: list[int]) -> str | None:
        """The pool must divide by the whole kernel, before as after."""
        kernel = node.attributes.get_ints("kernel_shape", ())
        if node.attributes.get_int("ceil_mode", 0) or any(
            d != 1 for d in node.attributes.get_ints("dilations", ())
        ):
            return f"{describe(node)} has ceil_mode or dilations"
        counted = node.attributes.get_int("count_include_pad", 0)
        if not counted and any(_own_pads(node, len(kernel))):
            return f"{describe(node)} does not count its own padding"
        if any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=True)):
            return f"the pads of {describe(node)} would not be smaller than its kernel"
        return None

    def new_attributes(self, node: ir.Node) -> list[ir.Attr]:
        """The padding counts now."""
        return [ir.AttrInt64("count_include_pad", 1)]


class PadMaxPool(_Pad):
    """Pad by minus infinity on spatial axes, then MaxPool: one MaxPool.

    Left alone: a pool whose indices are used, ``ceil_mode``, dilations, and pads that are not smaller than
    the kernel (onnxruntime refuses these).
    """

    name = "pad-max-pool"
    roots = ("MaxPool",)
    fill = -math.inf

    def why_not_here(self, node: ir.Node, pads: list[int]) -> str | None:
        """Every window must hold some number, and nobody may ask where in it."""
        kernel = node.attributes.get_ints("kernel_shape", ())
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return f"the indices of {describe(node)} are used"
        if node.attributes.get_int("ceil_mode", 0) or any(
            d != 1 for d in node.attributes.get_ints("dilations", ())
        ):
            return f"{describe(node)} has ceil_mode or dilations"
        if any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=True)):
            return f"the pads of {describe(node)} would not be smaller than its kernel"
        return None

    def new_attributes(self, node: ir.Node) -> list[ir.Attr]:
        """Nothing but the pads."""
        return []


def _why_not_filled(pad: ir.Node, opset: int, wanted: float) -> str | None:
    mode = pad.attributes.get_string("mode", "constant")
    if mode != "constant":
        return f"{describe(pad)} has mode {mode}"
    if opset < 2:
        return f"{describe(pad)} is of opset 1"
    if opset < 11:
        value = pad.attributes.get_float("value", 0.0)
        return None if value == wanted else f"{describe(pad)} pads with {value}"
    for index, role in ((1, "the list of pads"), (2, "the padding value"), (3, "the list of axes")):
        given = input_at(pad, index)
        reason = None if given is None else why_not_constant(given, role)
        if reason is not None:
            return reason
    fill = array_of(input_at(pad, 2))
    filled = 0.0 if fill is None else float(fill.reshape(-1)[0]) if fill.size == 1 else math.nan
    return None if filled == wanted else f"{describe(pad)} does not pad with {_NAMES[wanted]}"


def _pads_by_axis(pad: ir.Node, opset: int, rank: int | None) -> list[tuple[int, int]] | None:
    """(begin, end) for every axis of the data; None where the rank is needed and unknown, or does not fit."""
    if opset < 11:
        flat: Sequence[int] = pad.attributes.get_ints("pads", ())
    else:
        array = array_of(input_at(pad, 1))
        flat = [] if array is None else [int(p) for p in array.reshape(-1)]
    half = len(flat) // 2
    axes = array_of(input_at(pad, 3)) if opset >= 18 else None
    if axes is None:
        rank, named = half, list(range(half))
    else:
        named = [int(a) for a in axes.reshape(-1)]
    if rank is None or not half or len(flat) != 2 * half or len(named) != half:
        return None
    named = [axis + rank if axis < 0 else axis for axis in named]
    if len(set(named)) != half or not all(0 <= axis < rank for axis in named):
        return None
    found = dict(zip(named, zip(flat[:half], flat[half:], strict=True), strict=True))
    return [found.get(axis, (0, 0)) for axis in range(rank)]


def _own_pads(node: ir.Node, spatial: int) -> list[int]:
    """The pads attribute, zeros where it does not hold: begins, then ends."""
    if node.attributes.get_string("auto_pad", "NOTSET") == "VALID" or "pads" not in node.attributes:
        return [0] * (2 * spatial)
    return list(node.attributes.get_ints("pads", ()))


def _joined_pads(node: ir.Node, pads: list[tuple[int, int]]) -> list[int]:
    spatial = pads[2:]
    added = [begin for begin, _ in spatial] + [end for _, end in spatial]
    return [own + more for own, more in zip(_own_pads(node, len(spatial)), added, strict=True)]
