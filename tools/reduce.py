"""Shrinks a failing model to a minimal one that fails the same way.

    python tools/reduce.py model.onnx -o small.onnx --pipeline fold-constants,fuse-batchnorm
    python tools/reduce.py model.onnx -o small.onnx --preset lossless
    python tools/reduce.py model.onnx -o small.onnx --check "python -m graphopt optimize {} -o out.onnx"

With ``--pipeline`` or ``--preset``, a model fails when the pipeline raises an error, crashes, hangs, or gives a model
whose outputs on random inputs differ. With ``--check``, a smaller model still fails when the command ends as it did on
the given model: with the same exit status, the same signal, or out of time.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from graphopt import io
from graphopt.errors import GraphOptError, UsageError
from graphopt.failures import CommandCheck, PipelineCheck
from graphopt.ir.text import dump
from graphopt.numeric import DEFAULT_RTOL
from graphopt.pipeline import load_preset, parse
from graphopt.reduce import reduce


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where to write the small model.")
@click.option("--check", "command", metavar="COMMAND", help="A shell command with {} for the path of the model.")
@click.option("--pipeline", metavar="TEXT", help="A pipeline that breaks the model.")
@click.option("--preset", metavar="NAME", help="A pipeline that graphopt ships.")
@click.option("--rtol", type=float, default=DEFAULT_RTOL, show_default=True, help="What counts as other outputs.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time limit for one model.")
def main(
    model: Path,
    output: Path,
    command: str | None,
    pipeline: str | None,
    preset: str | None,
    rtol: float,
    seconds: float,
) -> None:
    try:
        if sum(given is not None for given in (command, pipeline, preset)) != 1:
            raise UsageError("give one of --check, --pipeline and --preset")
        if command is not None:
            result = reduce(model, CommandCheck(command, seconds), progress=_say)
        else:
            chosen = parse(pipeline) if pipeline is not None else load_preset(preset or "")
            with closing(PipelineCheck(str(chosen), seconds=seconds, rtol=rtol)) as check:
                result = reduce(model, check, progress=_say)
        io.save(result.model, output)
    except GraphOptError as error:
        click.echo(f"{error.kind}: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{output}: {result.render()}")
    click.echo(dump(result.model))


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
