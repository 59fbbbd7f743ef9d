"""graphopt: a compiler for trained networks.

``graphopt.optimize("in.onnx", output="out.onnx")`` runs the main job. Names are imported on first use, so that
``import graphopt`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt.version import __version__

if TYPE_CHECKING:
    from graphopt.driver import Result, optimize
    from graphopt.errors import GraphOptError
    from graphopt.io import load, save
    from graphopt.pipeline import Changes, Pass, PassContext, Pipeline, option
    from graphopt.targets import Target

_HOMES = {
    "Changes": "graphopt.pipeline",
    "GraphOptError": "graphopt.errors",
    "Pass": "graphopt.pipeline",
    "PassContext": "graphopt.pipeline",
    "Pipeline": "graphopt.pipeline",
    "Result": "graphopt.driver",
    "Target": "graphopt.targets",
    "load": "graphopt.io",
    "option": "graphopt.pipeline",
    "optimize": "graphopt.driver",
    "save": "graphopt.io",
}

__all__ = [
    "Changes",
    "GraphOptError",
    "Pass",
    "PassContext",
    "Pipeline",
    "Result",
    "Target",
    "__version__",
    "load",
    "optimize",
    "option",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
