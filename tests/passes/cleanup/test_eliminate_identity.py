"""eliminate-identity: every family of no-ops, and the near misses of each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity

X = np.array([[[-1.5, 0.0, 2.0, 7.0], [1.0, np.inf, -3.0, -0.0]]], np.float32)

CONSTANTS = """float zero = {0}, float one = {1}, float[1] zero1 = {0}, float[1] one1 = {1},
float[1,1,1,1] one4 = {1}, float[4] ones = {1, 1, 1, 1}, float[4] zeros = {0, 0, 0, 0}, float half = {0.5},
float[4] mixed = {1, 1, 1, 2}, float[2,1] one21 = {1, 1}, bool yes = {1}, bool no = {0}, int64[1] i0 = {0},
int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] minus1 = {-1}, int64[1] max = {9223372036854775807},
int64[1] min = {-9223372036854775807}, int64[3] three1 = {1, 1, 1}, int64[3] all0 = {0, 0, 0},
int64[3] keep = {0, -1, 4}, int64[3] exact = {-1, 2, 4}, int64[3] swap = {0, 4, 2}, int64[3] two = {1, 2, 1},
int64[6] pads0 = {0, 0, 0, 0, 0, 0}, int64[6] shift = {0, 1, 0, 0, -1, 0}, int64[2] flat = {0, -1},
int64[2] ends2 = {2, 4}, int64[2] axes2 = {-2, -1}, int64[2] starts2 = {0, 0}, int64[2] low = {1, 4},
int64[4] four1 = {1, 1, 1, 1}"""


def graph(body: str, opset: int = 17) -> str:
    """A graph that computes t from x, and y from t by an operator that stays."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,2,4] x, float loose)'
    return f"{head} => (float[?,?,?] y) <float loose = {{0}}, {CONSTANTS}> {{ {body} y = Neg(t) }}"


def apply(model: ir.Model):
    """Run the pass; it must be finished after one run."""
    result = EliminateIdentity()(model)
    assert result.model is model
    assert not EliminateIdentity()(model).modified
    return result


@pytest.mark.parametrize(
    "body",
    [
        "t = Identity(x)",
        "t = Dropout(x)",
        "t = Dropout(x, half, no)",
        "t, mask = Dropout(x, half)",
        "t = Concat <axis = 1> (x)",
        "t = Sum(x)",
        "t = Max(x)",
        "t = Min(x)",
        "t = Mean(x)",
        "t = Split <axis = 1> (x)",
        "t = Cast <to = 1> (x)",
        "t = CastLike(x, half)",
        "t = Transpose <perm = [0, 1, 2]> (x)",
        "t = Pad(x, pads0)",
        't = Pad <mode = "reflect"> (x, pads0)',
        "t = Tile(x, three1)",
        "t = Reshape(x, all0)",
        "t = Reshape(x, keep)",
        "t = Reshape(x, exact)",
        "s = Shape(x) t = Reshape(x, s)",
        "s = Shape(x) t = Reshape <allowzero = 1> (x, s)",
        "t = Expand(x, i1)",
        "t = Expand(x, low)",
        "t = Expand(x, three1)",
        "s = Shape(x) t = Expand(x, s)",
        "t = Slice(x, i0, max)",
        "t = Slice(x, i0, max, minus1, i1)",
        "t = Slice(x, starts2, ends2, axes2)",
        "t = Slice(x, i0, i2, i1)",
        "t = Slice(x, min, max, i1)",
        "t = Add(x, zero)",
        "t = Add(zero1, x)",
        "t = Add(x, zeros)",
        "t = Sub(x, zero)",
        "t = Mul(x, one1)",
        "t = Mul(ones, x)",
        "t = Mul(x, one21)",
        "t = Div(x, one)",
        "t = Pow(x, one)",
        "a = Identity(x) b = Add(a, zero) c = Cast <to = 1> (b) t = Sum(c)",
    ],
)
def test_no_ops_go(parse, ops, assert_same, body):
    model = parse(graph(body))
    result = apply(model)
    assert [op for op in ops(model) if op != "Shape"] == ["Neg"]
    assert result.modified
    assert [(v.name, str(v.shape)) for v in model.graph.outputs] == [("y", "[None,None,None]")]
    for batch in (1, 3):
        assert_same(parse(graph(body)), model, {"x": np.repeat(X, batch, 0)})


@pytest.mark.parametrize(
    "body",
    [
        "t = Dropout(x, half, yes)",
        "t, m = Dropout(x) f = Cast <to = 1> (m)",
        "t = Concat <axis = 1> (x, x)",
        "t = Max(x, x)",
        "t, u = Split <axis = 1> (x)",
        "t = Clip(x, zero)",
        "t = Clip(x)",  # infinity is clipped to the largest number
        "t = Transpose <perm = [0, 2, 1]> (x)",
        "t = Transpose(x)",
        "t = Pad(x, shift)",  # same shape, other content
        "t = Tile(x, two)",
        "t = Reshape(x, swap)",
        "t = Reshape(x, flat)",
        "t = Reshape <allowzero = 1> (x, all0)",
        "s = Shape <start = 1> (x) t = Reshape(x, s)",
        "n = Neg(x) s = Shape(n) p = Transpose <perm = [0, 2, 1]> (x) t = Reshape(p, s)",
        "t = Expand(x, four1)",
        "t = Slice(x, i1, max)",
        "t = Slice(x, i0, i1, i1)",
        "t = Slice(x, i0, minus1, i1)",
        "t = Slice(x, minus1, min, i1, minus1)",  # reversed: same shape, other content
        "t = Slice(x, i0, i2, i0)",  # as long as the batch is not larger
        "t = Slice(x, i0, max, i1, i2)",
        "t = Add(x, loose)",  # the caller may pass another value
        "t = Add(x, one)",
        "t = Mul(x, mixed)",
        "t = Mul(x, zero)",
        "t = Mul(one4, x)",  # adds an axis
        "t = Sub(zero, x)",
        "t = Div(one, x)",
        "t = Pow(one, x)",
        "t = Pow(x, half)",
    ],
)
def test_near_misses_stay(parse, ops, body):
    model = parse(graph(body), check=False)
    before = ops(model)
    result = apply(model)
    assert ops(model) == before
    assert not result.modified
    assert not result.refusals


@pytest.mark.parametrize(
    ("body", "goes"),
    [
        ("t = Flatten(x)", True),
        ("t = Flatten <axis = -1> (x)", True),
        ("t = Flatten <axis = 0> (x)", False),
        ("t = Flatten <axis = 2> (x)", False),
        ("t = Reshape(x, shape)", True),
        ("t = Squeeze(x)", False),  # the batch may be 1
        ("t = Unsqueeze(x, none)", True),
        ("t = Mul(x, x1)", False),  # a batch of 1 would become 3
        ("t = Transpose <perm = [1, 0]> (x)", False),
    ],
)
def test_rank_two(parse, ops, body, goes):
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,5] x) => (float[?,?] y)
        <int64[2] shape = {{-1, 5}}, int64[0] none = {{}}, float[3,1] x1 = {{1, 1, 1}}>
        {{ {body} y = Relu(t) }}"""
    )
    assert apply(model).modified == goes
    assert (ops(model) == ["Relu"]) == goes


def test_squeeze_of_a_fixed_shape_without_ones_goes(parse, ops):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,5] x) => (float[?,?] y)
        { t = Squeeze(x) y = Relu(t) }"""
    model = parse(text)
    apply(model)
    assert ops(model) == ["Relu"]
    model = parse(text.replace("2,5", "1,5"))
    assert not apply(model).modified


INT32, FLOAT, DOUBLE, HALF, INT8, UINT8, INT64, BFLOAT16, BOOL = 6, 1, 11, 10, 3, 2, 7, 16, 9


@pytest.mark.parametrize(
    ("source", "between", "goes"),
    [
        ("float16", FLOAT, True),
        ("float16", DOUBLE, True),
        ("bfloat16", FLOAT, True),
        ("float", DOUBLE, True),
        ("int8", INT32, True),
        ("int8", HALF, True),
        ("uint8", HALF, True),
        ("int32", DOUBLE, True),
        ("int32", INT64, True),
        ("bool", FLOAT, True),
        ("float", HALF, False),
        ("float", BFLOAT16, False),
        ("float16", BFLOAT16, False),
        ("float", INT64, False),
        ("int32", FLOAT, False),
        ("int64", DOUBLE, False),
        ("int64", INT32, False),
        ("int8", UINT8, False),
        ("uint8", INT8, False),
        ("int32", BOOL, False),
    ],
)
def test_cast_back_goes_only_where_no_value_is_lost(parse, ops, source, between, goes):
    dtype = {"float16": HALF, "bfloat16": BFLOAT16, "float": FLOAT, "int8": INT8, "uint8": UINT8}
    dtype |= {"int32": INT32, "int64": INT64, "bool": BOOL}
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]> g ({source}[3] x) => ({source}[1,3] y)
        <int64[1] zero = {{0}}> {{
            a = Cast <to = {between}> (x)
            b = Cast <to = {dtype[source]}> (a)
            y = Unsqueeze(b, zero)
        }}"""
    )
    apply(model)
    assert ops(model) == (["Cast", "Unsqueeze"] if goes else ["Cast", "Cast", "Unsqueeze"])


@pytest.mark.parametrize(
    ("opset", "body", "goes"),
    [
        (6, "t = Dropout <is_test = 1> (x)", True),
        (6, "t = Dropout (x)", False),
        (10, "t = Dropout <ratio = 0.5> (x)", True),
        (12, "t = Dropout (x, half, yes)", False),
        (9, "t = Slice <starts = [0, 0], ends = [2147483647, 4], axes = [0, 2]> (x)", True),
        (9, "t = Slice <starts = [0], ends = [3], axes = [2]> (x)", False),
        (10, "t = Pad <pads = [0, 0, 0, 0, 0, 0]> (x)", True),
        (10, "t = Pad <pads = [0, 0, 1, 0, 0, 0]> (x)", False),
        (12, "t = Unsqueeze <axes = [0]> (x)", False),
        (6, "t = Add <broadcast = 1> (x, zero)", False),
        (5, "t = Reshape (x, all0)", True),
        (5, 't = Cast <to = "FLOAT"> (x)', False),
        (13, "n = Squeeze(x) t = Identity(x)", True),
    ],
)
def test_older_opsets(parse, ops, opset, body, goes):
    model = parse(graph(body, opset), check=False)
    assert apply(model).modified == goes
    assert (ops(model)[-2:] == ["Neg"] or ops(model)[0] in ("Neg", "Squeeze")) == goes


@pytest.mark.parametrize(
    ("body", "outputs", "kept"),
    [
        ("y = Identity(x)", "float[N,4] y", ["Identity"]),
        ("y = Identity(w)", "float[?] y", ["Identity"]),
        ("y = Exp(x) z = Identity(y)", "float[N,4] y, float[N,4] z", ["Exp", "Identity"]),
        ("e = Exp(x) y = Identity(e) z = Identity(e)", "float[N,4] y, float[N,4] z", ["Exp", "Identity"]),
        ("e = Exp(x) y = Identity(e)", "float[N,4] y", ["Exp"]),
        ("e = Exp(x) z = Neg(e) y = Identity(e)", "float[N,4] z, float[N,4] y", ["Exp", "Neg"]),
    ],
)
def test_interface_keeps_names_order_and_shapes(parse, ops, assert_same, body, outputs, kept):
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => ({outputs})
        <float[4] w = {{1, 2, 3, 4}}> {{ {body} }}"""
    model = parse(text)
    before = [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    result = apply(model)
    assert ops(model) == kept
    assert bool(result.refusals) == ("Identity" in kept)
    assert [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == before
    assert_same(parse(text), model, {"x": X[0]})


def test_what_reads_a_kept_node_reads_its_input(parse, ops, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y, float[N,4] z)
        { y = Identity(x) z = Neg(y) }"""
    model = parse(text)
    result = apply(model)
    assert result.modified
    assert str(result.refusals[0]) == (
        "eliminate-identity at Identity (output 'y'): a graph output needs a node of its own"
    )
    assert model.graph.node(1).inputs[0].name == "x"
    assert_same(parse(text), model, {"x": X[0]})


NESTED = """<ir_version: 8, opset_import: ["" : 17]> g (float[4] x, bool c) => (float[4] y)
<float zero = {0}> {
    outer = Exp(x)
    y = If (c) <
        then_branch = t () => (float[4] p) { p = Identity(outer) },
        else_branch = e () => (float[4] s) {
            a = Identity(outer)
            q = Add(a, zero)
            r = Neg(q)
            s = Identity(r)
        }
    >
}"""


def test_branches_return_nodes_of_their_own(parse, assert_same):
    model = parse(NESTED)
    result = apply(model)
    branches = model.graph.node(1).attributes
    assert [n.op_type for n in branches["then_branch"].as_graph()] == ["Identity"]
    assert [n.op_type for n in branches["else_branch"].as_graph()] == ["Neg"]
    assert result.summary == "removed 3 nodes (2 Identity, 1 Add)"
    for condition in (True, False):
        assert_same(parse(NESTED), model, {"x": X[0, 0], "c": np.array(condition)})


def test_loop_bodies_trust_no_shape_of_what_they_carry(parse, assert_same):
    """The carried value grows from 1 to 4 elements; a Reshape by its first shape would be wrong to remove."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1] x, int64 n) => (float[?] y)
    <bool yes = {1}, float[1] zero = {0}, int64[1] minus1 = {-1}> {
        y = Loop (n, yes, x) <
            body = b (int64 i, bool go, float[?] acc) => (bool again, float[?] next) {
                again = Identity(go)
                same = Reshape(acc, minus1)
                twice = Concat <axis = 0> (same, same)
                next = Add(twice, zero)
            }
        >
    }"""
    model = parse(text)
    apply(model)
    assert [n.op_type for n in model.graph.node(0).attributes["body"].as_graph()][:2] == [
        "Identity",
        "Reshape",
    ]
    assert_same(parse(text), model, {"x": np.ones(1, np.float32), "n": np.array(3)})


def test_functions_know_no_types_and_no_attributes_of_their_callers(parse):
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]> g (float[4] x) => (float[4] y)
        { y = local.f <to = 1, axis = 0> (x) }
        <domain: "local", opset_import: ["" : 17]> f <to, axis> (a) => (d) {
            b = Identity(a)
            c = Cast <to : int = @to> (b)
            e = Cast <to = 1> (c)
            s = Split <axis : int = @axis> (e)
            d = Neg(s)
        }""",
        check=False,
    )
    body = model.functions["local", "f", ""]
    for value in body.graph.node(0).outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    body.graph.node(1).outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    apply(model)
    assert [n.op_type for n in body] == ["Cast", "Cast", "Neg"]


def test_other_domains_and_shadowing_names_stay(parse, ops):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> g (float[4] x) => (float[4] y)
        { t = custom.Identity(x) y = Neg(t) }""",
        check=False,
    )
    assert not apply(model).modified
    assert ops(model) == ["Identity", "Neg"]


def test_what_only_the_removed_node_knew_of_its_type_is_kept(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
        { a = Exp(x) t = Identity(a) y = Neg(t) }"""
    )
    model.graph.node(1).outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.node(1).outputs[0].shape = ir.Shape(["N", 4])
    apply(model)
    known = model.graph.node(0).outputs[0]
    assert (known.dtype, str(known.shape)) == (ir.DataType.FLOAT, "[N,4]")


def test_shape_of_a_graph_input_is_not_filled_in(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
        { t = Identity(x) y = Neg(t) }"""
    )
    model.graph.inputs[0].shape = None
    model.graph.node(0).outputs[0].shape = ir.Shape([3, 4])
    apply(model)
    assert model.graph.inputs[0].shape is None


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("y = And (c, yes)", False),
        ("y = And (yes, c)", False),
        ("y = Or (c, no)", False),
        ("y = And (c, no)", True),
        ("y = Or (c, yes)", True),
        ("y = And (c, wide)", True),  # grows an axis
    ],
)
def test_logic_with_a_constant(body, stays, parse, ops, assert_same):
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (bool[b, 3] c0) => (bool[m, n] y)
        <bool yes = {{1}}, bool no = {{0}}, bool[2, 1] wide = {{1, 1}}> {{
        c = Not (c0)
        {body}
    }}"""
    before, after = parse(text), parse(text)
    assert EliminateIdentity()(after).modified is not stays
    assert len(ops(after)) == (2 if stays else 1)
    assert_same(before, after, {"c0": np.array([[True, False, True]])})
