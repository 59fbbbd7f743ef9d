"""Scores on a simulator: all test inputs in one session of the vendor's toolchain, one at a time.

Metrics run a session themselves. So they are run twice: first with the float model, which notes what they feed, then
with what the simulator made of the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_quantize_data import Arrays
from numpy.typing import NDArray

from graphopt.backend import check_qnn
from graphopt.backend.toolchain import ask
from graphopt.errors import TargetError
from graphopt.runtime import InputInfo, Session
from graphopt.targets import Target

Score = Callable[[Any, "int | None"], float]


class Recorder:
    """Runs the float model, of batch 1, row by row, and keeps the rows."""

    def __init__(self, session: Session):
        self.rows: list[Arrays] = []
        self._session = session

    def get_inputs(self) -> list[InputInfo]:
        """Return names and shapes of the inputs."""
        return list(self._session.inputs)

    def run(self, names: list[str] | None, feeds: Arrays) -> list[NDArray[Any]]:
        """Run each row by itself and return the outputs of all."""
        rows = _split(feeds)
        self.rows += rows
        found = [list(self._session.run(row, names).values()) for row in rows]
        return [np.concatenate(values) for values in zip(*found, strict=True)]


class Player:
    """Answers as a session would, with outputs that were computed before, in the same order."""

    def __init__(self, session: Session, outputs: list[list[NDArray[Any]]]):
        self._session = session
        self._outputs = iter(outputs)

    def get_inputs(self) -> list[InputInfo]:
        """Return names and shapes of the inputs."""
        return list(self._session.inputs)

    def run(self, names: list[str] | None, feeds: Arrays) -> list[NDArray[Any]]:
        """Return the outputs of as many rows as are fed."""
        found = [next(self._outputs) for _ in _split(feeds)]
        return [np.concatenate(values) for values in zip(*found, strict=True)]


def rows_of(score: Score, model: Path, count: int) -> Arrays:
    """Return the first ``count`` test inputs, stacked."""
    recorder = Recorder(Session(model))
    score(recorder, count)
    return {name: np.concatenate([row[name] for row in recorder.rows[:count]]) for name in recorder.rows[0]}


def score_on(
    made: Path, reference: Path, target: Target, score: Score, limit: int, folder: Path, time_limit: float
) -> tuple[float, float]:
    """Return the metric on the HTP's simulator and the float model's, on the first ``limit`` test inputs.

    Raises TargetError when the toolchain does not run the model.
    """
    session = Session(reference)
    recorder = Recorder(session)
    float_metric = score(recorder, limit)
    names = list(recorder.rows[0])
    sources, destinations = [], []
    for index, row in enumerate(recorder.rows):
        source = folder / f"row_{index}.npz"
        np.savez(source, *(row[name] for name in names))
        sources.append(str(source))
        destinations.append(str(folder / f"scored_{index}.npz"))
    request = check_qnn.request_of(made.resolve(), target.options)
    request.update(names=names, inputs=sources, outputs=destinations)
    answer = ask(check_qnn.QNN, request, folder, time_limit=time_limit)
    if answer.values["error"]:
        raise TargetError(answer.values["error"].splitlines()[0][:200])
    order = [answer.values["outputs"].index(output.name) for output in session.outputs]
    outputs = []
    for file in destinations:
        with np.load(file) as arrays:
            outputs.append([arrays[f"arr_{index}"] for index in order])
    return score(Player(session, outputs), limit), float_metric


def _split(feeds: Arrays) -> list[Arrays]:
    count = len(next(iter(feeds.values())))
    return [{name: array[index : index + 1] for name, array in feeds.items()} for index in range(count)]
