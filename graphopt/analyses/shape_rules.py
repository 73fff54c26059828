"""Puts our rules in the place of those of ``onnx-shape-inference``, active only inside :mod:`shapes`.

The library is made for exporters, where a plausible shape is welcome; a rewrite needs a certain one. Every
rule of the standard domain is wrapped (:mod:`shape_corrections`, :mod:`shape_values`); outside of it only the
rules that were checked are used. Other users of the library in the same process see no change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.analyses.shape_corrections import AUDITED, CORRECTIONS, REPLACED
from graphopt.analyses.shape_dims import Dim, Rule
from graphopt.analyses.shape_values import Guard, propagate
from graphopt.graph import all_nodes, is_default_domain

__all__ = ["active"]

_LONGEST_EXPRESSION = 64
_active: ContextVar[bool] = ContextVar("graphopt_shape_rules", default=False)


@contextmanager
def active(model: ir.Model) -> Iterator[None]:
    """Within it, the library works by the rules of this module; elsewhere they do nothing."""
    _install()
    functions = {(domain, name) for domain, name, _ in model.functions}
    for operator in {(n.domain, n.op_type) for n in all_nodes(model) if not is_default_domain(n)}:
        if operator not in AUDITED or operator in functions:
            _replace(*operator)
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


@functools.cache
def _install() -> None:
    from onnx_shape_inference import registry

    registry.collect()
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    for name in sorted(names - {name for domain, name in REPLACED if domain == ""}):
        for version in registry.version_boundaries("", name):
            rule = registry.get("", name, version=version)
            if rule is not None:
                registry.register("", name, since_version=version)(_wrapped(rule))
    for domain, name in REPLACED:
        _replace(domain, name)


@functools.cache
def _replace(domain: str, name: str) -> None:
    """Put our rule, or none at all, in the place of what the library has for an operator."""
    from onnx_shape_inference import registry

    ours = REPLACED.get((domain, name))
    for version in {*([1] if ours else []), *registry.version_boundaries(domain, name)}:
        theirs = registry.get(domain, name, version=version)
        registry.register(domain, name, since_version=version)(_switched(theirs, ours or _know_nothing))


def _know_nothing(context: Any, node: ir.Node) -> None:
    """The rule of an operator whose results nobody vouches for."""


def _switched(theirs: Rule | None, ours: Rule) -> Rule:
    def infer(context: Any, node: ir.Node) -> None:
        if _active.get():
            ours(context, node)
            propagate(context, node, Guard(context, node))
        elif theirs is not None:
            theirs(context, node)

    return infer


def _wrapped(rule: Rule) -> Rule:
    @functools.wraps(rule)
    def infer(context: Any, node: ir.Node) -> None:
        if not _active.get():
            rule(context, node)
            return
        guard = Guard(context, node)
        rule(guard, node)
        correct = CORRECTIONS.get(node.op_type)
        if correct is not None:
            correct(context, node)
        _tidy(context, node)
        propagate(context, node, guard)

    return infer


def _tidy(context: Any, node: ir.Node) -> None:
    """New axes for expressions that the library writes but cannot read, and for those that grow long."""
    for output in node.outputs:
        if output.shape is None or output.shape.is_static():
            continue
        dims = [_tidied(context, d) for d in output.shape.dims]
        if dims != list(output.shape.dims):
            output.shape = ir.Shape(dims)


def _tidied(context: Any, dim: Dim) -> Dim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    if dim.value.isdecimal():
        return int(dim.value)
    if "ceiling(" in dim.value or len(dim.value) > _LONGEST_EXPRESSION:
        fresh: Dim = context.new_symbolic_dim()
        return fresh
    return dim
