"""Small models for the tests of the channel-dependency analysis, and a way to look at what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels
from graphopt.ir import Editor, Model
from tests.helpers import model_of

Shapes = Mapping[str, Sequence[int] | np.ndarray]


class Found:
    """The analysis of a model, by names of values."""

    def __init__(self, model: Model, kind: type[Channels] = Channels):
        self.channels = AnalysisManager(Editor(model)).get(kind)
        self._owners = {}
        for group in self.channels.groups:
            for member in group.members:
                for position, unit in zip(member.positions.tolist(), member.units.tolist(), strict=True):
                    self._owners[member.axis.value.name, member.axis.axis, position] = (group.index, unit)

    @property
    def units(self) -> list[int]:
        """How many units each group has."""
        return [group.units for group in self.channels.groups]

    def owner(self, name: str, axis: int, position: int) -> tuple[int, int] | None:
        """The group and unit that a position belongs to."""
        return self._owners.get((name, axis, position))

    def removed_with(self, name: str, axis: int, position: int) -> dict[tuple[str, int], list[int]]:
        """All positions that go when this one goes, by axis."""
        wanted = self.owner(name, axis, position)
        found: dict[tuple[str, int], list[int]] = {}
        for (value, place, at), owner in self._owners.items():
            if wanted is not None and owner == wanted:
                found.setdefault((value, place), []).append(at)
        return found

    def why(self, name: str, axis: int) -> str | None:
        """Why an axis is pinned itself."""
        for pin in self.channels.pins:
            if (pin.axis.value.name, pin.axis.axis) == (name, axis):
                return pin.why
        return None


def find(body: str, weights: Shapes | None = None, *, opset: int = 18, kind: type[Channels] = Channels) -> Found:
    """Analyse a model given as ONNX text; weights are given as shapes, or as arrays where the numbers matter."""
    arrays = {
        name: given if isinstance(given, np.ndarray) else np.zeros(given, np.float32)
        for name, given in (weights or {}).items()
    }
    return Found(model_of(body, opset=opset, weights=arrays), kind)


def ints(*numbers: int) -> np.ndarray:
    """An operand that states sizes."""
    return np.array(numbers, np.int64)


def between(
    nodes: str, weights: Shapes | None = None, *, opset: int = 18, outputs: int = 6, kind: type[Channels] = Channels
) -> Found:
    """Analyse nodes that read ``a``, written by a 1x1 convolution of 6 channels, and write ``b``, which one reads."""
    body = f"""g (float[1,3,4,4] x) => (float[n,c,h,w] y) {{
        a = Conv(x, before) {nodes} y = Conv(b, after) }}"""
    given = {"before": (6, 3, 1, 1), "after": (2, outputs, 1, 1), **(weights or {})}
    return find(body, given, opset=opset, kind=kind)
