"""Operators that move elements about, against LiteRT: exact, in every form of their arguments."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_models import Graph, Op, Tensor, constant, quantized

from graphopt.errors import UnsupportedError


def ints(*numbers: int) -> Tensor:
    return constant(np.array(numbers, np.int32))


def moved(op: str, array: np.ndarray, *rest: Tensor, kind: str = "", out: tuple = (1,), **options) -> Graph:
    tensors = [Tensor(array), *rest, Tensor(np.zeros(out, array.dtype))]
    inputs = list(range(len(tensors) - 1))
    return Graph(tensors, [Op(op, inputs, [len(inputs)], kind, options)])


@pytest.mark.parametrize("shape", [(6, 4), (-1, 2, 3), (24,), (2, -1)])
def test_reshape(shape, agrees, draw):
    agrees(moved("RESHAPE", draw(2, 3, 4), ints(*shape), kind="Reshape"), ["Reshape"])


def test_reshape_by_option(agrees, draw):
    graph = moved("RESHAPE", draw(2, 3), kind="Reshape", newShape=np.array([3, 2], np.int32))
    agrees(graph, ["Reshape"])


def test_reshape_of_nothing(agrees):
    """A 0 is a size, where ONNX would take it for a copy."""
    agrees(
        moved("RESHAPE", np.zeros((3, 0), np.float32), ints(0, 5), kind="Reshape", out=(0, 5)), ["Reshape"]
    )


def test_reshape_to_a_computed_shape(agrees, draw):
    tensors = [
        Tensor(draw(2, 3, 4)),
        Tensor(np.zeros(3, np.int32)),
        Tensor(np.zeros(1, np.int32)),
        ints(0),
        ints(1),
        ints(1),
        ints(-1),
        Tensor(np.zeros(2, np.int32)),
        Tensor(draw(2, 12)),
    ]
    ops = [
        Op("SHAPE", [0], [1], "Shape", {"outType": 2}),
        Op("STRIDED_SLICE", [1, 3, 4, 5], [2], "StridedSlice"),
        Op("CONCATENATION", [2, 6], [7], "Concatenation", {"axis": 0}),
        Op("RESHAPE", [0, 7], [8], "Reshape"),
    ]
    agrees(Graph(tensors, ops))


def test_transpose(agrees, draw):
    agrees(moved("TRANSPOSE", draw(2, 3, 4), ints(2, 0, 1)), ["Transpose"])


@pytest.mark.parametrize("axes", [[], [1], [-1, 1]])
def test_squeeze(axes, agrees, draw):
    agrees(
        moved("SQUEEZE", draw(3, 1, 2, 1), kind="Squeeze", squeezeDims=np.array(axes, np.int32)), ["Squeeze"]
    )


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_expand_dims(axis, agrees, draw):
    agrees(moved("EXPAND_DIMS", draw(3, 2), ints(axis)), ["Unsqueeze"])


def test_shape_and_rank(agrees, draw):
    tensors = [Tensor(draw(2, 5)), Tensor(np.zeros(2, np.int64))]
    agrees(Graph(tensors, [Op("SHAPE", [0], [1], "Shape", {"outType": 4})]), ["Shape"])
    tensors = [Tensor(draw(2, 5)), Tensor(np.zeros((), np.int32))]
    agrees(Graph(tensors, [Op("RANK", [0], [1])]))


@pytest.mark.parametrize("op", ["DEPTH_TO_SPACE", "SPACE_TO_DEPTH"])
def test_depth_and_space(op, agrees, draw):
    kind = "DepthToSpace" if op == "DEPTH_TO_SPACE" else "SpaceToDepth"
    agrees(moved(op, draw(2, 4, 6, 8), kind=kind, blockSize=2), ["Transpose", kind, "Transpose"])


def test_space_to_batch(agrees, draw):
    pads = constant(np.array([[1, 0], [2, 1]], np.int32))
    agrees(moved("SPACE_TO_BATCH_ND", draw(2, 3, 3, 2), ints(2, 3), pads))


def test_batch_to_space(agrees, draw):
    crops = constant(np.array([[1, 0], [2, 1]], np.int32))
    agrees(moved("BATCH_TO_SPACE_ND", draw(12, 2, 3, 2), ints(2, 3), crops))


PADS = np.array([[0, 1], [2, 0], [1, 1]], np.int32)


def test_pad(agrees, draw):
    agrees(moved("PAD", draw(2, 3, 4), constant(PADS)), ["Pad"])
    agrees(moved("PADV2", draw(2, 3, 4), constant(PADS), constant(np.array([-7.5], np.float32))), ["Pad"])


def test_int8_pad_is_with_the_zero_point(agrees):
    array = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    tensors = [quantized(array, 0.1, -9), constant(PADS), quantized(array, 0.1, -9)]
    agrees(Graph(tensors, [Op("PAD", [0, 1], [2])]), ["Pad"], steps=0)


def test_pads_that_are_fed(agrees, draw):
    tensors = [Tensor(draw(2, 3, 4)), Tensor(PADS), Tensor(draw(3, 5, 6))]
    agrees(Graph(tensors, [Op("PAD", [0, 1], [2])]))


@pytest.mark.parametrize("mode", [0, 1])
def test_mirror_pad(mode, agrees, draw):
    pads = constant(np.array([[0, 0], [2, 1], [1, 0]], np.int32))
    agrees(moved("MIRROR_PAD", draw(2, 3, 4), pads, kind="MirrorPad", mode=mode))


def test_tile_and_broadcast(agrees, draw):
    agrees(moved("TILE", draw(2, 3), ints(2, 3)), ["Tile"])
    tensors = [Tensor(draw(2, 1, 3)), ints(4, 2, 5, 3), Tensor(draw(4, 2, 5, 3))]
    agrees(Graph(tensors, [Op("BROADCAST_TO", [0, 1], [2], version=2)]), ["Expand"])


def test_reverse(agrees, draw):
    agrees(moved("REVERSE_V2", draw(2, 3, 4), ints(0, 1)), ["Slice"])
    lengths = constant(np.array([2, 4], np.int32))
    graph = moved("REVERSE_SEQUENCE", draw(2, 3, 4), lengths, kind="ReverseSequence", seqDim=2, batchDim=0)
    agrees(graph)


@pytest.mark.parametrize(
    ("begin", "size", "out"), [((0, 1, 0), (2, 2, 3), (2, 2, 3)), ((1, 0, 2), (-1, -1, -1), (1, 3, 2))]
)
def test_slice(begin, size, out, agrees, draw):
    agrees(moved("SLICE", draw(2, 3, 4), ints(*begin), ints(*size), out=out), ["Slice"])


def test_slice_by_fed_bounds(agrees, draw):
    tensors = [Tensor(draw(2, 3)), Tensor(np.array([0, 1], np.int32)), Tensor(np.array([-1, 2], np.int32))]
    agrees(Graph([*tensors, Tensor(draw(2, 2))], [Op("SLICE", [0, 1, 2], [3])]))


@pytest.mark.parametrize(
    ("begin", "end", "stride", "masks"),
    [
        ((0, 1, 0), (2, 3, 4), (1, 1, 2), {}),
        ((0, -2, 1), (2, 3, -1), (1, 1, 1), {}),
        ((1, 2, 3), (2, 0, 0), (1, -1, -1), {}),
        ((1, 2, 3), (0, 0, 0), (-1, -1, -2), {"endMask": 7}),
        ((9, 1, 9), (9, 2, 9), (1, 1, 1), {"beginMask": 5, "endMask": 5}),
        ((0, -1, 1), (0, 0, 3), (1, 1, 1), {"shrinkAxisMask": 2, "beginMask": 1, "endMask": 1}),
        ((1, 0, 0), (2, 0, 2), (1, 1, 1), {"shrinkAxisMask": 1, "ellipsisMask": 2}),
        ((0, 0, 1), (0, 2, 3), (1, 1, 1), {"newAxisMask": 1}),
        ((0, 0, 1), (0, 0, 3), (1, 1, 1), {"ellipsisMask": 1, "newAxisMask": 2}),
        ((0,), (1,), (1,), {"shrinkAxisMask": 1}),
    ],
)
def test_strided_slice(begin, end, stride, masks, agrees, draw):
    rest = (ints(*begin), ints(*end), ints(*stride))
    agrees(moved("STRIDED_SLICE", draw(2, 3, 4), *rest, kind="StridedSlice", **masks))


@pytest.mark.parametrize("masks", [{}, {"shrinkAxisMask": 1}, {"beginMask": 1, "endMask": 2}])
def test_strided_slice_by_fed_bounds(masks, agrees, draw):
    fed = (Tensor(np.array([-1, 0], np.int32)), Tensor(np.array([3, 2], np.int32)))
    tensors = [Tensor(draw(3, 4)), *fed, ints(1, 1), Tensor(draw(1, 2))]
    agrees(Graph(tensors, [Op("STRIDED_SLICE", [0, 1, 2, 3], [4], "StridedSlice", masks)]))


@pytest.mark.parametrize("axis", [1, -1])
def test_concatenation(axis, agrees, draw):
    tensors = [Tensor(draw(2, 3, 3)), Tensor(draw(2, 3, 3, seed=1)), Tensor(draw(2, 6, 3))]
    agrees(Graph(tensors, [Op("CONCATENATION", [0, 1], [2], "Concatenation", {"axis": axis})]), ["Concat"])


def test_uint8_concatenation_of_two_scales(agrees):
    array = np.arange(0, 250, 10, dtype=np.uint8)
    tensors = [quantized(array, 0.1, 3), quantized(array, 0.05, 30), quantized(array, 0.1, 9)]
    agrees(Graph(tensors, [Op("CONCATENATION", [0, 1], [2], "Concatenation", {"axis": 0})]))


def test_int8_concatenation_of_one_scale_moves_integers(agrees):
    array = np.arange(-50, 50, dtype=np.int8)
    tensors = [quantized(array, 0.1, 3) for _ in range(3)]
    agrees(
        Graph(tensors, [Op("CONCATENATION", [0, 1], [2], "Concatenation", {"axis": 0})]), ["Concat"], steps=0
    )


def test_split(agrees, draw):
    tensors = [ints(1), Tensor(draw(2, 6)), *(Tensor(draw(2, 2)) for _ in range(3))]
    agrees(Graph(tensors, [Op("SPLIT", [0, 1], [2, 3, 4], "Split", {"numSplits": 3})]), ["Split"])


def test_split_by_sizes(agrees, draw):
    tensors = [Tensor(draw(2, 6)), ints(1, -1, 2), ints(-1), *(Tensor(draw(2, n)) for n in (1, 3, 2))]
    agrees(Graph(tensors, [Op("SPLIT_V", [0, 1, 2], [3, 4, 5], "SplitV", {"numSplits": 3})]), ["Split"])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_pack(axis, agrees, draw):
    tensors = [Tensor(draw(2, 3)), Tensor(draw(2, 3, seed=1)), Tensor(draw(1))]
    agrees(Graph(tensors, [Op("PACK", [0, 1], [2], "Pack", {"axis": axis, "valuesCount": 2})]))


def test_unpack(agrees, draw):
    tensors = [Tensor(draw(3, 2)), Tensor(draw(3)), Tensor(draw(3))]
    agrees(Graph(tensors, [Op("UNPACK", [0], [1, 2], "Unpack", {"axis": 1, "num": 2})]), ["Gather", "Gather"])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis, agrees, draw):
    graph = moved("GATHER", draw(3, 4, 5), ints(2, 0, 1, 1), kind="Gather", axis=axis)
    agrees(graph, ["Gather"])


def test_gather_by_rows(agrees, draw):
    places = constant(np.array([[2, 0], [1, 1]], np.int32))
    agrees(moved("GATHER", draw(2, 4, 5), places, kind="Gather", axis=1, batchDims=1))


def test_gather_of_far_batch_axes_is_refused(imported, draw):
    places = constant(np.array([[2, 0], [1, 1]], np.int32))
    with pytest.raises(UnsupportedError, match=r"GATHER.*axis 2 with 1 batch"):
        imported(moved("GATHER", draw(2, 4, 5), places, kind="Gather", axis=2, batchDims=1))


def test_gather_nd(agrees, draw):
    agrees(moved("GATHER_ND", draw(3, 4, 5), constant(np.array([[2, 0], [1, 3]], np.int32))), ["GatherND"])


def test_scatter_nd_adds_up(agrees, draw):
    places = constant(np.array([[1], [3], [1]], np.int32))
    tensors = [places, Tensor(draw(3, 2)), ints(5, 2), Tensor(draw(5, 2))]
    agrees(Graph(tensors, [Op("SCATTER_ND", [0, 1, 2], [3])]), ["ConstantOfShape", "ScatterND"])


def test_embedding_lookup(agrees, draw):
    tensors = [Tensor(np.array([2, 0, 1], np.int32)), constant(draw(4, 5)), Tensor(draw(3, 5))]
    agrees(Graph(tensors, [Op("EMBEDDING_LOOKUP", [0, 1], [2])]), ["Gather"])


@pytest.mark.parametrize("begin", [(1, 1), (5, -3)])
def test_dynamic_update_slice(begin, agrees, draw):
    tensors = [
        Tensor(draw(4, 5)),
        Tensor(draw(2, 2, seed=1)),
        Tensor(np.array(begin, np.int32)),
        Tensor(draw(4, 5)),
    ]
    agrees(Graph(tensors, [Op("DYNAMIC_UPDATE_SLICE", [0, 1, 2], [3])]))


@pytest.mark.parametrize("axis", [-1, 0])
def test_one_hot(axis, agrees):
    values = (constant(np.float32(2.5)), constant(np.float32(-1)))
    tensors = [
        Tensor(np.array([2, 0, -1, 7], np.int32)),
        constant(np.int32(4)),
        *values,
        Tensor(np.zeros((4, 4), np.float32)),
    ]
    agrees(Graph(tensors, [Op("ONE_HOT", [0, 1, 2, 3], [4], "OneHot", {"axis": axis})]))


def test_topk(agrees, draw):
    tensors = [
        Tensor(draw(3, 8)),
        constant(np.int32(3)),
        Tensor(draw(3, 3)),
        Tensor(np.zeros((3, 3), np.int32)),
    ]
    agrees(Graph(tensors, [Op("TOPK_V2", [0, 1], [2, 3])]))


def test_where(agrees):
    tensors = [Tensor(np.array([[True, False], [True, True]])), Tensor(np.zeros((3, 2), np.int64))]
    agrees(Graph(tensors, [Op("WHERE", [0], [1])]))


def test_fill_and_range(agrees):
    tensors = [
        Tensor(np.array([2, 3], np.int32)),
        constant(np.float32(1.5)),
        Tensor(np.zeros((2, 3), np.float32)),
    ]
    agrees(Graph(tensors, [Op("FILL", [0, 1], [2])]))
    bounds = [Tensor(np.array(n, np.int32)) for n in (1, 9, 3)]
    agrees(Graph([*bounds, Tensor(np.zeros(3, np.int32))], [Op("RANGE", [0, 1, 2], [3])]))


REDUCTIONS = ["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keep"), [((1, 2), True), ((-1,), False), ((0, 2, 2), False)])
def test_reduction(op, axes, keep, agrees, draw):
    agrees(moved(op, draw(2, 3, 4), ints(*axes), kind="Reducer", keepDims=keep))


@pytest.mark.parametrize("op", ["MEAN", "REDUCE_MAX"])
def test_int8_reduction(op, agrees):
    array = np.random.default_rng(0).integers(-128, 128, (2, 5, 6)).astype(np.int8)
    scale = 0.1 if op == "REDUCE_MAX" else 0.04
    tensors = [quantized(array, 0.1, 3), ints(1), quantized(array[:, 0], scale, 3)]
    agrees(Graph(tensors, [Op(op, [0, 1], [2], "Reducer")]))


@pytest.mark.parametrize("op", ["REDUCE_ANY", "REDUCE_ALL"])
def test_logical_reduction(op, agrees):
    array = np.array([[True, False, False], [False, False, False], [True, True, True]])
    agrees(moved(op, array, ints(1), kind="Reducer", keepDims=True))


@pytest.mark.parametrize(("op", "kind"), [("ARG_MAX", "ArgMax"), ("ARG_MIN", "ArgMin")])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_arg(op, kind, dtype, agrees, draw):
    array = np.float32([[1, 3, 3, 0], [2, 0, 0, 2]])
    tensors = [Tensor(array), ints(-1), Tensor(np.zeros(2, dtype))]
    number = 2 if dtype == np.int32 else 4
    agrees(Graph(tensors, [Op(op, [0, 1], [2], kind, {"outputType": number})]))


@pytest.mark.parametrize("flags", [{}, {"exclusive": True}, {"reverse": True}])
def test_cumsum(flags, agrees, draw):
    agrees(moved("CUMSUM", draw(2, 5), constant(np.int32(1)), kind="Cumsum", **flags), ["CumSum"])


@pytest.mark.parametrize("size", [(8, 6), (3, 5), (4, 3)])
@pytest.mark.parametrize("options", [{}, {"alignCorners": True}, {"halfPixelCenters": True}])
@pytest.mark.parametrize("op", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_resize(op, size, options, agrees, draw):
    kind = "ResizeBilinear" if op == "RESIZE_BILINEAR" else "ResizeNearestNeighbor"
    agrees(moved(op, draw(2, 4, 3, 2), ints(*size), kind=kind, **options), atol=1e-5)


def test_l2_normalization(agrees, draw):
    agrees(moved("L2_NORMALIZATION", draw(3, 5), kind="L2Norm"))


def test_local_response_normalization(agrees, draw):
    options = {"radius": 2, "alpha": 0.3, "beta": 0.7, "bias": 1.5}
    agrees(
        moved("LOCAL_RESPONSE_NORMALIZATION", draw(1, 2, 2, 8), kind="LocalResponseNormalization", **options)
    )


def test_broadcast_args(agrees):
    for first, second in (([2, 1, 3], [4, 1]), ([1], [5, 0]), ([7, 2], [7, 2])):
        tensors = [Tensor(np.array(first, np.int32)), Tensor(np.array(second, np.int32))]
        out = Tensor(np.zeros(max(len(first), len(second)), np.int32))
        agrees(Graph([*tensors, out], [Op("BROADCAST_ARGS", [0, 1], [2])]))


def test_an_input_and_one_value_twice_as_outputs(imported, draw):
    graph = Graph([Tensor(draw(3)), Tensor(draw(3))], [Op("ABS", [0], [1])], outputs=[1, 0, 1])
    made = imported(graph)
    assert [value.name for value in made.model.graph.outputs] == ["t1", "t0_1", "t1_1"]
    for want, got in made.both(draw(3)):
        np.testing.assert_array_equal(got, want)


def test_a_constant_as_an_output(imported, draw):
    graph = Graph(
        [Tensor(draw(3)), constant(draw(2)), Tensor(draw(3))], [Op("ABS", [0], [2])], outputs=[2, 1]
    )
    for want, got in imported(graph).both(draw(3)):
        np.testing.assert_array_equal(got, want)
