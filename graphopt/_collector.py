"""The cyclic garbage collector, held while a graph is built or rewritten.

A model is one web of objects that refer to each other, and building or rewriting it makes many more. The
collector walks over all of them again and again, and finds nothing that is worth it: for a graph of 30,000
nodes it takes a fifth to a third of the time of loading and of the passes. What they leave behind in cycles
is collected afterwards. :class:`~graphopt.registry.Pass` holds it for one pass, the pipeline for a chain of
passes; whoever calls passes in a row may do so too, which saves a full collection in between.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collector_held"]


@contextlib.contextmanager
def collector_held() -> Iterator[None]:
    """Hold the collector for the length of a ``with`` block, unless it is off already."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
