"""Inferred shapes are certain, and inferring them changes nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analyses import shapes


@pytest.fixture
def infer(parse):
    """Text -> the model's values by name with what is inferred, and the result itself."""

    def infer_text(text, **options):
        model = parse(text, check=False)
        found = shapes.infer(model, **options)
        return {value.name: found[value] for value in every_value(model)}, found

    return infer_text


def every_value(model):
    graphs = (
        *(model.graph, *model.graph.subgraphs()),
        *(g for f in model.functions.values() for g in (f.graph, *f.subgraphs())),
    )
    for graph in graphs:
        yield from (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))


def dims(known):
    return None if known.shape is None else [d if isinstance(d, int) else d.value for d in known.shape]


def elements(known):
    return None if known.elements is None else [e if isinstance(e, int) else e.value for e in known.elements]


HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_axes_keep_their_names_and_become_expressions(infer):
    known, found = infer(
        HEAD
        + """ g (float[batch, 3, h, 8] x, float[4, 3, 3, 3] w) => (float[a, b] y)
        { c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)  f = Flatten(c)  y = Relu(f) }"""
    )
    assert dims(known["c"]) == ["batch", 4, "floor((h + 1)/2)", 4]
    assert dims(known["f"])[0] == "batch"
    assert known["y"].dtype == ir.DataType.FLOAT
    assert found.complete
    assert found.problem == ""


def test_static_shape_and_unknown_values(parse):
    model = parse(HEAD + "g (float[2, 3] x, float[N] z) => (float[2, 3] y) { y = Relu(x) }")
    found = shapes.infer(model)
    x, z = model.graph.inputs
    assert found[x].static == (2, 3)
    assert found[z].static is None
    assert found[ir.Value(name="stranger")] == shapes.Inferred()


TEXT_WITH_EVERYTHING = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[N, 4] x, int64[1] k = {2}) => (float[N, 4] y)
<float[4] w = {1, 2, 3, 4}, float[9, 9] r, int64[2] target = {0, -1}>
{
  s = Shape(x)
  c = Constant<value = int64[1] {3}>()
  r = Add(x, w)
  q = local.twice(r)
  cond = Constant<value = bool {1}>()
  t = If(cond) <then_branch = g1 () => (float[a, b] p) { p = Relu(q) },
               else_branch = g2 () => (float[a, b] p2) { p2 = Neg(q) }>
  y = Reshape(t, target)
}
<domain: "local", opset_import: ["" : 17]> twice (a) => (b) { c2 = Identity(a)  b = Add(c2, c2) }
"""


def snapshot(model):
    values = {}
    for graph in (model.graph, *model.graph.subgraphs(), *(f.graph for f in model.functions.values())):
        for v in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)):
            values[v] = (v.type, v.shape, list(v.shape or ()), v.const_value, dict(v.metadata_props), v.name)
    return values


@pytest.mark.parametrize("options", [{}, {"unnamed": 1}, {"axes": {"N": 3}}, {"declared": True}])
def test_model_is_left_exactly_as_it_was(parse, options):
    model = parse(TEXT_WITH_EVERYTHING, check=False)
    next(iter(model.graph)).outputs[0].metadata_props["note"] = "mine"
    before, text = snapshot(model), ir.to_proto(model).SerializeToString()
    assert shapes.infer(model, **options).complete
    after = snapshot(model)
    assert after.keys() == before.keys()
    for value, (type_, shape, axes, const, notes, name) in before.items():
        assert value.type is type_
        assert value.shape is shape
        assert (list(value.shape or ()), dict(value.metadata_props), value.name) == (axes, notes, name)
        assert value.const_value is const
    assert ir.to_proto(model).SerializeToString() == text


def test_model_is_left_as_it_was_where_a_node_makes_no_sense(parse):
    model = parse(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)  y = MatMul(a) }", check=False)
    before = snapshot(model)
    found = shapes.infer(model)
    assert not found.complete
    assert "MatMul" in found.problem
    assert snapshot(model) == before
    relu, matmul = model.graph
    assert found[relu.outputs[0]].static == (2, 3)  # what lies before the fault is known
    assert found[matmul.outputs[0]].shape is None
    assert shapes.infer(model, declared=True)[matmul.outputs[0]].static == (2, 3)


def test_wrong_declarations_do_not_count(infer):
    known, _ = infer(
        HEAD + "g (float[N, 3] x) => (float[1, 3] z) <float[7, 3] y> { y = Relu(x)  z = Neg(y) }"
    )
    assert dims(known["y"]) == ["N", 3]
    assert dims(known["z"]) == ["N", 3]


def test_declared_shapes_of_unknown_operators_only_on_demand(infer):
    text = """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
    g (float[N, 3] x) => (float[N, 5] z) <float[N, 5] y> { y = other.Op(x)  z = Neg(y) }"""
    known, _ = infer(text)
    assert known["y"].shape is None
    assert known["z"].shape is None
    known, _ = infer(text, declared=True)
    assert dims(known["y"]) == ["N", 5]


def test_axes_are_bound_by_name_and_the_rest_by_one_number(infer):
    text = HEAD + "g (float[N, S, 3] x, float[N, ?, 3] z) => (float[a, b, c] y) { y = Concat<axis=1>(x, z) }"
    known, _ = infer(text, axes={"N": 4}, unnamed=2)
    assert known["y"].static == (4, 4, 3)
    known, _ = infer(text, axes={"N": 4})
    assert dims(known["x"]) == [4, "S", 3]


def test_minus_one_is_an_open_axis(parse):
    model = parse(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = ir.Shape([-1, 3])
    found = shapes.infer(model)
    assert not isinstance(found[model.graph.outputs[0]].shape[0], int)


@pytest.mark.parametrize(
    "name", ["batch size", "10**10**10", "f(x)", "-", "a*b", "unknown__1", "(" * 99, "1e9"]
)
def test_axis_names_are_never_read_as_expressions(parse, name):
    model = parse(HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = ir.Shape([name, 3])
    found = shapes.infer(model)
    assert found.complete
    assert [str(d) for d in found[model.graph.outputs[0]].shape] == [name, "3"]


# values of small integer tensors


def test_elements_follow_shapes_through_moves(infer):
    known, _ = infer(
        HEAD
        + """ g (float[batch, seq, 768] x) => (float[a, b, c, d] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}, int64[1] heads = {12}, int64[1] size = {64}>
        {
          s = Shape(x)  b0 = Gather(s, zero)  b1 = Unsqueeze(b0, axes)  t0 = Gather(s, one)
          t1 = Unsqueeze(t0, axes)  target = Concat<axis=0>(b1, t1, heads, size)  y = Reshape(x, target)
        }"""
    )
    assert elements(known["s"]) == ["batch", "seq", 768]
    assert elements(known["target"]) == ["batch", "seq", 12, 64]
    assert dims(known["y"]) == ["batch", "seq", 12, 64]
    assert known["target"].constant is None


def test_fixed_part_of_an_open_shape_is_a_constant(infer):
    known, _ = infer(
        HEAD
        + """ g (float[batch, 6, 8] x) => (int64[2] y) <int64[1] one = {1}, int64[1] end = {9}>
        { s = Shape(x)  y = Slice(s, one, end) }"""
    )
    assert known["y"].constant.tolist() == [6, 8]
    assert elements(known["s"]) == ["batch", 6, 8]


def test_reversed_shape_keeps_all_elements(infer):
    known, _ = infer(
        HEAD
        + """ g (float[batch, 6, 8] x) => (int64[3] y)
        <int64[1] start = {-1}, int64[1] end = {-9223372036854775807}, int64[1] axis = {0}>
        { s = Shape(x)  y = Slice(s, start, end, axis, start) }"""
    )
    assert elements(known["y"]) == [8, 6, "batch"]


def test_unknown_elements_do_not_hide_known_ones(infer):
    known, _ = infer(
        HEAD
        + """ g (float[N, 6] x, int64[1] n) => (float[a, b] y) <int64[1] three = {3}>
        { minus = Constant<value_ints = [-1, -1]>()  t = Concat<axis=0>(n, three)  y = Reshape(x, t)
          e = Equal(t, minus) }"""
    )
    assert elements(known["t"]) == [None, 3]
    assert dims(known["y"])[1] == 3
    assert not isinstance(known["y"].shape[0], int)
    assert known["e"].constant is None  # n may well be -1


def test_exporters_expand_by_where_of_shapes(infer):
    known, _ = infer(
        HEAD
        + """ g (float[batch, seq] x) => (float[a, b, c, d] y)
        <int64[1] one = {1}, int64[4] ones = {1, 1, 1, 1}, int64 minus = {-1}, float[1, 1, 1, 1] v = {0.0}>
        {
          s = Shape(x)  t = Concat<axis=0>(s, one, one)  u = Mul(ones, minus)  e = Equal(t, u)
          w = Where(e, ones, t)  y = Expand(v, w)
        }"""
    )
    assert known["e"].constant.tolist() == [False] * 4
    assert dims(known["y"]) == ["batch", "seq", 1, 1]


def test_an_axis_may_be_zero(infer):
    known, _ = infer(
        HEAD
        + """ g (float[N] x) => (bool[1] y) <int64[1] zero = {0}, int64[1] minus = {-1}>
        { four = Constant<value_ints = [4]>()  s = Shape(x)  y = Greater(s, zero)  z = Greater(s, minus)
          d = Sub(s, four)  e = Greater(d, minus) }"""
    )
    assert known["y"].constant is None
    assert known["z"].constant.tolist() == [True]
    assert known["e"].constant is None


def test_division_of_floats_is_not_taken_for_one_of_integers(infer):
    known, _ = infer(
        HEAD
        + """ g (float[3, 5] x) => (int64[2] y) <int64[2] two = {2, 2}>
        { s = Shape(x)  f = Cast<to=1>(s)  t = Cast<to=1>(two)  q = Div(f, t)  c = Ceil(q)
          y = Cast<to=7>(c) }"""
    )
    assert known["y"].constant.tolist() == [2, 3]


def test_what_a_reshape_leaves_for_its_last_axis(infer):
    known, _ = infer(
        HEAD
        + """ g (float[N, S, 4, 128] x, float[A, B] z) => (float[a, b, c] y)
        <int64[1] one = {1}, int64[1] six = {6}, int64[1] end = {9223372036854775807},
         int64[3] t = {0, 0, -1}, int64[3] u = {0, 4, -1}, int64[2] v = {-1, 7}>
        { c = Slice(x, six, end, one)  y = Reshape(c, t)  w = Reshape(c, u)  s = Shape(c)
          f = Flatten(z)  k = Reshape(f, v) }"""
    )
    assert dims(known["c"])[1] == "-Min(6, S) + S"
    assert dims(known["y"]) == ["N", "-Min(6, S) + S", 512]
    assert dims(known["w"]) == ["N", 4, "-128*Min(6, S) + 128*S"]
    assert dims(known["k"]) == ["floor(A*B/7)", 7]


def test_constant_of_shape_with_open_axes(infer):
    known, _ = infer(HEAD + "g (float[N, 4] x) => (float[a, b] y) { s = Shape(x)  y = ConstantOfShape(s) }")
    assert dims(known["y"]) == ["N", 4]


def test_initializer_that_a_caller_may_override_is_not_known(parse):
    model = parse(HEAD + "g (float[2, 6] x, int64[2] t = {3, 4}) => (float[a, b] y) { y = Reshape(x, t) }")
    assert not shapes.infer(model)[model.graph.outputs[0]].shape.is_static()


# certain shapes


def test_slice_of_an_open_axis_has_no_fixed_size(infer):
    known, _ = infer(
        HEAD
        + """ g (float[N, 6] x) => (float[a, 6] y)
        <int64[1] zero = {0}, int64[1] five = {5}, int64[1] big = {9223372036854775807}, int64[1] two = {2}>
        { one = Constant<value_ints = [1]>()  y = Slice(x, zero, five)  z = Slice(x, zero, big)
          v = Slice(x, zero, five, one, two) }"""
    )
    assert not isinstance(known["y"].shape[0], int)
    assert dims(known["y"])[0] != "N"
    assert dims(known["z"]) == ["N", 6]
    assert dims(known["v"]) == ["N", 3]


def test_slice_of_old_opsets(infer):
    known, _ = infer(
        """<ir_version: 4, opset_import: ["" : 9]>
        g (float[N, 6] x) => (float[N, 2] y) { y = Slice<axes = [1], starts = [-2], ends = [1000]>(x) }"""
    )
    assert dims(known["y"]) == ["N", 2]


@pytest.mark.parametrize("op", ["Add", "Where", "MatMul", "Expand"])
def test_two_names_that_meet_are_not_one_axis(infer, op):
    body = {
        "Add": "y = Add(x, z)",
        "Where": "c = Less(x, x)  y = Where(c, x, z)",
        "MatMul": "y = MatMul(x, z)",
        "Expand": "s = Shape(z)  y = Expand(x, s)",
    }[op]
    known, _ = infer(HEAD + f"g (float[A, 3, 3] x, float[B, 3, 3] z) => (float[a, b, c] y) {{ {body} }}")
    assert dims(known["y"])[1:] == [3, 3]
    assert dims(known["y"])[0] not in ("A", "B")
    assert not isinstance(known["y"].shape[0], int)


def test_a_size_wins_over_a_name_and_a_name_over_one(infer):
    known, _ = infer(HEAD + "g (float[A, 1, B] x, float[1, C, 4] z) => (float[a, b, c] y) { y = Add(x, z) }")
    assert dims(known["y"]) == ["A", "C", 4]


def test_squeeze_without_axes_of_an_open_shape_has_no_rank(infer):
    known, _ = infer(HEAD + "g (float[N, 1] x) => (float[a] y) { y = Squeeze(x) }")
    assert known["y"].shape is None


def test_split_by_unknown_sizes(infer):
    known, _ = infer(HEAD + "g (float[6, 2] x, int64[2] k) => (float[a, 2] y) { y, z = Split<axis=0>(x, k) }")
    assert not isinstance(known["y"].shape[0], int)
    assert known["y"].shape[1] == 2


def test_unique_along_an_axis_keeps_the_rank(infer):
    known, _ = infer(HEAD + "g (float[6, 2] x) => (float[a, 2] y) { y = Unique<axis = 0>(x) }")
    assert len(known["y"].shape) == 2
    assert known["y"].shape[1] == 2


def test_quantized_pools_are_pools(infer):
    known, _ = infer(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (uint8[1, 4, 8, 8] x) => (uint8[a, b, c, d] y) <float s = {1.0}, uint8 z = {0}>
        { p = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x, s, z, s, z)
          q = com.microsoft.QLinearAdd(p, s, z, p, s, z, s, z)
          y = com.microsoft.QLinearGlobalAveragePool(q, s, z, s, z) }"""
    )
    assert known["p"].static == (1, 4, 4, 4)
    assert known["q"].static == (1, 4, 4, 4)
    assert known["y"].static == (1, 4, 1, 1)


def test_what_onnxruntimes_optimizer_makes(parse, run):
    """The inferred shapes against those of onnxruntime."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[1, 3, 8, 8] x, float[2, 3, 4] m, float[5, 4] n, float[3, 6] g, float[4] s) =>
          (float[a, b, c, d] conv, float[e, f, h] product, float[i, j] gemm,
           float[k, l, o] norm, float[p, q, r] sum)
        <float[2, 3, 3, 3] w = {W}> {
          conv = com.microsoft.FusedConv<activation = "Relu", strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)
          t = Transpose<perm = [0, 2, 1]>(m)
          product = com.microsoft.FusedMatMul<transA = 1, transB = 1, alpha = 2.0>(t, n)
          gemm = com.microsoft.FusedGemm<transA = 1, activation = "Relu">(g, g)
          norm, , , sum = com.microsoft.SkipLayerNormalization(m, m, s)
        }""".replace("W", ", ".join("1" * 54))
    model = parse(text, check=False)
    known = {v.name: i.static for v, i in shapes.infer(model).items()}
    rng = np.random.default_rng(0)
    sizes = {v.name: tuple(v.shape.numpy()) for v in model.graph.inputs}
    made = run(model, {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()})
    for output, array in zip(model.graph.outputs, made, strict=True):
        assert known[output.name] == array.shape, output.name


def test_rules_that_nobody_checked_are_switched_off(infer):
    known, _ = infer(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (uint8[4, 8] x) => (uint8[a, b] y) <float s = {1.0}, uint8 z = {0}>
        { y = com.microsoft.QLinearReduceMean<axes = [1], keepdims = 0>(x, s, z, s, z)
          w = com.microsoft.Gelu(s) }"""
    )
    assert known["y"].shape is None
    assert known["w"].static == ()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fixed_sizes_of_windows_are_those_of_onnxruntime(data):
    import onnx.parser
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    pick = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    op = data.draw(st.sampled_from(["MaxPool", "AveragePool", "Conv", "ConvTranspose"]))
    size, kernel, stride, dilation = pick(1, 12), pick(1, 4), pick(1, 3), pick(1, 2)
    mode = data.draw(st.sampled_from([f"pads = [{pick(0, 2)}, {pick(0, 2)}]", 'auto_pad = "SAME_UPPER"']))
    attributes = f"strides = [{stride}], dilations = [{dilation}], {mode}"
    if "Pool" in op:
        attributes += f", kernel_shape = [{kernel}], ceil_mode = {pick(0, 1)}"
    call = f"{op}<{attributes}>(x{'' if 'Pool' in op else ', w'})"
    text = f"""<ir_version: 8, opset_import: ["" : 19]> g (float[1, 2, {size}] x) => (float[a, b, c] y)
    <float[2, 2, {kernel}] w = {{{", ".join(["1"] * 4 * kernel)}}}> {{ y = {call} }}"""
    proto = onnx.parser.parse_model(text)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options)
        real = session.run(None, {"x": np.zeros((1, 2, size), np.float32)})[0].shape
    except (state.Fail, state.InvalidArgument, state.RuntimeException):
        return  # a window that does not fit, or that onnxruntime does not know
    model = ir.from_proto(proto)
    known = shapes.infer(model)[model.graph.outputs[0]]
    assert all(not isinstance(a, int) or a == b for a, b in zip(known.shape, real, strict=True))


# control flow and functions


def test_what_a_loop_carries_has_no_shape(infer):
    """The first iteration's shape may not be that of the others."""
    known, _ = infer(
        HEAD
        + """ g (int64 n, float[1] x) => (float[m] y)
        {
          t = Constant<value = bool {1}>()
          y, stack = Loop(n, t, x) <body = b (int64 i, bool c, float[1] v) =>
          (bool c2, float[k] v2, float[1] out) {
            c2 = Identity(c)  v2 = Concat<axis = 0>(v, v)  out = Identity(x)  s = Shape(v)
            fixed = Shape(x) }>
          z = Neg(y)  o = Neg(x)
        }"""
    )
    for name in ("v", "v2", "y", "stack", "z"):
        assert known[name].shape is None
    assert known["s"].constant is None
    assert known["out"].static == (1,)
    assert known["fixed"].constant.tolist() == [1]
    assert known["o"].static == (1,)


def test_scan_and_if(infer):
    known, _ = infer(
        HEAD
        + """ g (float[T, 4] x, float[4] h, bool c) => (float[4] y)
        {
          last, all = Scan<num_scan_inputs = 1,
            body = b (float[4] s, float[4] xt) => (float[4] s2, float[4] o) {
              s2 = Add(s, xt)  o = Identity(s2) }>(h, x)
          y = If(c) <then_branch = p () => (float[4] a) { a = Neg(h) },
                     else_branch = q () => (float[4] e) { e = Neg(last) }>
        }"""
    )
    assert dims(known["all"]) == ["T", 4]
    assert known["y"].static == (4,)


def test_function_calls_are_looked_into(infer):
    known, _ = infer(TEXT_WITH_EVERYTHING)
    assert dims(known["q"]) == ["N", 4]
    assert known["b"].shape is None  # inside of the function: it differs by call


def test_functions_that_grow_without_end_are_not_expanded(infer):
    """Thirty functions, each calling the next twice, stand for a thousand million nodes."""
    calls = "".join(
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{i} (a) => (b) '
        f"{{ t = f.F{i + 1}(a)  b = f.F{i + 1}(t) }}\n"
        for i in range(30)
    )
    last = '<domain: "f", opset_import: ["" : 17]> F30 (a) => (b) { b = Concat<axis = 0>(a, a) }'
    known, found = infer(
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N] x) => (float[M] y) { y = f.F0(x) }\n'
        + calls
        + last
    )
    assert not found.complete
    assert known["y"].shape is None


def test_recursive_function_is_refused(infer):
    _, found = infer(
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N] x) => (float[M] y) { y = f.F(x) }
        <domain: "f", opset_import: ["" : 17, "f" : 1]> F (a) => (b) { b = f.F(a) }"""
    )
    assert not found.complete


def test_expressions_do_not_grow_without_end(infer):
    body = "".join(f"x{i + 1} = Concat<axis = 0>(x{i}, x{i})\n" for i in range(300))
    known, found = infer(HEAD + f"g (float[N] x0) => (float[M] y) {{ {body} y = Relu(x300) }}")
    assert found.complete
    assert len(dims(known["y"])[0]) < 100


def test_large_constants_are_not_looked_into(parse):
    """A table of integers is data, not a shape; reading it element by element would take memory and time."""
    model = parse(HEAD + "g (float[2] x, int64[1] i) => (int64[1] y) { y = Gather(table, i) }", check=False)
    table = ir.Value(name="table", const_value=ir.tensor(np.zeros(200_000, np.int64), name="table"))
    model.graph.register_initializer(table)
    model.graph[0].replace_input_with(0, table)
    found = shapes.infer(model)
    assert found[table].static == (200_000,)
    assert found[table].elements is None
    assert found[model.graph.outputs[0]].static == (1,)


# what is remembered


def test_a_second_call_sees_what_has_changed(parse):
    model = parse(
        HEAD
        + """ g (float[N, 6] x) => (float[a, b] y) <int64[2] t = {-1, 3}, int64[2] u = {-1, 2}>
        { r = Reshape(x, t)  n = Neg(r)  y = Transpose<perm = [1, 0]>(n) }"""
    )
    reshape, _, transpose = model.graph

    def seen():
        return dims(shapes.infer(model)[transpose.outputs[0]])

    assert seen() == [3, "2*N"]
    reshape.replace_input_with(1, model.graph.initializers["u"])  # another input
    assert seen() == [2, "3*N"]
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 1])  # an attribute
    assert seen() == ["3*N", 2]
    model.graph.initializers["u"].const_value = ir.tensor(np.int64([6, -1]), name="u")  # a constant
    assert seen() == [6, "N"]
    model.graph.inputs[0].shape = ir.Shape([4, 6])  # the interface
    assert seen() == [6, 4]
    transpose.replace_input_with(0, model.graph.inputs[0])  # the wiring
    assert seen() == [4, 6]


def test_a_second_call_looks_into_subgraphs_again(parse):
    model = parse(
        HEAD
        + """ g (float[N] x, bool c) => (float[a] y) {
        y = If(c) <then_branch = p () => (float[k] v) { v = Neg(x) },
                   else_branch = q () => (float[k] w) { w = Concat<axis = 0>(x, x) }> }"""
    )
    (node,) = model.graph
    assert dims(shapes.infer(model)[node.outputs[0]]) != ["N"]
    concat = next(iter(node.attributes["else_branch"].as_graph()))
    concat.resize_inputs(1)
    assert dims(shapes.infer(model)[node.outputs[0]]) == ["N"]


def test_another_opset_is_another_model(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]> g (uint8[5] q, float16 s) => (float16[5] y)
        { y = DequantizeLinear(q, s) }""",
        check=False,
    )
    (node,) = model.graph
    node.outputs[0].type = None
    assert shapes.infer(model)[node.outputs[0]].dtype == ir.DataType.FLOAT
    model.opset_imports[""] = 19
    assert shapes.infer(model)[node.outputs[0]].dtype == ir.DataType.FLOAT16


def test_what_is_remembered_goes_with_the_model(parse):
    import gc

    gc.collect()
    before = len(shapes._memories)
    model = parse(HEAD + "g (float[N] x) => (float[N] y) { y = Neg(x) }")
    shapes.infer(model)
    assert len(shapes._memories) == before + 1
    del model
    gc.collect()
    assert len(shapes._memories) == before
