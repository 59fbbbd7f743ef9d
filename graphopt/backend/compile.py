"""Models compiled ahead of time by the target's own toolchain, loaded again and compared before they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.backend import check_qnn, check_rknn
from graphopt.backend.job import Arrays, Job
from graphopt.backend.toolchain import ask
from graphopt.errors import TargetError, UsageError, VerifyError
from graphopt.runtime import differences

_TOLERANCE = 0.01
"""How far, of an output's scale, a compiled model may be off: the compiler may round an output once more or less."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What was written: the files, the first of which is the one to load, and what the comparison says.

    ``identical`` tells whether it gave the very outputs of the model compiled on the spot, None where it was not run.
    """

    files: tuple[Path, ...]
    detail: str
    identical: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        sizes = {str(file): file.stat().st_size for file in self.files}
        return {"files": sizes, "detail": self.detail}


def require_compiler(toolchain: str, target: str) -> None:
    """Raise UsageError for a target whose models nothing compiles, TargetError where what does is not installed."""
    if toolchain not in COMPILERS:
        hint = "models for qnn-htp and rknn can be"
        raise UsageError(
            "nothing here compiles models for this target", where=f"--compile --target {target}", hint=hint
        )
    (check_qnn.QNN if toolchain == "qnn" else check_rknn.toolchain()).require()


def compile_beside(job: Job, output: Path) -> Compiled:
    """Compile ``job`` and put the result beside ``output``, completely or not at all.

    Raises UsageError for a target without a compiler or a folder that cannot be written, TargetError when the
    toolchain is missing, refuses the model, crashes or does not finish, VerifyError when what was compiled computes
    something else.
    """
    require_compiler(job.target.toolchain, job.target.label)
    folder = job.folder / "compiled"
    folder.mkdir()
    made = COMPILERS[job.target.toolchain](job, folder, output.stem)
    return replace(made, files=_handed_over(made.files, output.parent))


def _context_model(job: Job, folder: Path, stem: str) -> Compiled:
    """Make an EPContext model: a small ONNX file, and the chip's program in a file beside it."""
    path = folder / f"{stem}_ctx.onnx"
    request = check_qnn.request_of(job.path, job.target.options, compile_to=path)
    answer = ask(check_qnn.QNN, request, job.folder, time_limit=job.time_limit)
    if answer.values["error"] or not path.is_file():
        raise TargetError(
            f"Qualcomm's compiler refuses the model: {answer.values['error'].splitlines()[0][:300]}",
            where=job.name,
            hint=f"`graphopt check {job.name} --target {job.target.label}` says why",
        )
    fresh, loaded = (_outputs(job, model) for model in (job.path, path))
    others = sorted(file for file in folder.iterdir() if file != path)
    text, identical = _compared(fresh, loaded, job.name)
    return Compiled((path, *others), f"loaded again: outputs {text}", identical)


def _outputs(job: Job, model: Path) -> list[Arrays]:
    request = check_qnn.request_of(model, job.target.options)
    names, sources, destinations = job.save_inputs()
    request.update(names=names, inputs=sources, outputs=destinations)
    answer = ask(check_qnn.QNN, request, job.folder, time_limit=job.time_limit)
    if answer.values["error"]:
        raise TargetError(f"it does not run: {answer.values['error'].splitlines()[0][:300]}", where=str(model.name))
    return job.load_outputs(answer.values["outputs"], destinations)


def _rknn_model(job: Job, folder: Path, stem: str) -> Compiled:
    path = folder / f"{stem}.rknn"
    request = check_rknn.request_of(job, export=path)
    answer = ask(check_rknn.toolchain(), request, job.folder, time_limit=job.time_limit)
    if answer.values["error"] or not path.is_file():
        raise TargetError(
            f"rknn-toolkit2 does not {answer.values['stage'] or 'export'} the model: {answer.values['error'][-300:]}",
            where=job.name,
            hint=f"`graphopt check {job.name} --target {job.target.label}` says more",
        )
    text = "loaded again; the simulator runs what was just built only, so `graphopt check` has its numbers"
    return Compiled((path,), text)


COMPILERS: Mapping[str, Callable[[Job, Path, str], Compiled]] = {
    "qnn": _context_model,
    "rknn": _rknn_model,
}


def _compared(fresh: list[Arrays], loaded: list[Arrays], name: str) -> tuple[str, bool]:
    """Say how far the compiled model is from the one compiled on the spot, and whether they are identical.

    Raises VerifyError when it is too far.
    """
    found = differences(zip(fresh, loaded, strict=True))
    if all(item.differing == 0 for item in found):
        return f"on {len(fresh)} random inputs are identical", True
    worst = max(found, key=lambda item: item.max_rel_to_scale or 0.0)
    if not worst.within(_TOLERANCE):
        far = worst.max_rel_to_scale or 0.0
        raise VerifyError(
            f"the compiled model gives another result: off by {far:.1e} of its scale",
            where=f"{name}: output {worst.name}",
            hint=f"{name} itself is written; `graphopt check` compares it with onnxruntime's CPU",
        )
    return f"differ by up to {worst.max_rel_to_scale:.1e} of their scale", False


def _handed_over(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move ``files`` into ``folder``, each in one piece, the one that names the others last."""
    parts = []
    try:
        for file in files:
            part = folder / f"{file.name}.part"
            parts.append(part)
            shutil.copyfile(file, part)
        for file, part in reversed(list(zip(files, parts, strict=True))):
            os.replace(part, folder / file.name)
    except OSError as error:
        raise UsageError(f"what was compiled cannot be written: {error.strerror}", where=str(folder)) from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return tuple(folder / file.name for file in files)
