"""Keras models that the benchmark of importers imports: all kinds of layers, networks of keras.applications.

Weights are drawn. A fresh BatchNormalization does nothing, behind which deep networks give a constant: so
each gets statistics of a batch of noise. Most of the mean is left in: taking it away layer after layer makes
a drawn network turn the last digits of float32 into visible ones (30 times as large in ResNet50).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import Input, Sequential, layers

__all__ = ["MODELS", "build"]

#: Applications take pictures of any size; small ones keep the benchmark short.
_PICTURE = (96, 96, 3)


def build(name: str) -> keras.Model:
    """A model with its seeded weights."""
    keras.utils.set_random_seed(len(name))
    model = MODELS[name]()
    for layer in model.layers:
        if layer.weights and not isinstance(layer, layers.BatchNormalization | layers.Normalization):
            layer.set_weights([_drawn(w) for w in layer.get_weights()])
    _calibrate(model)
    return model


def _drawn(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Zeros, as biases start, would hide a bias that is lost."""
    generator = np.random.default_rng(weight.size)
    return (
        weight + generator.normal(0, 0.1, weight.shape).astype(weight.dtype) if not weight.any() else weight
    )


def _calibrate(model: keras.Model) -> None:
    normalizations = [la for la in model.layers if isinstance(la, layers.BatchNormalization)]
    if not normalizations:
        return
    shape = [size or 2 for size in model.inputs[0].shape[1:]]
    values = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    for layer in normalizations:
        before = np.asarray(keras.Model(model.inputs[0], layer.input)(values))
        axes = tuple(range(before.ndim - 1))
        mean = before.mean(axes) / 8
        weights = layer.get_weights()
        layer.set_weights([*weights[:-2], mean, np.square(before - mean).mean(axes)])


def _dense_gelu() -> keras.Model:
    return Sequential(
        [Input((8,)), layers.Dense(8, activation="gelu"), layers.Dense(3, activation="softmax")]
    )


def _cnn() -> keras.Model:
    return Sequential(
        [
            Input((28, 28, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )


def _conv1d() -> keras.Model:
    return Sequential(
        [
            Input((None, 6), name="signal"),
            layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
            layers.LeakyReLU(),
            layers.GlobalMaxPooling1D(),
            layers.Dense(2),
        ]
    )


def _conv3d() -> keras.Model:
    return Sequential(
        [Input((6, 8, 8, 2)), layers.Conv3D(4, 3), layers.MaxPooling3D(), layers.Flatten(), layers.Dense(2)]
    )


def _conv_lstm() -> keras.Model:
    return Sequential([Input((4, 8, 8, 2)), layers.ConvLSTM2D(4, 3, padding="same")])


def _lstm() -> keras.Model:
    return Sequential(
        [Input((None, 6)), layers.LSTM(8, return_sequences=True), layers.LSTM(8), layers.Dense(2)]
    )


def _gru() -> keras.Model:
    return Sequential(
        [Input((None, 6)), layers.GRU(8, return_sequences=True), layers.GRU(5), layers.Dense(2)]
    )


def _gru_reset_before() -> keras.Model:
    return Sequential([Input((None, 6)), layers.GRU(8, reset_after=False), layers.Dense(2)])


def _simple_rnn() -> keras.Model:
    return Sequential([Input((None, 6)), layers.SimpleRNN(8, activation="relu"), layers.Dense(2)])


def _bidirectional() -> keras.Model:
    return Sequential(
        [
            Input((None, 6)),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
            layers.Bidirectional(layers.GRU(4), merge_mode="sum"),
        ]
    )


def _masked_embedding() -> keras.Model:
    ids = Input((None,), dtype="int32", name="ids")
    found = layers.LSTM(8)(layers.Embedding(50, 16, mask_zero=True)(ids))
    return keras.Model(ids, layers.Dense(3, name="class")(found))


def _attention() -> keras.Model:
    tokens = Input((None, 16), name="tokens")
    attended = layers.MultiHeadAttention(2, 8)(tokens, tokens)
    return keras.Model(tokens, layers.LayerNormalization()(tokens + attended))


def _transposed() -> keras.Model:
    return Sequential(
        [Input((8, 8, 3)), layers.Conv2DTranspose(4, 3, strides=2, padding="same"), layers.UpSampling2D()]
    )


def _separable() -> keras.Model:
    return Sequential(
        [Input((16, 16, 3)), layers.DepthwiseConv2D(3), layers.SeparableConv2D(8, 3, activation="silu")]
    )


def _normalizations() -> keras.Model:
    picture = Input((8, 8, 8))
    found = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(picture))
    return keras.Model(picture, layers.GroupNormalization(4)(layers.LayerNormalization()(found)))


def _time_distributed() -> keras.Model:
    return Sequential(
        [
            Input((4, 16, 16, 3), name="frames"),
            layers.TimeDistributed(layers.Conv2D(4, 3, activation="relu")),
            layers.TimeDistributed(layers.GlobalAveragePooling2D()),
            layers.Dense(2),
        ]
    )


def _several() -> keras.Model:
    left, right = Input((8,), name="left"), Input((4,), name="right")
    joined = layers.concatenate([layers.Dense(4)(left), right])
    outputs = [layers.Dense(2, name="first")(joined), layers.Dense(3, name="second")(joined)]
    return keras.Model([left, right], outputs)


def _mixed_float16() -> keras.Model:
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return Sequential(
            [
                Input((16, 16, 3)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(4, dtype="float32"),
            ]
        )
    finally:
        keras.mixed_precision.set_global_policy(before)


def _preprocessing() -> keras.Model:
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).random((32, 16, 16, 3)))
    return Sequential([Input((16, 16, 3)), layers.Rescaling(1 / 255.0), normalization, layers.Conv2D(4, 3)])


def _residual() -> keras.Model:
    picture = Input((16, 16, 3), name="picture")
    stem = layers.Conv2D(8, 3, padding="same", activation="relu")(picture)
    found = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(stem))
    scale = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(found))
    found = layers.Multiply()([found, layers.Reshape((1, 1, 8))(scale)])
    found = layers.ReLU(6.0)(layers.Add()([stem, found]))
    return keras.Model(picture, layers.Dense(5)(layers.Flatten()(layers.ZeroPadding2D()(found))))


def _application(name: str, **options: Any) -> Callable[[], keras.Model]:
    return lambda: getattr(keras.applications, name)(
        weights=None, input_shape=_PICTURE, classifier_activation=None, classes=100, **options
    )


def _efficient_net() -> keras.Model:
    """For pictures of 0 to 255, which it divides: the samples of the benchmark are noise of size 1."""
    model = _application("EfficientNetB0")()
    stem = model.get_layer("stem_conv")
    stem.set_weights([weight * 255 for weight in stem.get_weights()])
    return _with_small_branches(model, "_project_bn")


def _res_net() -> keras.Model:
    return _with_small_branches(_application("ResNet50")(), "_3_bn")


def _with_small_branches(model: keras.Model, last: str) -> keras.Model:
    """Let residual branches start small, as such networks are trained (He et al. 2019, "Bag of tricks").

    Drawn ones of full size turn the last digits of float32 into visible ones.
    """
    for layer in model.layers:
        if layer.name.endswith(last):
            gamma, *others = layer.get_weights()
            layer.set_weights([gamma * 0.3, *others])
    return model


MODELS: dict[str, Callable[[], keras.Model]] = {
    "dense_gelu": _dense_gelu,
    "cnn": _cnn,
    "conv1d": _conv1d,
    "conv3d": _conv3d,
    "conv_lstm": _conv_lstm,
    "lstm": _lstm,
    "gru": _gru,
    "gru_reset_before": _gru_reset_before,
    "simple_rnn": _simple_rnn,
    "bidirectional": _bidirectional,
    "masked_embedding": _masked_embedding,
    "attention": _attention,
    "transposed": _transposed,
    "separable": _separable,
    "normalizations": _normalizations,
    "time_distributed": _time_distributed,
    "several": _several,
    "mixed_float16": _mixed_float16,
    "preprocessing": _preprocessing,
    "residual": _residual,
    "MobileNetV2": _application("MobileNetV2"),
    "MobileNetV3Small": _application("MobileNetV3Small", include_preprocessing=False),
    "EfficientNetB0": _efficient_net,
    "ResNet50": _res_net,
    "DenseNet121": _application("DenseNet121"),
    "Xception": _application("Xception"),
}
