"""convert-opset: the operators that onnx's converter gets wrong, what must survive the trip, and refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.errors import UnsupportedError
from graphopt.options import ConversionError, build
from graphopt.passes.interop.convert_opset import ConvertOpset

RNG = np.random.default_rng(0)


def graph(opset: int, body: str, *, x: str = "float[2,3,4]", y: str = "float", constants: str = "") -> str:
    constants = f"<{constants}>" if constants else ""
    shape = "" if y.endswith("]") else "[?,?,?]"
    return (
        f'<ir_version: 6, opset_import: ["" : {opset}]> g ({x} x) => ({y}{shape} y) {constants} {{ {body} }}'
    )


def convert(model: ir.Model, target: int):
    """Run the pass; what it must never change is looked at here."""
    interface = [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    result = ConvertOpset(target=target)(model)
    assert result.model is model
    assert model.opset_imports[""] == target
    assert [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == interface
    names = [v.name for node in model.graph for v in node.outputs]
    assert len(set(names)) == len(names)
    return result


def refuse(model: ir.Model, target: int, match: str) -> None:
    """The pass refuses with one line and leaves the model as it was."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedError, match=match) as caught:
        ConvertOpset(target=target)(model)
    assert "\n" not in str(caught.value)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# Operators that onnx's converter gets wrong.


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    op=st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    shape=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
    data=st.data(),
)
def test_softmax_means_the_same_over_opset_13_and_back(parse, assert_same, op, shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    old, new = data.draw(st.sampled_from([11, 12])), data.draw(st.sampled_from([13, 21]))
    dims = ",".join(map(str, shape))
    feed = {"x": RNG.standard_normal(shape).astype(np.float32)}
    for source, target in ((old, new), (new, old)):
        text = graph(source, f"y = {op} <axis = {axis}> (x)", x=f"float[{dims}]", y=f"float[{dims}]")
        model = parse(text)
        convert(model, target)
        assert_same(parse(text), model, feed)


@pytest.mark.parametrize("op", ["Softmax", "Hardmax"])
@pytest.mark.parametrize(
    ("shape", "feed", "after"),
    [
        ("float[N,5,1,1]", (2, 5, 1, 1), ["X"]),
        ("float[N,5,H,W]", (2, 5, 3, 2), ["Shape", "Flatten", "X", "Reshape"]),
    ],
)
def test_default_axis_of_softmax_with_free_axes(parse, ops, assert_same, op, shape, feed, after):
    text = graph(11, f"y = {op}(x)", x=shape, y="float[?,?,?,?]")
    model = parse(text)
    convert(model, 13)
    assert ops(model) == [op if name == "X" else name for name in after]
    assert_same(parse(text), model, {"x": RNG.standard_normal(feed).astype(np.float32)})


def test_softmax_of_unknown_rank(parse, assert_same):
    for axis in (1, -1, -2):
        text = f"""<ir_version: 6, opset_import: ["" : 11]> g (float[2,3,4] x, int64[r] shape)
            => (float[?,?,?] y) {{ r = Reshape(x, shape) y = Softmax <axis = {axis}> (r) }}"""
        model = parse(text)
        convert(model, 13)
        feed = {"x": RNG.standard_normal((2, 3, 4)).astype(np.float32), "shape": np.array([4, 3, 2])}
        assert_same(parse(text), model, feed)
        newer = parse(text.replace(": 11]", ": 13]"))
        refuse(newer, 12, r"Softmax \(output 'y'\): the rank of its input is not known")


@pytest.mark.parametrize("target", [11, 13, 18, 21])
@pytest.mark.parametrize(
    ("opset", "op", "scales"),
    [
        (7, "Upsample <mode = {}, scales = [1.0, 1.0, 2.0, 3.0]> (x)", "{1, 1, 1, 1}"),
        (9, "Upsample <mode = {}> (x, s)", "{1, 1, 2, 1.5}"),
        (10, "Resize <mode = {}> (x, s)", "{1, 1, 2, 2.4}"),
        (10, "Resize <mode = {}> (x, s)", "{1, 1, 0.6, 0.6}"),
    ],
)
@pytest.mark.parametrize("mode", ['"nearest"', '"linear"'])
def test_resize_keeps_its_coordinates(parse, assert_same, opset, op, scales, mode, target):
    text = graph(
        opset,
        f"y = {op.format(mode)}",
        x="float[N,2,5,7]",
        y="float[?,?,?,?]",
        constants=f"float[4] s = {scales}",
    )
    model = parse(text)
    convert(model, target)
    assert [n.op_type for n in model.graph] == ["Resize"]
    assert_same(parse(text), model, {"x": RNG.standard_normal((1, 2, 5, 7)).astype(np.float32)})


def test_nearest_resize_that_cannot_say_how_it_rounds(parse):
    mixed = graph(10, "y = Resize(x, s)", constants="float[3] s = {1, 2, 0.5}")
    refuse(parse(mixed), 11, "shrinks one axis and grows another")
    computed = """<ir_version: 6, opset_import: ["" : 10]> g (float[2,3,4] x, float[3] s) => (float[?,?,?] y)
        { y = Resize(x, s) }"""
    refuse(parse(computed), 13, r"opset 10 to 13: Resize \(output 'y'\): its scales are computed")


@pytest.mark.parametrize("target", [11, 12, 21])
@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        ("y = Clip <min = -0.5, max = 0.5> (x)", "float"),
        ("y = Clip <max = 0.5> (x)", "float"),
        ("y = Clip <min = 0.0> (x)", "float"),
        ("y = Clip (x)", "float"),
        ("y = Pad <pads = [0, 1, 0, 2, 0, 1]> (x)", "float"),
        ("y = Pad <pads = [0, 1, 0, 2, 0, 1], value = 2.5> (x)", "double"),
        ('y = Pad <pads = [0, 1, 0, 1, 0, 1], mode = "reflect", value = 2.5> (x)', "float"),
        ('y = Pad <pads = [0, -1, 0, 0, 0, 1], mode = "edge"> (x)', "double"),
    ],
)
def test_clip_and_pad_take_constants_of_their_own_type(parse, assert_same, body, dtype, target):
    text = graph(10, body, x=f"{dtype}[2,3,4]", y=dtype)
    model = parse(text)
    convert(model, target)
    data = RNG.standard_normal((2, 3, 4)).astype({"float": np.float32, "double": np.float64}[dtype])
    assert_same(parse(text), model, {"x": data})


# Down: what the older operator can say, and what it cannot.


@pytest.mark.parametrize(
    ("source", "target", "body"),
    [
        (18, 17, "y = ReduceMean <keepdims = 1, noop_with_empty_axes = 0> (x, axes)"),
        (18, 13, "y = ReduceMax (x, axes)"),
        (18, 12, "y = ReduceL2 (x)"),
        (21, 11, "y = ReduceSum (x, axes)"),
        (18, 13, "a, b = Split <axis = 2, num_outputs = 2> (x) y = Add(a, b)"),
        (18, 12, "a, b = Split <axis = 2, num_outputs = 2> (x) y = Add(a, b)"),
        (18, 17, "a, y = Split <axis = 1, num_outputs = 2> (x)"),
        (13, 11, "a, y = Split <axis = 1> (x, sizes)"),
        (20, 13, "y = Reshape <allowzero = 1> (x, target)"),
        (14, 12, "y = Reshape <allowzero = 0> (x, with_zero)"),
        (15, 13, "s = Shape <start = 1, end = 3> (x) y = ConstantOfShape(s)"),
        (15, 11, "s = Shape <start = -2> (x) y = ConstantOfShape(s)"),
        (17, 11, "a = Add(x, x) b = Mul(a, x) y = Identity(b)"),
        (17, 12, "c = Less(x, x) y = Where(c, x, x)"),
        (15, 12, "u = Unsqueeze(x, axes) y = Squeeze(u, axes)"),
    ],
)
def test_going_down(parse, assert_same, source, target, body):
    constants = """int64[1] axes = {1}, int64[2] sizes = {1, 2}, int64[3] target = {4, 3, 2},
        int64[3] with_zero = {0, -1, 2}"""
    text = graph(source, body, constants=constants)
    rank = "float[?,?]" if "ConstantOfShape" in body else "float[?,?,?]"
    text = text.replace("float[?,?,?] y", f"{rank} y").replace("ir_version: 6", "ir_version: 10")
    model = parse(text)
    convert(model, target)
    assert_same(parse(text), model, {"x": RNG.standard_normal((2, 3, 4)).astype(np.float32)})


@pytest.mark.parametrize(
    ("source", "target", "body", "match"),
    [
        (17, 16, "y = LayerNormalization(x, scale)", "LayerNormalization does not exist there"),
        (18, 17, "y = ReduceMean (x, computed)", "ReduceMean .*axes are computed"),
        (18, 17, "y = ReduceMean <noop_with_empty_axes = 1> (x)", "reduces no axes"),
        (14, 13, "y = Reshape <allowzero = 1> (x, empty)", "reshapes to an empty axis"),
        (14, 13, "y = Reshape <allowzero = 1> (x, computed)", "target axes are computed"),
        (18, 17, "c = Resize <antialias = 1> (x, , scales) y = Identity(c)", "Resize"),
        (19, 18, 'y = Pad <mode = "wrap"> (x, pads)', "Pad .*mode=wrap does not exist there"),
        (
            16,
            15,
            'y = ScatterND <reduction = "add"> (x, where, x)',
            "ScatterND .*reduction=add does not exist",
        ),
        (20, 19, "y = GridSample (x, x)", "GridSample"),
        (13, 10, "y = Clip(x)", "no adapter for Shape at opset 13"),
    ],
)
def test_what_the_older_opset_cannot_say(parse, source, target, body, match):
    constants = """float[4] scale = {1, 1, 1, 1}, int64[3] empty = {0, 3, 4}, float[3] scales = {1, 1, 2},
        int64[6] pads = {0, 0, 1, 0, 0, 1}, int64[1,1] where = {0}"""
    text = graph(source, f"s = Shape(x) computed = Identity(s) {body}", constants=constants)
    refuse(parse(text.replace("ir_version: 6", "ir_version: 10"), check=False), target, match)


# What must survive the trip.


NESTED = """<ir_version: 6, opset_import: ["" : 11]> g (float[2,3,4] x, bool c) => (float[2,3,4] y)
<float[4] w = {1, 2, 3, 4}> {
    outer = Softmax <axis = 1> (x)
    y = If (c) <
        then_branch = t () => (float[2,3,4] r) { a = Softmax <axis = 1> (outer)  r = Mul(a, w) },
        else_branch = e () => (float[2,3,4] r) { a = Clip <max = 0.1> (outer)  r = Add(a, w) }
    >
}"""


@pytest.mark.parametrize("target", [12, 13, 21])
def test_subgraphs_are_converted_even_where_they_share_names(parse, assert_same, target):
    text = NESTED.replace(": 11]", ": 10]")
    model = parse(text)
    convert(model, target)
    for condition in (True, False):
        feed = {"x": RNG.standard_normal((2, 3, 4)).astype(np.float32), "c": np.array(condition)}
        assert_same(parse(text), model, feed)


def test_names_metadata_and_declared_types_survive(parse):
    model = parse(NESTED.replace("Clip <max = 0.1> (outer)", "Clip(outer)"))
    first, branch = model.graph.node(0), model.graph.node(1).attributes["then_branch"].as_graph()
    first.name, first.doc_string, first.metadata_props["layer"] = "first", "why", "3"
    first.outputs[0].type, first.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, "S", 4])
    first.outputs[0].metadata_props["scale"] = "0.5"
    branch.node(0).name, branch.node(0).metadata_props["layer"] = "inner", "4"
    model.graph.name, model.graph.doc_string, model.doc_string = "net", "graph", "model"
    model.graph.metadata_props["origin"], model.metadata_props["author"] = "here", "me"
    convert(model, 13)
    value = next(v for node in model.graph for v in node.outputs if v.name == "outer")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert (softmax.name, dict(softmax.metadata_props)) == ("first", {"layer": "3"})
    assert (value.dtype, str(value.shape), dict(value.metadata_props)) == (
        ir.DataType.FLOAT,
        "[2,S,4]",
        {"scale": "0.5"},
    )
    branch = next(n for n in model.graph if n.op_type == "If").attributes["then_branch"].as_graph()
    inner = next(node for node in branch if node.op_type == "Softmax")
    assert (inner.name, dict(inner.metadata_props)) == ("inner", {"layer": "4"})
    assert (model.graph.name, model.graph.doc_string, model.doc_string) == ("net", "graph", "model")
    assert (model.graph.metadata_props["origin"], model.metadata_props["author"]) == ("here", "me")


def test_unchanged_nodes_stay_as_they_were(parse):
    model = parse(graph(13, "a = Relu(x) y = Elu <alpha = 0.3> (a)"))
    model.graph.node(1).name, model.graph.node(1).doc_string = "elu", "why"
    before = [str(node) for node in model.graph]
    convert(model, 17)
    assert [str(node) for node in model.graph] == before
    assert model.graph.node(1).doc_string == "why"


def test_what_the_converter_adds_is_named_after_its_reader(parse):
    model = parse(graph(11, "y = Squeeze <axes = [0]> (x)", x="float[1,2,3,4]"))
    convert(model, 13)
    assert [(n.op_type, n.outputs[0].name) for n in model.graph] == [
        ("Constant", "y_constant"),
        ("Squeeze", "y"),
    ]


class Unreadable(ir.Tensor):
    """A weight that must not be read."""

    def numpy(self):
        raise AssertionError("weights are not to be read")

    tobytes = __array__ = numpy


def test_weights_are_neither_read_nor_copied(parse):
    model = parse(
        graph(11, "y = MatMul(x, w)", constants="float[4,4] w = {0}".replace("{0}", "{" + "1," * 15 + "1}"))
    )
    weight = model.graph.initializers["w"]
    weight.const_value = Unreadable(np.zeros((4096, 4096), np.float32), name="w")
    weight.shape = ir.Shape([4096, 4096])
    tensor = weight.const_value
    convert(model, 13)
    assert model.graph.initializers["w"].const_value is tensor
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_weights_of_subgraphs_and_constants_come_back(parse, assert_same):
    text = """<ir_version: 6, opset_import: ["" : 11]> g (float[600] x, bool c) => (float[600] y) {
        k = Constant <value_float = 2.0> ()
        y = If (c) <
            then_branch = t () => (float[600] p) <float[600] w = {W}> { p = Mul(x, w) },
            else_branch = e () => (float[600] q) { q = Identity(x) }
        >
    }""".replace("{W}", "{" + ", ".join(str(i) for i in range(600)) + "}")
    text = text.replace('"" : 11', '"" : 12')
    model = parse(text)
    convert(model, 21)
    assert_same(parse(text), model, {"x": np.ones(600, np.float32), "c": np.array(True)})


def test_initializers_that_are_inputs_stay_both(parse, assert_same):
    text = """<ir_version: 3, opset_import: ["" : 8]> g (float[2,3] x, float[3] w) => (float[2,3] y)
        <float[3] w = {1, 2, 3}> { y = Add(x, w) }"""
    model = parse(text)
    convert(model, 17)
    assert [v.name for v in model.graph.inputs] == ["x", "w"]
    feed = {"x": np.ones((2, 3), np.float32)}
    assert_same(parse(text), model, feed)


def test_unused_inputs_and_other_domains_stay(parse, ops):
    model = parse(
        """<ir_version: 6, opset_import: ["" : 11, "com.microsoft" : 1]> g (float[2,3] x, int64[1] unused)
        => (float[2,3] y) { a = com.microsoft.Gelu(x) y = Relu(a) }"""
    )
    convert(model, 13)
    assert dict(model.opset_imports) == {"": 13, "com.microsoft": 1}
    assert [(n.domain, n.op_type) for n in model.graph] == [("com.microsoft", "Gelu"), ("", "Relu")]


@pytest.mark.parametrize(("target", "version"), [(13, 7), (15, 8), (19, 9), (21, 10)])
def test_ir_version_is_raised_to_what_the_opset_needs(parse, target, version):
    model = parse(graph(11, "y = Relu(x)"))
    convert(model, target)
    assert model.ir_version == version
    model.ir_version = 10
    convert(model, 12)
    assert model.ir_version == 10


def test_nothing_to_do(parse):
    model = parse(graph(17, "y = Relu(x)"))
    before = model.graph
    result = convert(model, 17)
    assert not result.modified
    assert result.summary == "already at opset 17"
    assert model.graph is before


def test_functions_are_refused(parse):
    model = parse(
        """<ir_version: 9, opset_import: ["" : 17, "local" : 1]> g (float[3] x) => (float[3] y)
        { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Neg(a) }""",
        check=False,
    )
    refuse(model, 21, "opset 17 to 21: the model has functions; inline them first")


def test_models_before_opset_7_are_refused(parse):
    refuse(parse(graph(6, "y = Relu(x)")), 13, "models below opset 7 are not supported")


def test_unknown_operators_are_refused_by_name(parse):
    refuse(parse(graph(11, "y = NoSuchOperator(x)"), check=False), 13, "NoSuchOperator")


def test_target_is_bounded():
    newest = onnx.defs.onnx_opset_version()
    assert build(ConvertOpset, {"target": newest}).target == newest
    for target in (6, newest + 1):
        with pytest.raises(ConversionError):
            build(ConvertOpset, {"target": target})
