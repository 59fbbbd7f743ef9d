from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError
from graphopt.io import load, to_proto
from graphopt.io.wire import carve

Build = Callable[[str], onnx.ModelProto]


def test_the_same_model_comes_from_a_path_its_bytes_and_its_protobuf(build: Build, tmp_path: Path) -> None:
    proto = build("chain")
    path = tmp_path / "chain.onnx"
    onnx.save(proto, path)

    by_path, by_name = load(path), load(str(path))
    by_bytes, by_proto = load(path.read_bytes()), load(proto)

    assert ir.fingerprint(by_path) == ir.fingerprint(by_name) == ir.fingerprint(by_bytes) == ir.fingerprint(by_proto)
    assert by_path.meta["graphopt.source_path"] == str(path)
    assert by_bytes.meta["graphopt.source_path"] is None


def test_a_protobuf_is_left_as_it_was(build: Build) -> None:
    proto = build("chain")
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    next(iter(model.graph)).name = "renamed"
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("with_types", [True, False])
def test_it_is_remembered_whether_value_types_came_along(build: Build, with_types: bool) -> None:
    proto = build("chain")
    if not with_types:
        del proto.graph.value_info[:]
    assert load(proto).meta["graphopt.had_value_info"] is with_types


def test_large_weights_are_views_of_the_buffer_that_was_read(build: Build) -> None:
    proto = build("chain")
    shell, cuts = carve(proto.SerializeToString())
    assert list(cuts) == [0] and len(cuts[0]) == 64 * 32 * 4
    assert len(shell) < 2000
    model = load(proto)
    array = model.graph.initializers["w"].const_value.numpy()
    assert not array.flags.owndata and not array.flags.writeable
    np.testing.assert_array_equal(array, numpy_helper.to_array(proto.graph.initializer[0]))


@pytest.mark.parametrize(
    "dtype",
    [t for t in onnx_ir.DataType if t.name not in ("UNDEFINED", "STRING") and not t.name.startswith("FLOAT6")],
    ids=lambda t: t.name,
)
def test_cut_out_weights_of_every_dtype_keep_their_bytes(dtype: onnx_ir.DataType) -> None:
    count = 4096
    raw = np.random.default_rng(1).integers(0, 2, (count * dtype.bitwidth + 7) // 8).astype(np.uint8).tobytes()
    tensor = TensorProto(name="w", data_type=int(dtype.value), dims=[count], raw_data=raw)
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", int(dtype.value), [count])], [tensor])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    value = model.graph.initializers["w"].const_value
    assert value.tobytes() == raw
    assert value.numpy().shape == (count,)
    assert to_proto(model).graph.initializer[0].raw_data == raw


def test_unsorted_nodes_are_sorted_and_that_is_reported(build: Build) -> None:
    proto = build("chain")
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[2], nodes[0], nodes[1]])

    model = load(proto)

    assert [node.name for node in model.graph] == ["mul", "add", "relu"]
    assert [d.code for d in model.meta["graphopt.diagnostics"]] == ["IO001"]


def test_sorted_models_need_no_remark(build: Build) -> None:
    assert load(build("chain")).meta["graphopt.diagnostics"] == []


def test_the_default_domain_under_its_other_name(build: Build) -> None:
    proto = build("chain")
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    model = load(proto)
    assert ir.opset(model) == 17
    assert model.opset_imports == {"": 17}


def test_initializers_that_are_inputs_too_stay_both(build: Build) -> None:
    proto = build("chain")
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 32]))
    model = load(proto)
    value = model.graph.initializers["w"]
    assert value.is_graph_input() and value.const_value is not None
    assert not ir.is_constant(value)
    assert [i.name for i in to_proto(model).graph.input] == ["x", "w"]


def _external(tmp_path: Path, build: Build, location: str = "chain.data", **keys: int) -> Path:
    """Save the chain model with its weight in ``location`` below ``tmp_path``/model, and return the model's path."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    proto = build("chain")
    tensor = proto.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": 4096, "length": len(data), **keys}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    if not os.path.isabs(location):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(bytes(4096) + data)
    path = folder / "chain.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_mapped_and_survives_the_loss_of_its_file(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build, "weights/chain.data")
    model = load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert model.meta["graphopt.had_external_data"] is True
    (path.parent / "weights" / "chain.data").unlink()
    expected = numpy_helper.to_array(build("chain").graph.initializer[0])
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert tensor.tobytes() == expected.tobytes()
    assert ir.tensor_hash(tensor) == ir.tensor_hash(load(build("chain")).graph.initializers["w"].const_value)


def test_external_data_without_a_length_takes_what_the_shape_says(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.initializer[0].external_data[2]
    path.write_bytes(proto.SerializeToString())
    assert load(path).graph.initializers["w"].const_value.numpy().shape == (64, 32)


def test_external_data_of_a_tensor_in_an_attribute(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    proto = onnx.load(path, load_external_data=False)
    constant = proto.graph.node.add(op_type="Constant", name="const", output=["w"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(proto.graph.initializer[0])
    del proto.graph.initializer[0]
    path.write_bytes(proto.SerializeToString())

    model = load(path)

    tensor = next(node for node in model.graph if node.op_type == "Constant").attributes["value"].as_tensor()
    np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(build("chain").graph.initializer[0]))


def test_bytes_with_external_data_need_a_folder(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    with pytest.raises(ModelError, match=r"'w'.*came without a folder"):
        load(path.read_bytes())
    assert load(path.read_bytes(), base_dir=path.parent).graph.initializers["w"].const_value.size == 64 * 32


def test_missing_external_data(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    (path.parent / "chain.data").unlink()
    with pytest.raises(ModelError, match=r"tensor 'w': .*chain\.data.*No such file") as caught:
        load(path)
    assert caught.value.hint is not None and str(path.parent) in caught.value.hint


def test_external_data_that_is_too_short(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    os.truncate(path.parent / "chain.data", 5000)
    with pytest.raises(ModelError, match=r"tensor 'w': its data ends at byte 12288 .* has 5000 bytes"):
        load(path)


@pytest.mark.parametrize("location", ["../stolen", "sub/../../stolen", "/etc/hostname", "C:\\stolen", "..\\stolen", ""])
def test_external_data_outside_the_folder_is_refused_before_it_is_opened(
    build: Build, tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _external(tmp_path, build)
    (tmp_path / "stolen").write_bytes(bytes(20000))
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    opened: list[object] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: opened.append(args) or real_open(*args, **kwargs))
    with pytest.raises(ModelError, match=r"tensor 'w'.*(leaves the model's folder|absolute path|unusable name)"):
        load(path)
    assert opened == []


def test_links_out_of_the_folder_are_refused_and_links_inside_are_followed(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    data = path.parent / "chain.data"
    data.rename(path.parent / "blob")
    data.symlink_to("blob")
    assert load(path).graph.initializers["w"].const_value.size == 64 * 32
    data.unlink()
    (path.parent / "blob").rename(tmp_path / "blob")
    data.symlink_to("../blob")
    with pytest.raises(ModelError, match=r"tensor 'w': .*link that leaves the model's folder"):
        load(path)


def test_a_folder_that_links_out_is_refused(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build, "sub/chain.data")
    (path.parent / "sub").rename(tmp_path / "elsewhere")
    (path.parent / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"tensor 'w': .*link that leaves the model's folder"):
        load(path)


def test_a_link_exchanged_after_opening_is_noticed(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _external(tmp_path, build)
    data, secret = path.parent / "chain.data", tmp_path / "secret"
    secret.write_bytes(bytes(20000))
    innocent = data.read_bytes()
    real_open = os.open

    def open_then_swap(name: str, *args: int, **kwargs: int) -> int:
        if Path(name) != data:
            return real_open(name, *args, **kwargs)
        data.unlink()
        data.symlink_to(secret)
        handle = real_open(name, *args, **kwargs)
        data.unlink()
        data.write_bytes(innocent)
        return handle

    monkeypatch.setattr(os, "open", open_then_swap)
    with pytest.raises(ModelError, match=r"tensor 'w': .*link that leaves"):
        load(path)


def test_a_named_pipe_is_refused_without_waiting(build: Build, tmp_path: Path) -> None:
    path = _external(tmp_path, build)
    (path.parent / "chain.data").unlink()
    os.mkfifo(path.parent / "chain.data")
    with pytest.raises(ModelError, match=r"tensor 'w': .*not a regular file"):
        load(path)


@pytest.mark.parametrize(("key", "text"), [("offset", "-1"), ("offset", "1e3"), ("length", "x"), ("length", "9" * 40)])
def test_offsets_and_lengths_that_are_no_numbers(build: Build, tmp_path: Path, key: str, text: str) -> None:
    path = _external(tmp_path, build)
    proto = onnx.load(path, load_external_data=False)
    next(e for e in proto.graph.initializer[0].external_data if e.key == key).value = text
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=f"tensor 'w': the {key} of its external data"):
        load(path)


def test_a_length_that_contradicts_the_shape(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor 'w': it has 100 bytes of external data; FLOAT\[64, 32\] needs 8192"):
        load(_external(tmp_path, build, length=100))


def test_cutting_out_weights_copies_none_of_them() -> None:
    size = 1 << 20
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[size], raw_data=bytes(size))
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", TensorProto.UINT8, [size])], [tensor])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    shell, cuts = carve(data)
    assert cuts[0].obj is data and len(shell) < 300
