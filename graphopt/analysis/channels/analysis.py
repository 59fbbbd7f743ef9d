"""The analysis that passes ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from graphopt.analysis.channels import operands
from graphopt.analysis.channels.rules import follow
from graphopt.analysis.channels.solve import Chooser, Classes, find_groups
from graphopt.analysis.channels.ties import Split, Ties
from graphopt.analysis.channels.types import Axis, BoolArray, Group, Pin
from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.shape_values import ShapeValues
from graphopt.ir import Editor, Graph, Model, Node, TensorType, graphs, opset, shape_of, static_shape


@dataclass(frozen=True, eq=False)
class Channels:
    """The groups of channels that can be removed from a model, and the reasons why other axes are pinned.

    ``operands`` maps (node, index of an input) to the integers that a shape, size or bound always is that the model
    computes from shapes: when channels go, those inputs have to become these constants first, and are then adapted
    like any constant; those of a Reshape may hold 0 and -1, as its shapes do. ``sizes`` holds the size of each axis
    that could shrink. Attention loses whole heads; ask for :class:`HeadDimensions` to take dimensions of every head
    instead.
    """

    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    operands: Mapping[tuple[Node, int], tuple[int, ...]]
    sizes: Mapping[Axis, int]

    inner_of_heads: ClassVar[bool] = False

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Find the groups; only axes of known size count, and nothing in or captured by a nested graph."""
        ties = Ties(manager.get(ShapeValues, fresh=True), opset(model))
        _annotate(model, ties, manager.editor)
        found = operands.find(model, ties)
        ties.operands.update(found.known)
        _pin_interface(model, ties)
        for node in model.graph:
            if node in found.arithmetic or (node.op_type == "Constant" and not node.domain):
                continue
            if all(value is None or not ties.is_computed(value) for value in node.inputs) and node.inputs:
                ties.fixed.update(node.outputs)
            follow(node, ties)
        classes = Classes.find(ties)
        edges = [(int(classes.of[tie.first]), int(classes.of[tie.second]), *tie.pairs) for tie in ties.ties]
        chooser = Chooser(ties, classes, edges, inner_of_heads=cls.inner_of_heads)
        chooser.run()
        sizes = {axis: size for axis, size in zip(ties.axes, ties.lengths, strict=True) if axis is not None}
        return cls(find_groups(ties, classes, chooser), _reasons(ties, chooser.blocked), found.known, sizes)

    def kept(self, removed: Mapping[int, BoolArray]) -> dict[Axis, BoolArray]:
        """Return which positions of each touched axis stay when ``removed`` (group index -> bool[units]) goes."""
        kept: dict[Axis, BoolArray] = {}
        for index, gone in removed.items():
            for member in self.groups[index].members if gone.any() else ():
                if member.axis not in kept:
                    kept[member.axis] = np.ones(self.sizes[member.axis], dtype=np.bool_)
                kept[member.axis][member.positions[gone[member.units]]] = False
        return kept


class HeadDimensions(Channels):
    """The same with the other choice for attention: the same dimensions go from every head, and all heads stay."""

    inner_of_heads: ClassVar[bool] = True


def _annotate(model: Model, ties: Ties, editor: Editor) -> None:
    """Note on values the sizes that only following the arithmetic on shapes tells: rewiring reads and changes them."""
    for value in (value for node in model.graph for value in node.outputs if static_shape(value) is None):
        if value.type is not None and not isinstance(value.type, TensorType):
            continue  # a sequence has no one shape
        dims, known = ties.dims(value), shape_of(value)
        if dims is not None and (known is None or len(known) == len(dims)):
            old = known or (None,) * len(dims)
            editor.annotate(value, value.dtype, [b if a is None else a for a, b in zip(dims, old, strict=True)])


def _pin_interface(model: Model, ties: Ties) -> None:
    for values, why in ((model.graph.inputs, "an input of the model"), (model.graph.outputs, "an output of the model")):
        for value in values:
            for place in ties.places(value):
                ties.pin(None, place, why)
    inner = (graph for graph in graphs(model) if graph is not model.graph)
    for graph in inner:
        _pin_captured(graph, model.graph, ties)


def _pin_captured(graph: Graph, outer: Graph, ties: Ties) -> None:
    readers = [(node, value) for node in graph for value in node.inputs]
    for node, value in [*readers, *((None, value) for value in graph.outputs)]:
        if value is not None and value.graph is outer:
            for place in ties.places(value):
                ties.pin(node, place, "read inside a nested graph")


def _reasons(ties: Ties, blocked: list[tuple[int, Split]]) -> tuple[Pin, ...]:
    """Return one reason for each axis that is pinned itself, those pinned by others left out."""
    found: dict[Axis, Pin] = {}
    for pin in ties.pins:
        axis = ties.axes[pin.axis]
        if axis is not None:
            found.setdefault(axis, Pin(axis, pin.why, pin.node))
    for part, split in blocked:
        axis = ties.axes[part]
        if axis is not None:
            found.setdefault(axis, Pin(axis, f"{split.node.op_type} joins it with an axis that may shrink", split.node))
    return tuple(found.values())
