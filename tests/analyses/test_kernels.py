"""Every kernel agrees with onnxruntime, and refuses where runtimes need not agree."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analyses import kernels
from graphopt.analyses.kernels._call import KERNELS

F32, F64, I32, I64, U8 = np.float32, np.float64, np.int32, np.int64, np.uint8


def a(data, dtype=F32):
    return np.asarray(data, dtype)


def ints(*numbers):
    return np.asarray(numbers, I64)


def grid(*shape, dtype=F32):
    return (np.arange(np.prod(shape)).reshape(shape) - 3).astype(dtype)


def one_node(op, inputs, attributes, opset, outputs=1):
    """A model of one node whose inputs are graph inputs, and the node."""
    values = [
        None
        if x is None
        else ir.Value(
            name=f"x{i}", type=ir.TensorType(ir.DataType.from_numpy(x.dtype)), shape=ir.Shape(x.shape)
        )
        for i, x in enumerate(inputs)
    ]
    made = [ir.Value(name=f"y{i}") for i in range(outputs)]
    node = ir.Node("", op, values, [_attribute(k, v) for k, v in attributes.items()], outputs=made)
    graph = ir.Graph(
        [v for v in values if v is not None], made, nodes=[node], opset_imports={"": opset}, name="g"
    )
    return ir.Model(graph, ir_version=8), node


def _attribute(name, value):
    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, tuple):
        return ir.AttrInt64s(name, value)
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrTensor(name, ir.tensor(value))


@pytest.fixture
def agree(run):
    """Compute by kernel and by onnxruntime: same types, shapes, numbers; never more bytes than announced."""

    def check(op, inputs, opset=17, outputs=1, **attributes):
        model, node = one_node(op, inputs, attributes, opset, outputs)
        wanted = run(model, {f"x{i}": x for i, x in enumerate(inputs) if x is not None})
        got = kernels.evaluate_node(node, inputs, opset)
        assert got is not None
        assert len(got) == len(wanted)
        for g, w in zip(got, wanted, strict=True):
            assert g.dtype == w.dtype
            assert g.shape == w.shape
            np.testing.assert_allclose(g, w, rtol=2e-6, atol=1e-7)
        assert sum(g.nbytes for g in got) <= kernels.output_bytes(node, inputs, opset)

    return check


CASES = [
    # elementwise arithmetic, with broadcasting, empty tensors and scalars
    ("Add", [grid(2, 3), grid(3)], {}),
    ("Add", [a(2.0), a(3.0)], {}),
    ("Add", [grid(0, 3), grid(3)], {}),
    ("Add", [a([2**31 - 1], I32), a([1], I32)], {}),
    ("Sub", [grid(2, 1, dtype=I64), grid(1, 3, dtype=I64)], {}),
    ("Mul", [grid(2, 3, dtype=I32), a(3, I32)], {}),
    ("Mul", [a([2**62], I64), a([4], I64)], {}),
    ("Div", [a([7, -7, 7, -7], I64), a([2, 2, -2, -2], I64)], {}),
    ("Div", [a([7, -7, 6, 0], I32), a([3, 3, 3, 3], I32)], {}),
    ("Div", [a([1, -1, 0]), a([0, 0, 0])], {}),
    ("Mod", [a([7, -7, 7, -7], I64), a([3, 3, -3, -3], I64)], {}),
    ("Mod", [a([7, -7, 7, -7], I64), a([3, 3, -3, -3], I64)], {"fmod": 1}),
    ("Mod", [a([7.5, -7.5]), a([2, 2])], {"fmod": 1}),
    ("Pow", [a([2, 3, 4]), a([2, 0.5, -1])], {}),
    ("Pow", [a([2, 3, -4], I64), a([2, 3, 1], I64)], {}),
    ("Pow", [a([2, 3]), a([2, 3], I64)], {}),
    ("Min", [grid(2, 3), a(0), grid(3)], {}),
    ("Max", [grid(2, 3, dtype=I64), a(0, I64)], {}),
    ("Sum", [grid(2, 3), a(1), grid(3)], {}),
    ("Clip", [grid(6), a(-1), a(1)], {}),
    ("Clip", [grid(6), None, a(1)], {}),
    ("Clip", [grid(6), a(2), a(1)], {}),
    ("Relu", [grid(2, 3)], {}),
    ("Neg", [grid(4, dtype=I64)], {}),
    ("Abs", [grid(4, dtype=I32)], {}),
    ("Sign", [grid(6)], {}),
    ("Sqrt", [a([0, 1, 2, 4])], {}),
    ("Reciprocal", [a([1, 2, -4])], {}),
    ("Exp", [a([-2, 0, 3])], {}),
    ("Log", [a([0.5, 1, 8])], {}),
    ("Floor", [a([-1.5, 1.5, 2.0])], {}),
    ("Ceil", [a([-1.5, 1.5, 2.0])], {}),
    ("Round", [a([0.5, 1.5, 2.5, -0.5, -1.5])], {}),
    ("Sin", [a([0, 1, -2])], {}),
    ("Cos", [a([0, 1, -2])], {}),
    ("Erf", [a([-2, -0.1, 0, 0.7, 3])], {}),
    ("IsNaN", [a([1, np.nan])], {}),
    ("BitShift", [a([1, 2], U8), a([3, 7], U8)], {"direction": "LEFT"}),
    ("BitShift", [a([255, 2], U8), a([3, 1], U8)], {"direction": "RIGHT"}),
    # comparisons and logic
    ("Equal", [grid(2, 3, dtype=I64), a(0, I64)], {}),
    ("Equal", [a([True, False], bool), a([True, True], bool)], {}),
    ("Less", [grid(2, 3), a(0)], {}),
    ("Greater", [grid(2, 3), a(0)], {}),
    ("LessOrEqual", [grid(2, 3), a(0)], {}),
    ("GreaterOrEqual", [grid(2, 3), a(0)], {}),
    ("And", [a([1, 0, 1], bool), a([1, 1, 0], bool)], {}),
    ("Or", [a([1, 0, 0], bool), a([1, 1, 0], bool)], {}),
    ("Xor", [a([1, 0, 1], bool), a(True, bool)], {}),
    ("Not", [a([1, 0], bool)], {}),
    ("Where", [a([[True], [False]], bool), grid(2, 3), a(9)], {}),
    # casts
    ("Cast", [a([1.9, -1.9, 0])], {"to": 7}),
    ("Cast", [a([300, -1, 255], I64)], {"to": 2}),
    ("Cast", [a([0, 2, -1], I64)], {"to": 9}),
    ("Cast", [a([0.5, np.nan, 0.0])], {"to": 9}),
    ("Cast", [a([True, False], bool)], {"to": 1}),
    ("Cast", [a([1 / 3, 1e30], F64)], {"to": 1}),
    ("Cast", [a([1 / 3, 70000, 1e-8])], {"to": 10}),
    ("Cast", [a([1 / 3, 5], np.float16)], {"to": 1}),
    ("Cast", [a([2**24 + 1], I64)], {"to": 1}),
    ("CastLike", [a([1.5, 2.5]), a([0], I32)], {}),
    # shapes
    ("Identity", [grid(2, 3)], {}),
    ("Shape", [grid(2, 3, 4)], {}),
    ("Shape", [grid(2, 3, 4)], {"start": 1}),
    ("Shape", [grid(2, 3, 4)], {"start": -2, "end": -1}),
    ("Shape", [grid(2, 3, 4)], {"start": -9, "end": 9}),
    ("Shape", [grid(2, 3, 4)], {"start": 2, "end": 1}),
    ("Shape", [a(1)], {}),
    ("Size", [grid(2, 3)], {}),
    ("Size", [grid(0, 3)], {}),
    ("Concat", [grid(2, 3), grid(1, 3)], {"axis": 0}),
    ("Concat", [grid(2, 3), grid(2, 0)], {"axis": -1}),
    ("Squeeze", [grid(1, 2, 1)], {}),
    ("Squeeze", [grid(1, 2, 1), ints(-1)], {}),
    ("Unsqueeze", [grid(2, 3), ints(0, -1)], {}),
    ("Unsqueeze", [a(5), ints(0)], {}),
    ("Reshape", [grid(2, 3, 4), ints(0, -1)], {}),
    ("Reshape", [grid(2, 3, 4), ints(4, 0, -1)], {}),
    ("Reshape", [grid(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Reshape", [a(7), ints(1, 1)], {}),
    ("Reshape", [a([7]), ints()], {}),
    ("Flatten", [grid(2, 3, 4)], {}),
    ("Flatten", [grid(2, 3, 4)], {"axis": 0}),
    ("Flatten", [grid(2, 3, 4)], {"axis": 3}),
    ("Flatten", [grid(2, 3, 4)], {"axis": -1}),
    ("Transpose", [grid(2, 3, 4)], {}),
    ("Transpose", [grid(2, 3, 4)], {"perm": (1, 0, 2)}),
    ("Expand", [grid(3, 1), ints(2, 1, 4)], {}),
    ("Expand", [a(1), ints(2, 2)], {}),
    ("Expand", [grid(2, 3), ints(1)], {}),
    ("Tile", [grid(2, 3), ints(2, 1)], {}),
    ("Tile", [grid(2, 3), ints(0, 1)], {}),
    ("Pad", [grid(2, 3), ints(1, 0, 0, 2)], {}),
    ("Pad", [grid(2, 3), ints(0, -1, 1, 0), a(9)], {}),
    ("Pad", [grid(2, 3, dtype=I64), ints(-1, 0, 0, 0)], {}),
    ("Trilu", [grid(3, 4)], {}),
    ("Trilu", [grid(2, 3, 4), a(1, I64)], {"upper": 0}),
    ("Trilu", [grid(3, 3), a(-1, I64)], {"upper": 1}),
    ("Trilu", [grid(3, 3), a(9, I64)], {"upper": 1}),
    # indexing
    ("Gather", [grid(3, 4), ints(0, -1, 1)], {}),
    ("Gather", [grid(3, 4), a([[0, 3], [1, 1]], I32)], {"axis": 1}),
    ("Gather", [grid(3, 4), a(2, I64)], {"axis": -1}),
    ("Gather", [grid(3, 4), ints()], {}),
    ("GatherElements", [grid(3, 3), a([[0, -1, 2]], I64)], {"axis": 0}),
    ("GatherElements", [grid(3, 3), a([[0], [-1]], I64)], {"axis": 1}),
    ("GatherND", [grid(2, 3, 4), a([[0, 1], [1, -1]], I64)], {}),
    ("GatherND", [grid(2, 3, 4), a([[1], [2]], I64)], {"batch_dims": 1}),
    ("GatherND", [grid(2, 2, 3), a([[[0], [1]], [[1], [0]]], I64)], {"batch_dims": 1}),
    ("ScatterND", [grid(4), a([[1], [-1]], I64), a([9, 8])], {}),
    ("ScatterND", [grid(2, 3), a([[1]], I64), a([[9, 8, 7]])], {}),
    ("ScatterElements", [grid(3, 3), a([[0, -1, 2]], I64), a([[7, 8, 9]])], {"axis": 0}),
    ("ScatterElements", [grid(1, 4), a([[1, 3]], I64), a([[7, 8]])], {"axis": 1}),
    ("NonZero", [a([[1, 0], [2, 3]])], {}),
    ("NonZero", [a([0, 0], bool)], {}),
    ("OneHot", [ints(0, 2, -1, 5), a(3, I64), a([0, 1])], {}),
    ("OneHot", [a([[1, 0]], I64), a([3], I64), a([-1, 4], I64)], {"axis": 0}),
    ("ArgMax", [a([[1, 3, 3], [5, 5, 0]])], {"axis": 1}),
    ("ArgMax", [a([[1, 3, 3], [5, 5, 0]])], {"axis": 1, "select_last_index": 1, "keepdims": 0}),
    ("ArgMin", [a([[1, 3, 1], [5, 5, 0]])], {"axis": -1}),
    # reductions
    ("ReduceSum", [grid(2, 3, 4), ints(1)], {}),
    ("ReduceSum", [grid(2, 3, 4, dtype=I64), ints(0, -1)], {"keepdims": 0}),
    ("ReduceSum", [grid(2, 3)], {}),
    ("ReduceSum", [grid(2, 3), ints()], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [grid(2, 3)], {"axes": (1,)}),
    ("ReduceMax", [grid(2, 3, dtype=I64)], {"axes": (-1,), "keepdims": 0}),
    ("ReduceMin", [grid(2, 3, dtype=I32)], {}),
    ("ReduceProd", [grid(2, 3)], {"axes": (0,)}),
    ("ReduceMean", [grid(2, 3)], {"axes": (0, 1), "keepdims": 0}),
    ("CumSum", [grid(2, 3), a(1, I64)], {}),
    ("CumSum", [grid(2, 3, dtype=I64), a(-2, I64)], {"reverse": 1}),
    ("CumSum", [grid(2, 3), a(1, I64)], {"exclusive": 1}),
    ("CumSum", [grid(2, 3), a(1, I64)], {"exclusive": 1, "reverse": 1}),
    # making tensors
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints()], {"value": a([7], I64)}),
    ("ConstantOfShape", [ints(2, 0)], {"value": a([True], bool)}),
    ("Range", [a(0, I64), a(7, I64), a(2, I64)], {}),
    ("Range", [a(5, I64), a(-5, I64), a(-3, I64)], {}),
    ("Range", [a(5, I32), a(5, I32), a(1, I32)], {}),
    ("Range", [a(5, I64), a(0, I64), a(1, I64)], {}),
    ("Range", [a(0.5), a(2.0), a(0.25)], {}),
    ("EyeLike", [grid(2, 3)], {"k": 1}),
    ("EyeLike", [grid(3, 3)], {"dtype": 7}),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_kernel_agrees_with_onnxruntime(agree, op, inputs, attributes):
    agree(op, inputs, **attributes)


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "attributes", "outputs"),
    [
        ("Slice", 9, [grid(4, 5)], {"starts": (1, -3), "ends": (9, -1)}, 1),
        ("Slice", 9, [grid(4, 5)], {"starts": (-2,), "ends": (2**31,), "axes": (1,)}, 1),
        ("Squeeze", 12, [grid(1, 2, 1)], {"axes": (0,)}, 1),
        ("Unsqueeze", 12, [grid(2)], {"axes": (0, 2)}, 1),
        ("ReduceSum", 12, [grid(2, 3)], {"axes": (0,)}, 1),
        ("ReduceMax", 18, [grid(2, 3), ints(0)], {}, 1),
        ("ReduceMax", 18, [grid(2, 3)], {"noop_with_empty_axes": 1}, 1),
        ("ReduceMean", 18, [grid(2, 3), ints(-1)], {"keepdims": 0}, 1),
        ("Split", 12, [grid(4, 5)], {"axis": 1, "split": (2, 3)}, 2),
        ("Split", 12, [grid(4, 5)], {}, 2),
        ("Split", 13, [grid(4, 5), ints(1, 0, 3)], {}, 3),
        ("Split", 13, [grid(4, 6)], {"axis": -1}, 3),
        ("Split", 18, [grid(4, 5)], {"axis": 1, "num_outputs": 3}, 3),
        ("Split", 18, [grid(7)], {"num_outputs": 4}, 4),
        ("Clip", 10, [grid(6)], {"min": -1.0, "max": 1.5}, 1),
        ("Clip", 6, [grid(6)], {}, 1),
        ("Pad", 10, [grid(2, 3)], {"pads": (1, 0, 0, 2), "value": 4.0}, 1),
        ("Pad", 18, [grid(2, 3), ints(1, 2), a(9), ints(-1)], {}, 1),
        ("Reshape", 13, [grid(2, 3), ints(3, 2)], {}, 1),
        ("Shape", 13, [grid(2, 3)], {}, 1),
        ("Add", 7, [grid(2, 3), grid(3)], {}, 1),
        ("Scatter", 10, [grid(1, 4), a([[1, 3]], I64), a([[7, 8]])], {"axis": 1}, 1),
        ("ScatterND", 16, [grid(4), a([[1], [1]], I64), a([9, 8])], {"reduction": "add"}, 1),
        ("ScatterND", 18, [grid(4), a([[1], [1]], I64), a([9, 8])], {"reduction": "max"}, 1),
        (
            "ScatterElements",
            18,
            [grid(1, 4), a([[1, 1]], I64), a([[7, 8]])],
            {"reduction": "mul", "axis": 1},
            1,
        ),
        ("BitwiseAnd", 18, [a([12, 10], I32), a([6, 6], I32)], {}, 1),
        ("BitwiseOr", 18, [a([12, 10], I32), a([6, 6], I32)], {}, 1),
        ("BitwiseXor", 18, [a([12, 10], I32), a([6, 6], I32)], {}, 1),
        ("BitwiseNot", 18, [a([12, -10], I32)], {}, 1),
        ("Equal", 19, [grid(3), grid(3)], {}, 1),
    ],
)
def test_forms_of_other_opsets(agree, op, opset, inputs, attributes, outputs):
    agree(op, inputs, opset, outputs, **attributes)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh"])
def test_runtime_approximations_are_met_closely(run, op):
    x = a([-20, -3, -0.5, 0, 0.5, 3, 20])
    model, node = one_node(op, [x], {}, 17)
    np.testing.assert_allclose(kernels.evaluate_node(node, [x], 17)[0], run(model, {"x0": x})[0], atol=1e-6)


bound = st.one_of(
    st.integers(-7, 7), st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63), -(2**63) + 1])
)


@settings(max_examples=150, deadline=None)
@given(
    bounds=st.lists(st.tuples(bound, bound, st.sampled_from([1, 2, 5, -1, -2, -5])), min_size=2, max_size=2),
    first=st.integers(0, 5),
)
def test_slice_cuts_like_onnxruntime(bounds, first):
    import onnxruntime as ort

    x = grid(first, 4)
    starts, ends, steps = (ints(*column) for column in zip(*bounds, strict=True))
    inputs = [x, starts, ends, ints(1, -2), steps]
    model, node = one_node("Slice", inputs, {}, 13)
    if any(step < 0 and end in (2**31 - 1, 2**63 - 1) for _, end, step in bounds):
        with pytest.raises(kernels.Refused, match="differs between runtimes"):
            kernels.evaluate_node(node, inputs, 13)
        return
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    wanted = session.run(None, {f"x{i}": v for i, v in enumerate(inputs)})[0]
    np.testing.assert_array_equal(kernels.evaluate_node(node, inputs, 13)[0], wanted)


@settings(max_examples=100, deadline=None)
@given(
    left=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    right=st.integers(-(2**31), 2**31 - 1).filter(lambda n: n not in (0, -1)),
)
def test_integer_division_truncates_and_modulo_follows_the_divisor(left, right):
    x, y = a(left, I32), a(right, I32)
    _, divide = one_node("Div", [x, y], {}, 14)
    _, modulo = one_node("Mod", [x, y], {}, 14)
    quotient = [abs(n) // abs(right) * (1 if (n < 0) == (right < 0) else -1) for n in left]
    assert kernels.evaluate_node(divide, [x, y], 14)[0].tolist() == quotient
    assert kernels.evaluate_node(modulo, [x, y], 14)[0].tolist() == [n % right for n in left]


REFUSALS = [
    ("Div", [ints(1), ints(0)], {}, "zero"),
    ("Div", [ints(-(2**63)), ints(-1)], {}, "least integer"),
    ("Mod", [ints(1), ints(0)], {}, "zero"),
    ("Mod", [a([1.5]), a([1.0])], {}, "fmod"),
    ("Pow", [ints(2), ints(-1)], {}, "power"),
    ("Pow", [ints(10), ints(18)], {}, "overflows"),
    ("Cast", [a([np.nan])], {"to": 7}, "does not fit"),
    ("Cast", [a([np.inf])], {"to": 7}, "does not fit"),
    ("Cast", [a([2.0**63])], {"to": 7}, "does not fit"),
    ("Cast", [a([-1.0])], {"to": 2}, "does not fit"),
    ("Cast", [a([256.0])], {"to": 2}, "does not fit"),
    ("Cast", [a([1.0])], {"to": 17}, "differ"),
    ("Cast", [a([1.0])], {"to": 8}, "differ"),
    ("Cast", [a([1.0])], {"to": 99}, "malformed"),
    ("Gather", [grid(3), ints(3)], {}, "outside"),
    ("Gather", [grid(3), ints(-4)], {}, "outside"),
    ("Gather", [grid(3), ints(0)], {"axis": 1}, "outside of rank"),
    ("GatherND", [grid(3), a([[0, 0]], I64)], {}, "longer than the rank"),
    ("ScatterND", [grid(4), a([[1], [1]], I64), a([9, 8])], {}, "meet at one place"),
    ("ScatterND", [grid(4), a([[1], [-3]], I64), a([9, 8])], {}, "meet at one place"),
    ("ScatterND", [grid(4), a([[1]], I64), a([9, 8])], {}, "do not fit"),
    ("ScatterND", [grid(4), a([[1]], I64), ints(9)], {}, "another type"),
    ("Reshape", [grid(2, 3), ints(4, -1)], {}, "no value"),
    ("Reshape", [grid(2, 3), ints(-1, -1)], {}, "no value"),
    ("Reshape", [grid(2, 3), ints(7)], {}, "does not hold"),
    ("Reshape", [grid(2, 3), ints(2, 3, 0)], {}, "points behind"),
    ("Reshape", [grid(2, 3), ints(-2, 3)], {}, "does not hold"),
    ("Reshape", [grid(0, 3), ints(0, -1)], {}, "no value"),
    ("Squeeze", [grid(2, 1), ints(0)], {}, "not of size 1"),
    ("Unsqueeze", [grid(2), ints(0, 0)], {}, "twice"),
    ("Expand", [grid(2), ints(3)], {}, "do not broadcast"),
    ("Expand", [grid(2), ints(-1)], {}, "no shape"),
    ("Expand", [grid(2), np.ones(65, I64)], {}, "short list"),
    ("Tile", [grid(2), ints(-1)], {}, "no repeat"),
    ("Pad", [grid(2), ints(-3, 0)], {}, "more than there is"),
    ("Pad", [grid(2), ints(1, 1)], {"mode": "reflect"}, "constant padding"),
    ("Slice", [grid(3), ints(0), ints(1), ints(0), ints(0)], {}, "do not match"),
    ("Concat", [grid(2), ints(1)], {"axis": 0}, "different types"),
    ("Add", [grid(2), ints(1)], {}, "types"),
    ("Add", [grid(2), grid(3)], {}, "malformed"),
    ("Split", [grid(4), ints(1, 1)], {}, "add up"),
    ("ReduceMax", [grid(0, 3)], {}, "of nothing"),
    ("ReduceMax", [a([1, np.nan])], {}, "NaN"),
    ("ArgMax", [a([1, np.nan])], {}, "NaN"),
    ("Clip", [a([np.nan]), a(0)], {}, "NaN"),
    ("Range", [a(0, I64), a(1, I64), a(0, I64)], {}, "does not end"),
    ("Range", [a(0), a(np.inf), a(1)], {}, "does not end"),
    ("ConstantOfShape", [ints(-1)], {}, "negative"),
    ("OneHot", [ints(0), a(-1, I64), a([0, 1])], {}, "depth"),
    ("BitShift", [a([1], U8), a([8], U8)], {"direction": "LEFT"}, "width"),
    ("Where", [a([1, 0], bool), grid(2), ints(1, 1)], {}, "types"),
    ("Equal", [np.array(["a"], object), np.array(["a"], object)], {}, "not computed with"),
    ("Gather", [grid(3), None], {}, "missing"),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "reason"), REFUSALS, ids=[f"{c[0]}-{i}" for i, c in enumerate(REFUSALS)]
)
def test_refuses_with_a_reason(op, inputs, attributes, reason):
    outputs = 2 if op == "Split" else 1
    made = [ir.Value(name=f"y{i}") for i in range(outputs)]
    node = ir.Node(
        "",
        op,
        [None if x is None else ir.Value(name=f"x{i}") for i, x in enumerate(inputs)],
        [_attribute(k, v) for k, v in attributes.items()],
        outputs=made,
    )
    with pytest.raises(kernels.Refused, match=reason):
        kernels.evaluate_node(node, inputs, 17)


def test_attribute_set_by_the_caller_of_a_function_is_refused():
    node = ir.Node(
        "", "Gather", [ir.Value(), ir.Value()], [ir.RefAttr("axis", "outer", ir.AttributeType.INT)]
    )
    with pytest.raises(kernels.Refused, match="caller"):
        kernels.evaluate_node(node, [grid(3), ints(0)], 17)


def test_other_operators_and_domains_have_no_kernel():
    for domain, op in [
        ("", "DequantizeLinear"),
        ("", "RandomNormal"),
        ("com.microsoft", "Add"),
        ("", "Loop"),
    ]:
        node = ir.Node(domain, op, [])
        assert not kernels.has_kernel(node)
        assert kernels.evaluate_node(node, [], 17) is None
        assert kernels.output_bytes(node, [], 17) is None


@pytest.mark.parametrize(
    ("op", "inputs", "size"),
    [
        ("Expand", [a(1), ints(10**6, 10**6)], 4 * 10**12),
        ("ConstantOfShape", [ints(10**9, 10**9)], 4 * 10**18),
        ("Range", [a(0, I64), a(2**62, I64), a(1, I64)], 8 * 2**62),
        ("Tile", [grid(4), ints(2**40)], 16 * 2**40),
        ("Pad", [grid(4), ints(2**40, 0)], 4 * (2**40 + 4)),
        ("OneHot", [ints(0, 0), a(2**30, I64), a([0, 1])], 8 * 2**30),
        ("Add", [grid(10**3, 1), grid(1, 10**3)], 4 * 10**6),
        ("Equal", [grid(10**3, 1), grid(1, 10**3)], 10**6),
        ("Gather", [grid(10, 100), np.zeros(1000, I64)], 4 * 10**5),
    ],
)
def test_size_of_an_amplifying_result_is_known_before_it_is_made(op, inputs, size):
    _, node = one_node(op, inputs, {}, 17)
    assert kernels.output_bytes(node, inputs, 17) == size


def test_elements_of_foreign_types_are_moved_but_not_computed_with():
    x = np.asarray([1, 2, 3, 4], ir.DataType.INT4.numpy())
    _, reshape = one_node("Reshape", [x, ints(2, 2)], {}, 21)
    moved = kernels.evaluate_node(reshape, [x, ints(2, 2)], 21)[0]
    assert moved.dtype == x.dtype
    assert moved.astype(I64).tolist() == [[1, 2], [3, 4]]
    _, add = one_node("Add", [x, x], {}, 21)
    with pytest.raises(kernels.Refused, match="int4"):
        kernels.evaluate_node(add, [x, x], 21)


def test_inputs_are_never_written_to():
    for op, inputs, attributes in CASES:
        before = [None if x is None else x.copy() for x in inputs]
        for x in inputs:
            if x is not None:
                x.flags.writeable = False
        _, node = one_node(op, inputs, attributes, 17)
        kernels.evaluate_node(node, inputs, 17)
        for x, y in zip(inputs, before, strict=True):
            assert x is y is None or np.array_equal(x, y, equal_nan=x.dtype.kind == "f")


def test_every_kernel_is_tested_here():
    tested = {c[0] for c in CASES} | {
        *("Slice", "Split", "Scatter", "Sigmoid", "Tanh", "Constant"),
        *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
    }
    assert set(KERNELS) == tested


def test_constant_gives_what_it_holds():
    node = ir.Node("", "Constant", [], [ir.AttrInt64s("value_ints", [1, 2])])
    assert kernels.evaluate_node(node, [], 17)[0].tolist() == [1, 2]
    text = ir.Node("", "Constant", [], [ir.AttrString("value_string", "a")])
    with pytest.raises(kernels.Refused):
        kernels.evaluate_node(text, [], 17)


class TestRuntimeFallback:
    def test_computes_what_has_no_kernel(self):
        from graphopt.analyses.kernels.fallback import evaluate_by_runtime, runs_in_session

        x, w = grid(2, 3), grid(3, 2)
        _, node = one_node("MatMul", [x, w], {}, 17)
        assert runs_in_session(node)
        np.testing.assert_allclose(evaluate_by_runtime(node, [x, w], 17)[0], x @ w, rtol=1e-6)

    def test_a_scalar_stays_a_scalar(self):
        from graphopt.analyses.kernels.fallback import evaluate_by_runtime

        given = [np.array(-8.0, np.float32), np.array(0.5, np.float32)]
        _, node = one_node("PRelu", given, {}, 17)
        (result,) = evaluate_by_runtime(node, given, 17)
        assert (result.shape, result.tolist()) == ((), -4.0)

    def test_says_why_onnxruntime_cannot(self):
        from graphopt.analyses.kernels.fallback import evaluate_by_runtime

        x = grid(2, 3)
        _, node = one_node("MatMul", [x, x], {}, 17)
        with pytest.raises(kernels.Refused, match="onnxruntime"):
            evaluate_by_runtime(node, [x, x], 17)

    @pytest.mark.parametrize(
        "op", ["RandomNormalLike", "DequantizeLinear", "QuantizeLinear", "If", "LSTM", "Dropout"]
    )
    def test_takes_only_listed_operators(self, op):
        from graphopt.analyses.kernels.fallback import runs_in_session

        assert not runs_in_session(ir.Node("", op, []))
        assert not runs_in_session(ir.Node("com.microsoft", "MatMul", []))
