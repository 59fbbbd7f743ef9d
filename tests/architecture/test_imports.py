"""Who may import whom, read off the import statements of every module."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[2]

BASE = {"errors", "diagnostics", "version", "ahead"}
MIDDLE = {"ir", "io", "targets", "analysis"}
ALLOWED = {
    "errors": set(),
    "diagnostics": {"errors"},
    "version": set(),
    "ahead": set(),
    "ir": BASE,
    "io": BASE | {"ir"},
    "targets": BASE | {"ir"},
    "analysis": BASE | {"ir"},
    "runtime": BASE | {"ir"},
    "calibration": BASE | MIDDLE | {"runtime"},
    "quantization": BASE | {"ir", "targets", "analysis"},
    "pruning": BASE | {"ir", "targets", "analysis", "quantization"},
    "lowrank": BASE | {"ir", "targets", "analysis", "quantization", "pruning"},
    "pipeline": BASE | MIDDLE,
    "passes": BASE | {"ir", "targets", "analysis", "quantization", "pruning", "lowrank", "calibration", "pipeline"},
    "backend": BASE | {"ir", "analysis", "targets", "runtime"},
}
"""What each package may import of graphopt besides itself. Those at the top (driver, cli, ...) may import anything."""

THIRD_PARTY = {
    "onnx": ("graphopt/ir/", "graphopt/io/"),
    "onnx_ir": ("graphopt/ir/", "graphopt/io/"),
    "onnxruntime": ("graphopt/runtime/", "graphopt/backend/workers/"),
    "onnxruntime_qnn": ("graphopt/backend/workers/",),
    "onnxruntime_ep_openvino": ("graphopt/backend/workers/",),
    "openvino": ("graphopt/backend/workers/",),
    "rknn": ("graphopt/backend/workers/",),
    "onnx_graphsurgeon": ("graphopt/io/surgeon.py",),
    "networkx": ("graphopt/analysis/",),
    "click": ("graphopt/cli/", "graphopt/__main__.py"),
    "tqdm": ("graphopt/cli/",),
    "PIL": ("graphopt/calibration/",),
    "threadpoolctl": ("graphopt/calibration/", "graphopt/pruning/refitting.py"),
}
"""Where a library may be imported."""


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    name: str
    local: bool
    typing_only: bool

    def __str__(self):
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "graphopt").rglob("*.py")):
        if (ROOT / "graphopt" / "passes") not in path.parents:
            found[name_of(path.relative_to(ROOT))] = path
    for path in sorted((ROOT / "passes").rglob("*.py")):
        found[name_of(Path("graphopt") / path.relative_to(ROOT))] = path
    return found


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = modules()


def imports_of(path: Path) -> Iterator[Import]:
    yield from _walk(ast.parse(path.read_text()), path, local=False, typing_only=False)


def _walk(node: ast.AST, path: Path, *, local: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(path, child.lineno, alias.name, local, typing_only)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno}: relative import"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(path, child.lineno, inner if inner in MODULES else str(child.module), local, typing_only)
        yield from _walk(child, path, local=inside, typing_only=only)


IMPORTS = {name: list(imports_of(path)) for name, path in MODULES.items()}


def package_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def of_graphopt(name: str) -> bool:
    return name.split(".")[0] == "graphopt"


def test_the_walk_sees_the_modules_and_their_imports():
    assert {"graphopt.ir.edit", "graphopt.pipeline.manager", "graphopt.passes.remove_dead"} <= set(MODULES)
    assert any(item.name == "graphopt.ir" for item in IMPORTS["graphopt.passes.remove_dead"])
    assert any(item.typing_only for item in IMPORTS["graphopt"])


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_those_below_it(package):
    wrong = [
        str(item)
        for name, items in IMPORTS.items()
        for item in items
        if package_of(name) == package
        and of_graphopt(item.name)
        and package_of(item.name) not in ALLOWED[package] | {package}
    ]

    assert wrong == []


def test_passes_do_not_import_each_other():
    wrong = [
        str(item)
        for name, items in IMPORTS.items()
        for item in items
        if name.startswith("graphopt.passes.") and item.name.startswith("graphopt.passes")
    ]

    assert wrong == []


def test_passes_are_reached_by_name_only():
    wrong = [
        str(item)
        for name, items in IMPORTS.items()
        for item in items
        if not name.startswith("graphopt.passes") and item.name.startswith("graphopt.passes")
    ]

    assert wrong == []


@pytest.mark.parametrize("library", THIRD_PARTY)
def test_a_library_is_imported_only_where_it_belongs(library):
    wrong = [
        str(item)
        for items in IMPORTS.values()
        for item in items
        if item.name.split(".")[0] == library and not str(item.file.relative_to(ROOT)).startswith(THIRD_PARTY[library])
    ]

    assert wrong == []


def test_nothing_of_graphopt_is_imported_inside_a_function():
    wrong = [str(item) for items in IMPORTS.values() for item in items if item.local and of_graphopt(item.name)]

    assert wrong == []


def test_workers_import_nothing_of_graphopt():
    """They run in environments that need not have it."""
    wrong = [
        str(item)
        for name, items in IMPORTS.items()
        for item in items
        if name.startswith("graphopt.backend.workers") and of_graphopt(item.name)
    ]

    assert wrong == []


def test_there_are_no_import_cycles():
    graph = networkx.DiGraph()
    for name, items in IMPORTS.items():
        for item in items:
            if of_graphopt(item.name) and not item.typing_only:
                graph.add_edge(name, item.name)
    # A package is imported before its modules, so a module that imports its own package's __init__ would be in a cycle.
    assert list(networkx.simple_cycles(graph)) == []
