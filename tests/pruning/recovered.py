"""What tests of recovery share: a model with chosen units removed and what is left refit on given data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import Dataset, dataset_from_feeds
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model, Node, verify
from graphopt.pruning.prune import History
from graphopt.pruning.recovery import Refit
from graphopt.runner import ModelRunner
from tests.helpers import clone, run

Feeds = Mapping[str, NDArray[Any]]
Gone = Mapping[str, Sequence[int]]
"""Units that go, by the name of a layer that writes them."""


@dataclass(frozen=True)
class Recovered:
    """The model refit, the model with the same units gone and nothing refit, and what was said of layers."""

    model: Model
    plain: Model
    refits: list[Refit]
    declined: dict[str, str]


def batches(count: int = 20, samples: int = 8, seed: int = 3, **shapes: tuple[int, ...]) -> list[Feeds]:
    """Return normal numbers, each of ``shapes`` behind an axis of samples; every fourth block of four is held out."""
    rng = np.random.default_rng(seed)
    one = {name: (samples, *shape) for name, shape in shapes.items()}
    return [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in one.items()} for _ in range(count)]


def dataset(model: Model, feeds: Sequence[Feeds]) -> Dataset:
    """Return batches as a data set for ``model``."""
    return dataset_from_feeds(feeds, session_of(model).inputs)


def recovered(before: Model, data: Dataset | Sequence[Feeds], gone: Gone) -> Recovered:
    """Take units out of a copy of ``before`` and refit what is left; both models are checked."""
    given = data if isinstance(data, Dataset) else dataset(before, data)
    declined: dict[str, str] = {}

    def say(node: Node, why: str) -> None:
        declined[str(node.name or node.outputs[0].name)] = why

    model, plain = clone(before), clone(before)
    for copy in (plain, model):
        edit = Editor(copy)
        history = History.of(copy)
        channels = AnalysisManager(edit).get(Channels)
        history.remove(copy, edit, channels, _masks(channels.groups, gone))
    AnalysisManager(edit).get(Shapes)
    refits = history.recover(model, edit, ModelRunner(given), say)
    for copy in (plain, model):
        verify(copy)
    return Recovered(model, plain, refits, declined)


def _masks(groups: Sequence[Group], gone: Gone) -> dict[int, NDArray[np.bool_]]:
    found = {}
    for name, units in gone.items():
        (group,) = (group for group in groups if name in {use.node.name for use in group.writers})
        found[group.index] = np.isin(np.arange(group.units), units)
    return found


def error(before: Model, after: Model, feeds: Feeds) -> float:
    """Return the squared error of the first output, as a share of its variance."""
    wanted, found = run(before, feeds)[0], run(after, feeds)[0]
    return float(np.mean((found - wanted) ** 2) / np.var(wanted))
