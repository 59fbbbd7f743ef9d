"""The instrument that keeps what is needed to see a failure again: ``graphopt replay FOLDER`` does the rest."""

from __future__ import annotations

import json
import platform
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import io
from graphopt.errors import GraphOptError, UsageError
from graphopt.ir import Model
from graphopt.pipeline.base import Pass
from graphopt.pipeline.manager import Fuel, Instrument, Run
from graphopt.pipeline.spec import Pipeline, parse
from graphopt.version import __version__

Feeds = Mapping[str, "np.ndarray[Any, Any]"]

_MODEL, _FACTS, _ERROR, _INPUTS = "model.onnx", "repro.json", "error.txt", "inputs"
_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Repro:
    """What a reproducer's folder holds: the model before the failing pass, the pipeline from it on, and the settings.

    ``inputs`` are those of a numeric check, empty when there was none; ``rtol`` is its tolerance. ``error`` is the
    failure as :meth:`GraphOptError.to_json` gave it.
    """

    model: Path
    pipeline: Pipeline
    seed: int
    fuel: dict[str, int]
    target: str | None
    rtol: float
    inputs: list[dict[str, np.ndarray[Any, Any]]]
    error: dict[str, Any]


class Reproducer(Instrument):
    """When a pass fails, writes the model as it was before, the pipeline from that pass on, and settings to ``folder``.

    ``inputs`` and ``rtol`` are those of a numeric check, if there is one. The error's hint then names the folder.
    """

    def __init__(self, folder: Path, *, inputs: Sequence[Feeds] = (), rtol: float = 0.0):
        self._folder = folder
        self._inputs = inputs
        self._rtol = rtol
        self._model: Model | None = None
        self._revision: int | None = None
        self._fuel: dict[str, int] = {}

    def before_pass(self, run: Run, item: Pass) -> None:
        """Keep a copy of the model, unless nothing changed since the last one. Weights are shared, not copied."""
        self._fuel = dict(run.ctx.fuel.left) if isinstance(run.ctx.fuel, Fuel) else {}
        if self._revision != run.ctx.edit.revision:
            self._revision = run.ctx.edit.revision
            self._model = run.model.clone()

    def failed(self, run: Run, item: Pass, error: GraphOptError) -> None:
        """Write the folder. When that fails too, the first error stays the one to report and its hint says so."""
        try:
            self._write(run, item, error)
            note = f"`graphopt replay {self._folder}` shows it again"
        except (OSError, GraphOptError) as second:
            note = f"the reproducer could not be written to {self._folder}: {second}"
        error.hint = f"{error.hint}; {note}" if error.hint else note

    def _write(self, run: Run, item: Pass, error: GraphOptError) -> None:
        if self._model is None:
            return
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        io.save(self._model, folder / _MODEL)
        for index, feeds in enumerate(self._inputs):
            (folder / _INPUTS).mkdir(exist_ok=True)
            np.savez(folder / _INPUTS / f"{index:03}.npz", *(_plain(array) for array in feeds.values()))
        facts = {
            "graphopt": __version__,
            "python": platform.python_version(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "pipeline": str(run.remaining(item)),
            "seed": run.ctx.seed,
            "fuel": self._fuel,
            "target": run.ctx.target.label if run.ctx.target else None,
            "rtol": self._rtol,
            "inputs": [list(feeds) for feeds in self._inputs],
            "error": error.to_json(),
        }
        (folder / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (folder / _ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")


def read_repro(folder: str | Path) -> Repro:
    """Read what :class:`Reproducer` wrote. Raises UsageError when the folder holds something else."""
    path = Path(folder)
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        return Repro(
            model=path / _MODEL,
            pipeline=parse(facts["pipeline"]),
            seed=facts["seed"],
            fuel=facts["fuel"],
            target=facts["target"],
            rtol=facts["rtol"],
            inputs=[_inputs(path, index, names) for index, names in enumerate(facts["inputs"])],
            error=facts["error"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"this is no reproducer: {error}", where=str(path), hint="give a folder that --repro wrote"
        ) from error


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what numpy stores without pickling: strings at a fixed width."""
    return array.astype(str) if array.dtype == object else array


def _inputs(folder: Path, index: int, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(folder / _INPUTS / f"{index:03}.npz", allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{position}"] for position, name in enumerate(names)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
