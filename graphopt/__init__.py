"""graphopt: run a recipe of graph passes over a trained network, and prove what each did to the numbers.

>>> import graphopt
>>> smaller = graphopt.optimize("model.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt._deferred import defer_sympy

if TYPE_CHECKING:
    from graphopt.api import Inspection, RunResult, convert, inspect, load, optimize, run, save, verify
    from graphopt.errors import GraphoptError
    from graphopt.live import from_keras, from_torch
    from graphopt.registry import Pass, PassResult, register

__version__ = "0.1.0"

__all__ = [
    "GraphoptError",
    "Inspection",
    "Pass",
    "PassResult",
    "RunResult",
    "__version__",
    "convert",
    "from_keras",
    "from_torch",
    "inspect",
    "load",
    "optimize",
    "register",
    "run",
    "save",
    "verify",
]

defer_sympy()

_HOMES = {
    "GraphoptError": "errors",
    "Pass": "registry",
    "PassResult": "registry",
    "from_keras": "live",
    "from_torch": "live",
    "register": "registry",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: ``import graphopt`` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"graphopt.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
