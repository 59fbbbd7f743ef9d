"""Whatever bytes come in: a model or a ModelError that helps, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import ModelError
from graphopt.io import load, save

Build = Callable[[str], onnx.ModelProto]

MUTATIONS = 500


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no model\n", "this is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
        (b"\x00\xff\xfe\x80" * 50, "is the file complete"),
        (b"\x08\x08", "is the file complete"),
    ],
    ids=["empty", "text", "lfs", "noise", "only a version"],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(path)
    assert hint in str(caught.value)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="this is a folder"):
        load(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read: not a directory"):
        load(tmp_path / "file" / "model.onnx")
    with pytest.raises(ModelError, match=r"cannot be read: .*null byte"):
        load("a\0b")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # tests may run as root, for whom every file is readable
    with pytest.raises(ModelError, match="cannot be read: permission denied"):
        load(tmp_path / "model.onnx")


def _changed(build: Build, change: Callable[[onnx.ModelProto], object], name: str = "chain") -> onnx.ModelProto:
    proto = build(name)
    change(proto)
    return proto


def _add_cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "s"


def _add_cycle_through_branch(proto: onnx.ModelProto) -> None:
    branch = proto.graph.node[0].attribute[0].g
    branch.node[0].input[0] = "y"


CONTRADICTIONS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no graph": (lambda p: p.ClearField("graph"), "no graph"),
    "no format version": (lambda p: p.ClearField("ir_version"), "ir_version"),
    "format version of the future": (lambda p: setattr(p, "ir_version", 1000), "version 1000 of the ONNX format"),
    "no opset": (lambda p: p.ClearField("opset_import"), "imports no operator set"),
    "opset zero": (lambda p: setattr(p.opset_import[0], "version", 0), "version 0 of the operator set 'ai.onnx'"),
    "opset twice": (
        lambda p: p.opset_import.add(domain="ai.onnx", version=11),
        "the operator set 'ai.onnx' in two versions",
    ),
    "operator of no opset": (lambda p: setattr(p.graph.node[0], "domain", "nowhere"), "MatMul node 'mul'.*'nowhere'"),
    "cycle": (_add_cycle, "node '(mul|add)': the graph has a cycle"),
    "undefined input": (lambda p: p.graph.node[0].input.__setitem__(0, "ghost"), "'ghost' before it is defined"),
    "undefined output": (lambda p: setattr(p.graph.output[0], "name", "ghost"), "output 'ghost'.*never defined"),
    "value made twice": (lambda p: p.graph.node[1].output.__setitem__(0, "h"), "'h' is redeclared"),
    "two inputs of one name": (lambda p: p.graph.input.append(p.graph.input[0]), "two inputs are named 'x'"),
    "two initializers of one name": (
        lambda p: p.graph.initializer.append(p.graph.initializer[0]),
        "two initializers are named 'w'",
    ),
    "initializer without a name": (lambda p: p.graph.initializer[1].ClearField("name"), "an initializer has no name"),
    "attribute twice": (
        lambda p: p.graph.node[2].attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)]),
        "Relu node 'relu': it has two attributes of the same name",
    ),
    "attribute without a type": (
        lambda p: p.graph.node[2].attribute.add(name="alpha", f=1.0),
        "Relu node 'relu': its attribute 'alpha' has no type",
    ),
    "unknown dtype": (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "'w': .*unknown data type 99"),
    "no dtype": (lambda p: p.graph.initializer[0].ClearField("data_type"), "'w': .*unknown data type 0"),
    "negative dimension": (
        lambda p: p.graph.initializer[0].dims.__setitem__(0, -64),
        r"'w': it has the shape \[-64, 32\]",
    ),
    "raw data too short": (
        lambda p: setattr(p.graph.initializer[0], "raw_data", bytes(8191)),
        r"'w': it has 8191 bytes of data; FLOAT\[64, 32\] needs 8192",
    ),
    "raw data too long": (
        lambda p: setattr(p.graph.initializer[0], "raw_data", bytes(4)),
        r"'w': it has 4 bytes of data; FLOAT\[64, 32\] needs 8192",
    ),
    "typed data too short": (
        lambda p: p.graph.initializer[1].float_data.pop(),
        r"'b': it has 31 entries in float_data; FLOAT\[32\] needs 32",
    ),
    "no data for a huge shape": (
        lambda p: p.graph.initializer[0].ClearField("raw_data") or p.graph.initializer[0].dims.extend([1 << 40]),
        "'w': it has 0 entries in float_data",
    ),
    "strings as raw bytes": (
        lambda p: setattr(p.graph.initializer[0], "data_type", TensorProto.STRING),
        "'w': it has 8192 bytes of data; STRING.* cannot be stored like that",
    ),
    "node without an operator": (lambda p: p.graph.node[0].ClearField("op_type"), "'mul'.*it has no operator"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_named(build: Build, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    proto = _changed(build, change)
    with pytest.raises(ModelError, match=message) as caught:
        load(proto)
    assert "Traceback" not in str(caught.value)


TEXTS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "of a node": lambda p: setattr(p.graph.node[0], "name", MARK),
    "of a value": lambda p: p.graph.node[0].output.__setitem__(0, MARK),
    "of an attribute's tensor": lambda p: p.graph.node.append(
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor(MARK, TensorProto.FLOAT, [1], [1.0]))
    ),
    "of a dimension": lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", MARK),
    "in documentation": lambda p: setattr(p.graph.node[0], "doc_string", MARK),
    "in metadata": lambda p: p.graph.node[0].metadata_props.add(key="a", value=MARK),
    "of an opset": lambda p: p.opset_import.add(domain=MARK, version=1),
}
MARK = "XXXXX"


@pytest.mark.parametrize("place", TEXTS)
def test_texts_that_are_not_utf8(build: Build, place: str) -> None:
    data = _changed(build, TEXTS[place]).SerializeToString()
    assert MARK.encode() in data
    with pytest.raises(ModelError, match=r"not UTF-8: b'XX\\xeeXX'"):
        load(data.replace(MARK.encode(), b"XX\xeeXX"))


def test_a_cycle_through_a_branch(build: Build) -> None:
    with pytest.raises(ModelError, match="cycle"):
        load(_changed(build, _add_cycle_through_branch, "nested"))


def test_a_bad_tensor_in_a_branch_is_found(build: Build) -> None:
    proto = build("nested")
    proto.graph.node[0].attribute[1].g.initializer[0].raw_data = b"123"
    with pytest.raises(ModelError, match=r"tensor '(then|else)_c': it has 3 bytes of data"):
        load(proto)


def test_nesting_without_end() -> None:
    def nest(depth: int) -> bytes:
        # AttributeProto.g = 6, GraphProto.node = 1, NodeProto.attribute = 5: a graph in a node in a graph ...
        data = b""
        for _ in range(depth):
            for key in (0x32, 0x2A, 0x0A):
                data = bytes([key]) + _varint(len(data)) + data
        return data

    body = nest(3000)[1:]
    with pytest.raises(ModelError):
        load(b"\x08\x08\x3a" + body)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


_MUTATE = """
import faulthandler, json, random, sys
from pathlib import Path
from graphopt.errors import GraphOptError
from graphopt.io import load, save

faulthandler.enable()
sources, first, last, folder = sys.argv[1].split(";"), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
counts = {"accepted": 0, "refused": 0}
for seed in range(first, last):
    rng = random.Random(seed)
    data = bytearray(Path(sources[seed % len(sources)]).read_bytes())
    kind = rng.choice(["truncate", "flip", "flip", "flips", "delete", "insert", "swap"])
    # Half of the damage goes where the structure is, at the two ends of the file; weights fill the middle.
    edge = min(len(data), 3000)
    spot = lambda: rng.choice([rng.randrange(edge), rng.randrange(len(data)), len(data) - 1 - rng.randrange(edge)])
    if kind == "truncate":
        del data[spot():]
    elif kind == "flip":
        data[spot()] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(20):
            data[spot()] ^= 1 << rng.randrange(8)
    elif kind == "delete":
        at = spot()
        del data[at : at + rng.randrange(1, 9)]
    elif kind == "insert":
        at = spot()
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        a, b = spot(), spot()
        data[a], data[b] = data[b], data[a]
    path, out = folder / "mutated.onnx", folder / "out.onnx"
    path.write_bytes(data)
    print("seed", seed, kind, file=sys.stderr)
    try:
        model = load(path)
    except GraphOptError as error:
        assert 2 <= error.exit_code <= 6 and len(str(error)) < 3000, error
        counts["refused"] += 1
        continue
    counts["accepted"] += 1
    save(model, out)
    load(out)
    out.unlink()
    assert sorted(p.name for p in folder.iterdir()) == ["mutated.onnx"]
print(json.dumps(counts))
"""


def _mutate(sources: list[Path], folder: Path, mutations: int) -> dict[str, int]:
    """Run the mutations in a process of their own, so that a crash of native code is a failure and not the end."""
    folder.mkdir()
    command = [sys.executable, "-c", _MUTATE, ";".join(map(str, sources)), "0", str(mutations), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts: dict[str, int] = json.loads(done.stdout)
    assert sum(counts.values()) == mutations
    return counts


def test_mutated_small_models(build: Build, tmp_path: Path) -> None:
    sources = []
    for name in ("chain", "nested", "function"):
        sources.append(tmp_path / f"{name}.onnx")
        onnx.save(build(name), sources[-1])
    counts = _mutate(sources, tmp_path / "work", MUTATIONS)
    assert counts["refused"] > MUTATIONS // 4, "the mutations do not reach the structure"
    assert counts["accepted"] > MUTATIONS // 50, "the mutations never leave a model whole"


def test_mutated_real_models(real_models: list[Path], tmp_path: Path) -> None:
    counts = _mutate(real_models, tmp_path / "work", MUTATIONS)
    assert counts["refused"] > MUTATIONS // 10
    assert counts["accepted"] > MUTATIONS // 50


def test_names_that_are_json_or_have_spaces_and_quotes(build: Build, tmp_path: Path) -> None:
    odd = '{"a": "b c", \'d\': "\\n"}'
    proto = build("chain")
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = odd
    proto.graph.node[0].name = odd
    save(load(proto), tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    assert saved.graph.node[0].output[0] == saved.graph.node[0].name == odd
