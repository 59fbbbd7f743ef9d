"""The IR as an onnx-graphsurgeon graph and back, so that functions written for GraphSurgeon run as a step.

GraphSurgeon has no place for some of what a model holds. Coming back, this is put where a node or value of the same
name still is: metadata and documentation of model, graphs, nodes and values, quantization annotations, function
overloads, inputs that are initializers too, types it cannot express, attributes of sparse-tensor, type and tensor-list
kind, training information. Lost for good: documentation of single attributes and tensors, denotations of dimensions,
device configurations, and types of values inside functions.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
from onnx_ir import AttributeType

from graphopt.errors import GraphOptError, PassError, UsageError
from graphopt.io.exporter import to_proto
from graphopt.io.importer import from_proto
from graphopt.ir.query import graphs, place
from graphopt.ir.tensors import quantization_annotation, set_quantization_annotation

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_KINDS_IT_SKIPS = {
    AttributeType.SPARSE_TENSOR,
    AttributeType.SPARSE_TENSORS,
    AttributeType.TYPE_PROTO,
    AttributeType.TYPE_PROTOS,
    AttributeType.TENSORS,
}


def to_surgeon(model: onnx_ir.Model) -> gs.Graph:
    """Return a copy of ``model`` as a GraphSurgeon graph.

    Raises ModelError above 2 GB, PassError where GraphSurgeon fails or would drop something that cannot be put back.
    """
    import onnx_graphsurgeon as gs

    for node in (node for graph in graphs(model) for node in graph):
        if any(attribute.type == AttributeType.GRAPHS for attribute in node.attributes.values()):
            raise PassError("GraphSurgeon has no attributes that are lists of graphs", where=place(node))
    proto = to_proto(model)
    with _surgeon_failures("GraphSurgeon cannot read the model"):
        return gs.import_onnx(proto)


def from_surgeon(graph: gs.Graph, like: onnx_ir.Model) -> onnx_ir.Model:
    """Return the IR of ``graph``, with what GraphSurgeon drops taken from ``like``, the model it was made of.

    Raises PassError when ``graph`` cannot be exported, ModelError when it is no valid model.
    """
    import onnx_graphsurgeon as gs

    with _surgeon_failures("GraphSurgeon cannot write the graph"):
        proto = gs.export_onnx(graph)
    proto.ir_version = getattr(graph, "ir_version", None) or like.ir_version
    _restore_inputs(proto, like)
    _restore_overloads(proto, like)
    model = from_proto(proto)
    model.domain, model.model_version, model.doc_string = like.domain, like.model_version, like.doc_string
    model.metadata_props.update(like.metadata_props)
    model.meta.update({**like.meta, "graphopt.diagnostics": model.meta["graphopt.diagnostics"]})
    model.graph.meta.update(like.graph.meta)
    _restore_graphs(model, like)
    for function in model.functions.values():
        before = like.functions.get(function.identifier())
        if before is not None:
            function.metadata_props.update(before.metadata_props)
    return model


def run_script(model: onnx_ir.Model, function: str, *, cleanup: bool = False) -> onnx_ir.Model:
    """Run ``module:callable`` on ``model`` as a GraphSurgeon graph and return the result; ``model`` stays as it is.

    The function gets the graph and returns a graph, or None when it changed the one it got; with ``cleanup`` unused
    nodes are removed and the rest sorted afterwards. Modules are looked for in the working folder too. What the
    function prints goes to stderr. Raises UsageError when there is no such function, PassError when it fails or leaves
    no valid model.
    """
    import onnx_graphsurgeon as gs

    edit = _find(function)
    graph = to_surgeon(model)
    with redirect_stdout(sys.stderr):
        result = _call(edit, graph, function)
    if result is None:
        result = graph
    if not isinstance(result, gs.Graph):
        kind = type(result).__name__
        raise PassError(f"it returned {kind}", where=function, hint="return an onnx_graphsurgeon.Graph, or None")
    try:
        if cleanup:
            with _surgeon_failures("GraphSurgeon cannot clean the graph up"):
                result.cleanup().toposort()
        return from_surgeon(result, model)
    except GraphOptError as error:
        raise PassError(
            f"it left a graph that is no valid model: {error.where + ': ' if error.where else ''}{error.message}",
            where=function,
            context=error.context,
            hint=error.hint,
        ) from error


def _find(function: str) -> Callable[[gs.Graph], object]:
    module_name, colon, name = function.partition(":")
    if not colon or not module_name or not name:
        raise UsageError(f"{function!r} does not name a function", hint="write it as module:callable")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _user_error(error, function) from error
        hint = "modules are looked for in the working folder and among the installed packages"
        raise UsageError(f"there is no module {module_name!r}", where=function, hint=hint) from error
    # The module is the user's; it may fail in any way.
    except (Exception, SystemExit) as error:
        raise _user_error(error, function) from error
    finally:
        sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"module {module_name!r} has no function {name!r}", where=function)
    return found  # type: ignore[no-any-return]  # callable() narrows Any to an unknown callable


def _call(edit: Callable[[gs.Graph], object], graph: gs.Graph, function: str) -> object:
    try:
        return edit(graph)
    # The function is the user's; it may fail in any way.
    except (Exception, SystemExit) as error:
        raise _user_error(error, function) from error


def _user_error(error: BaseException, function: str) -> PassError:
    """Return the PassError for what the user's code raised, with the place in it, not the one deep in a library."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    stem = function.partition(":")[0].rpartition(".")[2]
    theirs = [f for f in frames if os.path.splitext(os.path.basename(f.filename))[0] == stem] or frames[-1:]
    context = None
    if theirs:
        last = theirs[-1]
        context = f"{last.filename}:{last.lineno} in {last.name}\n{(last.line or '').strip()}"
    text = " ".join(str(error).split())
    return PassError(
        f"it failed with {type(error).__name__}{': ' + text if text else ''}", where=function, context=context
    )


@contextmanager
def _surgeon_failures(complaint: str) -> Iterator[None]:
    try:
        with redirect_stdout(sys.stderr):
            yield
    # GraphSurgeon raises its own exceptions and whatever a graph edited by hand makes it run into.
    except Exception as error:
        raise PassError(f"{complaint}: {type(error).__name__}: {error}") from error


def _restore_inputs(proto: onnx.ModelProto, like: onnx_ir.Model) -> None:
    """List initializers as inputs again that were so in ``like``; GraphSurgeon keeps constants out of the inputs."""
    overridable = [value for value in like.graph.inputs if value.is_initializer()]
    if not overridable:
        return
    now = {info.name: info for info in proto.graph.input}
    initializers = {tensor.name for tensor in proto.graph.initializer}
    merged = []
    for value in like.graph.inputs:
        if value.name in now:
            merged.append(now.pop(value.name))
        elif value.name in initializers:
            merged.append(onnx_ir.to_proto(value))
    merged.extend(now.values())
    copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in merged]
    del proto.graph.input[:]
    proto.graph.input.extend(copies)


def _restore_overloads(proto: onnx.ModelProto, like: onnx_ir.Model) -> None:
    overloads: dict[tuple[str, str], list[str]] = {}
    for domain, name, overload in like.functions:
        overloads.setdefault((domain, name), []).append(overload)
    for function in proto.functions:
        found = overloads.get((function.domain, function.name))
        if found and found[0]:
            function.overload = found.pop(0)


def _restore_graphs(model: onnx_ir.Model, like: onnx_ir.Model) -> None:
    old_graphs = {graph.name: graph for graph in graphs(like)}
    old_nodes = _by_name(like)
    old_values = {value.name: value for graph in graphs(like) for value in _values(graph)}
    for graph in graphs(model):
        old = like.graph if graph is model.graph else old_graphs.get(graph.name)
        if old is not None:
            graph.metadata_props.update(old.metadata_props)
        for value in _values(graph):
            if (before := old_values.get(value.name)) is not None:
                _restore_value(value, before)
        for node in graph:
            if (former := old_nodes.get((node.name, node.domain, node.op_type))) is not None:
                _restore_node(node, former)


def _by_name(model: onnx_ir.Model) -> dict[tuple[str | None, str, str], onnx_ir.Node]:
    """Return the nodes whose name says which one it is."""
    found: dict[tuple[str | None, str, str], onnx_ir.Node] = {}
    twice = set()
    for node in (node for graph in graphs(model) for node in graph):
        key = (node.name, node.domain, node.op_type)
        if key in found or not node.name:
            twice.add(key)
        found[key] = node
    return {key: node for key, node in found.items() if key not in twice}


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _restore_value(value: onnx_ir.Value, before: onnx_ir.Value) -> None:
    value.metadata_props.update(before.metadata_props)
    value.doc_string = value.doc_string or before.doc_string
    if annotation := quantization_annotation(before):
        set_quantization_annotation(value, annotation)
    if value.type is None:
        value.type, value.shape = before.type, before.shape
        value.meta.update(before.meta)


def _restore_node(node: onnx_ir.Node, former: onnx_ir.Node) -> None:
    node.metadata_props.update(former.metadata_props)
    node.doc_string, node.overload = former.doc_string, former.overload
    for name, attribute in former.attributes.items():
        if attribute.type in _KINDS_IT_SKIPS and name not in node.attributes:
            node.attributes[name] = attribute
