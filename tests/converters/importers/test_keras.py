"""Keras files: what is refused before Keras sees it, and what imports."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from graphopt.converters.importers._keras.inspection import inspect_file, inspect_saved_model
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions

SOURCES = Path(__file__).parents[3] / "fixtures" / "sources"


@pytest.fixture
def keras_file(tmp_path):
    """The digits model with one more layer in its configuration."""

    def write(layer: dict, **members: bytes) -> Path:
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(SOURCES / "digits.keras") as old, zipfile.ZipFile(path, "w") as new:
            config = json.loads(old.read("config.json"))
            config["config"]["layers"].append(layer)
            new.writestr("config.json", json.dumps(config))
            new.writestr("model.weights.h5", old.read("model.weights.h5"))
            for name, content in members.items():
                new.writestr(name, content)
        return path

    return write


def layer(name: str, module: str = "keras.layers", registered: str | None = None, **config) -> dict:
    named = {"name": "suspect", **config}
    return {"class_name": name, "module": module, "registered_name": registered, "config": named}


@pytest.mark.parametrize("name", ["digits.keras", "digits.h5"])
def test_ordinary_files_pass(name):
    inspect_file(SOURCES / name, ImportOptions())


@pytest.mark.parametrize(
    ("suspect", "message"),
    [
        (layer("Lambda"), r"layer 'suspect' \(Lambda\) holds code; --allow-code lets it run"),
        (layer("TFSMLayer", filepath="/tmp/x"), r"\(TFSMLayer\) holds code"),
        (layer("get_file", "keras.utils"), r"is of keras\.utils: say --custom-object"),
        (layer("load_model", "keras.models"), r"is of keras\.models: say --custom-object"),
        (layer("system", "os"), r"is of os: say --custom-object package\.module:system"),
        (layer("Mine", "my.code", "my>Mine"), r"--custom-object package\.module:Mine"),
        (layer("StringLookup", vocabulary="/etc/passwd"), "reads '/etc/passwd'"),
        (layer("Dense", origin="http://example.org/x"), "reads 'http://example.org/x'"),
        (layer("Dense", activation={"class_name": "function", "config": "f", "module": "os"}), "holds code"),
    ],
)
def test_what_could_run_code_is_refused(keras_file, suspect, message):
    with pytest.raises(InputError, match=message) as caught:
        inspect_file(keras_file(suspect), ImportOptions())
    assert "\n" not in str(caught.value)


def test_a_file_that_is_an_archive_and_hdf5_is_what_its_suffix_says(tmp_path):
    archive, hdf5 = (SOURCES / "digits.keras").read_bytes(), (SOURCES / "digits.h5").read_bytes()
    for name, content in (("a.h5", archive + hdf5), ("a.keras", hdf5 + archive), ("b.keras", hdf5)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="the suffixes are"):
            inspect_file(tmp_path / name, ImportOptions())


def test_only_the_object_that_was_named_is_let_through(keras_file):
    options = ImportOptions(custom_objects=("my.code:Mine",))
    for suspect in (
        layer("system", "os", "X>Mine"),
        layer("Mine", "os"),
        layer("Mine", "my.code", "a>Other"),
    ):
        with pytest.raises(InputError, match="say --custom-object"):
            inspect_file(keras_file(suspect), options)


@pytest.mark.parametrize(
    "suspect",
    [layer("Dense", "keras.layers_evil"), layer("__typespec__", "builtins"), layer("TFOpLambda")],
)
def test_near_misses_of_the_allow_list(keras_file, suspect):
    with pytest.raises(InputError, match=r"say --custom-object|holds code"):
        inspect_file(keras_file(suspect), ImportOptions())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras itself
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_networks_that_keras_writes_pass(tmp_path, suffix):
    import keras

    given = keras.Input((7, 8))
    attended = keras.layers.MultiHeadAttention(2, 4)(given, given)
    masked = keras.layers.Bidirectional(keras.layers.LSTM(3))(attended * 2.0 + given)
    model = keras.Model(given, keras.layers.Dense(2, activation="gelu")(masked))
    model.compile("adam", "mse")
    model.save(tmp_path / f"model{suffix}")
    inspect_file(tmp_path / f"model{suffix}", ImportOptions())


def test_compiled_models_pass(keras_file):
    inspect_file(keras_file(layer("SeedGenerator", "keras.random")), ImportOptions())
    inspect_file(keras_file(layer("Adam", "keras.optimizers")), ImportOptions())


def test_a_cycle_of_groups_ends(tmp_path):
    with h5py.File(tmp_path / "cycle.h5", "w") as file:
        file.create_group("a")["again"] = file["/"]
    with pytest.raises(InputError, match="a group is in two places"):
        inspect_file(tmp_path / "cycle.h5", ImportOptions())


def test_an_empty_configuration(tmp_path):
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["model_config"] = h5py.Empty("f")
    with pytest.raises(InputError, match="damaged configuration"):
        inspect_file(tmp_path / "empty.h5", ImportOptions())


@pytest.mark.parametrize(
    "op", ["SaveV2", "RestoreV2", "MergeV2Checkpoints", "PrintV2", "WriteFile", "PyFunc"]
)
def test_operators_that_touch_files_in_a_signature(tmp_path, op):
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((SOURCES / "digits_saved_model" / "saved_model.pb").read_bytes())
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    inspect_saved_model(tmp_path, ImportOptions())  # its own saver's are ordinary
    graph = model.meta_graphs[0]
    served = set(graph.object_graph_def.concrete_functions)
    next(f for f in graph.graph_def.library.function if f.signature.name in served).node_def.add(
        op=op, name="x"
    )
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="files"):
        inspect_saved_model(tmp_path, ImportOptions())


def test_flags_allow_it(keras_file):
    inspect_file(keras_file(layer("Lambda")), ImportOptions(allow_code=True))
    options = ImportOptions(custom_objects=("my.code:Mine",))
    inspect_file(keras_file(layer("Mine", "my.code", "my>Mine")), options)


def test_other_members_and_damage(keras_file, tmp_path):
    with pytest.raises(InputError, match=r"member 'data\.pkl' is none of a Keras file"):
        inspect_file(keras_file(layer("Dense"), **{"data.pkl": b"x"}), ImportOptions())
    whole = (SOURCES / "digits.h5").read_bytes()
    for name in ("cut.keras", "cut.h5"):
        (tmp_path / name).write_bytes(whole[:5000])
        with pytest.raises(InputError, match="damaged"):
            inspect_file(tmp_path / name, ImportOptions())


def test_weights_alone_and_links(tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = np.zeros(3)
    with pytest.raises(InputError, match="holds weights only"):
        inspect_file(tmp_path / "weights.h5", ImportOptions())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["kernel"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(InputError, match="link to elsewhere"):
        inspect_file(tmp_path / "link.h5", ImportOptions())
