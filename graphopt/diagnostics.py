"""Remarks and warnings as values: what was not done, where, why, and what would help."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How much a diagnostic matters."""

    REMARK = "remark"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: ``code`` is stable (``FOLD002``), ``node`` the name of the node or value, ``origin`` the pass."""

    severity: Severity
    code: str
    message: str
    node: str | None = None
    hint: str | None = None
    origin: str | None = None

    def __str__(self) -> str:
        place = f" {self.node}:" if self.node else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.severity} {self.code}{place} {self.message}{hint}"


@dataclass
class DiagnosticSink:
    """Collects diagnostics, each distinct one once and in the order of first occurrence."""

    _seen: dict[Diagnostic, None] = field(default_factory=dict)

    def add(self, diagnostic: Diagnostic) -> None:
        """Record ``diagnostic`` unless an equal one is there already."""
        self._seen.setdefault(diagnostic)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def at_least(self, severity: Severity) -> list[Diagnostic]:
        """Return those at or above ``severity``."""
        order = list(Severity)
        return [d for d in self if order.index(d.severity) >= order.index(severity)]


def render_text(diagnostics: Iterable[Diagnostic], limit: int = 5) -> str:
    """Return one line a diagnostic, at most ``limit`` for each code and the rest as a count."""
    shown: Counter[str] = Counter()
    lines = []
    for diagnostic in diagnostics:
        shown[diagnostic.code] += 1
        if shown[diagnostic.code] <= limit:
            lines.append(str(diagnostic))
    lines += [f"... and {count - limit} more {code}" for code, count in shown.items() if count > limit]
    return "\n".join(lines)


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Return a JSON array with one object a diagnostic."""
    return json.dumps([asdict(d) for d in diagnostics], indent=2)
