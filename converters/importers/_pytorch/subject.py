"""What is exported: a module, the inputs it takes and the outputs it makes, all with names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from graphopt.errors import InputError, UnsupportedError
from graphopt.import_options import InputSpec

__all__ = ["Subject", "flatten", "with_examples"]

#: Sizes that free axes are tried at, the first axis (the batch) at 2: none divides a usual size by accident.
_SIZES = (12, 33, 64, 225, 1024, 16000)
#: Of images: where a small one is down to one pixel inside, exporters take it that it always is.
_IMAGE_SIZES = (192, 225, 64, 33, 12, 1024)
_BATCH = 2


@dataclass(frozen=True)
class Subject:
    """A module that is ready to be exported.

    Attributes:
        module: What is called.
        inputs: Its inputs in the order of the call; axes that are free have names.
        examples: A tensor for each.
        outputs: Names of its outputs, flat.
        keywords: Whether inputs are passed by name.
        program: The ExportedProgram that it comes from, if it does.
    """

    module: torch.nn.Module
    inputs: tuple[InputSpec, ...]
    examples: tuple[torch.Tensor, ...]
    outputs: tuple[str, ...]
    keywords: bool = False
    program: torch.export.ExportedProgram | None = None

    @property
    def scripted(self) -> bool:
        """Whether the module is TorchScript, which only its own exporter takes."""
        return isinstance(self.module, torch.jit.ScriptModule)

    def call(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The module on one set of inputs, without gradients."""
        names = [spec.name for spec in self.inputs]
        with torch.no_grad():
            if self.keywords:
                return self.module(**dict(zip(names, tensors, strict=True)))
            return self.module(*tensors)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same on arrays by input name; arrays by output name."""
        tensors = [torch.from_numpy(np.array(feed[spec.name])) for spec in self.inputs]
        return {name: value.numpy() for name, value in flatten(self.call(tensors), self.outputs).items()}


def with_examples(
    module: torch.nn.Module,
    inputs: tuple[InputSpec, ...],
    outputs: Sequence[str] = (),
    examples: Sequence[torch.Tensor] | None = None,
) -> Subject:
    """A subject with example inputs that the module runs on.

    Args:
        module: The module, in evaluation mode.
        inputs: What it takes; names that are all parameters of ``forward`` say which, others go by order.
        outputs: Names for its outputs; found in what it returns where empty.
        examples: The user's own; else free axes are tried at several sizes.

    Raises:
        InputError: The inputs do not fit the module.
        UnsupportedError: It runs at no size.
    """
    keywords = _by_keyword(module, inputs)
    failure: Exception | None = None
    for size, side in zip(_SIZES, _IMAGE_SIZES, strict=True):
        tensors = tuple(examples or (_example(s, side if len(s.shape) == 4 else size) for s in inputs))
        subject = Subject(module, inputs, tensors, tuple(outputs), keywords)
        try:
            result = subject.call(tensors)
        except Exception as error:  # noqa: BLE001 - the user's module may raise anything
            failure = error
            if examples is not None or not any(isinstance(a, str) for s in inputs for a in s.shape[1:]):
                break
            continue
        names = tuple(flatten(result, subject.outputs))
        return Subject(module, inputs, tensors, names, keywords)
    described = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in inputs)
    first = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
    raise UnsupportedError(f"the module does not run on {described}: {first}") from failure


def _by_keyword(module: torch.nn.Module, inputs: tuple[InputSpec, ...]) -> bool:
    """Whether the names of the inputs are needed to say which parameters they are."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    parameters = list(inspect.signature(module.forward).parameters)
    names = [spec.name for spec in inputs]
    return set(names) <= set(parameters) and parameters[: len(names)] != names


def _example(spec: InputSpec, size: int) -> torch.Tensor:
    """Noise for floats, ones for integers (an index, a length), False for booleans (a mask)."""
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"input '{spec.name}': no such dtype as '{spec.dtype}'")
    shape = [
        axis if isinstance(axis, int) else _BATCH if number == 0 else size
        for number, axis in enumerate(spec.shape)
    ]
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype) if dtype == torch.bool else torch.ones(shape, dtype=dtype)


def flatten(result: Any, names: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a result by name: the user's names, keys of a dict, else ``output``, ``output_1`` …

    Raises:
        InputError: The names are not as many as the tensors.
        UnsupportedError: There is no tensor, or one that numpy has no type for.
    """
    leaves = [
        (path, leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0] if torch.is_tensor(leaf)
    ]
    if not leaves:
        raise UnsupportedError("the module returns no tensor")
    if names and len(names) != len(leaves):
        raise InputError(f"{len(names)} output names for {len(leaves)} outputs")
    found: dict[str, torch.Tensor] = {}
    for number, (path, leaf) in enumerate(leaves):
        name = names[number] if names else _name(path, number)
        while not names and name in found:
            name = f"{name}_{number}"
        found[name] = leaf.detach()
    return found


def _name(path: Sequence[Any], number: int) -> str:
    keys = [str(k) for p in path if (k := getattr(p, "key", getattr(p, "name", None))) is not None]
    if keys:
        indices = [str(p.idx) for p in path if hasattr(p, "idx")]
        return "_".join([*keys, *indices])
    return "output" if number == 0 else f"output_{number}"
