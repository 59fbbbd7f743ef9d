"""Computes analyses on demand and keeps each until a pass changes the model without preserving it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, TypeVar, cast

import numpy as np

from graphopt.diagnostics import Diagnostic, DiagnosticSink
from graphopt.ir import Editor, Model

Evaluate = Callable[[bytes, dict[str, "np.ndarray[Any, Any]"], list[str]], "list[np.ndarray[Any, Any]]"]
"""Runs a serialized model once: (model, feeds, names of outputs) -> arrays."""


class Analysis(Protocol):
    """A fact about a model. An analysis is asked for by its class and built by ``compute``."""

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Build the analysis; ``manager`` gives access to the editor and to other analyses."""
        ...


A = TypeVar("A", bound=Analysis)


class AnalysisManager:
    """Cache of analyses of one model."""

    def __init__(self, editor: Editor, diagnostics: DiagnosticSink | None = None):
        self.editor = editor
        self.diagnostics = diagnostics if diagnostics is not None else DiagnosticSink()
        self._cache: dict[type[Any], Any] = {}
        self._stale: set[type[Any]] = set()

    def get(self, kind: type[A], *, fresh: bool = False) -> A:
        """Return the analysis ``kind``, computing it when it is not at hand.

        ``fresh`` asks for all that can be known now; otherwise an analysis will do that is right, but of which a later
        rewrite might have made more known.
        """
        if kind not in self._cache or (fresh and kind in self._stale):
            self._cache[kind] = kind.compute(self.editor.model, self)
            self._stale.discard(kind)
        return cast("A", self._cache[kind])

    def at_hand(self, kind: type[A]) -> A | None:
        """Return the analysis ``kind`` when it has been computed and is still right, else ``None``."""
        return cast("A | None", self._cache.get(kind))

    def drop(self, preserved: Iterable[type[Any]] = (), refined: Iterable[type[Any]] = ()) -> None:
        """Forget every analysis but the ``preserved`` ones and the ``refined``, which are right but may know less."""
        kept = {*preserved, *refined}
        self._stale.update(refined)
        self._cache = {kind: analysis for kind, analysis in self._cache.items() if kind in kept}

    def report(self, diagnostic: Diagnostic) -> None:
        """Pass a finding of an analysis on to the user."""
        self.diagnostics.add(diagnostic)
