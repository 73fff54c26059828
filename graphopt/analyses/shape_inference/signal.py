"""Fourier transforms."""

from __future__ import annotations

from graphopt.analyses.dims import fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Sizes, anew, rule

__all__: list[str] = []


@rule("DFT")
def _dft(op: Op) -> Inferred:
    """Sizes are certain only where the transform keeps its length and both halves of the spectrum."""
    data: Sizes = op.dims(0)
    if op.has(1) or op.integer("onesided", 0):
        return Inferred(op[0].dtype, anew(len(data)))
    return Inferred(op[0].dtype, (*data[:-1], 2))


@rule("STFT")
def _stft(op: Op) -> Inferred:
    return Inferred(op[0].dtype, (op.dims(0)[0], fresh(), fresh(), 2))
