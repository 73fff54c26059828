"""The two exporters of PyTorch: dynamo, which reads the code, and TorchScript's, which records a run."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.onnx import symbolic_helper, symbolic_opset13, utils
from torch.utils import _pytree as pytree

from graphopt.converters.importers._pytorch.subject import Subject, flatten
from graphopt.limits import GIB

__all__ = ["dynamo", "torchscript"]

#: The newest that both exporters write.
_DYNAMO_OPSET = 20
_TORCHSCRIPT_OPSET = 20
#: The first in which the exporter has it.
_UNFLATTEN_OPSET = 13


def dynamo(subject: Subject, target: Path) -> None:
    """Export through ``torch.export``; axes that it cannot leave free come out as numbers."""
    if subject.scripted:
        raise TypeError("TorchScript is for its own exporter")
    failure: Exception | None = None
    for free in (_named_axes, _automatic_axes):
        try:
            with _quiet():
                program = _dynamo_program(subject, free(subject))
            program.save(str(target), external_data=_is_large(subject.module))
        except Exception as error:  # noqa: BLE001 - the exporters raise anything
            failure = failure or error
        else:
            return
    assert failure is not None
    raise failure


def _dynamo_program(subject: Subject, shapes: Any) -> Any:
    common: dict[str, Any] = {
        "dynamo": True,
        "opset_version": _DYNAMO_OPSET,
        "input_names": [spec.name for spec in subject.inputs],
        "output_names": list(subject.outputs),
        "verbose": False,
    }
    if subject.program is not None:
        return torch.onnx.export(subject.program, **common)
    names = [spec.name for spec in subject.inputs]
    if subject.keywords:
        given = dict(zip(names, subject.examples, strict=True))
        return torch.onnx.export(
            subject.module, (), kwargs=given, dynamic_shapes=dict(zip(names, shapes, strict=True)), **common
        )
    return torch.onnx.export(subject.module, subject.examples, dynamic_shapes=tuple(shapes), **common)


def _named_axes(subject: Subject) -> list[dict[int, Any]]:
    """One Dim for a name: the axes of one name have one size."""
    names = {axis for spec in subject.inputs for axis in spec.shape if isinstance(axis, str)}
    dims = {name: torch.export.Dim(name) for name in names}
    return [{i: dims[a] for i, a in enumerate(spec.shape) if isinstance(a, str)} for spec in subject.inputs]


def _automatic_axes(subject: Subject) -> list[dict[int, Any]]:
    """The exporter finds out which axes are free, and which are tied."""
    auto = torch.export.Dim.AUTO
    return [{i: auto for i, a in enumerate(spec.shape) if isinstance(a, str)} for spec in subject.inputs]


def torchscript(subject: Subject, target: Path) -> None:
    """Export by recording a run, TorchScript itself by its graph."""
    axes = {
        spec.name: {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in subject.inputs
    }
    arguments: Any = subject.examples
    if subject.keywords:
        arguments = (dict(zip([s.name for s in subject.inputs], subject.examples, strict=True)),)
    with _quiet(), _unflatten_with_rank():
        module = subject.module
        if subject.scripted and _has_dictionary(subject.call(subject.examples)):
            flat: Any = _Flat(module)
            module = torch.jit.trace(flat, subject.examples, check_trace=False)  # type: ignore[no-untyped-call]
        torch.onnx.export(
            module,
            arguments,
            str(target),
            dynamo=False,
            opset_version=_TORCHSCRIPT_OPSET,
            input_names=[spec.name for spec in subject.inputs],
            output_names=list(subject.outputs),
            dynamic_axes={name: free for name, free in axes.items() if free},
        )


def _has_dictionary(result: Any) -> bool:
    paths = [path for path, _ in pytree.tree_flatten_with_path(result)[0]]
    return any(isinstance(key, pytree.MappingKey) for path in paths for key in path)


class _Flat(torch.nn.Module):
    """TorchScript that returns a dictionary, which its exporter does not know, tensor by tensor."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of ``subject.flatten``."""
        return tuple(flatten(self.module(*given)).values())


@contextlib.contextmanager
def _unflatten_with_rank() -> Iterator[None]:
    """The exporter's own unflatten forgets the rank, which nn.MultiheadAttention as TorchScript needs."""
    utils.register_custom_op_symbolic("aten::unflatten", _unflatten, _UNFLATTEN_OPSET)
    try:
        yield
    finally:
        utils.unregister_custom_op_symbolic("aten::unflatten", _UNFLATTEN_OPSET)


def _unflatten(g: Any, value: Any, dim: Any, sizes: Any) -> Any:
    rank, axis = symbolic_helper._get_tensor_rank(value), symbolic_helper._maybe_get_const(dim, "i")
    count = symbolic_helper._get_tensor_sizes(sizes)
    if symbolic_helper._is_packed_list(sizes):
        count = [len(symbolic_helper._unpack_list(sizes))]
    if rank is None or not isinstance(axis, int) or not count or count[0] is None:
        return symbolic_opset13.unflatten(g, value, dim, sizes)
    axis %= rank
    shape = g.op("Shape", value)
    head = symbolic_helper._slice_helper(g, shape, axes=[0], starts=[0], ends=[axis])
    tail = symbolic_helper._slice_helper(g, shape, axes=[0], starts=[axis + 1], ends=[rank])
    made = g.op("Reshape", value, g.op("Concat", head, sizes, tail, axis_i=0))
    made.setType(value.type().with_sizes([None] * (rank - 1 + count[0])))
    return made


def _is_large(module: torch.nn.Module) -> bool:
    total: int = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    return total > GIB


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn; what matters comes as an exception."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
