"""What a pass may ask of whoever can run models: statistics, outputs, latency. The pipeline itself runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Request, Statistics
from graphopt.analysis.taps import Tap
from graphopt.ir import Model

Outputs = dict[str, NDArray[np.generic]]


class Runner(Protocol):
    """Runs models on the calibration data that the user gave."""

    @property
    def has_data(self) -> bool:
        """Whether there is calibration data."""
        ...

    @property
    def samples(self) -> int | None:
        """How many samples of calibration data there are, ``None`` when that is not known beforehand."""
        ...

    def folds(self) -> tuple[Self, Self]:
        """Return one that runs models on three quarters of the data, and one that runs them on the rest.

        What lies together in the data stays together. Both have all of it where it cannot be divided.
        """
        ...

    def collect(self, model: Model, requests: Sequence[Request]) -> Statistics:
        """Run ``model`` once over all the data and return the statistics asked for. Raises GraphOptError."""
        ...

    def outputs(self, model: Model, *, limit: int | None = None) -> Iterator[Outputs]:
        """Yield the model's outputs by name, one mapping for each batch, of at most ``limit`` samples."""
        ...

    def variants(
        self, model: Model, settings: Sequence[Outputs], *, limit: int | None = None
    ) -> Iterator[tuple[int, Outputs]]:
        """Run ``model`` on each batch, of at most ``limit`` samples in all, once for each of ``settings``.

        A setting holds arrays for inputs that the data does not have. Yields the setting's index and the outputs.
        """
        ...

    def trace(
        self,
        taps: Sequence[Tap],
        feeds: Iterable[Sequence[Outputs]] | None = None,
        *,
        samples: int | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[Outputs, ...]]:
        """Run several models side by side and yield, for each batch, what each tap wants, by name.

        Each item of ``feeds`` holds the inputs of each model, and what its tap is given; None runs all of them on the
        calibration data, ``samples`` at a time and ``limit`` in all at most. The arrays must not be written to. Raises
        GraphOptError.
        """
        ...

    def metric(self, model: Model) -> float | None:
        """Return the task metric of ``model``, higher is better; ``None`` when the user gave none."""
        ...

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        """Run both in turns on one batch and return the median of candidate's seconds over reference's."""
        ...

    def node_seconds(self, model: Model) -> dict[str, float]:
        """Return the median seconds of each kernel of one run, by the name of the node that it implements.

        Nodes that the runtime fused into another have no entry of their own.
        """
        ...
