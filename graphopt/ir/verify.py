"""The invariants of a model, all in one list, and the verifier that checks them.

``verify(model)`` checks everything. ``verify(model, touched)`` checks the invariants of single nodes only on the nodes
named (what a pass touched), and the names and the order of whole graphs, which is cheap; the pipeline does that between
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir

from graphopt.errors import VerifyError
from graphopt.ir.query import around, graphs, is_read, is_used_by, place, subgraphs
from graphopt.ir.schema import schema
from graphopt.ir.tensors import dims_of

NodeCheck = Callable[[onnx_ir.Node, onnx_ir.Model], str | None]


@dataclass(frozen=True)
class Invariant:
    """A rule that every model keeps: ``check`` returns what is wrong with a node, or ``None``.

    ``edits_only`` marks a rule that only an edit can break, not a file.
    """

    code: str
    rule: str
    check: NodeCheck
    edits_only: bool = False


def _outputs_belong(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    for value in node.outputs:
        if value.producer() is not node:
            return f"its output {value.name!r} names another node as its producer"
    return None


def _uses_agree(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    for index, value in enumerate(node.inputs):
        if value is not None and not is_used_by(value, node, index):
            return f"it reads {value.name!r}, which does not know of that use"
    return None


def _outputs_named(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    for value in node.outputs:
        if value.name is None or (value.name == "" and is_read(value)):
            return "it has an output that is read but has no name"
    return None


def _domain_imported(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    if node.domain in model.opset_imports or node.op_identifier() in model.functions:
        return None
    imports = _imports_of(node, model)
    if node.domain in imports:
        return None
    return f"the model imports no opset of domain {node.domain or 'ai.onnx'!r}"


def _schema_kept(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    limits = schema(node.domain, node.op_type, _imports_of(node, model).get(node.domain, 0))
    if limits is None:
        return None
    count = len(node.inputs)
    if not limits.min_inputs <= count <= limits.max_inputs:
        return f"it has {count} inputs; {node.op_type} takes {limits.min_inputs} to {limits.max_inputs}"
    if not limits.min_outputs <= len(node.outputs) <= limits.max_outputs:
        return f"it has {len(node.outputs)} outputs; {node.op_type} gives {limits.min_outputs} to {limits.max_outputs}"
    for name in limits.required:
        if name not in node.attributes:
            return f"it lacks the attribute {name!r}"
    for name, attribute in node.attributes.data.items():
        if name not in limits.types:
            return f"{node.op_type} has no attribute {name!r} at this opset"
        if attribute.type.value != limits.types[name] and not attribute.is_ref():
            return f"its attribute {name!r} has the type {attribute.type.name}"
    if None not in node.inputs:
        return None
    missing = [index for index, value in enumerate(node.inputs) if value is None and index in limits.needed]
    return f"its input {missing[0]} is missing" if missing else None


def _tensors_agree(node: onnx_ir.Node, model: onnx_ir.Model) -> str | None:
    for value in node.inputs:
        tensor = value.const_value if value is not None and value.is_initializer() else None
        if value is None or tensor is None:
            continue
        if value.dtype is not None and value.dtype != tensor.dtype:
            return f"initializer {value.name!r} is declared {value.dtype.name} and holds {tensor.dtype.name}"
        dims = None if value.shape is None else value.shape.dims
        if dims is not None and all(isinstance(dim, int) for dim in dims) and tuple(dims) != dims_of(tensor):
            return f"initializer {value.name!r} is declared {list(dims)} and holds {list(tensor.shape.dims)}"
    return None


INVARIANTS = [
    Invariant("IR001", "a node's outputs name it as their producer", _outputs_belong, edits_only=True),
    Invariant("IR002", "a value knows each of its uses", _uses_agree, edits_only=True),
    Invariant("IR003", "every output that is read has a name", _outputs_named),
    Invariant("IR004", "the domain of every operator is imported or is a function's", _domain_imported),
    Invariant("IR005", "inputs, outputs and attributes are those of the operator's schema", _schema_kept),
    Invariant("IR006", "an initializer's declared dtype and shape are its tensor's", _tensors_agree),
]
"""Invariants of a single node. Of whole graphs: IR007 names are unique where visible, IR008 a value is defined before
it is read (which excludes cycles) and IR009 graph outputs are defined; see ``_check_order``."""


def verify(model: onnx_ir.Model, touched: Iterable[onnx_ir.Node] | None = None, *, loaded: bool = False) -> None:
    """Check the invariants of ``model``, all of them or, with ``touched``, those that edits of these nodes can break.

    ``loaded`` says that the model has just been read, so that rules that only an edit can break need no look. Raises
    VerifyError, naming the invariant, the node and the IR around it.
    """
    invariants = [item for item in INVARIANTS if not (loaded and item.edits_only)]
    for node in _all_nodes(model) if touched is None else touched:
        if node.graph is None:
            continue
        for invariant in invariants:
            complaint = invariant.check(node, model)
            if complaint is not None:
                raise _error(invariant.code, f"{complaint} ({invariant.rule})", node)
    _check_order(model.graph, set())
    for function in model.functions.values() if touched is None else ():
        _check_order(function.graph, set())


def _all_nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    for graph in graphs(model):
        yield from graph
    for function in model.functions.values():
        yield from function.all_nodes()


def _check_order(graph: onnx_ir.Graph | onnx_ir.GraphView, visible: set[onnx_ir.Value]) -> None:
    """Walk the graph once, in order, knowing what is visible: IR007, IR008 and IR009.

    ``visible`` is given back as it came, so that a branch does not see its sibling's values and a walk over many small
    branches stays linear.
    """
    mine: list[onnx_ir.Value] = [*dict.fromkeys((*graph.inputs, *graph.initializers.values()))]
    visible.update(mine)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in visible:
                raise _error("IR008", f"it reads {value.name!r} before it is defined, or where it is not visible", node)
        for inner in subgraphs(node):
            _check_order(inner, visible)
        outputs = node.outputs
        visible.update(outputs)
        mine.extend(outputs)
    for value in graph.outputs:
        if value not in visible:
            raise VerifyError(f"IR009: output {value.name!r} of graph {graph.name!r} is never defined")
    _check_names(graph, mine)
    visible.difference_update(mine)


def _check_names(graph: onnx_ir.Graph | onnx_ir.GraphView, values: list[onnx_ir.Value]) -> None:
    """Refuse a name that is defined twice in one graph; shadowing by inner graphs is left to the runtime."""
    names = [value.name for value in values if value.name]
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for value in values:
        if value.name and value.name in seen:
            producer = value.producer()
            complaint = f"the name {value.name!r} is defined twice"
            if producer is not None:
                raise _error("IR007", complaint, producer)
            raise VerifyError(f"IR007: {complaint} in graph {graph.name!r}")
        seen.add(value.name or "")


def _error(code: str, complaint: str, node: onnx_ir.Node) -> VerifyError:
    return VerifyError(f"{code}: {complaint}", where=place(node), context=around(node))


def _imports_of(node: onnx_ir.Node, model: onnx_ir.Model) -> dict[str, int]:
    graph = node.graph
    if graph is None or not graph.opset_imports:
        return model.opset_imports
    return graph.opset_imports
