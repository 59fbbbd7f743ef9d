"""The fingerprint changes with everything that a saved model holds, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
import onnx_ir
import pytest

from graphopt import io
from graphopt.errors import ModelError
from graphopt.ir import Model, fingerprint, tensor_hash
from graphopt.ir.tensors import SparseInitializer, SparseTensor, UnresolvedTensor, set_quantization_annotation
from graphopt.ir.text import parse

TEXT = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
main (float[N,2] x) => (float[N,2] y)
<float[2] w = {1.0, 2.0}, float[2] v = {3.0, 4.0}, float[N,2] t>
{
   [add] t = Add (x, w)
   [twice] y = local.Twice <bias: float = 0.5, axes: ints = [1]> (t)
}
<domain: "local", opset_import: ["" : 21]>
Twice <axes, bias: float = 0.0> (a) => (b) { b = Add (a, a) }
"""


def node(model: Model, name: str) -> onnx_ir.Node:
    return next(n for n in model.graph if n.name == name)


def set_output_shape(model: Model) -> None:
    model.graph.outputs[0].shape = onnx_ir.Shape([1, 2])


def set_weight(model: Model) -> None:
    model.graph.initializers["w"].const_value = onnx_ir.Tensor(np.array([1, -2], np.float32))


def set_attribute(model: Model) -> None:
    node(model, "twice").attributes["bias"] = onnx_ir.AttrFloat32("bias", 0.25)


def rename_output(model: Model) -> None:
    node(model, "add").outputs[0].name = "other"


def annotate(model: Model) -> None:
    set_quantization_annotation(node(model, "add").outputs[0], {"SCALE_TENSOR": "v"})


def change_function(model: Model) -> None:
    next(iter(next(iter(model.functions.values())))).op_type = "Mul"


CHANGES: list[Callable[[Model], object]] = [
    set_output_shape,
    set_weight,
    set_attribute,
    rename_output,
    annotate,
    change_function,
    lambda m: setattr(m, "ir_version", 9),
    lambda m: setattr(m, "producer_name", "other"),
    lambda m: m.opset_imports.update({"": 20}),
    lambda m: m.metadata_props.update({"key": "value"}),
    lambda m: m.graph.metadata_props.update({"key": "value"}),
    lambda m: setattr(m.graph, "doc_string", "about"),
    lambda m: setattr(m.graph, "name", "other"),
    lambda m: setattr(node(m, "add"), "name", "sum"),
    lambda m: setattr(node(m, "add"), "op_type", "Sub"),
    lambda m: setattr(node(m, "add"), "overload", "a"),
    lambda m: node(m, "add").metadata_props.update({"key": "value"}),
    lambda m: node(m, "add").replace_input_with(1, m.graph.initializers["v"]),
    lambda m: m.graph.inputs[0].metadata_props.update({"key": "value"}),
    lambda m: m.graph.inputs[0].type.__init__(onnx_ir.DataType.FLOAT16),
    lambda m: m.graph.initializers.pop("v"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_that_a_file_would_show_is_seen(change):
    model = parse(TEXT)
    change(model)
    assert fingerprint(model) != fingerprint(parse(TEXT))


def test_types_of_intermediate_values_do_not_count():
    model = parse(TEXT)
    node(model, "add").outputs[0].shape = onnx_ir.Shape([7, 2])
    assert fingerprint(model) == fingerprint(parse(TEXT))


def test_order_of_initializers_and_attributes_does_not_count():
    w, v = "float[2] w = {1.0, 2.0}", "float[2] v = {3.0, 4.0}"
    swapped = TEXT.replace(f"{w}, {v}", f"{v}, {w}")
    swapped = swapped.replace("bias: float = 0.5, axes: ints = [1]", "axes: ints = [1], bias: float = 0.5")
    assert swapped != TEXT
    assert fingerprint(parse(swapped)) == fingerprint(parse(TEXT))


def test_how_a_tensor_is_stored_does_not_count(tmp_path):
    array = np.arange(3000, dtype=np.float32).reshape(3, 1000)
    typed = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, array.shape, array.reshape(-1))
    raw = onnx.numpy_helper.from_array(array)
    (tmp_path / "w.bin").write_bytes(b"pad!" + array.tobytes())
    external = onnx_ir.ExternalTensor(
        "w.bin", 4, array.nbytes, onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape(array.shape), name="e", base_dir=tmp_path
    )
    tensors = [onnx_ir.from_proto(typed), onnx_ir.from_proto(raw), onnx_ir.Tensor(array), external]
    assert len({tensor_hash(tensor) for tensor in tensors}) == 1


def test_dtype_shape_and_content_of_a_tensor_count():
    arrays = [
        np.zeros((2, 3), np.float32),
        np.zeros((3, 2), np.float32),
        np.zeros(6, np.float32),
        np.zeros((2, 3), np.int32),
        np.ones((2, 3), np.float32),
    ]
    assert len({tensor_hash(onnx_ir.Tensor(array)) for array in arrays}) == len(arrays)


def test_strings_are_hashed_with_their_borders():
    one = onnx_ir.StringTensor([b"ab", b"c"], shape=onnx_ir.Shape([2]))
    other = onnx_ir.StringTensor([b"a", b"bc"], shape=onnx_ir.Shape([2]))
    assert tensor_hash(one) != tensor_hash(other)


def test_unused_bits_of_packed_elements_do_not_count():
    def packed(data: bytes) -> onnx_ir.TensorProtocol:
        return onnx_ir.from_proto(onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[3], raw_data=data))

    assert tensor_hash(packed(b"\x21\x03")) == tensor_hash(packed(b"\x21\xf3"))
    assert tensor_hash(packed(b"\x21\x03")) != tensor_hash(packed(b"\x21\x04"))


def test_a_sparse_tensor_is_hashed_without_making_it_dense():
    values = onnx_ir.Tensor(np.array([5.0], np.float32))
    indices = onnx_ir.Tensor(np.array([3], np.int64))
    huge = SparseInitializer(SparseTensor(values, indices, (1 << 40, 1 << 20)), name="s")
    small = SparseInitializer(SparseTensor(values, indices, (2, 4)), name="s")
    assert tensor_hash(huge) != tensor_hash(small)
    assert small.numpy().tolist() == [[0, 0, 0, 5], [0, 0, 0, 0]]


def test_a_tensor_known_by_hash_alone_keeps_its_hash_and_refuses_its_data():
    known = onnx_ir.Tensor(np.arange(6, dtype=np.float32))
    unknown = UnresolvedTensor(known.dtype, [6], tensor_hash(known), name="w")
    assert tensor_hash(unknown) == tensor_hash(known)
    with pytest.raises(ModelError, match=r"the data of tensor 'w' is not here"):
        unknown.numpy()
    with pytest.raises(ModelError, match="resolve="):
        unknown.tobytes()


def test_a_loaded_model_has_the_fingerprint_of_its_saved_form():
    model = parse(TEXT)
    assert fingerprint(io.from_proto(io.to_proto(model))) == fingerprint(model)
