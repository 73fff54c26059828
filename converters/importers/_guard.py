"""Defence in depth for a child that loads a model file: no program is started, no network reached, no name
looked up for a pickle.

What a file holds is looked at before its framework sees it; this hook catches what slipped through. It cannot
be taken out again, which is why it is only for a child process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from graphopt.errors import GraphoptError, InputError
from graphopt.runtime.evaluate import first_line

__all__ = ["forbid_code", "loading"]

_FORBIDDEN = frozenset(
    {
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.sendto",
        "subprocess.Popen",
        "urllib.Request",
    }
)


@contextlib.contextmanager
def loading(source: str, framework: str, *, pickles: bool = False) -> Iterator[None]:
    """Let a framework load a file under :func:`forbid_code`.

    Raises:
        InputError: It could not, in one line; what graphopt itself raises passes.
    """
    lift = forbid_code(source, pickles=pickles)
    try:
        yield
    except GraphoptError:
        raise
    except Exception as error:  # damaged files raise anything
        raise InputError(f"'{source}': {framework} cannot load it: {first_line(error)}") from error
    finally:
        lift()


def forbid_code(source: str, *, pickles: bool = False) -> Callable[[], None]:
    """From now on, what starts a program or reaches the network is an InputError that names ``source``.

    Args:
        source: The file that is loaded.
        pickles: Whether pickles may name classes and functions; without, that is refused as well.

    Returns:
        A function that lifts the ban, for when the file is loaded and the framework goes on alone.
    """
    forbidden = _FORBIDDEN if pickles else _FORBIDDEN | {"pickle.find_class"}
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in forbidden:
            detail = " ".join(str(a) for a in arguments[:2])[:80]
            raise InputError(f"'{source}': loading it tried to run code ({event} {detail}); it is refused")

    def lift() -> None:
        nonlocal active
        active = False

    sys.addaudithook(hook)
    return lift
