"""Smaller models made from one: each function works on a copy and returns it, ``None`` when there is no such cut.

A value that was computed by what is cut away becomes an input of the same dtype and shape, or a constant where its
content is known. A value that only the part cut away read becomes an output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir import DataType, Dim, Model, Node, Value, graphs, nodes, shape_of, subgraphs
from graphopt.ir.infer import infer
from graphopt.ir.interface import InterfaceEditor

Array = np.ndarray[Any, Any]
_FLOATS = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)


@dataclass(frozen=True)
class Facts:
    """What stays true of values while the model around them shrinks, by their name.

    ``types`` holds dtype and shape; ``contents`` the small integer tensors (sizes, axes) that a run of the whole model
    came by, which no random numbers can stand for.
    """

    types: Mapping[str, tuple[DataType, tuple[Dim, ...] | None]]
    contents: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, contents: Mapping[str, Array] | None = None) -> Facts:
        """Infer the types of a model's values; those of names that several graphs use are left out."""
        known, _ = infer(model)
        types: dict[str, tuple[DataType, tuple[Dim, ...] | None]] = {}
        twice: set[str] = set()
        for value, (dtype, shape) in known.items():
            name = value.name or ""
            twice |= {name} if name in types else set()
            if dtype is not None:
                types[name] = (dtype, shape)
        return cls({name: kept for name, kept in types.items() if name not in twice}, dict(contents or {}))


def copy_of(model: Model) -> tuple[Model, InterfaceEditor]:
    """Return an independent copy, which shares the tensors, and an editor for it."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy, InterfaceEditor(copy)


def keep_outputs(model: Model, kept: Collection[int]) -> Model | None:
    """Keep the outputs with these indexes and what they depend on."""
    if not kept or len(kept) >= len(model.graph.outputs):
        return None
    copy, edit = copy_of(model)
    edit.set_outputs([value for index, value in enumerate(copy.graph.outputs) if index in kept])
    sweep(edit)
    return copy


def sweep(edit: InterfaceEditor) -> None:
    """Erase what no output depends on: nodes, initializers, and inputs."""
    for graph in graphs(edit.model):
        for node in reversed(list(graph)):
            edit.erase_dead(node)
    for graph in list(graphs(edit.model)):
        for value in list(graph.initializers.values()):
            edit.erase_constant(value)
    for value in list(edit.model.graph.inputs):
        if not value.uses() and not value.is_graph_output():
            edit.remove_graph_input(value)
            edit.erase_constant(value)


def cut(model: Model, start: int, size: int, facts: Facts, *, constants: bool = False) -> Model | None:
    """Cut ``size`` nodes of the main graph away, from number ``start`` on; ``constants`` uses contents where known."""
    copy, edit = copy_of(model)
    gone = dict.fromkeys(list(copy.graph)[start : start + size])
    inside = {*gone, *(inner for node in gone for inner in _nested(node))}
    read = dict.fromkeys(value for node in inside for value in _read(node) if value.producer() not in inside)
    used_contents = False
    for value in [value for node in gone for value in node.outputs]:
        outer = [use for use in value.uses() if use.node not in inside]
        if not outer:
            continue
        content = facts.contents.get(value.name or "") if constants else None
        stand_in = _stand_in(value, facts, edit, content)
        if stand_in is None:
            return None
        used_contents = used_contents or content is not None
        for use in outer:
            edit.set_input(use.node, use.idx, stand_in)
    if constants and not used_contents:
        return None
    outputs = [value for value in copy.graph.outputs if value.producer() not in gone]
    loose = [value for value in read if _is_loose(value, inside, copy) and value not in outputs]
    for value in loose:
        dtype, shape = facts.types.get(value.name or "", (None, None))
        edit.annotate(value, dtype, shape)
    if not [*outputs, *loose] or any(value.dtype is None for value in loose):
        return None
    edit.set_outputs([*outputs, *loose])
    sweep(edit)
    return copy


def _nested(node: Node) -> Iterable[Node]:
    for graph in subgraphs(node):
        for inner in graph:
            yield inner
            yield from _nested(inner)


def _read(node: Node) -> list[Value]:
    """Return what ``node`` reads, and what its nested graphs return."""
    return [*(v for v in node.inputs if v is not None), *(v for graph in subgraphs(node) for v in graph.outputs)]


def _is_loose(value: Value, inside: Collection[Node], model: Model) -> bool:
    return (
        value.graph is model.graph and value.producer() is not None and all(use.node in inside for use in value.uses())
    )


def _stand_in(value: Value, facts: Facts, edit: InterfaceEditor, content: Array | None = None) -> Value | None:
    name = value.name or ""
    if content is not None:
        return edit.constant(content, name)
    if name not in facts.types:
        return None
    return edit.add_input(name, *facts.types[name])


def bypass(model: Model, number: int, facts: Facts) -> Model | None:
    """Take node ``number``, nested ones counted, away: an input of its output's type stands for its output."""
    copy, edit = copy_of(model)
    node = list(nodes(copy))[number]
    if len(node.outputs) != 1:
        return None
    wanted = facts.types.get(node.outputs[0].name or "")
    same = (v for v in node.inputs if v is not None and wanted is not None and _type_of(v, facts) == wanted)
    stand_in = next(same, None)
    if stand_in is None or (node.outputs[0].is_graph_output() and stand_in.producer() is None):
        return None
    edit.replace(node, [stand_in])
    sweep(edit)
    return copy


def _type_of(value: Value, facts: Facts) -> tuple[DataType | None, tuple[Dim, ...] | None]:
    return facts.types.get(value.name or "") or (value.dtype, shape_of(value))


def cut_nested(model: Model, number: int, facts: Facts) -> Model | None:
    """Take node ``number``, one of a nested graph, away: inputs of the model stand for its outputs."""
    copy, edit = copy_of(model)
    node = list(nodes(copy))[number]
    if node.graph is copy.graph or node.op_type == "Identity":
        return None
    stand_ins = [_stand_in(value, facts, edit) for value in node.outputs]
    if any(value is None for value in stand_ins):
        return None
    edit.replace(node, [value for value in stand_ins if value is not None])
    sweep(edit)
    return copy


def inline(model: Model, number: int, branch: int) -> Model | None:
    """Put a branch of node ``number``, an If of the main graph, in its place."""
    copy, edit = copy_of(model)
    node = list(nodes(copy))[number]
    if node.op_type != "If" or branch >= len(subgraphs(node)):
        return None
    edit.splice(node, subgraphs(node)[branch])
    sweep(edit)
    return copy


def weights(model: Model, elements: int) -> list[str]:
    """Return the names of the main graph's float initializers of more than ``elements`` elements."""
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype in _FLOATS and value.const_value is not None and value.const_value.size > elements
    ]


def without_weights(model: Model, names: Sequence[str]) -> Model | None:
    """Make inputs of initializers, so that the file holds none of their data."""
    copy, edit = copy_of(model)
    for name in names:
        value = copy.graph.initializers[name]
        if value.dtype is None or value.is_graph_input() or value.is_graph_output():
            return None
        edit.replace_uses(value, edit.add_input(name, value.dtype, shape_of(value)))
        edit.erase_constant(value)
    return copy


def with_weights(model: Model, names: Sequence[str], make: Callable[[tuple[int, ...]], Array]) -> Model | None:
    """Give initializers other content: ``make`` gets the shape and returns floats, which are cast to their dtype."""
    copy, edit = copy_of(model)
    for name in names:
        value = copy.graph.initializers[name]
        if value.const_value is None or value.dtype is None:
            return None
        shape = tuple(int(dim) for dim in value.const_value.shape.numpy())
        edit.set_weight(value, np.asarray(make(shape)).astype(value.dtype.numpy()))
    return copy


def without_notes(model: Model) -> Model:
    """Remove metadata and doc strings."""
    copy, edit = copy_of(model)
    edit.strip_notes()
    return copy


def without_functions(model: Model) -> Model | None:
    """Remove the model's functions where nothing calls them."""
    if not model.functions or any(node.op_identifier() in model.functions for node in nodes(model)):
        return None
    copy, edit = copy_of(model)
    edit.strip_functions()
    return copy


def contents_of(
    model: Model, run: Callable[[Model], Mapping[str, Array]], facts: Facts, elements: int = 64
) -> dict[str, Array]:
    """Return the contents of small integer and boolean values of the main graph in one run; none when it cannot run."""
    copy, edit = copy_of(model)
    wanted = []
    for value in (value for node in copy.graph for value in node.outputs):
        dtype, shape = facts.types.get(value.name or "", (None, None))
        if dtype not in (DataType.INT64, DataType.INT32, DataType.BOOL) or shape is None or len(shape) > 1:
            continue
        edit.annotate(value, dtype, shape)
        wanted.append(value)
    if not wanted:
        return {}
    edit.set_outputs(wanted)
    sweep(edit)
    try:
        found = run(copy)
    except ModelError:
        return {}
    return {name: array for name, array in found.items() if array.size <= elements}
