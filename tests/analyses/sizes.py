"""Binds what shape inference says to what really came out."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx_ir as ir

_NAME = re.compile(r"[A-Za-z_][\w.]*")


def _broadcast(*sizes):
    return next((s for s in sizes if s != 1), 1)


_FUNCTIONS = {"floor": math.floor, "Min": min, "Max": max, "Broadcast": _broadcast}


class Sizes:
    """Sizes of axes by name; an axis that inference made up gets its size where it is first met."""

    def __init__(self, known):
        self.known = dict(known)

    def agrees(self, dim, real: int) -> bool:
        if isinstance(dim, int) or dim.value is None:
            return dim == real if isinstance(dim, int) else True
        text = dim.value
        if text in self.known:
            return self.known[text] == real
        text = re.sub(r"'([^']*)'", lambda odd: str(self.known[odd[1]]), text)
        if _NAME.fullmatch(text) and text not in self.known:
            assert text.startswith("_axis_"), text
            self.known[text] = real
        unknown = set(_NAME.findall(text)) - set(self.known) - set(_FUNCTIONS)
        if unknown:
            return True  # an expression of axes that were never met alone
        numbers = _NAME.sub(lambda name: str(self.known.get(name[0], name[0])), text)  # names may hold dots
        return eval(numbers.replace(";", ","), {"__builtins__": {}}, _FUNCTIONS) == real

    def contradiction(self, known, array) -> str:
        """What is wrong about ``known``, given what really came out; empty where nothing is."""
        if known.dtype is not None and known.dtype != ir.DataType.from_numpy(array.dtype):
            return f"type is {array.dtype}, inferred is {known.dtype}"
        if known.dims is not None:
            if len(known.dims) != array.ndim:
                return f"rank is {array.ndim}, inferred is {known.shape}"
            for dim, real in zip(known.dims, array.shape, strict=True):
                if not self.agrees(dim, real):
                    return f"shape is {array.shape}, inferred is {known.shape}"
        if known.constant is not None and not np.allclose(known.constant, array, 1e-5, 1e-5, equal_nan=True):
            return f"value is {array}, inferred is {known.constant}"
        for element, real in zip(
            known.elements or (), array.reshape(-1).tolist(), strict=known.elements is not None
        ):
            if not self.agrees(element, real):
                return f"elements are {array.tolist()}, inferred are {known.elements}"
        return ""
