"""Finds passes by name: those in ``graphopt.passes`` and plug-ins of the entry-point group ``graphopt.passes``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass

PACKAGE = "graphopt.passes"


@cache
def passes() -> dict[str, type[Pass]]:
    """Return every known pass by its name, in alphabetical order. Raises UsageError when two passes share a name."""
    found = dict(_own())
    for entry in entry_points(group=PACKAGE):
        _add(found, entry.load())
    return dict(sorted(found.items()))


@cache
def _own() -> dict[str, type[Pass]]:
    found: dict[str, type[Pass]] = {}
    package = importlib.import_module(PACKAGE)
    for info in pkgutil.iter_modules(package.__path__):
        for kind in _passes_in(importlib.import_module(f"{PACKAGE}.{info.name}")):
            _add(found, kind)
    return found


def _passes_in(module: ModuleType) -> list[type[Pass]]:
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    return [
        kind for kind in kinds if issubclass(kind, Pass) and kind is not Pass and kind.__module__ == module.__name__
    ]


def _add(found: dict[str, type[Pass]], kind: type[Pass]) -> None:
    if not (inspect.isclass(kind) and issubclass(kind, Pass)):
        raise UsageError(f"the plug-in {kind!r} is not a subclass of graphopt.Pass")
    other = found.get(kind.name)
    if other is not None and other is not kind:
        raise UsageError(f"two passes are called {kind.name!r}: {other.__module__} and {kind.__module__}")
    found[kind.name] = kind


def lookup(name: str) -> type[Pass]:
    """Return the pass called ``name``. Raises UsageError with the nearest name when there is none."""
    own = _own()
    if name in own:  # plug-ins are looked for only when needed: that reads the metadata of every installed package
        return own[name]
    known = passes()
    if name in known:
        return known[name]
    raise UsageError(f"there is no pass called {name!r}", hint=nearest(name, list(known), "graphopt passes lists them"))


def nearest(name: str, known: list[str], otherwise: str) -> str:
    """Return a hint that names the nearest of ``known``, or ``otherwise``."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else otherwise
