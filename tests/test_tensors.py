"""Tensors of a loaded model, with what is asked of them most kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt._tensors import LoadedTensor


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d.name not in ("UNDEFINED", "STRING")])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 300)])
def test_it_is_the_tensor_of_onnx_ir(dtype, shape):
    proto = onnx.TensorProto(name="t", dims=shape, data_type=dtype.value, doc_string="said")
    size = int(np.prod(shape))
    proto.raw_data = bytes(range(7)) * 10000
    proto.raw_data = proto.raw_data[: (size * dtype.bitwidth + 7) // 8]
    if dtype.bitwidth == 6:
        proto.raw_data = bytes(len(proto.raw_data))
    known, tensor = ir.serde.TensorProtoTensor(proto), LoadedTensor(proto)
    for _ in range(2):
        assert (tensor.dtype, tensor.shape, tensor.size) == (known.dtype, known.shape, known.size)
        assert (tensor.nbytes, tensor.name, tensor.doc_string) == (known.nbytes, "t", "said")
        assert tensor.tobytes() == known.tobytes()
        got, wanted = tensor.numpy(), known.numpy()
        assert (got.dtype, got.shape, got.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
    assert ir.to_proto(tensor) == proto


def test_small_arrays_are_kept_and_cannot_be_written_to():
    proto = onnx.TensorProto(name="t", dims=[3], data_type=ir.DataType.INT64.value, int64_data=[1, 2, 3])
    tensor = LoadedTensor(proto)
    assert tensor.numpy() is tensor.numpy()
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 5


def test_large_arrays_are_not_kept():
    tensor = LoadedTensor(onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "t"))
    assert tensor.numpy() is not tensor.numpy()


def test_loaded_models_have_them_everywhere():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c) => (float[1] y) <float[1] a = {1}>
        { k = Constant <value = float[1] {2}> ()
          y = If (c) <
            then_branch = t () => (float[1] p) <float[1] b = {3}> { p = Add (a, b) },
            else_branch = e () => (float[1] q) {
              n = Constant <value = float[1] {4}> () q = Add (n, k) }> }""")
    model = graphopt.load(proto)
    then, other = (model.graph[1].attributes[f"{n}_branch"].as_graph() for n in ("then", "else"))
    tensors = [
        model.graph.initializers["a"].const_value,
        then.initializers["b"].const_value,
        model.graph[0].attributes["value"].value,
        other[0].attributes["value"].value,
    ]
    assert [type(t) for t in tensors] == [LoadedTensor] * 4
    assert [float(t.numpy()[0]) for t in tensors] == [1, 3, 2, 4]
    assert ir.to_proto(model).graph == ir.to_proto(ir.from_proto(proto)).graph
