"""How the house is laid out: the passes' folder, sizes of files, what every pass has, and who may write to a model."""

import ast
import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graphopt.pipeline import passes

ROOT = Path(__file__).resolve().parents[2]
PASS_FILES = sorted(path for path in (ROOT / "passes").glob("*.py") if path.name != "__init__.py")
OWN = {kind.__module__: kind for kind in passes().values() if kind.__module__.startswith("graphopt.passes.")}

MAX_LINES = 500
MAX_LINES_PASS = 250


def python_files():
    folders = ("graphopt", "passes", "tests", "tools", "models")
    linked = ROOT / "graphopt" / "passes"
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in files if linked not in path.parents]


def test_the_passes_are_linked_into_the_package():
    link = ROOT / "graphopt" / "passes"

    assert link.is_symlink(), "on Windows: git config core.symlinks true, then check the link out again"
    assert os.readlink(link) == "../passes"


def test_passes_cannot_be_imported_as_a_package_of_their_own():
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode != 0
    assert "import the passes as graphopt.passes" in done.stderr


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path):
    limit = MAX_LINES_PASS if path in PASS_FILES else MAX_LINES

    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", PASS_FILES, ids=lambda path: path.stem)
class TestEveryPass:
    def test_is_one_class_in_a_file(self, path):
        module = f"graphopt.passes.{path.stem}"
        kinds = [kind for kind in passes().values() if kind.__module__ == module]

        assert len(kinds) == 1

    def test_has_a_name_of_words_and_hyphens(self, path):
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", OWN[f"graphopt.passes.{path.stem}"].name)

    def test_shows_before_and_after(self, path):
        doc = ast.get_docstring(ast.parse(path.read_text()))

        assert re.search(r"^Before.*::$", doc, re.MULTILINE)
        assert re.search(r"^After.*::$", doc, re.MULTILINE)

    def test_has_help_for_itself_and_its_options(self, path):
        kind = OWN[f"graphopt.passes.{path.stem}"]

        assert kind.summary().endswith(".")
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help"), f"{field.name} is not made with option()"

    def test_is_frozen(self, path):
        kind = OWN[f"graphopt.passes.{path.stem}"]

        assert kind.__dataclass_params__.frozen
        assert "run" in vars(kind)

    def test_has_tests(self, path):
        folder = ROOT / "tests" / "passes"
        own = [folder / f"test_{path.stem}.py", folder / f"{path.stem}.case"]

        assert any(file.exists() for file in own), f"write tests/passes/test_{path.stem}.py or {path.stem}.case"


WRITING_CALLS = {
    "replace_all_uses_with",
    "replace_input_with",
    "resize_inputs",
    "resize_outputs",
    "register_initializer",
}
"""Methods of onnx-ir's classes that write."""
OWNED_BY_EDITOR = {"initializers", "attributes", "inputs", "outputs", "opset_imports", "metadata_props", "functions"}
COLLECTION_WRITES = {"add", "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
GRAPH_WRITES = {"append", "extend", "insert_after", "insert_before", "remove", "sort"}
FIELDS = {
    "const_value",
    "domain",
    "doc_string",
    "dtype",
    "graph",
    "name",
    "op_type",
    "overload",
    "shape",
    "type",
    "version",
}
CLASSES = {"Attr", "Graph", "Node", "Value", "Model", "Function"}


def writes(tree):
    """Yield (line, what) for each place that writes to the IR past the editor."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _writing_call(node)
        for target in _targets(node):
            if isinstance(target, ast.Attribute) and target.attr in FIELDS and ast.unparse(target.value) != "self":
                yield target.lineno, ast.unparse(target)
            if isinstance(target, ast.Subscript) and _is_owned(target.value):
                yield target.lineno, ast.unparse(target)


def _targets(node):
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    if not isinstance(node, ast.Assign | ast.Delete):
        return []
    nested = [target.elts if isinstance(target, ast.Tuple) else [target] for target in node.targets]
    return [target for targets in nested for target in targets]


def _is_owned(node):
    return isinstance(node, ast.Attribute) and node.attr in OWNED_BY_EDITOR


def _writing_call(node):
    if isinstance(node.func, ast.Name) and node.func.id in CLASSES:
        yield node.lineno, ast.unparse(node.func)
    if not isinstance(node.func, ast.Attribute):
        return
    method, owner = node.func.attr, _last(node.func.value)
    writes_graph = method in GRAPH_WRITES and (owner == "graph" or owner.endswith(("_graph", "body", "branch")))
    writes_collection = method in COLLECTION_WRITES and _is_owned(node.func.value)
    if writes_graph or writes_collection or method in WRITING_CALLS:
        yield node.lineno, ast.unparse(node.func)


def _last(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize(
    "statement",
    [
        "a.replace_all_uses_with(b)",
        "node.replace_input_with(0, b)",
        "model.graph.initializers['w'] = value",
        "del graph.initializers['w']",
        "model.graph.initializers.add(value)",
        "node.attributes.pop('axis')",
        "graph.remove(node)",
        "node.graph.insert_before(node, other)",
        "value.name = 'x'",
        "value.shape, value.type = None, None",
        "new = Node('', 'Relu', [x])",
    ],
)
def test_the_search_for_writes_finds(statement):
    assert list(writes(ast.parse(statement)))


@pytest.mark.parametrize(
    "statement",
    [
        "ctx.edit.insert_before(node, 'Relu', [x])",
        "inputs.append(x)",
        "self.name = 'x'",
        "found[node] = 1",
        "names.pop()",
    ],
)
def test_the_search_for_writes_lets_pass(statement):
    assert not list(writes(ast.parse(statement)))


@pytest.mark.parametrize("folder", ["passes", "graphopt/analysis", "graphopt/pipeline", "graphopt/backend"])
def test_only_the_editor_writes_to_models(folder):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, what in writes(ast.parse(path.read_text()))
    ]

    assert wrong == []


def test_the_public_names_are_all_there():
    import graphopt

    for name in graphopt.__all__:
        assert getattr(graphopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        graphopt.nonsense  # noqa: B018


def test_every_public_function_of_the_driver_says_what_it_raises():
    from graphopt.driver import optimize

    assert "Raises GraphOptError" in inspect.getdoc(optimize)


def test_the_wheel_holds_the_package_with_its_passes_and_data(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("graphopt", "passes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "models").mkdir()
    shutil.copy(ROOT / "models" / "zoo.toml", source / "models")
    command = [
        sys.executable,
        "-c",
        "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"graphopt", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {f"graphopt/passes/{path.name}" for path in PASS_FILES} <= set(names)
    assert {"graphopt/py.typed", "graphopt/zoo.toml", "graphopt/pipeline/presets/lossless.toml"} <= set(names)
