"""Keeps onnx_ir from loading sympy before somebody computes with a symbolic size.

Importing sympy takes as long as all else that graphopt needs together, and 30 MB. onnx_ir imports it at its
top for arithmetic on sizes, which graphopt does by itself (``analyses/dims.py``). While onnx_ir is imported,
the two modules below become lazy ones (``importlib.util.LazyLoader``): they load when first looked into, for
whoever does. Nothing happens where sympy or onnx_ir is loaded already.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["defer_sympy"]

_SYMPY, _PARSER, _IMPORTER = "sympy", "onnx_ir._symbolic_shapes", "onnx_ir._core"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the two as lazy modules, where it is onnx_ir that asks."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (_SYMPY, _PARSER):
            return None
        asking = sys.modules.get(_IMPORTER)
        if asking is None or not getattr(asking.__spec__, "_initializing", False):
            return None
        if fullname == _PARSER:  # the last one
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def defer_sympy() -> None:
    """Let onnx_ir load without sympy, if neither is loaded yet."""
    if _SYMPY not in sys.modules and _IMPORTER not in sys.modules:
        sys.meta_path.insert(0, _Finder())
