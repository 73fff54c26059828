"""Keras models of many kinds, through ``from_keras`` where no file is needed."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

import graphopt
from graphopt.api import ImportOptions
from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.importing import import_source

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own


@pytest.fixture(scope="module")
def keras():
    import keras

    keras.utils.set_random_seed(0)
    return keras


def ops(model):
    return Counter(node.op_type for node in model.graph)


def test_a_sequential_has_the_names_of_its_ends(keras):
    network = keras.Sequential(
        [keras.Input((8, 8, 3), name="picture"), keras.layers.Conv2D(4, 3), keras.layers.Flatten(name="flat")]
    )
    model = graphopt.from_keras(network)
    assert [value.name for value in model.graph.inputs] == ["picture"]
    assert [value.name for value in model.graph.outputs] == ["flat"]
    assert [str(axis) for axis in model.graph.inputs[0].shape] == ["batch", "8", "8", "3"]


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (lambda layers: layers.GRU(4), "GRU"),
        (lambda layers: layers.GRU(4, reset_after=False, return_sequences=True), "GRU"),
        (lambda layers: layers.SimpleRNN(4, activation="relu"), "RNN"),
        (lambda layers: layers.LSTM(4, return_sequences=True), "LSTM"),
    ],
)
def test_recurrent_layers_become_one_node(keras, layer, operator):
    network = keras.Sequential([keras.Input((None, 6), name="steps"), layer(keras.layers)])
    model = graphopt.from_keras(network)
    found = ops(model)
    assert found[operator] == 1
    assert not found["Loop"]
    assert sum(found.values()) <= 4
    assert [str(axis) for axis in model.graph.inputs[0].shape] == ["batch", "steps_1", "6"]


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(keras, approximate):
    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    network.add(keras.layers.Activation(lambda x: keras.activations.gelu(x, approximate=approximate)))
    model = graphopt.from_keras(network, options=ImportOptions(opset=20))
    assert ops(model) == {"Gemm": 1, "Gelu": 1} or ops(model) == {"MatMul": 1, "Gelu": 1}


def test_statistics_of_a_normalization_are_constants(keras):
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).random((32, 4, 4, 3)))
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Rescaling(0.5), normalization, keras.layers.Conv2D(2, 3)]
    )
    assert len(graphopt.from_keras(network).graph.inputs) == 1


def test_time_is_folded_into_the_batch(keras):
    layers = keras.layers
    inner = [layers.TimeDistributed(layers.Conv2D(4, 3)), layers.TimeDistributed(layers.GlobalMaxPooling2D())]
    for frames in (None, 3):
        model = graphopt.from_keras(keras.Sequential([keras.Input((frames, 8, 8, 3)), *inner]))
        found = ops(model)
        assert found["Conv"] == 1
        assert not found["Loop"]
        inner = [
            layers.TimeDistributed(layers.Conv2D(4, 3)),
            layers.TimeDistributed(layers.GlobalMaxPooling2D()),
        ]


def test_a_convolutional_network_keeps_no_transpose_inside(keras):
    layers = keras.layers
    picture = keras.Input((16, 16, 3))
    found = layers.SeparableConv2D(8, 3, padding="same", activation="silu")(picture)
    scale = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(found))
    found = layers.Conv2D(4, 1)(found * layers.Conv2D(8, 1, activation="sigmoid")(scale))
    model = graphopt.from_keras(keras.Model(picture, layers.ZeroPadding2D()(found)))
    assert ops(model)["Transpose"] <= 2


def test_operators_in_hdf5(keras, tmp_path):
    """Keras writes ``x + y`` and ``x != 0`` into .h5 files, and cannot read them."""
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="ids")
    embedded = layers.Embedding(20, 8, mask_zero=True)(ids)
    attended = layers.MultiHeadAttention(2, 4)(embedded, embedded)
    keras.Model(ids, layers.LSTM(4, name="last")(attended + embedded * 2.0)).save(tmp_path / "model.h5")
    model, report = import_source(str(tmp_path / "model.h5"))
    assert report.max_rel < 1e-5
    assert [value.name for value in model.graph.outputs] == ["last"]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_keras_2(tmp_path):
    import tf_keras

    layers = tf_keras.layers
    network = tf_keras.Sequential(
        [
            layers.Input((5, 6)),
            layers.LSTM(4, return_sequences=True, time_major=False),
            layers.Bidirectional(layers.LSTM(3)),
        ]
    )
    network.save(tmp_path / "old.h5")
    model, report = import_source(str(tmp_path / "old.h5"))
    assert "tf_keras" in report.versions
    assert ops(model)["LSTM"] == 2
    assert report.max_rel < 1e-5


def test_a_saved_model_of_half_floats_with_several_outputs(keras, tmp_path):
    half = keras.DTypePolicy("mixed_float16")
    data = keras.Input((6,), name="data")
    shared = keras.layers.Dense(8, dtype=half)(data)
    outputs = [keras.layers.Dense(size)(shared) for size in range(2, 14)]
    keras.Model(data, outputs).export(tmp_path / "saved", verbose=False)
    model, report = import_source(str(tmp_path / "saved"))
    assert [value.name for value in model.graph.outputs] == [f"output_{i}" for i in range(12)]
    assert [value.shape[1] for value in model.graph.outputs] == list(range(2, 14))
    assert report.max_rel < 1e-3


def test_what_tf2onnx_gets_wrong_is_an_error(keras, tmp_path):
    layers = keras.layers
    network = keras.Sequential([keras.Input((None, 8, 8, 3)), layers.TimeDistributed(layers.Conv2D(4, 3))])
    network.export(tmp_path / "saved", verbose=False)
    with pytest.raises(UnsupportedError, match=r"Failed to convert node .*Conv2D.*fixed size") as caught:
        import_source(str(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


def test_a_class_of_the_user(keras, tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x * 2

    keras.Sequential([keras.Input((4,)), Mine()]).save(tmp_path / "mine.keras")
    with pytest.raises(GraphoptError, match=r"--custom-object package\.module:Mine"):
        import_source(str(tmp_path / "mine.keras"))


def test_stateful_layers_are_refused(keras):
    layers = [keras.Input(batch_shape=(2, 3, 6)), keras.layers.LSTM(4, stateful=True)]
    with pytest.raises(UnsupportedError, match="stateful"):
        graphopt.from_keras(keras.Sequential(layers))


def test_a_model_that_was_never_built_is_refused(keras):
    with pytest.raises(UnsupportedError, match="does not say what it takes"):
        graphopt.from_keras(keras.Sequential([keras.layers.Dense(3)]))
