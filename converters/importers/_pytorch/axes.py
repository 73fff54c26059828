"""The axes of an exported graph: the user's names, and what the exporter says wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.converters.importers._pytorch.subject import Subject
from graphopt.graph import all_nodes
from graphopt.references import References

__all__ = ["correct", "name_axes"]

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def name_axes(model: ir.Model, subject: Subject) -> list[str]:
    """Give the inputs the user's names of axes, everywhere; the free axes that came out as numbers."""
    names: dict[str, str] = {}
    lost = []
    for value, spec in zip(model.graph.inputs, subject.inputs, strict=True):
        assert value.shape is not None
        for number, (axis, wanted) in enumerate(zip(value.shape, spec.shape, strict=True)):
            if isinstance(wanted, str) and isinstance(axis, int):
                lost.append(f"{spec.name}[{number}]")
            elif isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                names.setdefault(str(axis.value), wanted if isinstance(wanted, str) else str(axis.value))
    _rename(model, names)
    return lost


def _rename(model: ir.Model, names: Mapping[str, str]) -> None:
    values = [*model.graph.inputs, *model.graph.outputs, *(v for n in all_nodes(model) for v in n.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(axis, names) for axis in value.shape])


def _renamed(axis: Any, names: Mapping[str, str]) -> Any:
    if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
        return ir.SymbolicDim(names.get(str(axis.value), str(axis.value)))
    return axis


def correct(model: ir.Model, made: References) -> bool:
    """Take back sizes that the exporter declares and that are not so; whether anything changed.

    torch unrolls recurrent layers to find out their shapes, and then takes their length for a constant. So an
    axis of an output that came out at other sizes is free, and what is said of values inside is forgotten.
    A free axis of an output is called as the one axis of the inputs that always has its size.
    """
    changed = _correct_outputs(model, made)
    outputs = set(model.graph.outputs)
    if any(node.op_type in _RECURRENT for node in all_nodes(model)):
        for value in [v for n in all_nodes(model) for v in n.outputs if v not in outputs]:
            value.shape = None
            changed = True
    return changed


def _correct_outputs(model: ir.Model, made: References) -> bool:
    free = _free_axes(model, made)
    names: dict[str, str] = {}
    changed = False
    for output in model.graph.outputs:
        if output.shape is None or not all(output.name in outputs for outputs in made.outputs):
            continue
        axes = list(output.shape)
        seen = zip(*(outputs[str(output.name)].shape for outputs in made.outputs), strict=True)
        for number, (axis, sizes) in enumerate(zip(axes, seen, strict=True)):
            same = [name for name, known in free.items() if known == sizes]
            called = same[0] if len(same) == 1 else None
            if isinstance(axis, int) and any(size != axis for size in sizes):
                axes[number] = ir.SymbolicDim(called)
            elif isinstance(axis, ir.SymbolicDim) and called and str(axis.value) not in free:
                names[str(axis.value)] = called
        if axes != list(output.shape):
            output.shape = ir.Shape(axes)
            changed = True
    _rename(model, names)
    return changed or bool(names)


def _free_axes(model: ir.Model, made: References) -> dict[str, tuple[int, ...]]:
    """The free axes of the inputs that came at several sizes, with these."""
    free: dict[str, tuple[int, ...]] = {}
    for value in model.graph.inputs:
        for number, axis in enumerate(value.shape or ()):
            sizes = tuple(feed[str(value.name)].shape[number] for feed in made.feeds)
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None and len(set(sizes)) > 1:
                free[str(axis.value)] = sizes
    return free
