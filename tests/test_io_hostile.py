"""Files that are damaged, or made to do harm, and disks and users that fail a save half-way."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from google.protobuf.message import Message

from graphopt import _atomic, _writer, io, limits
from graphopt.errors import InputError, OutputError, UnsupportedError, UserError

TEXT = """<ir_version: 10, opset_import: ["" : 17, "local" : 1], metadata_props: ["k": "v"]>
g (float[N,8] x, bool c) => (float[N,8] y, seq(float[N]) s)
<float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] sh = {0, -1}> {
  z = local.twice <alpha = 2.0> (x)
  r = Reshape (z, sh)
  k = Constant <value = float[2,2] {1, 2, 3, 4}> ()
  y = If (c) <
    then_branch = t () => (float[N,8] t1) { t1 = Add (x, b) },
    else_branch = e () => (float[N,8] e1) <float[8] w = {8, 7, 6, 5, 4, 3, 2, 1}> {
      e0 = Mul (x, w)
      e1 = local.twice <alpha = 1.0> (e0)
    }>
  p = ReduceSum <keepdims = 0> (x, sh)
  s = SequenceConstruct (p)
}
<domain: "local", opset_import: ["" : 17, "local" : 1]>
twice <alpha> (a) => (o) {
  h = LeakyRelu <alpha: float = @alpha> (a)
  o = Add (h, h)
}
"""


def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def refused(path: Path, message: str, kind: type[UserError] = InputError) -> str:
    """Loading ``path`` fails with one line that names it and matches ``message``."""
    with pytest.raises(kind, match=message) as caught:
        io.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 800
    return text


def stored(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# Files


def test_the_model_of_these_tests_is_good(tmp_path):
    model = io.load(stored(tmp_path, proto()))
    assert len(model.graph) == 6


def test_missing_folder_pipe_and_empty_file(tmp_path):
    refused(tmp_path / "no.onnx", "there is no such file")
    refused(tmp_path / "no" / "no.onnx", "there is no such file")
    refused(tmp_path, "this is a folder; name the model file in it")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")  # reading it would never end
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "the file is empty")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "m.onnx", "there is no such file")


def test_file_larger_than_protobuf_allows_is_not_read(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(limits.PROTOBUF_MAX + 1)  # a hole: takes no space
    refused(tmp_path / "m.onnx", "larger than the 2 GiB")
    with (tmp_path / "m.json").open("wb") as file:
        file.truncate(limits.TEXT_MODEL + 1)
    refused(tmp_path / "m.json", "too large for text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tflite", b"x", "TensorFlow Lite file, not an ONNX model; convert it"),
        ("m.keras", b"x", "Keras file, not an ONNX model"),
        ("m.H5", b"x", "Keras file, not an ONNX model"),
        ("m.pt", b"x", "PyTorch file, not an ONNX model"),
        ("m.pt2", b"x", "PyTorch file, not an ONNX model"),
        ("m.ort", b"x", "ORT file, not an ONNX model"),
        ("m.onnx", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("m.onnx", b"\x89HDF\r\n", "HDF5"),
        ("m.onnx", b"PK\x03\x04", "ZIP archive"),
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("m.onnx", b"<!DOCTYPE html>", "not an ONNX model"),
        ("m.onnx", bytes(100), "not an ONNX model"),
        ("m.onnx", b"\x08\x08", "no graph or no IR version"),
        ("m.json", b"[]", "not an ONNX model"),
        ("m.json", b"[1]", "not an ONNX model as json"),
        ("m.json", b'{"graph": 3}', "not an ONNX model as json"),
        ("m.json", b"\xff\xfe", "not UTF-8 text"),
        ("m.textproto", b"graph {", "not an ONNX model as textproto"),
        ("m.onnxtxt", b"<ir_version: 8> g (x) => y", "not valid ONNX text"),
        ("m.onnxtxt", TEXT.replace("2.0", "2e").encode(), "not valid ONNX text"),
    ],
)
def test_other_formats(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


@pytest.mark.parametrize("suffix", [".onnxtxt", ".json", ".textproto"])
@pytest.mark.parametrize("brackets", ["()", "[]", "{}"])
def test_deep_nesting_in_text_does_not_crash_the_parsers(tmp_path, suffix, brackets):
    opening, closing = brackets
    heads = {
        ".onnxtxt": '<ir_version: 8, opset_import: ["" : 17]> g (',
        ".json": '{"graph":',
        ".textproto": "graph ",
    }
    words = {"(": "seq(", "[": "[", "{": '{"a":' if suffix == ".json" else "{ node "}
    path = tmp_path / f"m{suffix}"
    path.write_text(heads[suffix] + words[opening] * 100_000 + closing * 100_000)
    refused(path, "nested too deeply")


def test_truncation_anywhere_is_refused(tmp_path):
    whole = proto().SerializeToString()
    path = tmp_path / "m.onnx"
    accepted = []
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            io.load(path)
        except InputError:
            continue
        accepted.append(length)
    assert not accepted


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _writer._varint(len(content)) + content


def test_binary_nesting_beyond_protobuf_is_refused(tmp_path):
    graph = b""
    for _ in range(1000):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString() + field(7, graph))
    refused(tmp_path / "m.onnx", "nested too deeply")


@pytest.mark.parametrize(("levels", "good"), [(20, True), (40, False), (70, False)])
def test_nesting_that_only_text_can_express(tmp_path, levels, good):
    """Protobuf stops at 100 messages inside each other, which text form does not show."""
    code = "Identity (x)"
    for level in range(levels):
        one = f"then_branch = t{level} () => (float[1] p{level}) {{ p{level} = {code} }}"
        two = f"else_branch = e{level} () => (float[1] q{level}) {{ q{level} = Identity (x) }}"
        code = f"If (c) <{one}, {two}>"
    path = tmp_path / "m.onnxtxt"
    path.write_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1] x, bool c) => (float[1] y) {{ y = {code} }}'
    )
    if good:
        io.check(io.load(path))
    else:
        refused(path, "nested (too deeply|deeper than 64)")


def test_nesting_in_text_protobuf(tmp_path):
    level = 'node { op_type: "If" attribute { name: "then_branch" type: GRAPH g { name: "g" '
    head = 'ir_version: 8 opset_import { domain: "" version: 17 } graph { name: "g" '
    for levels in (40, 70):
        path = tmp_path / "m.textproto"
        path.write_text(head + level * levels + "} } } " * levels + "}")
        refused(path, "nested (too deeply|deeper than 64)|not an ONNX model as textproto: maximum recursion")


# What a protobuf may hold


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.ClearField("graph"), "no graph"),
        (lambda m: m.ClearField("ir_version"), "no IR version"),
        (lambda m: m.ClearField("opset_import"), "imports no operator set"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=13), "domain '' at versions 17 and 13"),
        (
            lambda m: m.functions[0].opset_import.add(domain="", version=9),
            "function 'twice' imports domain ''",
        ),
        (lambda m: m.functions.add().CopyFrom(m.functions[0]), "same domain, name and overload"),
        (lambda m: m.functions[0].ClearField("domain"), "no domain or no name"),
        (lambda m: m.graph.node[0].device_configurations.add(), "device configuration of a node has no id"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "input 'nowhere' of node.* not output"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "z"), "single static assignment"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "b"), "single static assignment"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "r"), "topologically sorted"),  # a cycle
        (
            lambda m: m.graph.output[0].__setattr__("name", "nowhere"),
            "'nowhere' is not an output of any node",
        ),
        (lambda m: m.graph.initializer.add().CopyFrom(m.graph.initializer[0]), "name is not unique"),
        (lambda m: m.graph.initializer[0].ClearField("name"), "'name' of 'init' is required"),
        (lambda m: m.graph.input.add().CopyFrom(m.graph.input[0]), "single static assignment"),
        (
            lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", 77),
            "77 is not a valid DataType",
        ),
        (lambda m: m.graph.node[5].__setattr__("op_type", "NoSuchOp"), "No Op registered for NoSuchOp"),
        (lambda m: m.graph.node[0].attribute.add().CopyFrom(m.graph.node[0].attribute[0]), "multiple times"),
        (lambda m: m.functions[0].node[1].output.__setitem__(0, "q"), "not a valid ONNX model"),
    ],
)
def test_invalid_models(tmp_path, damage, message):
    model = proto()
    damage(model)
    refused(stored(tmp_path, model), message)


def test_text_that_is_no_utf8_is_refused(tmp_path):
    whole = proto().SerializeToString()
    for good, bad in (
        (b"twice", b"tw\xffce"),
        (b"SequenceConstruct", b"SequenceConstruc\xe9"),
        (b"alpha", b"al\xc0ha"),
    ):
        assert good in whole
        (tmp_path / "m.onnx").write_bytes(whole.replace(good, bad))
        refused(tmp_path / "m.onnx", "is not UTF-8 text: the file is damaged")


def test_what_onnx_ir_would_drop_is_refused(tmp_path):
    sparse = proto()
    sparse.graph.sparse_initializer.add().dims.append(3)
    refused(stored(tmp_path, sparse), "sparse tensors", UnsupportedError)
    in_attribute = proto()
    attribute = in_attribute.graph.node[2].attribute.add(
        name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR
    )
    attribute.sparse_tensor.dims.append(3)
    refused(stored(tmp_path, in_attribute), "sparse tensors", UnsupportedError)
    zip_map = proto()
    zip_map.graph.output[1].type.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    refused(stored(tmp_path, zip_map), "map type.*zipmap", UnsupportedError)
    graph_parameter = proto()
    attribute = (
        graph_parameter.functions[0].node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    )
    attribute.ref_attr_name = "body"
    refused(stored(tmp_path, graph_parameter), "subgraph as its attribute", UnsupportedError)


# Tensors


def tensor_of(model: onnx.ModelProto, where: str) -> onnx.TensorProto:
    """A float tensor at one of the places that a model has for tensors."""
    node = model.graph.node
    default = model.functions[0].attribute_proto.add(name="table", type=onnx.AttributeProto.TENSOR).t
    default.CopyFrom(model.graph.initializer[0])
    body = model.functions[0].node.add(op_type="Constant", output=["t"])
    body.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(default)
    return {
        "initializer": model.graph.initializer[0],
        "attribute": node[2].attribute[0].t,
        "subgraph": node[3].attribute[1].g.initializer[0],
        "function": body.attribute[0].t,
        "default": default,
    }[where]


PLACES = ["initializer", "attribute", "subgraph", "function", "default"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"float_data": [1.0]}, "holds 1 values, its shape .* needs .*: the file is truncated or damaged"),
        ({"float_data": [], "raw_data": b"12345"}, "holds 5 bytes, its shape .* needs"),
        ({"float_data": [], "dims": [1 << 40]}, r"holds 0 values, its shape \[1099511627776\]"),
        ({"dims": [-1, 4]}, r"impossible shape \[-1, 4\]"),
        ({"dims": [1 << 40, 1 << 40, 0]}, "impossible shape"),
        ({"dims": [1] * 33}, "impossible shape"),
        ({"data_type": 0}, "unknown element type 0"),
        ({"data_type": 99}, "unknown element type 99"),
        ({"raw_data": bytes(32)}, "holds raw_data and float_data"),
        ({"int64_data": [1]}, "holds float_data and int64_data"),
        ({"data_type": 7}, "of type INT64 holds float_data"),
        ({"data_type": 8, "float_data": [], "raw_data": b"ab"}, "of type STRING holds raw_data"),
    ],
)
def test_tensors_that_are_not_as_long_as_they_say(tmp_path, where, damage, message):
    model = proto()
    tensor = tensor_of(model, where)
    for name, value in damage.items():
        if isinstance(value, list):
            del getattr(tensor, name)[:]
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    text = refused(stored(tmp_path, model), message)
    assert ("attribute" if where in ("attribute", "function", "default") else "initializer") in text


def test_the_message_names_the_tensor(tmp_path):
    model = proto()
    model.graph.initializer[0].CopyFrom(
        onnx.TensorProto(name="w\n", dims=[3, 4], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(12))
    )
    text = refused(stored(tmp_path, model), "initializer")
    assert (
        "initializer 'w\\n' holds 12 bytes, its shape [3, 4] needs 48: the file is truncated or damaged"
        in text
    )


@pytest.mark.parametrize(
    ("dtype", "field", "count", "shape"),
    [
        ("COMPLEX64", "float_data", 6, [3]),
        ("COMPLEX128", "double_data", 6, [3]),
        ("UINT32", "uint64_data", 3, [3]),
        ("BFLOAT16", "int32_data", 3, [3]),
        ("BOOL", "int32_data", 3, [3]),
        ("INT4", "int32_data", 2, [3]),
        ("UINT2", "int32_data", 2, [7]),
        ("FLOAT8E5M2", "int32_data", 3, [3]),
        ("STRING", "string_data", 3, [3]),
        ("INT4", "raw_data", 2, [3]),
        ("UINT2", "raw_data", 2, [7]),
        ("DOUBLE", "raw_data", 24, [3]),
        ("FLOAT", "float_data", 1, []),
        ("FLOAT", "float_data", 0, [0, 5]),
    ],
)
def test_each_type_has_its_field_and_length(tmp_path, dtype, field, count, shape):
    def load_with(number: int) -> ir.Model:
        model = proto()
        extra = model.graph.initializer.add(name="extra", dims=shape, data_type=ir.DataType[dtype].value)
        if field == "raw_data":
            extra.raw_data = bytes(number)
        else:
            getattr(extra, field).extend([b"x" if field == "string_data" else 0] * number)
        return io.load(stored(tmp_path, model))

    tensor = load_with(count).graph.initializers["extra"].const_value
    assert tensor.numpy().shape == tuple(shape)
    with pytest.raises(InputError, match="initializer 'extra' holds"):
        load_with(count + 1)


# External data


def externalize(
    folder: Path, where: str = "initializer", *, size: int | None = None, **entries: str | None
) -> Path:
    """Write the model with one tensor in the data file ``w.bin`` of the right size."""
    model = proto()
    tensor = tensor_of(model, where)
    needed = 4 * int(np.prod(tensor.dims))
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": "0", "length": str(needed)} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(bytes(needed if size is None else size))
    return stored(folder, model)


@pytest.mark.parametrize("where", PLACES)
def test_external_data_is_read_and_its_absence_refused_everywhere(tmp_path, where):
    path = externalize(tmp_path, where)
    model = io.load(path)
    assert io.external_files(model) == [tmp_path / "w.bin"]
    (tmp_path / "w.bin").unlink()
    refused(path, "its data file 'w.bin' is missing; put it beside the model")


@pytest.mark.parametrize("where", PLACES)
def test_external_data_outside_the_folder_is_refused_everywhere(tmp_path, where):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    refused(externalize(inside, where, location="../secret"), "'../secret' is outside the model's folder")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": None}, "names no data file"),
        ({"location": ""}, "names no data file"),
        ({"location": "."}, "names no data file"),
        ({"location": "w.bin\0"}, "names no data file"),
        ({"location": "/etc/passwd"}, "'/etc/passwd' is outside the model's folder"),
        ({"location": "../model/w.bin"}, "outside the model's folder"),
        ({"location": "sub/../../w.bin"}, "outside the model's folder"),
        ({"location": "no.bin"}, "'no.bin' is missing"),
        ({"location": "w.bin/x"}, "cannot be used"),
        ({"location": "n" * 300}, "cannot be used"),
        ({"offset": "-4"}, "the offset of its external data is '-4', not a number"),
        ({"offset": "1e3"}, "the offset of its external data is '1e3'"),
        ({"offset": "٣"}, "not a number of bytes"),
        ({"offset": "9" * 30}, "not a number of bytes"),
        ({"offset": "4"}, "has 32 bytes, the tensor needs 4 to 36"),
        ({"offset": "4", "length": None}, "has 32 bytes, the tensor needs 4 to 36"),
        ({"length": "31"}, r"has 31 bytes in its data file, its shape \[8\] needs 32"),
        ({"length": "0"}, r"has 0 bytes in its data file, its shape \[8\] needs 32"),
        ({"length": "x"}, "the length of its external data is 'x'"),
    ],
)
def test_external_data_entries(tmp_path, entries, message):
    assert "initializer 'b'" in refused(externalize(tmp_path, **entries), message)


def test_external_data_shorter_than_the_tensors(tmp_path):
    refused(externalize(tmp_path, size=31), "has 31 bytes, the tensor needs 0 to 32: the file is truncated")
    model = proto()
    model.graph.initializer[0].CopyFrom(
        onnx.TensorProto(
            name="b", dims=[1 << 30, 1 << 20], data_type=1, data_location=onnx.TensorProto.EXTERNAL
        )
    )
    model.graph.initializer[0].external_data.add(key="location", value="w.bin")
    refused(stored(tmp_path, model), "the tensor needs 0 to 4503599627370496")


def test_external_strings_are_refused(tmp_path):
    path = externalize(tmp_path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING
    refused(stored(tmp_path, model), "strings, which cannot be external")


def link(data: Path, target: Path) -> None:
    data.rename(target)
    data.symlink_to(target)


def link_folder(data: Path, _: Path) -> None:
    (data.parent / "real").mkdir()
    data.rename(data.parent / "real" / "w.bin")
    (data.parent / "sub").symlink_to(data.parent / "real")


def replace_by(make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def replace(data: Path, _: Path) -> None:
        data.unlink()
        make(data)

    return replace


@pytest.mark.parametrize(
    ("location", "arrange", "message"),
    [
        ("w.bin", link, "reached through the symbolic link"),
        ("sub/w.bin", link_folder, "reached through the symbolic link"),
        (
            "w.bin",
            lambda data, other: other.hardlink_to(data),
            "has 2 hard links; put a copy of its own there",
        ),
        ("w.bin", replace_by(Path.mkdir), "is not a regular file"),
        ("w.bin", replace_by(os.mkfifo), "is not a regular file"),
        ("w.bin", replace_by(lambda p: p.symlink_to("/nowhere")), "reached through the symbolic link"),
        ("w.bin", replace_by(lambda p: p.symlink_to("/dev/zero")), "reached through the symbolic link"),
    ],
)
def test_external_data_that_is_no_plain_file(tmp_path, monkeypatch, location, arrange, message):
    folder = tmp_path / "model"
    folder.mkdir()
    path = externalize(folder, location=location)
    arrange(folder / "w.bin", tmp_path / "elsewhere")
    refused(path, message)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):  # onnx_ir checks nothing for a bare file name
        io.load("m.onnx")


def test_good_external_data_below_the_folder_and_a_linked_model(tmp_path):
    folder = tmp_path / "real"
    (folder / "sub").mkdir(parents=True)
    path = externalize(folder, location="./sub/w.bin")
    (folder / "w.bin").rename(folder / "sub" / "w.bin")
    assert io.load(path).graph.initializers["b"].const_value.numpy().tolist() == [0.0] * 8
    (tmp_path / "link").symlink_to(folder)  # how the user reaches the model's folder is the user's affair
    assert io.load(tmp_path / "link" / "m.onnx").graph.initializers["b"].const_value.numpy().shape == (8,)


# Bombs


def function_bomb(levels: int, calls: int) -> onnx.ModelProto:
    """Functions of which each calls the next ``calls`` times."""
    model = proto()
    for level in range(levels):
        function = model.functions.add(name=f"f{level}", domain="bomb", input=["a"], output=["o"])
        function.opset_import.add(domain="", version=17)
        function.opset_import.add(domain="bomb", version=1)
        callee, domain = (f"f{level + 1}", "bomb") if level + 1 < levels else ("Relu", "")
        for call in range(calls):
            names = (["a"] if call == 0 else [f"v{call}"]), (["o"] if call == calls - 1 else [f"v{call + 1}"])
            function.node.add(op_type=callee, domain=domain, input=names[0], output=names[1])
    model.opset_import.add(domain="bomb", version=1)
    model.graph.node.add(op_type="f0", domain="bomb", input=["x"], output=["boom"])
    return model


@pytest.mark.parametrize(
    ("levels", "calls", "message"), [(30, 2, "EXPANDED_NODES"), (70, 1, "NESTING_DEPTH")]
)
def test_function_bombs_are_refused_at_once(tmp_path, levels, calls, message):
    path = stored(tmp_path, function_bomb(levels, calls))
    start = time.process_time()
    refused(path, message)
    assert time.process_time() - start < 5


def test_function_calls_within_the_limits_pass(tmp_path):
    assert len(io.load(stored(tmp_path, function_bomb(30, 1))).functions) == 31
    assert len(io.load(stored(tmp_path, function_bomb(8, 3))).functions) == 9


def test_recursive_functions_are_refused(tmp_path):
    model = function_bomb(3, 1)
    model.functions[-1].node[0].op_type, model.functions[-1].node[0].domain = "f1", "bomb"
    refused(stored(tmp_path, model), "function 'f1' calls itself")


def test_nesting_counts_functions_and_subgraphs_together(tmp_path, monkeypatch):
    model = function_bomb(3, 1)
    path = stored(tmp_path, model)
    monkeypatch.setattr("graphopt._proto.NESTING_DEPTH", 3)
    io.load(path)
    branch = (
        model.functions[-1]
        .node.add(op_type="If", input=["a"], output=["deep"])
        .attribute.add(name="then_branch")
    )
    branch.type = onnx.AttributeProto.GRAPH
    branch.g.name = "deeper"
    refused(stored(tmp_path, model), "nested deeper")


# Fuzzing: whatever the bytes, a model or a UserError


def outcome(path: Path) -> str:
    """Load, and if that works, do all that must then work; the kind of result."""
    try:
        model = io.load(path)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    io.interface(model)
    with contextlib.suppress(UserError):
        io.check(model)
        io.save(model, path.with_name("out.onnx"))
        io.load(path.with_name("out.onnx"))
    return "loaded"


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(damaged))
        kind = rng.randrange(4)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.randrange(256)
        elif kind == 2:
            del damaged[at : at + rng.randint(1, 20)]
        else:
            damaged[at:at] = damaged[at : at + rng.randint(1, 20)]
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


@pytest.mark.parametrize("suffix", [".onnx", ".onnxtxt", ".json", ".textproto"])
def test_damaged_bytes_give_a_model_or_an_error(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    io.save(io.from_proto(proto()), whole)
    content, rng = whole.read_bytes(), random.Random(suffix)
    path = tmp_path / f"m{suffix}"
    results = set()
    for _ in range(400 if suffix == ".onnx" else 120):
        path.write_bytes(flipped(content, rng))
        results.add(outcome(path))
    assert results == {"loaded", "refused"}


def messages_in(root: Message) -> Iterator[Message]:
    todo = [root]
    while todo:
        message = todo.pop()
        yield message
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                todo.extend(value if descriptor.is_repeated else [value])


NUMBERS = [0, 1, -1, 2, 8, 17, 99, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
NAMES = [
    "",
    "x",
    "y",
    "z",
    "b",
    "If",
    "Loop",
    "Constant",
    "twice",
    "local",
    "../x",
    "é",
    "then_branch",
    "ai.onnx",
]


def mutate(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change one field of one message: drop it, or put something of its type there."""
    messages = list(messages_in(model))
    message = rng.choice(messages)
    fields = [f for f, _ in message.ListFields()] if rng.random() < 0.7 else list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = rng.choice(fields)
    current = getattr(message, field.name)
    if rng.random() < 0.25:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        alike = [m for m in messages if m.DESCRIPTOR.full_name == field.message_type.full_name]
        source = type(alike[0])() if alike else None
        if source is not None:
            source.CopyFrom(rng.choice(alike))
            (current.add() if field.is_repeated else current).CopyFrom(source)
    else:
        value = scalar(field, rng)
        if field.is_repeated:
            current.append(value)
        else:
            setattr(message, field.name, value)


def scalar(field, rng: random.Random) -> object:
    if field.type == field.TYPE_STRING:
        return rng.choice(NAMES)
    if field.type == field.TYPE_BYTES:
        return rng.choice([b"", b"abc", b"\xff\xfe", bytes(32)])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice([0.0, -1.5, float("nan"), float("inf")])
    if field.type == field.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    number = rng.choice(NUMBERS)
    if field.type == field.TYPE_INT32:
        return max(-(2**31), min(2**31 - 1, number))
    return abs(number) % 2**63 if field.type == field.TYPE_UINT64 else number


@pytest.mark.parametrize("seed", range(2))
def test_damaged_structure_gives_a_model_or_an_error(tmp_path, seed):
    rng = random.Random(seed)
    results = []
    for _ in range(150):
        model = proto()
        for _ in range(rng.randint(1, 3)):
            mutate(model, rng)
        results.append(outcome(stored(tmp_path, model)))
    assert results.count("loaded") > 20
    assert results.count("refused") > 20


# Saving that fails


def sizable(value: float = 1.0) -> ir.Model:
    """A model with 4 MiB of weights, all of one value."""
    model = io.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
            <float[4] w = {1, 1, 1, 1}> { y = Add (x, w) }"""
        )
    )
    for number in range(4):
        tensor = ir.tensor(np.full((512, 512), value, np.float32), name=f"w{number}")
        model.graph.register_initializer(ir.Value(name=f"w{number}", const_value=tensor))
    return model


def value_in(path: Path) -> float:
    """The one value that all weights of a whole :func:`sizable` model have."""
    arrays = [v.const_value.numpy() for n, v in io.load(path).graph.initializers.items() if n != "w"]
    assert len(arrays) == 4
    (value,) = {float(v) for array in arrays for v in np.unique(array)}
    return value


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


CASES = list(itertools.product([True, False], [True, False]))


@pytest.fixture(params=CASES, ids=lambda case: f"{'old' if case[0] else 'new'}-{'two' if case[1] else 'one'}")
def target(request, tmp_path) -> tuple[Path, bool]:
    """A target with or without an old model there, and whether to write external data."""
    replaces, external = request.param
    if replaces:
        io.save(sizable(1.0), tmp_path / "m.onnx", external_data=external)
    return tmp_path / "m.onnx", external


def fails_and_changes_nothing(path: Path, external: bool, message: str) -> None:
    before = snapshot(path.parent)
    with pytest.raises(OutputError, match=message) as caught:
        io.save(sizable(2.0), path, external_data=external)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert snapshot(path.parent) == before
    assert sorted(f.name for f in path.parent.iterdir()) == sorted(before)  # no folder is left either


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(target, monkeypatch, call):
    path, external = target

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_atomic.os, call, full)
    fails_and_changes_nothing(path, external, "the disk is full; free some space or choose another folder")


def test_failure_at_the_last_rename_leaves_the_old_file(target, monkeypatch):
    path, external = target
    real = os.replace

    def replace(source: Path, to: Path) -> None:
        if Path(to) == path:
            raise PermissionError(errno.EACCES, "no")
        real(source, to)

    monkeypatch.setattr(_atomic.os, "replace", replace)
    fails_and_changes_nothing(path, external, "no permission to write there")


FILE_LIMIT = """
import resource, sys
from graphopt import io
from graphopt.errors import OutputError
model = io.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for external in (True, False):
    try:
        io.save(model, sys.argv[2], external_data=external)
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize("source_external", [True, False])
def test_file_size_limit_is_one_line_and_leaves_nothing(tmp_path, source_external):
    (tmp_path / "out").mkdir()
    io.save(sizable(), tmp_path / "m.onnx", external_data=source_external)  # external: the kernel copies
    (tmp_path / "out" / "n.onnx").write_bytes(b"old")
    command = [sys.executable, "-c", FILE_LIMIT, tmp_path / "m.onnx", tmp_path / "out" / "n.onnx"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("n.onnx': it would be larger than files may be here" in line for line in lines)
    assert snapshot(tmp_path / "out") == {"n.onnx": b"old"}
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["n.onnx"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20  # that was the child's


def test_interrupt_leaves_the_old_file(target, monkeypatch):
    path, external = target
    before = snapshot(path.parent)
    calls = itertools.count()
    real = _writer._write_tensor

    def interrupted(*arguments: object) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(_writer, "_write_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.save(sizable(2.0), path, external_data=external)
    assert snapshot(path.parent) == before
    assert sorted(f.name for f in path.parent.iterdir()) == sorted(before)


def test_interrupt_right_after_the_rename_leaves_the_new_model_whole(target, monkeypatch):
    path, external = target
    real = os.replace

    def replace(source: Path, to: Path) -> None:
        real(source, to)
        if Path(to) == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(_atomic.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        io.save(sizable(2.0), path, external_data=external)
    assert value_in(path) == 2.0


def test_data_file_name_taken_meanwhile_is_an_error_not_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_free_data_path", lambda path: path.with_name("m.onnx.data"))
    (tmp_path / "m.onnx.data").write_bytes(b"of someone else")
    with pytest.raises(OutputError, match="File exists"):
        io.save(sizable(), tmp_path / "m.onnx", external_data=True)
    assert snapshot(tmp_path) == {"m.onnx.data": b"of someone else"}


SAVE_FOREVER = """
import itertools, sys
from graphopt import io
models = [io.load(path) for path in sys.argv[1:3]]
print("ready", flush=True)
for model in itertools.cycle(models):
    io.save(model, sys.argv[3], external_data=sys.argv[4] == "True")
"""


@pytest.mark.parametrize("external", [True, False])
def test_kill_leaves_the_old_or_the_new_file_whole(tmp_path, external):
    rng = random.Random(0)
    for number, value in enumerate((1.0, 2.0)):
        io.save(sizable(value), tmp_path / f"{number}.onnx")
    path = tmp_path / "out" / "m.onnx"
    path.parent.mkdir()
    io.save(sizable(3.0), path, external_data=external)
    arguments = [tmp_path / "0.onnx", tmp_path / "1.onnx", path, str(external)]
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, *arguments], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.02, 0.25))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert value_in(path) in (1.0, 2.0, 3.0)
    io.save(sizable(4.0), path, external_data=external)  # what a kill left behind is in nobody's way
    assert value_in(path) == 4.0


# Targets that cannot be written


def test_missing_folder_folder_and_pipe_as_targets(tmp_path):
    with pytest.raises(OutputError, match=r"no/m\.onnx': the folder '.*/no' does not exist; create it first"):
        io.save(sizable(), tmp_path / "no" / "m.onnx")
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        io.save(sizable(), tmp_path / "m.onnx")
    os.mkfifo(tmp_path / "p.onnx")
    with pytest.raises(OutputError, match="it is a device or pipe"):
        io.save(sizable(), tmp_path / "p.onnx")
    assert stat.S_ISFIFO((tmp_path / "p.onnx").stat().st_mode)
    with pytest.raises(OutputError, match="the name is too long"):
        io.save(sizable(), tmp_path / ("n" * 300 + ".onnx"))


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may do anything: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_no_permission_is_one_line(open_folder):
    path = open_folder / "m.onnx"
    io.save(sizable(), path)
    path.chmod(0o000)
    open_folder.chmod(0o555)
    before = sorted(open_folder.iterdir())
    model = sizable()
    try:
        with ordinary_user():
            with pytest.raises(InputError, match=r"m\.onnx': the file cannot be read: Permission denied"):
                io.load(path)
            for external in (True, False):
                with pytest.raises(
                    OutputError, match=r"m\.onnx': no permission to write there; choose another"
                ):
                    io.save(model, path, external_data=external)
        open_folder.chmod(0o000)
        with ordinary_user():
            with pytest.raises(OutputError, match="no permission to write there"):
                io.save(model, path)
            with pytest.raises(InputError, match="Permission denied"):
                io.load(path)
    finally:
        open_folder.chmod(0o755)
    assert sorted(open_folder.iterdir()) == before
