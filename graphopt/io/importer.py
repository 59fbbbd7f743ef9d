"""Reads ONNX models. Whatever a file holds, the outcome is a verified model or a ModelError that says what is wrong."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.serde import deserialize_model

from graphopt.diagnostics import Diagnostic, Severity
from graphopt.errors import GraphOptError, ModelError, VerifyError
from graphopt.io.inspection import Inspection, check_header
from graphopt.io.tensors import DataFolder
from graphopt.io.wire import carve
from graphopt.ir.query import around, place
from graphopt.ir.verify import verify

SOURCE_PATH = "graphopt.source_path"
HAD_VALUE_INFO = "graphopt.had_value_info"
HAD_EXTERNAL_DATA = "graphopt.had_external_data"
DIAGNOSTICS = "graphopt.diagnostics"
TRAINING_INFO = "graphopt.training_info"

# onnx-ir warns through logging about what is refused here with an error; without a handler Python would print it.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


def load(source: str | Path | bytes | onnx.ModelProto, *, base_dir: str | Path | None = None) -> onnx_ir.Model:
    """Read a model from a path, from the bytes of a file, or from a protobuf, which is left as it is.

    External data is found beside the file (for bytes and protobufs in ``base_dir``), checked, and mapped: it stays on
    disk until touched. ``model.meta`` tells ``graphopt.source_path`` (str or None), ``graphopt.had_value_info`` and
    ``graphopt.had_external_data`` (bool), and ``graphopt.diagnostics`` (list of Diagnostic: what was put right).
    Raises ModelError when the model cannot be read, contradicts itself, or names files outside its folder.
    """
    if isinstance(source, onnx.ModelProto):
        return from_proto(source, base_dir=base_dir)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _build(bytes(source), "model", None if base_dir is None else Path(base_dir), None)
    path = Path(source)
    return _build(_read(path), str(path), path.parent if base_dir is None else Path(base_dir), path)


def from_proto(proto: onnx.ModelProto, *, base_dir: str | Path | None = None) -> onnx_ir.Model:
    """Return the IR of ``proto``, which is copied. External data is looked for in ``base_dir``. Raises ModelError."""
    try:
        data = proto.SerializeToString()
    except EncodeError as error:
        raise ModelError(
            f"the protobuf cannot be serialized: {error}",
            hint="a model above 2 GB has to be stored with external data and loaded by its path",
        ) from error
    return _build(data, "model", None if base_dir is None else Path(base_dir), None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("there is no such file", where=str(path)) from error
    except IsADirectoryError as error:
        raise ModelError("this is a folder", where=str(path), hint="name the .onnx file in it") from error
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ModelError(f"the file cannot be read: {reason}", where=str(path)) from error


def _build(data: bytes, where: str, folder: Path | None, path: Path | None) -> onnx_ir.Model:
    try:
        with _collector_paused():
            model = _deserialize(data, DataFolder(folder))
        _verify(model)
    except GraphOptError as error:
        place_of = where if error.where is None else f"{where}: {error.where}"
        raise ModelError(error.message, where=place_of, context=error.context, hint=error.hint) from error
    # onnx-ir answers a damaged model with whatever its own code runs into (KeyError, UnicodeDecodeError,
    # RecursionError, NotImplementedError, ...); every one of them means that the model cannot be read.
    except Exception as error:
        raise ModelError(f"the model cannot be read: {_cause(error)}", where=where) from error
    model.meta[SOURCE_PATH] = None if path is None else str(path)
    return model


def _deserialize(data: bytes, folder: DataFolder) -> onnx_ir.Model:
    shell, cuts = carve(data)
    try:
        proto = onnx.ModelProto.FromString(shell)
    except DecodeError as error:
        raise ModelError("this is no ONNX model, or it is damaged", hint=_guess(data)) from error
    if not proto.HasField("graph"):
        raise ModelError("there is no graph in it", hint=_guess(data))
    check_header(proto)
    inspection = Inspection(cuts)
    inspection.run(proto)
    model = deserialize_model(proto)
    inspection.restore(model, folder)
    _unite_default_domain(model)
    # Facts that have to survive Model.clone(), which copies the meta of graphs but not that of the model.
    model.graph.meta[HAD_VALUE_INFO] = model.meta[HAD_VALUE_INFO] = bool(proto.graph.value_info)
    model.graph.meta[TRAINING_INFO] = [entry.SerializeToString() for entry in proto.training_info]
    model.graph.meta[HAD_EXTERNAL_DATA] = model.meta[HAD_EXTERNAL_DATA] = inspection.external
    model.meta[DIAGNOSTICS] = []
    return model


def _guess(data: bytes) -> str:
    start = data[:200]
    if not data:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer; run `git lfs pull` to get the model"
    if start.isascii() and start.decode().replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return "this is a text file"
    return "is the file complete, and is it an .onnx file?"


def _unite_default_domain(model: onnx_ir.Model) -> None:
    # "ai.onnx" is another name of the default domain; onnx-ir renames it in nodes only.
    for imports in [model.opset_imports, *(function.opset_imports for function in model.functions.values())]:
        version = imports.pop("ai.onnx", None)
        if version is not None:
            imports.setdefault("", version)


def _verify(model: onnx_ir.Model) -> None:
    try:
        verify(model, loaded=True)
    except VerifyError:
        if not _sort(model):
            raise
        verify(model, loaded=True)
        model.meta[DIAGNOSTICS].append(
            Diagnostic(Severity.REMARK, "IO001", "the nodes were not in an order in which they can run; they are now")
        )


def _sort(model: onnx_ir.Model) -> bool:
    """Sort every graph so that nodes follow what they read; return whether one moved. Raises ModelError on a cycle."""
    moved = False
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        before = list(graph.all_nodes())
        try:
            graph.sort()
        except ValueError as error:
            node = _in_cycle(graph)
            if node is None:
                raise
            raise ModelError("the graph has a cycle through it", where=place(node), context=around(node)) from error
        moved = moved or before != list(graph.all_nodes())
    return moved


def _in_cycle(graph: onnx_ir.Graph) -> onnx_ir.Node | None:
    """Return a node that depends on its own output, by walking back from node to node that can never run."""
    producers = {node: list(_needed(node, graph)) for node in graph}
    waiting = {node: len(needs) for node, needs in producers.items()}
    readers: dict[onnx_ir.Node, list[onnx_ir.Node]] = {node: [] for node in producers}
    for node, needs in producers.items():
        for need in needs:
            readers[need].append(node)
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        node = ready.pop()
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
        del waiting[node]
    if not waiting:
        return next(filter(None, (_in_cycle(inner) for inner in graph.subgraphs())), None)
    seen: set[onnx_ir.Node] = set()
    node = next(iter(waiting))
    while node not in seen:
        seen.add(node)
        node = next(need for need in producers[node] if need in waiting)
    return node


def _needed(node: onnx_ir.Node, graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Yield the nodes of ``graph`` whose outputs ``node``, or a graph inside it, reads."""
    pending = [node]
    while pending:
        current = pending.pop()
        for value in current.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is graph:
                yield producer
        for attribute in current.attributes.values():
            if not attribute.is_ref() and attribute.type == onnx_ir.AttributeType.GRAPH:
                pending.extend(attribute.as_graph())
            elif not attribute.is_ref() and attribute.type == onnx_ir.AttributeType.GRAPHS:
                pending.extend(inner for body in attribute.as_graphs() for inner in body)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def _collector_paused() -> Iterator[None]:
    # A model is many small objects with no garbage among them; letting the cyclic collector walk them again and again
    # while they are made takes longer than making them.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
