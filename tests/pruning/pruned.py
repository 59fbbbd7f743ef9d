"""What tests of pruning share: random cuts, and a model with a cut removed beside the same with it made zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt import io
from graphopt.analysis.channels import Axis, Channels, Group, Member
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model, Value, constant, graphs, is_constant, nodes, verify
from graphopt.ir.query import static_shape
from graphopt.pruning.rewire import mask, remove
from tests.helpers import clone

Mask = NDArray[np.bool_]
Place = int | tuple[int, Sequence[int]]
Lies = Mapping[str, Place | list[Place]]
"""How a group lies on values, by their names: the axis, and the unit that each position belongs to (-1 for none)."""


def value_of(model: Model, name: str) -> Value:
    """Return a value by its name."""
    for graph in graphs(model):
        if name in graph.initializers:
            return graph.initializers[name]
    return next(value for node in nodes(model) for value in node.outputs if value.name == name)


def stated(model: Model, *groups: Lies) -> Channels:
    """Return groups that lie as told: an axis alone means that its positions are the units."""
    AnalysisManager(Editor(model)).get(Channels)  # notes the sizes of all values
    found = tuple(_group(model, index, lies) for index, lies in enumerate(groups))
    axes = [member.axis for group in found for member in group.members]
    return Channels(found, (), {}, {axis: (static_shape(axis.value) or ())[axis.axis] for axis in axes})


def _group(model: Model, index: int, lies: Lies) -> Group:
    members = []
    places = [
        (name, place) for name, given in lies.items() for place in (given if isinstance(given, list) else [given])
    ]
    for name, place in places:
        value = value_of(model, name)
        axis, units = (place, None) if isinstance(place, int) else place
        size = (static_shape(value) or ())[axis]
        owners = np.arange(size) if units is None else np.asarray(units)
        positions = np.flatnonzero(owners >= 0)
        members.append(Member(Axis(value, axis), positions, owners[positions]))
    return Group(index, int(max(member.units.max() for member in members)) + 1, tuple(members))


def halves(channels: Channels, seed: int = 0) -> dict[int, Mask]:
    """Return a random half of the units of every group, at least one of which stays."""
    rng = np.random.default_rng(seed)
    removed = {}
    for group in channels.groups:
        stay = max(1, group.units // 2)
        stay = -(-stay // group.multiple) * group.multiple
        gone = np.ones(group.units, np.bool_)
        gone[rng.permutation(group.units)[:stay]] = False
        removed[group.index] = gone
    return removed


@dataclass(frozen=True)
class Pair:
    """One cut made in both ways, on copies of a model, and the groups that it was drawn from."""

    removed: Model
    masked: Model
    channels: Channels


def cut(model: Model, seed: int = 0, kind: type[Channels] = Channels, *groups: Lies) -> Pair:
    """Take a random half of all groups of ``model``, found or as stated, and check that both results are valid."""
    pruned, masked = clone(model), clone(model)
    found = []
    for copy, write in ((pruned, remove), (masked, mask)):
        edit = Editor(copy)
        channels = stated(copy, *groups) if groups else AnalysisManager(edit).get(kind)
        write(copy, edit, channels, halves(channels, seed))
        verify(copy)
        onnx.checker.check_model(io.to_proto(copy), full_check=True)
        found.append(channels)
    return Pair(pruned, masked, found[0])


def with_dead_weights(model: Model, channels: Channels, removed: Mapping[int, Mask]) -> None:
    """Make weights, biases and normalizations of the removed units zero, and nothing else."""
    edit = Editor(model)
    for axis, stays in channels.kept(removed).items():
        if is_constant(axis.value) and axis.value.producer() is None:
            array = np.array(constant(axis.value))
            array[(slice(None),) * axis.axis + (~stays,)] = 0
            edit.set_weight(axis.value, array)


def sizes(model: Model) -> dict[str, Any]:
    """Return the shape of every value of the main graph that has a name."""
    values = [value for node in model.graph for value in node.outputs] + list(model.graph.initializers.values())
    return {value.name: static_shape(value) for value in values if value.name}


def enliven(model: Model, seed: int = 0) -> None:
    """Give weights that are all alike (a head of zeros, scales of 1e-6) random values, so that all layers matter."""
    rng = np.random.default_rng(seed)
    edit = Editor(model)
    for graph in graphs(model):
        for value in list(graph.initializers.values()):
            array = constant(value)
            if array is not None and array.dtype == np.float32 and array.size > 1 and np.ptp(array) == 0:
                edit.set_weight(value, rng.uniform(0.5, 1.5, array.shape).astype(np.float32))


def share_biases(model: Model) -> int:
    """Let all layers with a bias of one size read the same one; returns how many read another's."""
    edit = Editor(model)
    first: dict[int, Value] = {}
    shared = 0
    for node in edit.nodes("Conv", "Gemm", "Add"):
        for index, bias in enumerate(node.inputs):
            if bias is not None and is_constant(bias) and len(static_shape(bias) or ()) == 1:
                own = first.setdefault((static_shape(bias) or (0,))[0], bias)
                edit.set_input(node, index, own)
                shared += own is not bias
    return shared
