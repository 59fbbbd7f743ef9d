"""Two networks run side by side over the same data, from one resting place to the next.

What both have at a resting place lies in files, a batch in each, so that memory does not grow with the data and nothing
before that place is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.taps import Tap
from graphopt.ir import Model

Outputs = dict[str, NDArray[np.generic]]


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


class Relay:
    """Runs ``models`` side by side; files go to ``folder``. At first they start from the data."""

    def __init__(
        self, runner: Traces, models: Sequence[Model], folder: Path, samples: int, limit: int | None = None
    ) -> None:
        self._runner = runner
        self._models = tuple(models)
        self._folder = folder
        self._samples = samples
        self._limit = limit
        self._stored: tuple[tuple[str, ...], ...] | None = None
        self._batches: list[list[list[Path]]] = []
        self._moves = 0

    @property
    def batches(self) -> int | None:
        """How many batches there are, None before the first move."""
        return None if self._stored is None else len(self._batches)

    def run(
        self,
        wanted: Sequence[Sequence[str]],
        models: Sequence[Model] | None = None,
        settings: Sequence[Outputs] = ({},),
        only: Callable[[int], bool] | None = None,
    ) -> Iterator[tuple[Outputs, ...]]:
        """Yield for each batch the values that are ``wanted`` of each model, or of others in their places.

        Each batch is run once for each of ``settings``, which hold arrays for inputs that the data does not have.
        ``only`` tells by its number whether a batch is run, which it is asked once those before have been.
        """
        given = self._stored or ((),) * len(self._models)
        taps = [
            Tap(model, tuple(dict.fromkeys(names)), stored)
            for model, names, stored in zip(models or self._models, wanted, given, strict=True)
        ]
        return self._runner.trace(taps, self._feeds(settings, only), samples=self._samples, limit=self._limit)

    def move(self, names: Sequence[tuple[str, ...]]) -> None:
        """Go on to where ``names``, some of each model, are all that the rest of it reads."""
        self._moves += 1
        batches: list[list[list[Path]]] = []
        for number, found in enumerate(self.run(names)):
            batches.append([self._write(values, f"{self._moves}-{number}-{i}") for i, values in enumerate(found)])
        for path in (path for batch in self._batches for paths in batch for path in paths):
            path.unlink()
        self._stored, self._batches = tuple(names), batches

    def _write(self, values: Mapping[str, NDArray[Any]], stem: str) -> list[Path]:
        paths = []
        for index, array in enumerate(values.values()):
            paths.append(self._folder / f"{stem}-{index}.npy")
            np.save(paths[-1], array)
        return paths

    def _feeds(
        self, settings: Sequence[Outputs], only: Callable[[int], bool] | None
    ) -> Iterator[Sequence[Outputs]] | None:
        """Yield the inputs of each model, and what it is given; None where those are the data's."""
        if self._stored is None and only is None and not any(settings):
            return None
        return ([{**values, **setting} for values in found] for found in self._starts(only) for setting in settings)

    def _starts(self, only: Callable[[int], bool] | None) -> Iterator[Sequence[Outputs]]:
        if self._stored is None:
            inputs = [[value for value in model.graph.inputs if not value.is_initializer()] for model in self._models]
            taps = [Tap(m, tuple(str(v.name) for v in some)) for m, some in zip(self._models, inputs, strict=True)]
            batches = self._runner.trace(taps, samples=self._samples, limit=self._limit)
            yield from (found for number, found in enumerate(batches) if only is None or only(number))
        for number, batch in enumerate(self._batches):
            if only is None or only(number):
                yield [
                    {name: np.load(path) for name, path in zip(names, paths, strict=True)}
                    for names, paths in zip(self._stored or (), batch, strict=True)
                ]
