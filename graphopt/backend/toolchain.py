"""Runs a vendor's toolchain in a process of its own: JSON in, JSON out, everything it prints captured.

The toolchains are large native libraries that print what they like, crash, and do not always come to an end. A worker
is a script that gets two paths: of the request, and of the answer that it is to write. It leads a process group of
its own, which is killed when the time is over, so that nothing it started stays behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graphopt.errors import TargetError

TIME_LIMIT = 600.0
"""Seconds that a toolchain gets for one request unless the user says otherwise."""

_WORKERS = Path(__file__).with_name("workers")
_TAIL_LINES = 12
_KILLED_FOR_MEMORY = 9


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A vendor's toolchain: what it is called, the worker that drives it, and how it is installed.

    ``package`` is what has to be importable, ``install`` the command that brings it, ``python`` the interpreter that
    has it (empty: this one).
    """

    title: str
    worker: str
    package: str
    install: str
    python: str = ""

    def require(self) -> None:
        """Raise NotInstalledError where the toolchain is not there, as far as that is seen without starting it."""
        if not self.python and find_spec(self.package) is None:
            raise NotInstalledError.of(self, self.package)


class NotInstalledError(TargetError):
    """The toolchain is not there."""

    @classmethod
    def of(cls, toolchain: Toolchain, package: str) -> NotInstalledError:
        """Return the error that ``package`` of ``toolchain`` is missing."""
        return cls(f"{toolchain.title} is not installed: there is no package {package}", hint=toolchain.install)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered: ``values`` as it wrote them, and ``log``, all that was printed meanwhile."""

    values: Mapping[str, Any]
    log: str

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the log that say something."""
        return last_lines(self.log, lines)


def ask(
    toolchain: Toolchain,
    request: Mapping[str, Any],
    folder: Path,
    *,
    time_limit: float = TIME_LIMIT,
    script: Path | None = None,
) -> Answer:
    """Send ``request`` to the toolchain's worker and return its answer. ``folder`` is for what goes between them.

    ``time_limit`` is in seconds; ``script`` stands in for the worker in tests. Raises TargetError when the toolchain is
    not installed, crashes or takes longer.
    """
    asked, answered, printed = (folder / name for name in ("request.json", "answer.json", "log.txt"))
    answered.unlink(missing_ok=True)
    asked.write_text(json.dumps(request), encoding="utf-8")
    program = script or _WORKERS / f"{toolchain.worker}.py"
    with printed.open("wb") as log:
        command = [toolchain.python or sys.executable, str(program), str(asked), str(answered)]
        code = _run(command, log, folder, time_limit)
    text = _without_colours(printed.read_text(encoding="utf-8", errors="replace"))
    if code is None:
        raise TargetError(
            f"{toolchain.title} did not finish within {time_limit:g} s, and was stopped",
            context=last_lines(text, _TAIL_LINES) or None,
            hint="give it more with --time-limit, or a smaller model",
        )
    try:
        values = json.loads(answered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _crashed(toolchain, code, text) from None
    if values.get("missing"):
        raise NotInstalledError.of(toolchain, values["missing"])
    return Answer(values, text)


def last_lines(text: str, count: int) -> str:
    """Return the last ``count`` lines that are not blank."""
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _run(command: Sequence[str], log: Any, folder: Path, time_limit: float) -> int | None:
    """Run ``command`` with its output in ``log``; its exit code, ``None`` when the time was over."""
    # The scripts' folder must not come first where modules are looked for: a worker may be called like a package.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,  # some leave files of their own where they are started
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        return process.wait(timeout=time_limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and all that it started, also what it left running when it ended."""
    if sys.platform == "win32":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _crashed(toolchain: Toolchain, code: int, log: str) -> TargetError:
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        how = f"was ended by signal {name}"
    else:
        how = f"ended with exit code {code}" if code else "ended without an answer"
    memory = -code == _KILLED_FOR_MEMORY
    return TargetError(
        f"{toolchain.title} crashed: it {how}",
        context=last_lines(log, _TAIL_LINES) or None,
        hint="it may have run out of memory"
        if memory
        else "a smaller part of the model may show what it stumbles over",
    )


def _without_colours(text: str) -> str:
    parts = text.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])
