"""Which checker asks which toolchain."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphopt.backend import check_openvino, check_ort, check_qnn, check_rknn
from graphopt.backend.job import Job, Outcome
from graphopt.backend.report import CheckReport
from graphopt.errors import TargetError

CHECKERS: Mapping[str, Callable[[Job], CheckReport]] = {
    "openvino": check_openvino.check,
    "ort": check_ort.check,
    "qnn": check_qnn.check,
    "rknn": check_rknn.check,
}
"""By the name of the toolchain, as targets state it."""


def run_check(job: Job) -> CheckReport:
    """Check a model on its target's own toolchain; without one, what its facts say is all there is.

    Raises TargetError when the toolchain is not installed, crashes or does not finish.
    """
    target = job.target
    if not target.toolchain:
        note = f"no toolchain for {target.name} runs here: only what is known of it was held against the model"
        return job.report("", Outcome(notes=[note]))
    if target.toolchain not in CHECKERS:
        raise TargetError(f"there is no checker for {target.toolchain!r}", where=target.name)
    try:
        return CHECKERS[target.toolchain](job)
    except TargetError as error:
        known = [str(finding) for finding in job.findings]
        if known:
            # A toolchain that crashes or hangs may do so for a reason that is known.
            error.context = "\n".join([*([error.context] if error.context else []), *known[:10]])
        raise
