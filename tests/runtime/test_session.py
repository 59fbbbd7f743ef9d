"""Sessions: what goes in and out, how refusals read, and that folding's `evaluate` is cheap."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from graphopt.errors import ModelError, TargetError, UsageError
from graphopt.runtime import Session, evaluate

info = h.make_tensor_value_info
FLOATS = np.array([-1.0, 2.0, -3.0, 7.0, 0.0], np.float32)


def model(nodes, inputs, outputs, initializers=(), opset=21, domains=()) -> bytes:
    graph = h.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [h.make_opsetid("", opset), *(h.make_opsetid(d, 1) for d in domains)]
    return h.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def binary(op: str, shape, dtype: int = T.FLOAT, domain: str = "") -> bytes:
    node = h.make_node(op, ["a", "b"], ["c"], name="my node", domain=domain)
    return model([node], [info("a", dtype, shape), info("b", dtype, shape)], [info("c", dtype, None)], domains=["my"])


def identity(dtype: int, shape=("N",)) -> bytes:
    return model([h.make_node("Identity", ["a"], ["c"])], [info("a", dtype, shape)], [info("c", dtype, shape)])


def test_inputs_and_outputs_are_described():
    node = h.make_node("Add", ["a", "w"], ["c"])
    inputs = [info("a", T.FLOAT16, [None, "batch", 3]), info("w", T.FLOAT16, [3])]
    data = model([node], inputs, [info("c", T.FLOAT16, None)], [h.make_tensor("w", T.FLOAT16, [3], [1, 2, 3])])
    session = Session(data)
    (only,) = session.inputs  # an initializer that is listed as an input has its value already
    assert (only.name, only.dtype, only.shape, only.kind) == ("a", np.float16, (None, "batch", 3), "tensor")
    assert str(only) == "a: float16[?, batch, 3]"
    assert session.outputs[0].name == "c"
    assert session.accepts == {"a", "w"}
    ones = np.ones((1, 1, 3), np.float16)
    assert session.run({"a": ones})["c"].tolist() == [[[2, 3, 4]]]
    assert session.run({"a": ones, "w": np.zeros(3, np.float16)})["c"].tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize(
    "code, dtype",
    [
        (T.FLOAT, np.float32),
        (T.FLOAT16, np.float16),
        (T.BFLOAT16, ml_dtypes.bfloat16),
        (T.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (T.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (T.INT64, np.int64),
        (T.BOOL, np.bool_),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (5,)])
def test_every_dtype_comes_back_as_it_went_in(code, dtype, shape):
    array = np.resize(FLOATS, shape).astype(dtype)
    dims = ["N"] if shape else []
    session = Session(identity(code, dims))
    out = session.run({"a": array})["c"]
    assert session.inputs[0].dtype == out.dtype == np.dtype(dtype)
    assert out.shape == shape and out.tobytes() == array.tobytes()
    assert evaluate(identity(code, dims), {"a": array}, ["c"])[0].tobytes() == array.tobytes()


@pytest.mark.parametrize("code, dtype", [(T.INT4, ml_dtypes.int4), (T.UINT4, ml_dtypes.uint4)])
def test_four_bit_tensors_are_packed_and_unpacked(code, dtype):
    scale = h.make_tensor("s", T.FLOAT, [], [1.0])
    zero = h.make_tensor("z", code, [], [0])
    quantize = model(
        [h.make_node("QuantizeLinear", ["a", "s", "z"], ["c"])],
        [info("a", T.FLOAT, ["N"])],
        [info("c", code, ["N"])],
        [scale, zero],
    )
    dequantize = model(
        [h.make_node("DequantizeLinear", ["a", "s", "z"], ["c"])],
        [info("a", code, ["N"])],
        [info("c", T.FLOAT, ["N"])],
        [scale, zero],
    )
    expected = FLOATS if dtype is ml_dtypes.int4 else FLOATS.clip(0)
    codes = evaluate(quantize, {"a": FLOATS}, ["c"])[0]
    assert codes.dtype == dtype and codes.astype(np.float32).tolist() == expected.tolist()
    assert evaluate(dequantize, {"a": codes}, ["c"])[0].tolist() == expected.tolist()


def test_strings_sequences_and_empty_optionals():
    text = model(
        [h.make_node("StringConcat", ["a", "a"], ["c"])],
        [info("a", T.STRING, ["N"])],
        [info("c", T.STRING, ["N"])],
    )
    assert Session(text).inputs[0].dtype == object
    assert Session(text).run({"a": np.array(["x", "é"])})["c"].tolist() == ["xx", "éé"]

    pair = h.make_tensor_sequence_value_info("c", T.FLOAT, None)
    session = Session(model([h.make_node("SequenceConstruct", ["a", "a"], ["c"])], [info("a", 1, ["N"])], [pair]))
    assert session.outputs[0].kind == "sequence" and session.outputs[0].dtype == np.float32
    assert [part.tolist() for part in session.run({"a": np.ones(2, np.float32)})["c"]] == [[1, 1], [1, 1]]

    kind = h.make_tensor_type_proto(T.FLOAT, [None])
    empty = h.make_value_info("c", h.make_optional_type_proto(kind))
    session = Session(model([h.make_node("Optional", [], ["c"], type=kind)], [info("a", 1, ["N"])], [empty]))
    assert session.outputs[0].kind == "optional" and session.run({"a": FLOATS}) == {"c": None}


def test_scalars_lists_of_dims_and_strided_feeds_are_accepted():
    assert Session(identity(T.FLOAT, [])).run({"a": np.float32(3)})["c"] == 3
    assert Session(identity(T.FLOAT)).run({"a": FLOATS[::2]})["c"].tolist() == [-1, -3, 0]
    brain = FLOATS.astype(ml_dtypes.bfloat16)
    assert Session(identity(T.BFLOAT16)).run({"a": brain[::2]})["c"].tolist() == [-1, -3, 0]


def test_results_do_not_share_memory_with_feeds():
    feed = FLOATS.copy()
    out = evaluate(identity(T.FLOAT), {"a": feed}, ["c"])[0]
    feed[:] = 9
    assert out.tolist() == FLOATS.tolist()


def test_only_the_outputs_asked_for_in_the_order_asked_for():
    nodes = [h.make_node("Neg", ["a"], ["n"]), h.make_node("Abs", ["a"], ["p"])]
    data = model(nodes, [info("a", 1, ["N"])], [info("n", 1, ["N"]), info("p", 1, ["N"])])
    assert list(Session(data).run({"a": FLOATS}, ["p"])) == ["p"]
    assert [out[1] for out in evaluate(data, {"a": FLOATS}, ["p", "n"])] == [2.0, -2.0]
    with pytest.raises(UsageError, match="no output 'q'"):
        Session(data).run({"a": FLOATS}, ["q"])


def test_external_data_is_found_beside_a_model_given_as_a_path(tmp_path: Path):
    weight = onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    node = h.make_node("Add", ["a", "w"], ["c"])
    proto = onnx.load_from_string(model([node], [info("a", 1, [300])], [info("c", 1, [300])], [weight]))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    assert Session(path).run({"a": np.ones(300, np.float32)})["c"][299] == 300
    (tmp_path / "m.bin").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx"):
        Session(path)


SQUARE = np.ones((3, 3), np.float32)
WIDE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    "shape, feeds, expected",
    [
        (["x", "y"], {"a": WIDE}, "no array for input b: float32[x, y]"),
        (["x", "y"], {"a": WIDE, "b": WIDE, "z": WIDE}, "the model has no input 'z'"),
        (["x", "y"], {"a": WIDE[0], "b": WIDE}, "Invalid rank for input: a Got: 1 Expected: 2"),
        ([3, 3], {"a": SQUARE, "b": WIDE}, "input: b for the following indices index: 0 Got: 2 Expected: 3"),
        ([3, 3], {"a": SQUARE, "b": SQUARE.astype(np.float64)}, "Actual: (tensor(double)) , expected: (tensor(float))"),
    ],
)
def test_feeds_that_do_not_fit_are_usage_errors(shape, feeds, expected):
    with pytest.raises(UsageError) as caught:
        Session(binary("MatMul", shape)).run(feeds)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "data, error, where, message",
    [
        (b"", ModelError, None, "No graph was found"),
        (b"hello", ModelError, None, "protobuf parsing failed"),
        (binary("MatMul", [2, 3]), ModelError, "MatMul 'my node'", "Incompatible dimensions"),
        (
            binary("MatMul", [3, 3], T.INT8),
            ModelError,
            "MatMul 'my node'",
            "Type 'tensor(int8)' of input parameter (a)",
        ),
        (binary("MatMul", [3, 3], T.BFLOAT16), TargetError, "MatMul 'my node'", "Could not find an implementation"),
        (binary("Foo", [3, 3]), ModelError, "Foo 'my node'", "No Op registered for Foo"),
        (binary("Foo", [3, 3], domain="my"), ModelError, None, "my:Foo(-1) is not a registered function/op"),
    ],
)
def test_models_that_onnxruntime_refuses_name_the_node(data, error, where, message):
    with pytest.raises(error) as caught:
        Session(data)
    assert caught.value.where == where
    assert caught.value.message.startswith(message) or message in caught.value.message
    assert "\n" not in caught.value.message and "ONNXRuntimeError" not in caught.value.message


def test_a_run_that_fails_names_the_node():
    with pytest.raises(ModelError, match=r"MatMul 'my node': .*dimension mismatch"):
        Session(binary("MatMul", None)).run({"a": WIDE, "b": WIDE})


def test_messages_leave_out_places_in_the_source_of_onnxruntime():
    """A failed check of onnxruntime begins with a path and a C++ signature."""
    with pytest.raises(ModelError) as caught:
        Session(binary("Add", None)).run({"a": WIDE, "b": WIDE[:, :2]})
    assert caught.value.message == "Attempting to broadcast an axis by a dimension other than 1. 2 by 3"
    with pytest.raises(ModelError) as caught:
        Session(model([h.make_node("Neg", ["a"], ["c"])], [info("a", 1, None)], [info("c", 1, None)], opset=99))
    assert caught.value.message.startswith("ONNX Runtime only *guarantees* support for models stamped with official")


def test_missing_file_and_missing_provider(tmp_path: Path):
    with pytest.raises(ModelError, match="no such model file"):
        Session(tmp_path / "none.onnx")
    with pytest.raises(TargetError, match="NoSuchProvider") as caught:
        Session(identity(T.FLOAT), providers=["NoSuchProvider"])
    assert "CPUExecutionProvider" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "data, feeds, outputs",
    [
        (b"junk", {}, ["c"]),
        (binary("MatMul", [3, 3]), {"a": SQUARE}, ["c"]),
        (binary("MatMul", [3, 3]), {"a": SQUARE, "b": SQUARE, "z": SQUARE}, ["c"]),
        (binary("MatMul", None), {"a": WIDE, "b": WIDE}, ["c"]),
        (binary("MatMul", [3, 3]), {"a": SQUARE, "b": SQUARE}, ["q"]),
        (binary("MatMul", [3, 3], T.BFLOAT16), {}, ["c"]),
    ],
)
def test_evaluate_refuses_with_a_model_error_whatever_the_cause(data, feeds, outputs):
    with pytest.raises(ModelError):
        evaluate(data, feeds, outputs)


def test_evaluate_does_not_copy_large_feeds():
    """Measured in a process of its own by the peak of resident memory; a copy of the feed alone would be 400 MB."""
    script = """
import resource, sys
import numpy as np
from onnx import helper as h
from graphopt.runtime import evaluate
v = h.make_tensor_value_info
graph = h.make_graph([h.make_node("ReduceMax", ["a"], ["c"], keepdims=0)], "g", [v("a", 1, ["N"])], [v("c", 1, [])])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()
evaluate(model, {"a": np.ones(8, np.float32)}, ["c"])
big = np.ones(100_000_000, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert evaluate(model, {"a": big}, ["c"])[0] == 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 100, "MB above the feed itself"
    assert done.stderr == "", "onnxruntime's own warnings are kept off stderr"


def test_evaluate_starts_in_two_milliseconds():
    data = binary("MatMul", [3, 3])
    evaluate(data, {"a": SQUARE, "b": SQUARE}, ["c"])
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        evaluate(data, {"a": SQUARE, "b": SQUARE}, ["c"])
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2e-3


def test_a_profile_is_written_where_it_was_asked_for(tmp_path: Path):
    session = Session(identity(T.FLOAT), profile=tmp_path / "trace")
    session.run({"a": FLOATS})
    trace = session.end_profiling()
    assert trace.parent == tmp_path and "Identity" in trace.read_text()
