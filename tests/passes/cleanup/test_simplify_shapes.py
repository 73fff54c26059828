"""simplify-shapes: targets become numbers, equal values of shape arithmetic become one."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph import constant_of
from graphopt.passes.cleanup.simplify_shapes import SimplifyShapes

SPLIT = """
    i0 = Constant <value_int: int = 0> ()
    i1 = Constant <value_int: int = 1> ()
    axes = Constant <value_ints: ints = [0]> ()
    heads = Constant <value_ints: ints = [2]> ()
    size = Constant <value_ints: ints = [4]> ()
    s = Shape (x)
    b = Gather (s, i0)
    n = Gather (s, i1)
    b1 = Unsqueeze (b, axes)
    n1 = Unsqueeze (n, axes)
"""


def model_of(parse, body: str, x: str = "float[B,S,8] x", y: str = "float[?,?,?,?] y", opset: int = 17):
    outputs = y if y.startswith("(") else f"({y})"
    return parse(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => {outputs} {{ {body} }}')


def feeds(*shapes: tuple[int, ...], name: str = "x") -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(shape).astype(np.float32)} for shape in shapes]


def simplify(model: ir.Model, **options: bool):
    before = model.clone()
    result = SimplifyShapes(**options)(model)
    return before, result


def target_of(model: ir.Model, op_type: str = "Reshape") -> list[int] | None:
    node = next(n for n in model.graph if n.op_type == op_type)
    tensor = constant_of(node.inputs[1])
    return None if tensor is None else tensor.numpy().tolist()


# Targets of Reshape.


def test_split_of_heads_copies_its_axes(parse, ops, assert_same):
    model = model_of(parse, SPLIT + "t = Concat <axis=0> (b1, n1, heads, size) y = Reshape (x, t)")
    before, result = simplify(model)
    assert ops(model) == ["Reshape"]
    assert target_of(model) == [0, 0, 2, 4]
    assert result.modified
    assert result.summary == "1 Reshape target"
    assert_same(before, model, *feeds((1, 5, 8), (3, 1, 8), (2, 7, 8), (0, 5, 8), (2, 0, 8)))


def test_inferred_entry_becomes_its_number(parse, ops, assert_same):
    body = SPLIT + "m = Constant <value_ints: ints = [-1]> () t = Concat <axis=0> (b1, n1, m, size)"
    model = model_of(parse, body + "y = Reshape (x, t)")
    before, _ = simplify(model)
    assert ops(model) == ["Reshape"]
    assert target_of(model) == [0, 0, 2, 4]
    assert_same(before, model, *feeds((1, 5, 8), (3, 1, 8)))


def test_one_unknown_entry_becomes_minus_one(parse, ops, assert_same):
    model = model_of(
        parse,
        SPLIT + "m = Mul (b1, n1) t = Concat <axis=0> (m, heads, size) y = Reshape (x, t)",
        y="float[?,?,?] y",
    )
    before, _ = simplify(model)
    assert ops(model) == ["Reshape"]
    assert target_of(model) == [-1, 2, 4]
    assert_same(before, model, *feeds((1, 5, 8), (3, 1, 8), (0, 5, 8)))


def test_entry_from_another_tensor_becomes_minus_one(parse, ops):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[K] x, int64[1] n) => (float[?,?] y) {
        four = Constant <value_ints: ints = [4]> ()
        t = Concat <axis=0> (n, four)
        y = Reshape (x, t)
    }""")
    simplify(model)
    assert ops(model) == ["Reshape"]
    assert target_of(model) == [-1, 4]


def test_allowzero_goes_with_the_zeros_it_forbade(parse, assert_same):
    model = model_of(
        parse, SPLIT + "t = Concat <axis=0> (b1, n1, heads, size) y = Reshape <allowzero=1> (x, t)"
    )
    before, _ = simplify(model)
    assert target_of(model) == [0, 0, 2, 4]
    assert "allowzero" not in next(n for n in model.graph if n.op_type == "Reshape").attributes
    assert_same(before, model, *feeds((2, 3, 8), (0, 3, 8), (2, 0, 8)))


def test_allowzero_with_a_literal_zero_stays(parse, ops):
    body = SPLIT + "z = Constant <value_ints: ints = [0]> () t = Concat <axis=0> (b1, z, size)"
    model = model_of(parse, body + "y = Reshape <allowzero=1> (x, t)", y="float[?,?,?] y")
    _, result = simplify(model)
    assert "size 0" in result.refusals[0].reason
    assert target_of(model) is None


def test_merged_axis_beside_a_copied_one_stays_for_empty_tensors(parse, assert_same):
    body = SPLIT + "bh = Mul (b1, heads) t = Concat <axis=0> (n1, bh, size) y = Reshape (x, t)"
    model = model_of(parse, body, x="float[S,B,8] x", y="float[?,?,?] y")
    # here b is S and n is B: the target asks for [B, 2*S, 4], nothing lies at its place
    before, result = simplify(model)
    assert "entries 0, 1" in result.refusals[0].reason
    swapped = body.replace("s = Shape (x)", "p = Transpose <perm=[1,0,2]> (x) s = Shape (p)")
    model = model_of(parse, swapped, x="float[S,B,8] x", y="float[?,?,?] y")
    before, result = simplify(model)
    assert "empty" in result.refusals[0].reason
    assert target_of(model) is None
    assert_same(before, model, *feeds((3, 2, 8), (0, 2, 8), (3, 0, 8)))
    before, _ = simplify(model, allow_empty=False)
    assert target_of(model) == [0, -1, 4]
    assert_same(before, model, *feeds((3, 2, 8), (1, 1, 8)))


def test_two_unknown_entries_stay(parse, ops):
    body = SPLIT + "m = Mul (b, n) mm = Unsqueeze (m, axes) e = Constant <value_ints: ints = [8]> ()"
    body += "k = Constant <value_ints: ints = [-1, 8]> () f = Reshape (x, k)"
    model = model_of(parse, body + "t = Concat <axis=0> (b1, n1, e) y = Reshape (f, t)", y="float[?,?,?] y")
    _, result = simplify(model)
    assert [r.reason for r in result.refusals] == ["entries 0, 1 of the target are not known"]


def test_sum_is_not_proportional_to_the_axis(parse):
    """-1 is a number only if the original fails where the other open entry is 0: not for B + 1 of B."""
    body = "i = Constant <value_ints: ints = [0]> () one = Constant <value_ints: ints = [1]> ()"
    body += "m = Constant <value_ints: ints = [-1]> () s = Shape (x) b = Gather (s, i) c = Add (b, one)"
    model = model_of(
        parse, body + "t = Concat <axis=0> (c, m) y = Reshape (x, t)", "float[B,S] x", "float[?,?] y"
    )
    _, result = simplify(model)
    assert target_of(model) is None
    assert "entries 0, 1" in result.refusals[0].reason


def test_constant_target_is_left_alone(parse, ops):
    model = model_of(
        parse, "t = Constant <value_ints: ints = [0, -1]> () y = Reshape (x, t)", y="float[?,?] y"
    )
    _, result = simplify(model)
    assert not result.modified
    assert target_of(model) == [0, -1]


def test_reshape_to_its_own_shape_goes_but_a_graph_output_stays_named(parse, ops, assert_same):
    model = model_of(parse, "r = Relu (x) s = Shape (r) z = Reshape (r, s) y = Neg (z)", y="float[?,?,?] y")
    before, _ = simplify(model)
    assert ops(model) == ["Relu", "Neg"]
    assert_same(before, model, *feeds((2, 3, 8), (0, 3, 8)))
    model = model_of(parse, "s = Shape (x) y = Reshape (x, s)", y="float[?,?,?] y")
    before, _ = simplify(model)
    assert "Reshape" in ops(model)
    assert_same(before, model, *feeds((2, 3, 8)))


# Expand.


def test_expand_before_a_broadcast_goes(parse, ops, assert_same):
    body = "s = Shape (x) e = Expand (w, s) y = Mul (e, x)"
    model = model_of(parse, body, x="float[B,S,8] x, float[1,S,1] w", y="float[?,?,?] y")
    before, result = simplify(model)
    assert ops(model) == ["Mul"]
    assert result.summary == "1 bypassed Expand"
    w = np.random.default_rng(1).standard_normal((1, 5, 1)).astype(np.float32)
    assert_same(before, model, *({**f, "w": w} for f in feeds((2, 5, 8), (0, 5, 8), (1, 5, 8))))


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("s = Shape (x) e = Expand (w, s) y = Mul (e, e)", "float[B,8] x, float[1,8] w"),
        ("s = Shape (x) e = Expand (w, s) y = Mul (e, w)", "float[B,8] x, float[1,8] w"),
        ("s = Shape (x) e = Expand (w, s) y = MatMul (e, x)", "float[8,8] x, float[1,8] w"),
        ("s = Shape (x) e = Expand (w, s) y = Mul (e, v)", "float[B,8] x, float[1,8] w, float[C,8] v"),
        (
            "s = Shape (x) e = Expand (w, s) z = Mul (e, x) y = Concat <axis=0> (z, e)",
            "float[B,8] x, float[1,8] w",
        ),
        ("s = Shape (x) e = Expand (w, s) y = Mul (e, v)", "float[1,8] x, float[8] w, float[8] v"),
    ],
)
def test_expand_that_makes_the_shape_stays(parse, ops, body, inputs):
    model = model_of(parse, body, x=inputs, y="float[?,?] y")
    simplify(model)
    assert "Expand" in ops(model)


def test_expand_keeps_one_for_axes_that_the_input_has(parse, ops, assert_same):
    body = SPLIT + "t = Concat <axis=0> (b1, size, n1) p = Transpose <perm=[0,2,1]> (w) y = Expand (p, t)"
    model = model_of(parse, body, x="float[B,S,8] x, float[B,S,1] w", y="float[?,?,?] y")
    before, _ = simplify(model)
    assert ops(model) == ["Transpose", "Expand"]
    assert target_of(model, "Expand") == [1, 4, 1]
    w = np.ones((2, 5, 1), np.float32)
    assert_same(before, model, {**feeds((2, 5, 8))[0], "w": w})


def test_torchscript_expand_of_a_class_token(parse, ops, assert_same):
    body = (
        SPLIT
        + """
        m = Constant <value_ints: ints = [-1]> ()
        want = Concat <axis=0> (b1, m, m)
        three = Constant <value_ints: ints = [3]> ()
        ones = ConstantOfShape <value = int64[1] {1}> (three)
        minus = Mul (ones, m)
        equal = Equal (want, minus)
        t = Where (equal, ones, want)
        e = Expand (w, t)
        y = Concat <axis=1> (e, x)
    """
    )
    model = model_of(parse, body, x="float[B,S,8] x, float[1,1,8] w", y="float[?,?,?] y")
    for place, node in enumerate(model.graph):
        node.name = f"node_{place}"
    before, _ = simplify(model)
    assert ops(model) == ["Shape", "Concat", "Expand", "Concat"]
    names = [node.name for node in model.graph if node.name]
    assert len(names) == len(set(names))
    w = np.ones((1, 1, 8), np.float32)
    assert_same(before, model, *({**f, "w": w} for f in feeds((2, 5, 8), (1, 1, 8), (0, 5, 8))))


# Values of shape arithmetic.


def test_equal_chains_become_one(parse, ops, assert_same):
    body = """
        i0 = Constant <value_int: int = 0> ()
        i1 = Constant <value_int: int = 1> ()
        zero = Constant <value_int: int = 0> ()
        r = Relu (x)
        s = Shape (x)
        n = Gather (s, i1)
        a = Range (zero, n, i1)
        s2 = Shape (r)
        n2 = Gather (s2, i1)
        c = Range (zero, n2, i1)
        y = Add (a, c)
        z = Neg (r)
    """
    model = model_of(parse, body, y="(int64[?] y, float[?,?,?] z)")
    before, result = simplify(model)
    assert ops(model).count("Shape") == 1
    assert ops(model).count("Gather") == 1
    assert "shared value" in result.summary
    assert_same(before, model, *feeds((2, 5, 8), (1, 1, 8)))


def test_axes_with_other_names_are_not_equal(parse, ops):
    body = """
        i0 = Constant <value_int: int = 0> ()
        s = Shape (x)
        s2 = Shape (w)
        n = Gather (s, i0)
        n2 = Gather (s2, i0)
        y = Add (n, n2)
    """
    model = model_of(parse, body, x="float[A] x, float[B] w", y="int64 y")
    _, result = simplify(model)
    assert ops(model) == ["Shape", "Shape", "Gather", "Gather", "Add"]
    assert not result.modified
    assert result.summary == "nothing to simplify"


def test_types_and_ranks_keep_values_apart(parse, ops):
    body = """
        i = Constant <value_ints: ints = [0]> ()
        i0 = Constant <value_int: int = 0> ()
        s = Shape (x)
        v = Gather (s, i)
        n = Gather (s, i0)
        c = Cast <to = 6> (n)
        y = Neg (v)
        z = Neg (n)
        q = Neg (c)
    """
    model = model_of(parse, body, y="(int64[1] y, int64 z, int32 q)")
    simplify(model)
    assert ops(model).count("Neg") == 3
    assert ops(model).count("Cast") == 1
    assert ops(model).count("Gather") + ops(model).count("Shape") <= 3


def test_vector_is_read_by_one_shape_from_opset_15(parse, ops, assert_same):
    body = SPLIT + "t = Concat <axis=0> (b1, n1) y = ConstantOfShape (t)"
    model = model_of(parse, body, y="float[?,?] y", opset=15)
    before, _ = simplify(model)
    assert ops(model) == ["Shape", "ConstantOfShape"]
    shape = next(n for n in model.graph if n.op_type == "Shape")
    assert (shape.attributes["start"].value, shape.attributes["end"].value) == (0, 2)
    assert_same(before, model, *feeds((2, 5, 8), (0, 3, 8)))


def test_no_partial_shape_before_opset_15(parse, ops, assert_same):
    body = SPLIT + "t = Concat <axis=0> (b1, n1) y = ConstantOfShape (t)"
    model = model_of(parse, body, y="float[?,?] y", opset=14)
    before, _ = simplify(model)
    assert not any(n.attributes for n in model.graph if n.op_type == "Shape")
    assert_same(before, model, *feeds((2, 5, 8)))


def test_graph_output_of_shapes_keeps_its_name(parse, ops, assert_same):
    body = SPLIT + "t = Concat <axis=0> (b1, n1) y = Identity (t) z = Reshape (x, s)"
    model = model_of(parse, body, y="(int64[2] y, float[?,?,?] z)")
    before, _ = simplify(model)
    assert [o.name for o in model.graph.outputs] == ["y", "z"]
    assert_same(before, model, *feeds((2, 5, 8)))


def test_last_node_inherits_name_and_metadata(parse):
    model = model_of(parse, SPLIT + "t = Concat <axis=0> (b1, n1) y = ConstantOfShape (t)", y="float[?,?] y")
    concat = next(n for n in model.graph if n.op_type == "Concat")
    concat.name, concat.metadata_props["from"] = "sizes", "here"
    simplify(model)
    shape = next(n for n in model.graph if n.op_type == "Shape")
    assert (shape.name, dict(shape.metadata_props)) == ("sizes", {"from": "here"})


# Scopes.


def test_branches_are_simplified_where_they_are(parse, ops, assert_same):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[B,S,8] x, bool c) => (float[?,?,?] y) {
        y = If (c) <
            then_branch = t () => (float[?,?,?] ty) {
                i = Constant <value_ints: ints = [0, 1]> ()
                s = Shape (x) b = Gather (s, i) k = Constant <value_ints: ints = [8]> ()
                v = Concat <axis=0> (b, k) r = Relu (x) q = Reshape (r, v) ty = Neg (q)
            },
            else_branch = e () => (float[?,?,?] ey) { ey = Abs (x) }
        >
    }""")
    before, _ = simplify(model)
    branch = next(n for n in model.graph if n.op_type == "If").attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch if n.op_type != "Constant"] == ["Relu", "Neg"]
    for flag in (True, False):
        assert_same(before, model, {**feeds((2, 3, 8))[0], "c": np.array(flag)})


def test_carried_values_of_a_loop_are_not_believed(parse, assert_same):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N] x, int64 trips) => (float[?] y) {
        go = Constant <value = bool {1}> ()
        y = Loop (trips, go, x) <body = b (int64 i, bool c, float[K] a) => (bool c2, float[M] a2) {
            c2 = Identity (c)
            s = Shape (x) e = Reshape (a, s) a2 = Identity (e)
        }>
    }""")
    before, _ = simplify(model)
    assert_same(before, model, {**feeds((4,))[0], "trips": np.array(2)})


def test_functions_are_left_alone(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[B,8] x) => (float[?,?] y) { y = own.f (x) }
    <domain: "own", opset_import: ["" : 17]>
    f (a) => (b) { s = Shape (a) r = Relu (a) b = Reshape (r, s) }""")
    _, result = simplify(model)
    assert not result.modified


def test_second_run_finds_nothing(parse):
    model = model_of(parse, SPLIT + "t = Concat <axis=0> (b1, n1, heads, size) y = Reshape (x, t)")
    simplify(model)
    assert not SimplifyShapes()(model).modified


def test_cost_grows_with_the_nodes(parse):
    def block(k: int, x: str) -> str:
        return f"""
            s{k} = Shape ({x}) b{k} = Gather (s{k}, i) t{k} = Concat <axis=0> (b{k}, hw)
            r{k} = Reshape ({x}, t{k}) v{k} = Concat <axis=0> (b{k}, k8) x{k + 1} = Reshape (r{k}, v{k})"""

    def seconds(blocks: int) -> float:
        head = "i = Constant <value_ints: ints = [0, 1]> () hw = Constant <value_ints: ints = [2, 4]> ()"
        body = head + "k8 = Constant <value_ints: ints = [8]> () x0 = Relu (x)"
        body += "".join(block(k, f"x{k}") for k in range(blocks)) + f"y = Neg (x{blocks})"
        model = model_of(parse, body, y="float[?,?,?] y")
        start = time.process_time()
        SimplifyShapes()(model)
        assert not any(n.op_type == "Shape" for n in model.graph)
        return time.process_time() - start

    seconds(10)
    assert seconds(800) < 10 * max(seconds(200), 0.02)
