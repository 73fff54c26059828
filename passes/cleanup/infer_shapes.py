"""Write inferred types and shapes into the model."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.analyses.dims import Dim, declarable
from graphopt.graph import scopes
from graphopt.registry import Pass, PassResult, Refusal, register

__all__ = ["InferShapes"]


@register
@dataclasses.dataclass(eq=False)
class InferShapes(Pass):
    """Write inferred element types and shapes into the model, for tools that read them.

    1. A value without type or shape gets what is inferred.
    2. An open axis of a declared shape gets its inferred size or name; a name or size that is declared stays.
       Only names of input axes, and expressions of these, are written: any other name would mean nothing.
    3. Where the declared rank or a declared size contradicts what is inferred, the declaration is kept and
       named in the report.

    Declarations of graph inputs and outputs are never changed, nor is anything inside of functions, whose
    shapes differ from call to call.
    """

    name = "infer-shapes"
    source = "graphopt.analyses.shapes"

    def call(self, model: ir.Model) -> PassResult:
        """Write what is inferred into the value infos of the main graph and its subgraphs."""
        inferred = shapes.infer(model)
        in_functions = {id(g) for f in model.functions.values() for g in (f.graph, *f.subgraphs())}
        graphs = [g for g, _ in scopes(model) if id(g) not in in_functions]
        values = [v for g in graphs for node in g for v in node.outputs if v.name]
        refusals = [Refusal(self.name, "model", inferred.problem)] if inferred.problem else []
        changed = 0
        for value in values:
            reason = _contradiction(value, inferred[value])
            if reason:
                refusals.append(Refusal(self.name, f"'{value.name}'", reason))
            elif not value.is_graph_output():
                changed += _write(value, inferred[value])
        typed = sum(v.type is not None and v.shape is not None for v in values)
        return PassResult(model, changed > 0, f"typed {typed} of {len(values)} values", refusals)


def _contradiction(value: ir.Value, known: shapes.Inferred) -> str:
    if value.dtype is not None and known.dtype is not None and value.dtype != known.dtype:
        return f"declared is {value.dtype.name}, inferred is {known.dtype.name}"
    if value.shape is None or known.shape is None:
        return ""
    pairs = list(zip(value.shape.dims, known.shape.dims, strict=False))
    differs = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    if len(value.shape) != len(known.shape) or differs:
        return f"declared is {value.shape}, inferred is {known.shape}"
    return ""


def _write(value: ir.Value, known: shapes.Inferred) -> bool:
    """Fill what ``value`` leaves open; True where that changed something."""
    changed = False
    if value.type is None and known.dtype is not None:
        value.type, changed = ir.TensorType(known.dtype), True
    shape = declarable(known.dims)
    if shape is None or not isinstance(value.type, ir.TensorType):
        return changed
    if value.shape is None:
        value.shape = shape
        return True
    dims = [_more_specific(a, b) for a, b in zip(value.shape.dims, shape.dims, strict=True)]
    if dims == list(value.shape.dims):
        return changed
    value.shape = ir.Shape(dims, [value.shape.get_denotation(i) for i in range(len(dims))])
    return True


def _more_specific(declared: Dim, known: Dim) -> Dim:
    if isinstance(declared, int):
        return declared
    return known if isinstance(known, int) or declared.value is None else declared
