"""Loading, checking and saving models that are what they claim to be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt import _writer, io
from graphopt.errors import InputError, OutputError

SMALL = """<ir_version: 8, opset_import: ["" : 17], producer_name: "tests">
g (float[N,8] x) => (float[N,4] y)
<float[8] bias = {1, 2, 3, 4, 5, 6, 7, 0.1}, int64[2] shape = {-1, 8}>
{
  r = Reshape(x, shape)
  b = Add(r, bias)
  y = MatMul(b, w)
}"""
RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 4)).astype(np.float32)


def model_with(more: dict[str, np.ndarray | ir.TensorProtocol]) -> ir.Model:
    """SMALL with these initializers added."""
    model = ir.from_proto(onnx.parser.parse_model(SMALL))
    for name, data in more.items():
        tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
        value = next((i for node in model.graph for i in node.inputs if i and i.name == name), None)
        value = value or ir.Value(name=name)
        value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        model.graph.register_initializer(value)
    return model


def large() -> ir.Model:
    """``w`` is used, ``big`` (4 KiB), ``bigger`` (2 MiB) and ``half`` are there to be stored."""
    return model_with(
        {
            "w": W,
            "big": RNG.standard_normal((16, 64)).astype(np.float32),
            "bigger": RNG.integers(0, 99, (512, 512), dtype=np.int64),
            "half": RNG.standard_normal(600).astype(np.float16),
        }
    )


def weights(model: ir.Model) -> dict[str, tuple[ir.DataType, tuple[int, ...], bytes]]:
    """Every initializer's type, shape and bytes."""
    found = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            strings = tensor.dtype == ir.DataType.STRING
            data = b"\0".join(tensor.string_data()) if strings else tensor.tobytes()
            found[name] = (tensor.dtype, tuple(tensor.shape.numpy()), data)
    return found


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# The structure without weights


def test_structure_replaces_large_initializers_and_leaves_the_model():
    model = large()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    proto = io.structure_proto(model)
    by_name = {t.name: t for t in proto.graph.initializer}
    assert by_name["bias"].data_location == onnx.TensorProto.DEFAULT
    assert ir.from_proto(by_name["bias"]).numpy().tolist() == [1, 2, 3, 4, 5, 6, 7, np.float32(0.1)]
    placeholder = by_name["bigger"]
    assert placeholder.data_location == onnx.TensorProto.EXTERNAL
    assert not placeholder.raw_data
    assert list(placeholder.dims) == [512, 512]
    assert placeholder.data_type == onnx.TensorProto.INT64
    assert {e.key: e.value for e in placeholder.external_data} == {
        "location": io.IN_MEMORY,
        "length": str(512 * 512 * 8),
    }
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())
    assert proto.ByteSize() < 4096


def test_structure_threshold_is_a_number_of_bytes():
    model = large()
    everything = io.structure_proto(model, inline_below=0)
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in everything.graph.initializer)
    nothing = io.structure_proto(model, inline_below=1 << 40)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in nothing.graph.initializer)


def test_structure_keeps_the_place_of_external_data_and_reads_only_small_tensors(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    model = io.load(tmp_path / "m.onnx")
    small = ir.ExternalTensor(
        "m.onnx.data", 0, 8, ir.DataType.FLOAT, shape=ir.Shape([2]), name="s", base_dir=tmp_path
    )
    model.graph.register_initializer(ir.Value(name="s", const_value=small))
    stored = (tmp_path / "m.onnx.data").read_bytes()
    by_name = {t.name: t for t in io.structure_proto(model).graph.initializer}
    assert by_name["s"].raw_data == stored[:8]
    where = {e.key: e.value for e in by_name["big"].external_data}
    assert where["location"] == "m.onnx.data"
    at, length = int(where["offset"]), int(where["length"])
    assert stored[at : at + length] == model.graph.initializers["big"].const_value.tobytes()
    del model.graph.initializers["s"]
    (tmp_path / "m.onnx.data").unlink()
    io.structure_proto(model)  # would fail if it read the weights


def test_structure_covers_subgraphs_and_leaves_strings_inline():
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (bool c) => (float[2] y) <string[2] words = {"a", "b"}> {
              y = If (c) <
                then_branch = t () => (float[2] a) <float[2] inner = {1, 1}> { a = Identity(inner) },
                else_branch = e () => (float[2] b) { b = Constant <value = float[2] {2, 2}> () }>
            }"""
        )
    )
    proto = io.structure_proto(model, inline_below=1)
    (words,) = proto.graph.initializer
    assert list(words.string_data) == [b"a", b"b"]
    (inner,) = proto.graph.node[0].attribute[0].g.initializer
    assert inner.data_location == onnx.TensorProto.EXTERNAL
    assert weights(model)["inner"][2] == np.ones(2, np.float32).tobytes()


def test_structure_restores_the_model_when_serialization_fails():
    model = large()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    model.graph.doc_string = 3  # no string: onnx_ir fails on it
    with pytest.raises(ir.serde.SerdeError):
        io.structure_proto(model)
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())


# Round trips


@pytest.mark.parametrize("suffix", [".onnx", ".pb", ".onnxtxt", ".textproto", ".pbtxt", ".json", ".ONNX"])
def test_round_trip_keeps_weights_bit_for_bit(tmp_path, run, suffix):
    model = model_with({"w": W, "odd": np.array([np.inf, -0.0, 1e-45, 0.1], np.float32)})
    size = io.save(model, tmp_path / f"m{suffix}")
    again = io.load(tmp_path / f"m{suffix}")
    assert size == (tmp_path / f"m{suffix}").stat().st_size
    assert weights(again) == weights(model)
    assert [n.op_type for n in again.graph] == ["Reshape", "Add", "MatMul"]
    assert io.interface(again) == io.interface(model)
    assert again.opset_imports == {"": 17}
    feeds = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(again, feeds)[0], run(model, feeds)[0])


TYPES = [
    np.float32,
    np.float64,
    np.float16,
    np.int64,
    np.int32,
    np.int8,
    np.uint8,
    np.uint16,
    np.uint64,
    np.bool_,
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=st.sampled_from(TYPES).flatmap(
        lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
    ),
    external=st.booleans(),
)
def test_any_array_survives_saving(tmp_path, array, external):
    model = model_with({"w": W, "data": array})
    written = io.save(model, tmp_path / "m.onnx", external_data=external)
    assert written == bytes_in(tmp_path)
    assert weights(io.load(tmp_path / "m.onnx"))["data"] == weights(model)["data"]


@pytest.mark.parametrize("external", [False, True])
def test_packed_typed_and_unusual_tensors_survive_saving(tmp_path, external):
    halves = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT16, dims=[700], int32_data=range(700))
    words = [b"word %d" % i for i in range(400)]
    model = model_with(
        {
            "w": W,
            "halves": ir.serde.deserialize_tensor(halves),
            "words": ir.StringTensor(words, shape=ir.Shape([20, 20])),
            "four": ir.tensor(RNG.integers(-8, 8, (61, 51)).astype(ml_dtypes.int4)),
            "brain": ir.tensor(RNG.standard_normal(900).astype(ml_dtypes.bfloat16)),
            "turned": ir.Tensor(RNG.standard_normal((30, 40)).astype(np.float32).T),
            "lazy": ir.LazyTensor(lambda: ir.tensor(np.arange(500)), ir.DataType.INT64, ir.Shape([500])),
            "empty": np.zeros((0, 4), np.float32),
            "scalar": np.array(2.5, np.float64),
        }
    )
    expected, size = weights(model), io.serialized_size(model)
    written = io.save(model, tmp_path / "m.onnx", external_data=external)
    assert written == bytes_in(tmp_path)
    assert external or written == size
    assert weights(io.load(tmp_path / "m.onnx")) == expected


def test_single_file_is_what_protobuf_itself_would_write(tmp_path):
    model = large()
    io.save(model, tmp_path / "m.onnx")
    stored, serialized = onnx.load(tmp_path / "m.onnx"), ir.to_proto(model)
    onnx.checker.check_model(stored)
    implied = {t.name for t in serialized.graph.initializer}
    kept = [info for info in serialized.graph.value_info if info.name not in implied]
    del serialized.graph.value_info[:]
    serialized.graph.value_info.extend(kept)
    assert stored == serialized
    assert (tmp_path / "m.onnx").stat().st_size == serialized.ByteSize()


def test_text_that_would_lose_weights_is_refused(tmp_path):
    model = model_with({"w": W, "c": np.array([1 + 2j], np.complex64)})  # onnx's printer writes "..."
    with pytest.raises(OutputError, match=r"m\.onnxtxt': the ONNX text syntax cannot express"):
        io.save(model, tmp_path / "m.onnxtxt")
    assert not list(tmp_path.iterdir())
    io.save(model, tmp_path / "m.json")
    assert weights(io.load(tmp_path / "m.json")) == weights(model)


def test_text_has_no_external_data_and_a_size_limit(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"\.json files hold all weights"):
        io.save(large(), tmp_path / "m.json", external_data=True)
    monkeypatch.setattr(io, "TEXT_MODEL", 1000)
    with pytest.raises(OutputError, match="too large for text"):
        io.save(large(), tmp_path / "m.json")


def test_text_form_of_a_model_with_external_data_holds_the_weights(tmp_path):
    model = model_with({"w": W, "big": np.arange(500)})
    io.save(model, tmp_path / "m.onnx", external_data=True)
    io.save(io.load(tmp_path / "m.onnx"), tmp_path / "m.textproto")
    (tmp_path / "m.onnx.data").unlink()
    assert weights(io.load(tmp_path / "m.textproto")) == weights(model)


def test_metadata_and_names_survive(tmp_path):
    model = model_with({"w": W})
    node = next(iter(model.graph))
    node.name, node.metadata_props["origin"] = "the node", "layer 3"
    model.metadata_props["author"] = "tests"
    model.graph.inputs[0].metadata_props["unit"] = "volt"
    model.graph.initializers["w"].metadata_props["seen"] = "yes"
    io.save(model, tmp_path / "m.onnx")
    again = io.load(tmp_path / "m.onnx")
    node = next(iter(again.graph))
    assert (node.name, node.metadata_props["origin"]) == ("the node", "layer 3")
    assert again.metadata_props["author"] == "tests"
    assert again.producer_name == "tests"
    assert again.graph.inputs[0].metadata_props["unit"] == "volt"
    assert again.graph.initializers["w"].metadata_props["seen"] == "yes"


# External data


def test_external_data_goes_out_and_comes_back(tmp_path, run):
    model = large()
    written = io.save(model, tmp_path / "m.onnx", external_data=True)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert written == bytes_in(tmp_path)
    again = io.load(tmp_path / "m.onnx")
    external = {
        n for n, v in again.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)
    }
    assert external == {"big", "bigger", "half"}  # the rest is below 1 KiB
    assert again.graph.initializers["bigger"].const_value.offset % 4096 == 0
    assert again.graph.initializers["half"].const_value.offset % 64 == 0
    assert weights(again) == weights(model)
    onnx.checker.check_model(tmp_path / "m.onnx")
    feeds = {"x": np.ones((1, 8), np.float32)}
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "m.onnx"), feeds)[0], run(model, feeds)[0])


def test_relative_path_finds_external_data(tmp_path, monkeypatch):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    monkeypatch.chdir(tmp_path)
    model = io.load("m.onnx")
    monkeypatch.chdir("/")
    assert weights(model) == weights(ir.from_proto(onnx.load(tmp_path / "m.onnx")))


def test_saving_external_data_as_one_file_brings_it_in(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    model = io.load(tmp_path / "m.onnx")
    io.save(model, tmp_path / "one.onnx", external_data=False)
    expected = weights(model)
    (tmp_path / "m.onnx.data").unlink()
    assert weights(io.load(tmp_path / "one.onnx")) == expected


def test_small_models_become_one_file_by_themselves(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    io.save(io.load(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx.data").exists()


def test_large_models_get_external_data_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "EXTERNAL_DATA_ABOVE", 1 << 20)
    model = large()
    assert io.save(model, tmp_path / "m.onnx") == bytes_in(tmp_path)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 2 << 20
    monkeypatch.setattr(_writer, "EXTERNAL_DATA_ABOVE", 1 << 30)
    io.save(large(), tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx.data").exists()


def test_external_models_of_some_size_stay_external(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "EXTERNAL_DATA_KEPT_ABOVE", 1 << 20)
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    io.save(io.load(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx.data").exists()


def test_model_too_large_for_one_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_MAX", 1 << 20)
    with pytest.raises(OutputError, match="2 GiB of protobuf; write its weights as external data"):
        io.save(large(), tmp_path / "m.onnx", external_data=False)
    assert not list(tmp_path.iterdir())


EVERYWHERE = """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[4] x, bool c) => (float[4] y) {
  k = local.add_constant (x)
  y = If (c) <then_branch = t () => (float[4] a) <float[4] inner = {1, 2, 3, 4}> { a = Add(k, inner) },
              else_branch = e () => (float[4] b) {
                d = Constant <value = float[4] {5, 6, 7, 8}> ()
                b = Add(k, d) }>
}
<domain: "local", opset_import: ["" : 17]>
add_constant (p) => (q) { f = Constant <value = float[4] {9, 10, 11, 12}> () q = Add(p, f) }
"""


def externalized(folder: Path, more: dict[str, str]) -> None:
    """Write EVERYWHERE with every tensor of 4 floats in a data file: of subgraph, attribute and function."""
    proto = onnx.parser.parse_model(EVERYWHERE)
    branches = proto.graph.node[1].attribute
    tensors = [
        branches[0].g.initializer[0],
        branches[1].g.node[0].attribute[0].t,
        proto.functions[0].node[0].attribute[0].t,
    ]
    data = b""
    for tensor in tensors:
        entries = {"location": "sub/w.bin", "offset": str(len(data)), "length": "16", **more}
        data += np.array(tensor.float_data, np.float32).tobytes()
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(data)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("external", [False, True])
def test_external_data_in_subgraphs_attributes_and_functions(tmp_path, run, external):
    externalized(tmp_path, more={"comment": "a key that onnx does not know"})
    model = io.load(tmp_path / "m.onnx")
    io.check(model)
    assert io.external_files(model) == [tmp_path / "sub" / "w.bin"]
    (tmp_path / "out").mkdir()
    io.save(model, tmp_path / "out" / "n.onnx", external_data=external)
    before = ir.from_proto(onnx.parser.parse_model(EVERYWHERE))
    after = io.load(tmp_path / "out" / "n.onnx")
    for condition in (True, False):
        feeds = {"x": np.ones(4, np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(run(after, feeds)[0], run(before, feeds)[0])


def test_external_attributes_of_other_loaders_are_refused_not_broken(tmp_path):
    externalized(tmp_path, more={})
    model = ir.load(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        OutputError, match=r"attribute 'value' of Constant .* is in an external file; load the"
    ):
        io.save(model, tmp_path / "out" / "n.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_vanished_are_named(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    model = io.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    for external in (True, False):
        with pytest.raises(InputError, match=r"the data of tensor 'big' cannot be read: .*m\.onnx\.data"):
            io.save(model, tmp_path / "n.onnx", external_data=external)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx"}


def test_replaced_model_takes_its_data_file_along(tmp_path):
    target = tmp_path / "m.onnx"
    io.save(large(), target, external_data=True)
    (tmp_path / "m.onnx.7.data").write_bytes(b"not referenced by m.onnx")
    (tmp_path / "other.data").write_bytes(b"not named like ours")
    io.save(large(), target, external_data=True)
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.1.data", "m.onnx.7.data", "other.data"}
    second = weights(io.load(target))
    io.save(large(), target, external_data=True)
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data", "m.onnx.7.data", "other.data"}
    assert weights(io.load(target)).keys() == second.keys()
    io.save(large(), target)
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.7.data", "other.data"}


def test_data_file_that_the_saved_model_still_reads_is_kept(tmp_path):
    target = tmp_path / "m.onnx"
    io.save(large(), target, external_data=True)
    model = io.load(target)
    expected = weights(model)
    io.save(model, target, external_data=True)
    assert weights(io.load(target)) == expected
    assert (tmp_path / "m.onnx.data").exists()
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.release()
    assert weights(model) == expected


def test_external_files_are_remembered_when_passes_replace_the_tensors(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    model = io.load(tmp_path / "m.onnx")
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy())
    assert io.external_files(model) == [tmp_path / "m.onnx.data"]
    assert io.external_files(large()) == []


MEASURE = """
import resource, sys
from graphopt import io
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
start = peak()
model = io.load(sys.argv[1])
io.check(model)
size = io.serialized_size(model)
assert io.save(model, sys.argv[2], external_data=sys.argv[3] == "True") > 128 << 20
assert size > 128 << 20
print(peak() - start)
"""


@pytest.mark.parametrize("external", [True, False])
def test_weights_never_enter_memory(tmp_path, external):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,N] x) => (float[1,M] y) { y = MatMul(x, w) }'
    )
    tensor = proto.graph.initializer.add(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[4096, 8192], data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(128 << 20)  # a hole: takes no space
    command = [sys.executable, "-c", MEASURE, tmp_path / "m.onnx", tmp_path / "n.onnx", str(external)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 40  # MiB


# Sizes


def test_serialized_size_is_exact_for_one_file_and_close_for_two(tmp_path, monkeypatch):
    for name in ("a.onnx", "much-longer-name-of-a-model.onnx"):
        model = large()
        assert io.save(model, tmp_path / name) == io.serialized_size(model)
    monkeypatch.setattr(_writer, "EXTERNAL_DATA_ABOVE", 0)
    size = io.serialized_size(large())
    assert io.save(large(), tmp_path / "much-longer-name-of-a-model.onnx") == pytest.approx(size, rel=0.01)


# Targets


def test_saving_over_the_file_a_model_came_from(tmp_path):
    io.save(large(), tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    expected = weights(model)
    io.save(model, tmp_path / "m.onnx")
    assert weights(io.load(tmp_path / "m.onnx")) == expected


def test_symbolic_link_and_permissions_of_the_target_survive(tmp_path):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "v1.onnx", tmp_path / "latest.onnx"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    io.save(large(), link, external_data=True)
    assert link.is_symlink()
    assert {f.name for f in (tmp_path / "real").iterdir()} == {"v1.onnx", "v1.onnx.data"}
    assert real.stat().st_mode & 0o777 == 0o640
    assert weights(io.load(real)).keys() == weights(large()).keys()


def test_new_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    usual = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "m.onnx").stat().st_mode == (tmp_path / "m.onnx.data").stat().st_mode == usual


@pytest.mark.parametrize("name", ["m.tflite", "m", "m.txt"])
def test_unknown_target_format_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"is no ONNX format; known: \.onnx, \.pb"):
        io.save(large(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_model_that_cannot_be_serialized_is_one_line(tmp_path):
    model = large()
    model.graph.doc_string = 3
    with pytest.raises(OutputError, match=r"m\.onnx': the model cannot be serialized") as caught:
        io.save(model, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the model cannot be serialized"):
        io.check(model)


def test_write_json_is_atomic_text(tmp_path):
    assert (
        io.write_json({"b": [1, None], "a": "ä"}, tmp_path / "r.json") == (tmp_path / "r.json").stat().st_size
    )
    assert json.loads((tmp_path / "r.json").read_text()) == {"b": [1, None], "a": "ä"}
    with pytest.raises(OutputError, match=r"no/r\.json': the folder .* does not exist; create it first"):
        io.write_json({}, tmp_path / "no" / "r.json")


# Inputs that must not be overwritten


def test_outputs_that_are_inputs_are_refused(tmp_path, monkeypatch):
    source = tmp_path / "m.onnx"
    source.write_bytes(b"x")
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    monkeypatch.chdir(tmp_path)
    same = [
        source,
        Path("m.onnx"),
        Path("../") / tmp_path.name / "m.onnx",
        Path("link.onnx"),
        Path("hard.onnx"),
    ]
    for output in same:
        with pytest.raises(OutputError, match="would overwrite the input"):
            io.refuse_overwriting([tmp_path / "unrelated", source], [tmp_path / "fine.onnx", output])
    with pytest.raises(OutputError, match="would overwrite the input"):  # not there yet, but the same path
        io.refuse_overwriting([Path("new.onnx")], [tmp_path / "new.onnx"])
    io.refuse_overwriting([source], [tmp_path / "other.onnx"])


def test_saving_over_the_data_file_of_the_model_is_refused(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    (tmp_path / "m.onnx.data").rename(tmp_path / "weights.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights.onnx"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = io.load(tmp_path / "m.onnx")
    expected = (tmp_path / "weights.onnx").read_bytes()
    with pytest.raises(OutputError, match="would overwrite the input"):
        io.save(model, tmp_path / "weights.onnx")
    assert (tmp_path / "weights.onnx").read_bytes() == expected


# The checker


def test_check_accepts_what_is_valid_and_leaves_the_model(tmp_path):
    model = large()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    io.check(model)
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())
    io.save(model, tmp_path / "m.onnx", external_data=True)
    external = io.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    io.check(external)  # the checker itself would refuse a missing file


def test_check_accepts_domains_it_does_not_know():
    text = """<ir_version: 8, opset_import: ["" : 17, "com.example" : 3]>
    g (float[4] x) => (float[4] y) { h = com.example.Frobnicate <level = 3> (x) y = Relu(h) }"""
    io.check(ir.from_proto(onnx.parser.parse_model(text)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: setattr(next(iter(m.graph)), "op_type", "Reshipe"), "No Op registered for Reshipe"),
        (lambda m: m.graph.initializers.pop("bias"), "topologically sorted, however input 'bias'"),
        (lambda m: setattr(m, "ir_version", 999), "ir_version 999 is higher"),
        (lambda m: m.graph.inputs.__setitem__(0, ir.Value(name="x")), "not a valid ONNX model"),
    ],
)
def test_check_refuses_what_is_invalid_in_one_line(damage, message):
    model = large()
    damage(model)
    with pytest.raises(InputError, match=message) as caught:
        io.check(model)
    assert "\n" not in str(caught.value)


def test_check_bounds_function_expansion_before_the_checker_runs():
    model = io.from_proto(onnx.parser.parse_model(EVERYWHERE))
    (function,) = model.functions.values()
    function.append(ir.node("add_constant", [function.inputs[0]], domain="local"))
    with pytest.raises(InputError, match="function 'add_constant' calls itself"):
        io.check(model)


# Protos


def test_from_proto_works_on_a_copy():
    proto = onnx.parser.parse_model(SMALL.replace("MatMul(b, w)", "Identity(b)").replace("[N,4]", "[N,8]"))
    before = proto.SerializeToString()
    model = io.from_proto(proto)
    model.graph.initializers["bias"].name = "renamed"
    io.serialized_size(model)
    assert proto.SerializeToString() == before
    proto.graph.initializer[0].float_data[0] = 99
    assert weights(model)["renamed"][2][:4] == np.float32(1).tobytes()


def test_from_proto_refuses_external_data_and_bad_models(tmp_path):
    io.save(large(), tmp_path / "m.onnx", external_data=True)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(
        InputError, match="ModelProto: initializer 'big' is in an external file; load the model"
    ):
        io.from_proto(proto)
    with pytest.raises(InputError, match="no opset import"):
        io.from_proto(onnx.ModelProto())


# The interface


def interface_of(signature: str, opset: int = 17) -> io.Interface:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g {signature} {{ y = Identity(x) }}'
    return io.interface(ir.from_proto(onnx.parser.parse_model(text)))


def test_interface_tells_names_types_and_axes():
    found = interface_of("(float[N, 3, ?] x, seq(int64[2]) s) => (float[N, 3, ?] y)")
    assert found.inputs == (
        io.Port("x", "tensor(float)", ("N", 3, None)),
        io.Port("s", "seq(tensor(int64))", (2,)),
    )
    assert found.outputs == (io.Port("y", "tensor(float)", ("N", 3, None)),)
    assert found == interface_of("(float[N, 3, ?] x, seq(int64[2]) s) => (float[N, 3, ?] y)")
    assert found.difference(found) is None


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("(float[N,3] x2) => (float[N,3] y)", "the inputs were x; they are x2"),
        ("(float[N,3] x) => (float[N,3] y, float[N,3] x)", "the outputs were y; they are y, x"),
        (
            "(float16[N,3] x) => (float[N,3] y)",
            r"input 'x' was tensor\(float\)\[N, 3\]; it is tensor\(float16\)",
        ),
        ("(float[1,3] x) => (float[N,3] y)", r"input 'x' was tensor\(float\)\[N, 3\]; .*\[1, 3\]"),
        ("(float[M,3] x) => (float[N,3] y)", r"\[M, 3\]"),
        ("(float[N,3] x) => (float[?,3] y)", r"output 'y' was tensor\(float\)\[N, 3\]; .*\[\?, 3\]"),
        ("(float[N,3] x) => (float[] y)", r"output 'y' was"),
        ("(float[N,K] x) => (float[N,3] y)", r"\[N, K\]"),
    ],
)
def test_interface_difference_is_named(after, message):
    before = interface_of("(float[N,3] x) => (float[N,3] y)")
    other = interface_of(after)
    assert before != other
    difference = before.difference(other)
    assert difference is not None
    assert "\n" not in difference
    assert re.search(message, difference)


def test_interface_knows_unknown_rank_from_a_scalar():
    model = ir.from_proto(onnx.parser.parse_model(SMALL))
    before = io.interface(model)
    model.graph.outputs[0].shape = None
    after = io.interface(model)
    assert after.outputs[0].shape is None
    assert (
        before.difference(after) == "output 'y' was tensor(float)[N, 4]; it is tensor(float) of unknown rank"
    )


def test_loading_imports_no_runtime():
    code = "import sys, graphopt.io; print([m for m in ('onnxruntime', 'torch', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
