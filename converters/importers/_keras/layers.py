"""Layers that are traced in another form than they run in, since tf2onnx cannot translate the latter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["traceable"]


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """While this lasts, ``TimeDistributed`` folds the axis of time into the batch.

    Keras calls the inner layer once for each step where it knows how many there are, else it maps it over
    time by TensorFlow's ``vectorized_map``, whose loops tf2onnx translates wrongly. What the layer computes
    is the same: it sees steps of different samples as one batch.
    """
    import keras

    layer = keras.layers.TimeDistributed
    own = layer.call

    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if mask is not None:
            return own(self, inputs, training=training, mask=mask)
        sizes = keras.ops.shape(inputs)
        flat = keras.ops.reshape(inputs, (-1, *sizes[2:]))
        given = {"training": training} if self.layer._call_has_training_arg else {}
        result = self.layer.call(flat, **given)
        return keras.ops.reshape(result, (-1, sizes[1], *keras.ops.shape(result)[1:]))

    layer.call = call
    try:
        yield
    finally:
        layer.call = own
