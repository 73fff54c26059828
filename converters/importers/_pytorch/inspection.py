"""Which kind of PyTorch file a file is, found out before torch sees it; and weights alone.

A ``.pt`` file is TorchScript, a state dict, or a pickled module, which runs code when it is loaded: the names
that its pickle would look up tell.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from graphopt.converters.importers._archive import check_archive, read_member
from graphopt.converters.importers._pytorch.pickles import foreign_names_of
from graphopt.errors import InputError
from graphopt.limits import PICKLE
from graphopt.runtime.evaluate import first_line

__all__ = ["Kind", "kind", "load_weights", "refusal"]

Kind = Literal["ExportedProgram", "TorchScript", "weights", "module", "pickle"]


def kind(source: Path) -> Kind:
    """What the file is.

    Raises:
        InputError: It is none of what torch writes, or a damaged one.
    """
    with source.open("rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":  # as torch tells them apart
        if start[:1] == b"\x80":  # PROTO, as torch wrote before 1.6
            return "pickle"
        raise InputError(f"'{source}': is nothing that torch writes, or is damaged")
    names = [member.filename for member in check_archive(source)]
    if any(name.endswith("/archive_format") for name in names):
        return "ExportedProgram"
    if any(name.endswith("/constants.pkl") for name in names):
        return "TorchScript"
    if "serialized_exported_program.json" in names:
        raise InputError(
            f"'{source}': is of a torch before 2.8, whose programs are pickles; load it there with "
            "torch.export.load and save it with a newer one"
        )
    data = next((name for name in names if name.endswith("/data.pkl")), None)
    if data is None:
        raise InputError(f"'{source}': is an archive, but nothing that torch writes")
    return "module" if foreign_names_of(source, data, read_member(source, data, PICKLE)) else "weights"


def refusal(source: Path, found: Kind) -> InputError:
    """Why a file that is no model on its own cannot be imported, and what can."""
    if found == "weights":
        return InputError(
            f"'{source}': holds weights only; give the code as well: graphopt convert package.module:factory "
            f"TARGET --weights {source} --input x=float32[batch,...]"
        )
    what = "a pickle of an old torch"
    if found == "module":
        data = next(m.filename for m in check_archive(source) if m.filename.endswith("/data.pkl"))
        what = f"a pickled module ({foreign_names_of(source, data, read_member(source, data, PICKLE))[0]})"
    return InputError(
        f"'{source}': holds {what}, which runs code when it is loaded; save it with torch.export.save, or "
        "give package.module:factory and --weights"
    )


def load_weights(source: Path) -> dict[str, torch.Tensor]:
    """A state dict from ``.safetensors``, or from ``.pt`` with ``weights_only``.

    Raises:
        InputError: The file holds something else.
    """
    if not source.is_file():
        raise InputError(f"'{source}': no such file")
    try:
        if source.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"'{source}': {_needed(source, error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise InputError(f"'{source}': holds no state dict (a dict of tensors)")
    return {str(name): value for name, value in state.items()}


def _needed(source: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
    if found:
        name = found[1] or found[2]
        return f"holds more than weights: {name}; save a state dict of tensors, or .safetensors"
    return f"cannot be read as weights: {first_line(error)}"
