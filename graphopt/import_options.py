"""What a user may say about an import, beside the source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import InputError
from graphopt.limits import IMPORT_SECONDS

__all__ = ["ImportOptions", "InputSpec"]

_SPEC = re.compile(r"(?P<name>[^=\[\]]+)=(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\]")
_SIZE = re.compile(r"[1-9]\d*|0")
_AXIS = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class InputSpec:
    """An input as the user describes it: ``name=float32[batch,3,224,224]``.

    Attributes:
        name: The input's name.
        dtype: As numpy names it.
        shape: Sizes; a name is a free axis, the same in every input that has it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read ``name=dtype[axis,axis,...]``.

        Raises:
            InputError: It is not written so.
        """
        match = _SPEC.fullmatch(text.strip())
        axes = (
            [axis.strip() for axis in match["shape"].split(",")] if match and match["shape"].strip() else []
        )
        if match is None or not all(_SIZE.fullmatch(a) or _AXIS.fullmatch(a) for a in axes):
            raise InputError(f"input '{text}': write it as name=float32[batch,3,224,224]")
        shape = tuple(int(axis) if axis.isdigit() else axis for axis in axes)
        return cls(match["name"].strip(), match["dtype"], shape)


@dataclass(frozen=True)
class ImportOptions:
    """What a user may say about an import.

    Attributes:
        inputs: Inputs of sources that do not describe them (a TorchScript file, a factory).
        weights: A file of weights for sources without (a factory).
        allow_code: Let the file run the Python code it holds or names (a Lambda layer).
        custom_objects: Classes or functions that the file names, each as ``package.module:name``.
        signature: Which of a file's signatures to import; its default one where None.
        opset: Convert the result to this opset.
        seconds: Time for the import.
        memory: Bytes of memory for the import; most of the machine's where None.
        verify: Whether the result is compared with the framework's own outputs.
        samples: On how many samples.
        seed: Their seed.
    """

    inputs: tuple[InputSpec, ...] = ()
    weights: str | None = None
    allow_code: bool = False
    custom_objects: tuple[str, ...] = ()
    signature: str | None = None
    opset: int | None = None
    seconds: float = IMPORT_SECONDS
    memory: int | None = None
    verify: bool = True
    samples: int = 3
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the child."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImportOptions:
        """The options that :meth:`to_json` was called on."""
        inputs = tuple(InputSpec(i["name"], i["dtype"], tuple(i["shape"])) for i in data["inputs"])
        return cls(**{**data, "inputs": inputs, "custom_objects": tuple(data["custom_objects"])})

    def weights_file(self) -> Path | None:
        """The file of weights, if there is one."""
        return None if self.weights is None else Path(self.weights)
