"""Models that say they take one sample at a time, run on several: as much is computed in less time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.taps import Tap
from graphopt.errors import GraphOptError
from graphopt.ir import Model
from graphopt.ir.query import shape_of

Outputs = dict[str, NDArray[np.generic]]

_NEAR = 1e-3
"""Difference, as a share of the largest number, that other kernels may make."""


class Traces(Protocol):
    """What of a runner is needed here; see :class:`graphopt.pipeline.runner.Runner`."""

    @property
    def samples(self) -> int | None:
        """How many samples of data there are, where that is known."""
        ...

    def trace(
        self,
        taps: Sequence[Tap],
        feeds: Iterable[Sequence[Outputs]] | None = None,
        *,
        samples: int | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[Outputs, ...]]:
        """Yield for each batch what each tap wants."""
        ...


def can_stack(model: Model, runner: Traces) -> bool:
    """Tell whether a model that takes one sample at a time gives for two, one behind the other, what it gives for each.

    It is tried on the first two samples. False too where there are no two, or the model takes any number.
    """
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if not inputs or any((shape_of(value) or (0,))[0] != 1 for value in inputs):
        return False
    names = tuple(str(value.name) for value in inputs)
    wanted = tuple(str(value.name) for value in model.graph.outputs if value not in inputs)
    fed = [found for (found,) in itertools.islice(runner.trace([Tap(model, names)]), 2)]
    if len(fed) < 2 or any(fed[0][name].shape != fed[1][name].shape for name in names):
        return False
    apart = [found for (found,) in runner.trace([Tap(model, wanted)], [(feeds,) for feeds in fed])]
    both = {name: np.concatenate([feeds[name] for feeds in fed]) for name in names}
    try:
        ((together,),) = runner.trace([Tap(model, wanted, loose=True)], [(both,)])
    except GraphOptError:
        return False
    return all(_is_near(together[name], [found[name] for found in apart]) for name in wanted)


def _is_near(together: NDArray[Any], apart: Sequence[NDArray[Any]]) -> bool:
    if apart[0].dtype.kind not in "fiub" or any(array.ndim == 0 or len(array) != 1 for array in apart):
        return False
    wanted = np.concatenate([np.asarray(array, np.float64) for array in apart])
    if together.shape != wanted.shape:
        return False
    finite = wanted[np.isfinite(wanted)]
    return np.allclose(together, wanted, rtol=0, atol=_NEAR * np.abs(finite).max(initial=0.0), equal_nan=True)


def stacked(batches: Iterable[Outputs], size: int) -> Iterator[Outputs]:
    """Yield inputs of ``size`` batches in one. The last may be smaller."""
    left = iter(batches)
    while some := list(itertools.islice(left, size)):
        yield {name: np.concatenate([item[name] for item in some]) for name in some[0]}
