"""Targets: where a model is to run, described by facts. See ``Target``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from graphopt.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A place where models run. ``provider`` is onnxruntime's name of the execution provider."""

    name: str
    provider: str


TARGETS = {target.name: target for target in (Target("ort-cpu", "CPUExecutionProvider"),)}
"""Every target by name."""


def find(name: str) -> Target:
    """Return the target called ``name``. Raises UsageError with the nearest name when there is none."""
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(TARGETS)}"
    raise UsageError(f"there is no target called {name!r}", hint=hint)
