"""The inputs of an exported graph, as the user knows them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.errors import UnsupportedError

__all__ = ["ordered_inputs"]


def ordered_inputs(model: ir.Model, names: Sequence[str], dtypes: Sequence[ir.DataType]) -> list[ir.Value]:
    """Put the inputs of the graph into this order; one that the exporter left out, as unused, comes back.

    Args:
        model: What the exporter made.
        names: Of all inputs of the source, in its order.
        dtypes: Their element types.

    Raises:
        UnsupportedError: The exporter made inputs of its own that something uses.
    """
    known = {value.name: value for value in model.graph.inputs}
    foreign = [str(name) for name, value in known.items() if name not in names and value.uses()]
    if foreign:
        raise UnsupportedError(f"the exporter made inputs of its own: {', '.join(foreign)}")
    inputs = [
        known.get(name) or ir.Value(name=name, type=ir.TensorType(dtype))
        for name, dtype in zip(names, dtypes, strict=True)
    ]
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    return inputs
