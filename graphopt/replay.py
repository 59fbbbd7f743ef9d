"""Runs what a reproducer's folder holds, to see a failure again."""

from __future__ import annotations

from pathlib import Path

from graphopt import targets
from graphopt.driver import Result, optimize
from graphopt.errors import GraphOptError
from graphopt.numeric import output_check
from graphopt.pipeline.instruments import NumericCheck, Repro, read_repro
from graphopt.runtime import Session


def replay(folder: str | Path) -> tuple[Repro, Result | GraphOptError]:
    """Run the pipeline of the reproducer in ``folder`` over its model, and check it as the run that failed did.

    Returns what the folder holds, and the error when it failed again, else the result. Raises UsageError when
    the folder is no reproducer.
    """
    repro = read_repro(folder)
    checks = []
    if repro.inputs:
        checks.append(NumericCheck(output_check(Session(repro.model, optimize=False), repro.inputs, repro.rtol)))
    target = targets.find(repro.target) if repro.target else None
    try:
        result = optimize(
            repro.model,
            pipeline=repro.pipeline,
            instruments=checks,
            target=target,
            seed=repro.seed,
            fuel=repro.fuel,
        )
    except GraphOptError as error:
        return repro, error
    return repro, result
