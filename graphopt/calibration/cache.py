"""Statistics on disk, so that a run that was cut short goes on where it was and one that was finished is not repeated.

A file belongs to one graph, one set of requests and one shard, whose hash is its name; it holds the hash of the data
that went into it. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.analysis.statistics import Statistics
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import UsageError
from graphopt.io.atomic import staged

_MAGIC = "graphopt statistics 1"


@dataclass(frozen=True)
class Saved:
    """Statistics of the first ``batches`` batches, whose hash is ``digest``."""

    batches: int
    digest: str
    statistics: Statistics


class Store:
    """One file in ``folder``, which is made where it is missing. Raises UsageError when it cannot be."""

    def __init__(self, folder: Path, key: str, diagnostics: DiagnosticSink) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"this cannot be the folder of the cache: {reason}", where=str(folder)) from error
        self.path = folder / f"{key[:32]}.stats"
        self._key = key
        self._diagnostics = diagnostics

    def load(self) -> Saved | None:
        """Return what was saved; None when there is nothing, or, with a remark, when it is damaged or foreign."""
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline(1 << 12))
                if header["magic"] != _MAGIC or header["key"] != self._key:
                    self._ignored("it belongs to something else")
                    return None
                return Saved(header["batches"], header["digest"], Statistics.load(file))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._ignored((error.strerror or str(error)).lower())
        except (ValueError, KeyError, TypeError):
            self._ignored("it is damaged")
        return None

    def save(self, saved: Saved) -> None:
        """Write ``saved``; a failure is a warning, since nothing depends on it."""
        header = {"magic": _MAGIC, "key": self._key, "batches": saved.batches, "digest": saved.digest}
        try:
            with staged() as files:
                file = files.open(self.path)
                file.write(json.dumps(header).encode() + b"\n")
                saved.statistics.save(file)
                files.commit()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self.remark("CALIB004", f"the statistics could not be kept: {reason}", severity=Severity.WARNING)

    def remark(self, code: str, message: str, *, severity: Severity = Severity.REMARK) -> None:
        """Note something about this file."""
        self._diagnostics.add(Diagnostic(severity, code, message, str(self.path), origin="calibration"))

    def _ignored(self, reason: str) -> None:
        self.remark("CALIB003", f"the cache file is ignored: {reason}")


class DataHash:
    """The hash of the batches gone through so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, feeds: Mapping[str, Any]) -> None:
        """Add a batch: names, dtypes, shapes and content."""
        for name in sorted(feeds):
            value = feeds[name]
            if not isinstance(value, np.ndarray) or value.dtype.kind == "O":
                text = value.tolist() if isinstance(value, np.ndarray) else value
                self._digest.update(f"{name}:{text!r};".encode())
                continue
            self._digest.update(f"{name}:{value.dtype.name}{value.shape};".encode())
            self._digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the hash so far."""
        return self._digest.hexdigest()
