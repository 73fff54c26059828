"""Casts of casts, where nothing is lost in between."""

from __future__ import annotations

from typing import Final, NamedTuple

import onnx_ir as ir

from graphopt.graph import describe
from graphopt.rewrite import Context, Rule, producer

__all__ = ["CastCast"]

_T = ir.DataType
#: For each integer type its smallest and largest number.
_RANGES: Final = {
    _T.BOOL: (0, 1),
    **{dtype: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for dtype, bits in
       ((_T.INT8, 8), (_T.INT16, 16), (_T.INT32, 32), (_T.INT64, 64))},
    **{dtype: (0, 2**bits - 1) for dtype, bits in
       ((_T.UINT8, 8), (_T.UINT16, 16), (_T.UINT32, 32), (_T.UINT64, 64))},
}  # fmt: skip
#: For each float type the largest integer up to which it has all, and the float types it contains.
_FLOATS: Final[dict[ir.DataType, tuple[int, frozenset[ir.DataType]]]] = {
    _T.FLOAT16: (2**11, frozenset()),
    _T.BFLOAT16: (2**8, frozenset()),
    _T.FLOAT: (2**24, frozenset({_T.FLOAT16, _T.BFLOAT16})),
    _T.DOUBLE: (2**53, frozenset({_T.FLOAT16, _T.BFLOAT16, _T.FLOAT})),
}


class Match(NamedTuple):
    """A Cast and the one before it."""

    cast: ir.Node
    before: ir.Node


class CastCast(Rule[Match]):
    """Cast of a Cast to a type that holds every number of the first one: one Cast, or none.

    Left alone: a type in between that rounds or wraps (float to float16 to float), floats on the way to
    integers (what is out of range may come out otherwise), types of unknown or of less than 8 bits.
    """

    name = "cast-cast"
    roots = ("Cast",)

    def match(self, node: ir.Node) -> Match | None:
        """Two Casts in a row."""
        before = producer(node.inputs[0], node, "Cast")
        return None if before is None else Match(node, before)

    def check(self, match: Match, context: Context) -> str | None:
        """A lossless first Cast."""
        source = match.before.inputs[0]
        first = context.infer(source).dtype if source is not None else None
        middle, last = (ir.DataType(node.attributes.get_int("to", 0)) for node in reversed(match))
        if first is None:
            return f"the type of the input of {describe(match.before)} is unknown"
        if not _holds(middle, first):
            return f"{middle.name} does not hold every number of {first.name}"
        if last not in _FLOATS and last not in _RANGES:
            return f"{last.name} is no plain number"
        if first in _FLOATS and last in _RANGES and first != last:
            return f"{first.name} may be out of the range of {last.name}"
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """One Cast from the first type, or the value that has the last type already."""
        source, output = match.before.inputs[0], match.cast.outputs[0]
        assert source is not None
        if context.infer(source).dtype == ir.DataType(match.cast.attributes.get_int("to", 0)):
            context.redirect(output, source, like=match.cast)
            return
        context.replace(output, "Cast", [source], match.cast.attributes.values(), like=match.cast)


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    if wide == narrow:
        return wide in _FLOATS or wide in _RANGES
    if wide in _RANGES:
        low, high = _RANGES[wide]
        return narrow in _RANGES and low <= _RANGES[narrow][0] and _RANGES[narrow][1] <= high
    if wide not in _FLOATS:
        return False
    largest, contained = _FLOATS[wide]
    return narrow in contained or (narrow in _RANGES and max(map(abs, _RANGES[narrow])) <= largest)
