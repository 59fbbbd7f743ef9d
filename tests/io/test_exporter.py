from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError, UsageError
from graphopt.io import load, save, to_proto
from graphopt.io.exporter import PROTOBUF_LIMIT

Build = Callable[[str], onnx.ModelProto]


def _round_trip(proto: onnx.ModelProto, tmp_path: Path) -> onnx.ModelProto:
    path = tmp_path / "round_trip.onnx"
    model = load(proto)
    save(model, path)
    saved = onnx.load(path)
    assert saved == to_proto(model)
    return saved


@pytest.mark.parametrize("name", ["chain", "nested", "function"])
def test_a_model_that_was_not_edited_is_written_as_it_came(build: Build, name: str, tmp_path: Path) -> None:
    proto = build(name)
    assert _round_trip(proto, tmp_path) == proto


def test_real_models_are_written_as_they_came(real_models: list[Path], tmp_path: Path) -> None:
    for path in real_models:
        before = onnx.load(path)
        after = _round_trip(before, tmp_path)
        for part in ("node", "initializer", "input", "output", "sparse_initializer"):
            assert list(getattr(after.graph, part)) == list(getattr(before.graph, part)), f"{path.name}: {part}"
        assert list(after.functions) == list(before.functions)
        assert list(after.metadata_props) == list(before.metadata_props)


def test_saving_what_was_saved_changes_nothing(build: Build, tmp_path: Path) -> None:
    for name in ("chain", "nested", "function"):
        save(load(build(name)), tmp_path / "once.onnx")
        save(load(tmp_path / "once.onnx"), tmp_path / "twice.onnx")
        assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()


def test_metadata_of_tensors_does_not_multiply(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    for tensor in proto.graph.initializer:
        tensor.metadata_props.add(key="origin", value="training")
    assert _round_trip(proto, tmp_path) == proto


def test_provenance_goes_into_the_metadata_and_not_into_the_model(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    proto.metadata_props.add(key="graphopt.version", value="old")
    model = load(proto)
    save(model, tmp_path / "out.onnx", provenance={"graphopt.version": "new", "graphopt.pipeline": "a,b{x=1}"})
    entries = [(e.key, e.value) for e in onnx.load(tmp_path / "out.onnx").metadata_props]
    assert entries[-2:] == [("graphopt.version", "new"), ("graphopt.pipeline", "a,b{x=1}")]
    assert model.metadata_props["graphopt.version"] == "old"


def test_value_types_are_written_only_when_some_came(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    assert [v.name for v in _round_trip(proto, tmp_path).graph.value_info] == ["h"]
    del proto.graph.value_info[:]
    model = load(proto)
    inferred = next(iter(model.graph)).outputs[0]
    inferred.type, inferred.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 32])
    assert len(to_proto(model).graph.value_info) == 0
    assert len(to_proto(model.clone()).graph.value_info) == 0
    assert [len(v.type.tensor_type.shape.dim) for v in to_proto(model).graph.output] == [2]


def test_dimensions_that_shape_inference_made_up_are_written_as_unknown(build: Build) -> None:
    model = load(build("chain"))
    model.graph.outputs[0].shape = ir.Shape(["unk__7", 32])
    dims = to_proto(model).graph.output[0].type.tensor_type.shape.dim
    assert not dims[0].HasField("dim_param") and not dims[0].HasField("dim_value")
    assert dims[1].dim_value == 32


def _sparse(name: str, linear: bool) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), name)
    indices = np.array([1, 5]) if linear else np.array([[0, 1], [1, 2]])
    return onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(indices, f"{name}_at"), dims=[2, 3])


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_are_dense_to_passes_and_sparse_in_the_file(linear: bool, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["y"], name="add")],
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        sparse_initializer=[_sparse("s", linear)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load(proto)
    dense = ir.constant(model.graph.initializers["s"])
    assert dense is not None
    np.testing.assert_array_equal(dense, np.array([[0, 1.5, 0], [0, 0, 2.5]], np.float32))
    assert _round_trip(proto, tmp_path) == proto


def test_sparse_attributes_and_lists_of_bytes_pass_through(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], name="const")
    constant.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        _sparse("v", True)
    )
    custom = helper.make_node("Custom", ["y"], ["z"], name="custom", domain="com.example")
    custom.attribute.add(name="blobs", type=AttributeProto.STRINGS, strings=[b"\xff\xfe", b"text"])
    custom.attribute.add(name="blob", type=AttributeProto.STRING, s=b"\xff\xfe")
    graph = helper.make_graph(
        [constant, custom], "g", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    assert _round_trip(proto, tmp_path) == proto
    assert to_proto(load(proto).clone()) == proto


def test_map_and_opaque_types_pass_through(tmp_path: Path) -> None:
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    classes = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, value))
    opaque = TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "com.example", "Handle"
    node = helper.make_node("Classify", ["x"], ["scores"], name="classify", domain="com.example")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_value_info("x", opaque)],
        [helper.make_value_info("scores", classes)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    assert _round_trip(proto, tmp_path) == proto
    assert to_proto(load(proto).clone()) == proto


def test_strings_annotations_and_training_information_pass_through(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    proto.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"\xff"]))
    annotation = proto.graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    training = proto.training_info.add()
    training.update_binding.add(key="w", value="new_w")
    training.algorithm.name = "sgd"
    assert _round_trip(proto, tmp_path) == proto


def test_function_value_types_of_new_and_old_format_versions(build: Build, tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])
    new = build("function")
    new.ir_version = 10
    new.graph.value_info.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, [4]))
    new.functions[0].value_info.append(info)
    assert _round_trip(new, tmp_path) == new
    old = build("function")
    info.name = "local::Scale/b"
    old.graph.value_info.append(info)
    assert _round_trip(old, tmp_path) == old


def test_edited_weights_are_written_as_they_are_now(build: Build, tmp_path: Path) -> None:
    model = load(build("chain"))
    array = np.asfortranarray(np.arange(2048, dtype=np.float32).reshape(64, 32))
    model.graph.initializers["w"].const_value = onnx_ir.Tensor(array, name="w", dtype=ir.DataType.FLOAT)
    save(model, tmp_path / "out.onnx")
    saved = numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0])
    np.testing.assert_array_equal(saved, np.arange(2048, dtype=np.float32).reshape(64, 32))


# External data.


def test_data_beside_the_model_is_read_by_onnx_and_by_load(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    path = tmp_path / "out.onnx"
    save(load(proto), path, external_data="always")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    shell = onnx.load(path, load_external_data=False)
    entries = {e.key: e.value for e in shell.graph.initializer[0].external_data}
    assert entries == {"location": "out.onnx.data", "offset": "0", "length": "8192"}
    read = onnx.load(path)
    assert read.graph.initializer[0].raw_data == proto.graph.initializer[0].raw_data
    assert ir.fingerprint(load(path)) == ir.fingerprint(load(proto))


def test_offsets_are_aligned_and_shared_tensors_are_written_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.random(1001), "b": rng.random(100_000), "c": rng.random(1001)}
    infos = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, a.shape) for n, a in arrays.items()]
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    proto = helper.make_model(
        helper.make_graph([], "g", [], infos, tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    save(load(proto), first, external_data="always")
    shell = onnx.load(first, load_external_data=False)
    offsets = [int(e.value) for t in shell.graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets == [0, 8192, 808192]  # 8008 bytes, up to a page; 800000 bytes, up to 64
    shell.graph.initializer[2].external_data[1].value = "0"
    shell.graph.initializer[2].name = "c"
    first.write_bytes(shell.SerializeToString())
    save(load(first), second)
    tied = onnx.load(second, load_external_data=False).graph.initializer
    assert tied[0].external_data[1].value == tied[2].external_data[1].value
    assert (tmp_path / "second.onnx.data").stat().st_size == 8192 + 800_000


def test_a_model_is_saved_over_the_files_it_came_from(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = build("chain")
    save(load(proto), path, external_data="always")
    model = load(path)
    grown = onnx_ir.Tensor(np.full(5000, 7, np.float32), name="b")
    model.graph.initializers["b"].const_value = grown
    model.graph.initializers["b"].shape = grown.shape
    model.graph.initializers.update({"w": model.graph.initializers.pop("w")})  # other order, other offsets
    save(model, path)
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), expected)
    np.testing.assert_array_equal(load(path).graph.initializers["w"].const_value.numpy(), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_external_data_can_be_taken_in(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    save(load(proto), tmp_path / "outside.onnx", external_data="always")
    save(load(tmp_path / "outside.onnx"), tmp_path / "inside.onnx", external_data="never")
    assert not (tmp_path / "inside.onnx.data").exists()
    assert ir.fingerprint(load(tmp_path / "inside.onnx")) == ir.fingerprint(load(proto))


class _Huge(onnx_ir.LazyTensor):
    """Says that it has 3 GB and has none."""

    def __init__(self) -> None:
        super().__init__(self._refuse, ir.DataType.UINT8, ir.Shape([3 << 30]), name="huge")

    def _refuse(self) -> onnx_ir.TensorProtocol:
        raise AssertionError("the data was touched")


def test_what_exceeds_a_protobuf_is_refused_before_its_data_is_touched(build: Build, tmp_path: Path) -> None:
    model = load(build("chain"))
    model.graph.register_initializer(onnx_ir.Value(name="huge", const_value=_Huge()))
    assert model.graph.initializers["huge"].const_value.nbytes > PROTOBUF_LIMIT
    with pytest.raises(ModelError, match="2 GB"):
        to_proto(model)
    with pytest.raises(ModelError, match="external data"):
        save(model, tmp_path / "out.onnx", external_data="never")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="the data was touched"):
        save(model, tmp_path / "out.onnx")  # written beside the model without being asked for
    assert list(tmp_path.iterdir()) == []


_MEMORY = """
import sys
from pathlib import Path
from graphopt.io import load, save
import numpy as np, onnx_ir

def anonymous():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

source, target = sys.argv[1:]
before = peak = anonymous()
model = load(source)
peak = max(peak, anonymous())
value = model.graph.initializers["w0"]
value.const_value = onnx_ir.Tensor(value.const_value.numpy()[:1].repeat(value.shape[0], 0), name="w0")
import threading
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
save(model, target)
done.set()
watcher.join()
print(peak - before, peak)
"""


def _write_sparse_file_model(folder: Path, count: int, each: int) -> Path:
    """A model of ``count`` float weights of ``each`` bytes in a data file that is one hole on disk."""
    side = each // 4 // 1024
    proto = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    proto.graph.name = "sparse file"
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", side]))
    for index in range(count):
        tensor = proto.graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, 1024])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights", "offset": index * each, "length": each}.items():
            tensor.external_data.add(key=key, value=str(value))
        proto.graph.node.append(helper.make_node("MatMul", ["x", f"w{index}"], [f"y{index}"], name=f"n{index}"))
        proto.graph.output.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["N", 1024]))
    with open(folder / "weights", "wb") as file:
        file.truncate(count * each)
    path = folder / "big.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _anonymous_memory(source: Path, target: Path) -> tuple[int, int]:
    """Load, edit a weight and save, in a process of its own; return growth and peak of anonymous memory in bytes."""
    command = [sys.executable, "-c", _MEMORY, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    growth, peak = map(int, done.stdout.split())
    return growth, peak


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@needs_proc
def test_weights_in_files_never_become_memory(tmp_path: Path) -> None:
    source = _write_sparse_file_model(tmp_path, 16, 16 << 20)
    growth, _ = _anonymous_memory(source, tmp_path / "out.onnx")
    assert growth < 64 << 20  # of 256 MB; the edited weight takes 16
    assert (tmp_path / "out.onnx.data").stat().st_size == 256 << 20


@needs_proc
@pytest.mark.slow
def test_a_model_of_2400_megabytes_needs_little_memory(tmp_path: Path) -> None:
    source = _write_sparse_file_model(tmp_path, 75, 32 << 20)
    growth, peak = _anonymous_memory(source, tmp_path / "out.onnx")
    assert growth < 128 << 20 and peak < 250 << 20
    assert len(load(tmp_path / "out.onnx").graph.initializers) == 75


# Nothing half-written.


@pytest.fixture
def old_output(build: Build, tmp_path: Path) -> Iterator[Path]:
    """An output of an earlier run, with external data, that has to be intact at the end; and nothing else beside it."""
    path = tmp_path / "out" / "out.onnx"
    path.parent.mkdir()
    save(load(build("nested")), path, external_data="always", size_threshold=1)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert set(before) == {"out.onnx", "out.onnx.data"}
    yield path
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("external_data", ["never", "always"])
def test_a_full_disk(build: Build, old_output: Path, tmp_path: Path, external_data: str) -> None:
    pytest.importorskip("resource")
    onnx.save(build("chain"), tmp_path / "in.onnx")
    script = """
        import resource, signal, sys
        from graphopt.errors import UsageError
        from graphopt.io import load, save
        model = load(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # the weight alone has 8192 bytes
        try:
            save(model, sys.argv[2], external_data=sys.argv[3])
        except UsageError as error:
            assert error.hint and "nothing was changed" in error.hint
            sys.exit(error.exit_code)
    """
    arguments = [str(tmp_path / "in.onnx"), str(old_output), external_data]
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr


@pytest.mark.parametrize("call", [1, 2])
def test_failure_at_the_last_moment(build: Build, old_output: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    model = load(build("chain"))
    real, calls = os.replace, iter(range(1, 100))

    def fail(*args: Path) -> object:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="no space left on device") as caught:
        save(model, old_output, external_data="always")
    assert caught.value.exit_code == 2


def test_an_interrupt_in_the_middle(build: Build, old_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    model = load(build("chain"))
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model, old_output, external_data="always")


def test_ctrl_c_from_outside(old_output: Path, tmp_path: Path) -> None:
    source = _write_sparse_file_model(tmp_path, 4, 4 << 20)
    script = """
        import sys, time
        from graphopt.io import exporter, load
        real = exporter._write_data
        def slow(tensor, target):
            print("writing", flush=True)
            real(tensor, target)
            time.sleep(30)
        exporter._write_data = slow
        exporter.save(load(sys.argv[1]), sys.argv[2])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(source), str(old_output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in stderr


def test_a_tensor_that_fails_while_it_is_written(build: Build, old_output: Path) -> None:
    model = load(build("chain"))
    model.graph.register_initializer(onnx_ir.Value(name="huge", const_value=_Huge()))
    with pytest.raises(AssertionError):
        save(model, old_output)


def test_places_that_cannot_be_written(build: Build, tmp_path: Path) -> None:
    model = load(build("chain"))
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(UsageError, match="not a directory"):
        save(model, tmp_path / "file" / "out.onnx")
    with pytest.raises(UsageError, match="no such file or directory"):
        save(model, tmp_path / "absent" / "out.onnx")
    with pytest.raises(UsageError, match="is a directory"):
        save(model, tmp_path)
    with pytest.raises(UsageError, match="not a regular file"):
        save(model, "/dev/null")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_permissions_of_a_replaced_file_and_links_to_it_are_kept(build: Build, tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real.onnx")
    save(load(build("chain")), link)
    assert link.is_symlink() and onnx.load(real).graph.name == "chain"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_model_that_is_no_valid_onnx(build: Build, tmp_path: Path) -> None:
    model = load(build("chain"))
    next(iter(model.graph)).attributes["odd"] = ir.Attr("odd", ir.AttributeType.UNDEFINED, object())
    with pytest.raises(ModelError, match="cannot be written as ONNX"):
        save(model, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []
