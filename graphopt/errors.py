"""Every error a user can cause, as one tree.

::

    GraphoptError                 exit code 3 unless a subclass says otherwise
    ├── UserError                 2: what the user gave is at fault
    │   ├── RecipeError           2: the recipe, with file, line and column
    │   ├── InputError            2: a model, data file or option that cannot be used
    │   ├── OutputError           2: the result cannot be written where asked
    │   ├── MissingExtraError     2: an optional dependency is not installed
    │   └── UnsupportedError      2: the model holds something this step cannot handle
    ├── VerificationError         1: a verification failed and the recipe says stop
    ├── GateError                 1: a gate was not met and the recipe says stop
    └── DefectError               3: graphopt itself is wrong; please report it

The message is one line: what is wrong, where (file, node, pass, line of the recipe), what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "DefectError",
    "GateError",
    "GraphoptError",
    "InputError",
    "Location",
    "MissingExtraError",
    "OutputError",
    "RecipeError",
    "UnsupportedError",
    "UserError",
    "VerificationError",
]


class GraphoptError(Exception):
    """Base of all errors that graphopt raises on purpose."""

    exit_code: ClassVar[int] = 3


class UserError(GraphoptError):
    """What the user gave is at fault."""

    exit_code = 2


@dataclass(frozen=True)
class Location:
    """A place in a recipe; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class RecipeError(UserError):
    """The recipe cannot be used as written."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message)
        self.location = location


class InputError(UserError):
    """A model, data file or option that cannot be used."""


class OutputError(UserError):
    """The result cannot be written where asked; nothing was written."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'graphopt[{extra}]'")


class UnsupportedError(UserError):
    """The model holds something that this step cannot handle."""


class VerificationError(GraphoptError):
    """A pass changed the numbers beyond the tolerance and the recipe says stop."""

    exit_code = 1


class GateError(GraphoptError):
    """A gate was not met and the recipe says stop."""

    exit_code = 1


class DefectError(GraphoptError):
    """graphopt itself is wrong."""

    exit_code = 3
