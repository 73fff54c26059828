"""The recipes that ship with graphopt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from graphopt import recipe as recipes
from graphopt import yaml_source
from graphopt.errors import InputError
from graphopt.recipe import Recipe

__all__ = ["Target", "builtin_recipe", "optimize_recipe"]

#: A runtime that a model may be made special to.
Target = Literal["onnxruntime"]


def optimize_recipe(target_opset: int | None = None, target: Target | None = None) -> Recipe:
    """The recipe behind :func:`graphopt.optimize`: exact passes only.

    Args:
        target_opset: Convert to this opset first.
        target: ``"onnxruntime"``: let its own optimizer run last.

    Raises:
        InputError: The target is unknown.
    """
    recipe = recipes.from_data(_builtin_data("optimize"))
    if target not in (None, "onnxruntime"):
        raise InputError(f"unknown target '{target}'; known: onnxruntime")
    first = _steps({"convert-opset": {"target": target_opset}}) if target_opset is not None else ()
    last = _steps("ort-optimize") if target else ()
    return replace(recipe, passes=(*first, *recipe.passes, *last))


def _steps(*passes: Any) -> tuple[recipes.Step, ...]:
    return recipes.from_data({"version": 1, "passes": list(passes)}).passes


@functools.cache
def _builtin_data(name: str) -> Mapping[str, Any]:
    """A recipe that ships with graphopt as plain data, read once: that takes longer than a small model."""
    file = builtin_recipe(name)
    data: Mapping[str, Any] = yaml_source.parse(file.read_text(encoding="utf-8"), str(file)).data
    return data


def builtin_recipe(name: str) -> Path:
    """The file of a recipe that ships with graphopt: ``optimize`` or ``starter``."""
    return Path(str(resources.files("graphopt") / "recipes" / f"{name}.yaml"))
