"""Targets: where a model is to run, described by facts. See ``Target``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A place where models run. ``provider`` is onnxruntime's name of the execution provider."""

    name: str
    provider: str
