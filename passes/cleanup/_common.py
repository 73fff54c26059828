"""What the clean-up passes share: facts about single operators, and replacing values."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from graphopt.graph import array_of, is_default_domain

__all__ = ["WITH_BY_PRODUCTS", "inherit_type", "is_copying_dropout", "is_random", "redirect"]

#: Operators whose trailing outputs are by-products: leaving one out changes none of the others. Not
#: BatchNormalization, whose number of outputs chose the mode before opset 14, nor Split, whose number of
#: outputs is the number of pieces.
WITH_BY_PRODUCTS: Final = frozenset(
    {"Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN", "Unique"}
)

_RANDOM: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def is_random(node: ir.Node, opset: int) -> bool:
    """Whether two runs of the node on the same inputs may differ."""
    if node.op_type == "Dropout" and is_default_domain(node):
        return not is_copying_dropout(node, opset)
    return node.op_type in _RANDOM and is_default_domain(node)


def is_copying_dropout(node: ir.Node, opset: int) -> bool:
    """Whether a Dropout's first output is a copy of its input, as always in inference.

    Before opset 7 an attribute says so, since opset 12 an optional input; in between the operator has no
    training mode.
    """
    if opset < 7:
        attribute = node.attributes.get("is_test")
        return attribute is not None and not attribute.is_ref() and attribute.as_int() != 0
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = array_of(node.inputs[2])
    return training is not None and not training.any()


def inherit_type(new: ir.Value, old: ir.Value) -> None:
    """Give ``new`` what only ``old``, an equal value, says of type and shape; never part of an interface."""
    if new.producer() is None or new.is_graph_output():
        return
    if new.type is None:
        new.type = old.type
    if new.shape is None:
        new.shape = old.shape


def redirect(old: ir.Value, new: ir.Value) -> bool:
    """Make the nodes that read ``old`` read ``new``, and leave graph outputs; whether there were any."""
    uses = old.uses()
    for user, index in uses:
        user.replace_input_with(index, new)
    return bool(uses)
