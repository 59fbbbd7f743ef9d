from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import PassError, UsageError
from graphopt.io import load, to_proto
from graphopt.io.surgeon import from_surgeon, run_script, to_surgeon

Build = Callable[[str], onnx.ModelProto]


@pytest.mark.parametrize("name", ["chain", "nested", "function"])
def test_a_graph_that_was_not_edited_comes_back_the_same(build: Build, name: str) -> None:
    model = load(build(name))
    assert ir.fingerprint(from_surgeon(to_surgeon(model), model)) == ir.fingerprint(model)


def test_real_models_come_back_the_same(real_models: list[Path]) -> None:
    for path in real_models:
        model = load(path)
        back = from_surgeon(to_surgeon(model), model)
        assert ir.fingerprint(back) == ir.fingerprint(model), path.name


def test_what_graphsurgeon_drops_is_put_back(build: Build) -> None:
    proto = build("chain")
    proto.ir_version, proto.domain, proto.model_version, proto.doc_string = 4, "com.example", 7, "the model"
    proto.graph.metadata_props.add(key="graph", value="data")
    proto.graph.input[0].doc_string = "the input"
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [32]))
    proto.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(key="SCALE", value="b")
    proto.training_info.add().algorithm.name = "sgd"
    model = load(proto)
    graph = to_surgeon(model)
    next(node for node in graph.nodes if node.name == "relu").op = "Tanh"

    back = to_proto(from_surgeon(graph, model))

    proto.graph.node[2].op_type = "Tanh"
    assert back.graph.node == proto.graph.node
    assert back.graph.input == proto.graph.input
    assert back.graph.quantization_annotation == proto.graph.quantization_annotation
    assert back.graph.metadata_props == proto.graph.metadata_props
    assert back.metadata_props == proto.metadata_props
    assert back.training_info == proto.training_info
    assert (back.ir_version, back.domain, back.model_version, back.doc_string) == (4, "com.example", 7, "the model")


def test_attributes_that_graphsurgeon_skips_are_put_back() -> None:
    node = helper.make_node("Custom", ["x"], ["y"], name="custom", domain="com.example")
    node.attribute.add(name="kind", type=AttributeProto.TYPE_PROTO).tp.CopyFrom(helper.make_tensor_type_proto(1, [3]))
    sparse = node.attribute.add(name="table", type=AttributeProto.SPARSE_TENSOR).sparse_tensor
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    sparse.dims.append(3)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:]), opset_imports=imports)
    model = load(proto)
    assert to_proto(from_surgeon(to_surgeon(model), model)).graph.node == proto.graph.node


def test_lists_of_graphs_are_refused_because_they_would_be_lost(build: Build) -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("Custom", ["x"], ["y"], name="custom", domain="com.example", bodies=[inner])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = load(helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:]), opset_imports=imports))
    with pytest.raises(PassError, match=r"Custom node 'custom': .*lists of graphs"):
        to_surgeon(model)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module of the user's into the working folder and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names: list[str] = []

    def write(text: str) -> str:
        names.append(f"users_script_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(text)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


REPLACE = """
import onnx_graphsurgeon as gs

def in_place(graph):
    print("replacing")
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Tanh"

def new_graph(graph):
    in_place(graph)
    return graph.copy()

def bypass(graph):
    add = next(node for node in graph.nodes if node.op == "Add")
    relu = next(node for node in graph.nodes if node.op == "Relu")
    relu.inputs[0] = add.inputs[0]
"""


@pytest.mark.parametrize("name", ["in_place", "new_graph"])
def test_a_function_edits_in_place_or_returns_a_graph(
    build: Build, script: Callable[[str], str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(build("chain"))
    before, path = ir.fingerprint(model), list(sys.path)
    result = run_script(model, f"{script(REPLACE)}:{name}")
    assert [node.op_type for node in result.graph] == ["MatMul", "Add", "Tanh"]
    assert ir.fingerprint(model) == before
    assert sys.path == path
    printed = capsys.readouterr()
    assert printed.out == "" and "replacing" in printed.err


def test_unused_nodes_go_only_when_asked(build: Build, script: Callable[[str], str]) -> None:
    model, function = load(build("chain")), f"{script(REPLACE)}:bypass"
    assert len(run_script(model, function).graph) == 3
    assert [node.op_type for node in run_script(model, function, cleanup=True).graph] == ["MatMul", "Relu"]


def test_the_function_gets_a_graphsurgeon_graph(build: Build, script: Callable[[str], str]) -> None:
    name = script("def look(graph):\n    global seen\n    seen = graph\n")
    run_script(load(build("chain")), f"{name}:look")
    assert isinstance(sys.modules[name].seen, gs.Graph)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("def edit(graph):\n    return graph.nodes[99].name\n", "IndexError", "return graph.nodes[99].name"),
        ("def edit(graph):\n    raise SystemExit(3)\n", "SystemExit: 3", "raise SystemExit(3)"),
        ("import absent_library\n", "ModuleNotFoundError", "import absent_library"),
        ("def edit(graph):\n    import json\n    json.loads('{')\n", "JSONDecodeError", "json.loads('{')"),
    ],
)
def test_what_the_function_raises_names_its_own_line(
    build: Build, script: Callable[[str], str], text: str, message: str, line: str
) -> None:
    name = script(text)
    with pytest.raises(PassError, match=message) as caught:
        run_script(load(build("chain")), f"{name}:edit")
    assert caught.value.where == f"{name}:edit"
    assert caught.value.context is not None
    assert f"{name}.py" in caught.value.context and caught.value.context.endswith(line)


def test_a_script_with_a_syntax_error(build: Build, script: Callable[[str], str]) -> None:
    with pytest.raises(PassError, match="SyntaxError"):
        run_script(load(build("chain")), f"{script('def edit(graph:')}:edit")


def test_a_function_that_breaks_the_graph(build: Build, script: Callable[[str], str]) -> None:
    name = script("def edit(graph):\n    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]\n")
    with pytest.raises(PassError, match=r"no valid model: .*cycle"):
        run_script(load(build("chain")), f"{name}:edit")
    name = script("def edit(graph):\n    graph.outputs[0].dtype = None\n")
    with pytest.raises(PassError, match="GraphSurgeon cannot write"):
        run_script(load(build("chain")), f"{name}:edit")
    name = script("def edit(graph):\n    return 5\n")
    with pytest.raises(PassError, match="returned int"):
        run_script(load(build("chain")), f"{name}:edit")


@pytest.mark.parametrize(
    "function", ["", "nocolon", ":f", "m:", "absent_module:f", "os.absent:f", "os:absent", "os:sep"]
)
def test_functions_that_do_not_exist(build: Build, function: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_script(load(build("chain")), function)
    assert caught.value.exit_code == 2
