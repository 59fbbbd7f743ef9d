"""``graphopt check`` and ``graphopt explain``: what the target's own toolchain says of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt import targets
from graphopt.backend.explain import before_and_after
from graphopt.backend.explain import to_json as explained
from graphopt.backend.toolchain import TIME_LIMIT
from graphopt.checking import SAMPLES, Numbers
from graphopt.checking import check as run_check
from graphopt.cli.common import json_option, numbers, options, print_json, seed_option
from graphopt.errors import CheckError

target_options = options(
    click.option(
        "--target", metavar="NAME", required=True, help="Where it is to run: qnn-htp, qnn-htp:soc=43, rknn, ..."
    ),
    click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic axis."),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        default=TIME_LIMIT,
        show_default=True,
        metavar="S",
        help="Seconds that the toolchain gets for one run.",
    ),
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@target_options
@click.option("--reference", type=click.Path(path_type=Path), metavar="FLOAT", help="The float model.")
@click.option("--data", metavar="DATA", help="Inputs: a .npz, .npy, folder, or package.module:callable.")
@click.option("--limit", type=click.IntRange(min=1), default=SAMPLES, show_default=True, help="Samples to run.")
@click.option("--preprocess", type=click.Path(path_type=Path), metavar="FILE", help="TOML for a folder of images.")
@click.option("--numbers/--no-numbers", "compared", default=True, help="Whether to run it and compare its outputs.")
@seed_option
@json_option
def check(model: Path, **given: Any) -> int:
    """Ask the target's own toolchain whether it takes a model whole, in integers and right.

    Exit code 7: it does not. 6: the toolchain is not installed, crashed, or did not finish.
    """
    wanted = Numbers(
        reference=given["reference"],
        data=given["data"],
        samples=given["limit"],
        preprocess=given["preprocess"],
        seed=given["seed"],
    )
    report = run_check(
        model,
        target=targets.find(given["target"]),
        numbers=wanted if given["compared"] else None,
        dims=numbers(given["dims"], "--dim"),
        time_limit=given["time_limit"],
    )
    if given["as_json"]:
        print_json(report.to_json())
    else:
        click.echo(report.render())
    return 0 if report.passed else CheckError.exit_code


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path), required=False)
@target_options
@json_option
def explain(model: Path, after: Path | None, **given: Any) -> None:
    """Say where a model falls apart on its target, and why.

    With a second model, it says so of both, before and after. The partitions are those that the target's own
    toolchain makes.
    """
    target = targets.find(given["target"])
    # The kernels of onnxruntime's CPU show in a run only.
    wanted = Numbers(samples=1) if target.toolchain == "ort" else None
    reports = [
        run_check(
            path,
            target=target,
            numbers=wanted,
            dims=numbers(given["dims"], "--dim"),
            time_limit=given["time_limit"],
        )
        for path in (model, after)
        if path is not None
    ]
    if given["as_json"]:
        names = ("before", "after") if after is not None else ("model",)
        print_json({name: explained(report) for name, report in zip(names, reports, strict=True)})
        return
    click.echo(before_and_after(reports))
