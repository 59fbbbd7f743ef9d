"""How a model fails: checks that run out of process with a time limit, and name the failure."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from graphopt.calibration import random_inputs
from graphopt.calibration.sessions import session_of
from graphopt.driver import optimize
from graphopt.errors import GraphOptError, TargetError, UsageError
from graphopt.numeric import DEFAULT_RTOL
from graphopt.runtime import Session, compare

Check = Callable[[Path], str | None]
"""Looks at a model file and names the way in which it fails, ``None`` when it does not."""

OUT_OF_TIME = "out of time"
_START_SECONDS = 120.0
_SEEDS = (0, 1)
_NOT_FOUND = (126, 127)


@dataclass(frozen=True)
class CommandCheck:
    """Runs a shell command on the model, whose path takes the place of ``{}``; how it ends names the failure.

    That is its exit status, 0 included, the signal that ended it, or that it took more than ``seconds``. Its output is
    dropped. Raises UsageError when there is no ``{}`` or the shell does not find the command.
    """

    command: str
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if "{}" not in self.command:
            raise UsageError("the command has no {} for the path of the model", where=self.command)

    def __call__(self, path: Path) -> str | None:
        """Return how the command ends."""
        command = self.command.replace("{}", shlex.quote(str(path)))
        no = subprocess.DEVNULL
        # A group of its own: what the shell started has to end with it.
        process = subprocess.Popen(command, shell=True, start_new_session=True, stdin=no, stdout=no, stderr=no)
        try:
            status = process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status in _NOT_FOUND:
            raise UsageError(f"the shell cannot run the command (exit status {status})", where=self.command)
        return f"signal {-status}" if status < 0 else f"exit status {status}"


class PipelineCheck:
    """Runs a pipeline on the model: it fails when it raises, or when its outputs differ on random inputs.

    One process serves many models; when it crashes or takes more than ``seconds``, that is the failure, and the next
    model gets a new one. ``rtol`` is the largest difference allowed, relative to an output's scale. Close it after use.
    """

    def __init__(self, pipeline: str, *, seconds: float = 60.0, rtol: float = DEFAULT_RTOL, seed: int = 0):
        self.pipeline, self.seconds, self.rtol, self.seed = pipeline, seconds, rtol, seed
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, path: Path) -> str | None:
        """Return the kind of failure, names and numbers in its message left out."""
        connection = self._connected()
        try:
            connection.send(str(path))
            if not connection.poll(self.seconds):
                self.close()
                return OUT_OF_TIME
            answer: str | None = connection.recv()
        except (EOFError, OSError):
            return self._crashed()
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _connected(self) -> Connection:
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self.pipeline, self.rtol, self.seed)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_SECONDS):
            self.close()
            raise TargetError(f"the process that runs the pipeline did not start within {_START_SECONDS:g} s")
        try:
            self._connection.recv()
        except EOFError:
            self.close()
            raise TargetError("the process that runs the pipeline ended before its first model") from None
        return self._connection

    def _crashed(self) -> str:
        process = self._process
        if process is not None:
            process.join()
        status = None if process is None else process.exitcode
        self.close()
        return f"crash: {f'signal {-status}' if status and status < 0 else f'exit status {status}'}"


def _serve(connection: Connection, pipeline: str, rtol: float, seed: int) -> None:
    connection.send("ready")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            connection.send(pipeline_failure(Path(connection.recv()), pipeline, rtol, seed))


def pipeline_failure(path: Path, pipeline: str, rtol: float, seed: int) -> str | None:
    """Return how ``pipeline`` fails on the model in this process: by an error, or by other outputs; None when not.

    A model that the runtime refuses before the pipeline cannot fail by its outputs.
    """
    try:
        after = optimize(path, pipeline=pipeline, seed=seed).model
    except GraphOptError as error:
        return _named(error)
    try:
        reference = Session(path, optimize=False)
        batches = [random_inputs(reference.inputs, number) for number in _SEEDS]
        for batch in batches:
            reference.run(batch)
    except GraphOptError:
        return None
    try:
        return "other outputs" if compare(reference, session_of(after), batches, rtol=rtol).failures else None
    except GraphOptError as error:
        return f"the result does not run: {_named(error)}"


def _named(error: GraphOptError) -> str:
    """Return an error as text that stays the same while a model shrinks: without its quoted names and its numbers."""
    text = f"{error.kind}: {error.where}: {error.message.splitlines()[0]}"
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", text)
