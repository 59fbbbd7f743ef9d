"""The command line. Commands are imported when they are run, so that ``graphopt --help`` answers at once."""

from __future__ import annotations

import difflib
import importlib

import click

from graphopt.version import __version__

COMMANDS = {
    "optimize": ("graphopt.cli.optimize", "Run a pipeline over a model and write the result."),
    "show": ("graphopt.cli.show", "Tell what a model holds."),
    "diff": ("graphopt.cli.show", "Compare two models line by line, as text."),
    "compare": ("graphopt.cli.measure", "Run two models on the same inputs and compare their outputs."),
    "bench": ("graphopt.cli.measure", "Time a model, or two in turns, on the first batch of the data."),
    "check": (
        "graphopt.cli.check",
        "Ask the target's own toolchain whether it takes a model whole, in integers and right.",
    ),
    "explain": ("graphopt.cli.check", "Say where a model falls apart on its target, and why."),
    "sensitivity": ("graphopt.cli.sensitivity", "Measure what quantizing each layer costs, the worst first."),
    "passes": ("graphopt.cli.lists", "List the passes, or explain one."),
    "presets": ("graphopt.cli.lists", "List the pipelines that graphopt ships."),
    "targets": ("graphopt.cli.lists", "List the targets."),
    "toolchains": (
        "graphopt.cli.toolchains",
        "List the vendors' toolchains, or install one that needs its own environment.",
    ),
    "zoo": ("graphopt.cli.lists", "List real models, or fetch some."),
    "bisect": ("graphopt.cli.debug", "Find the pass and the rewrite that break a model."),
    "replay": ("graphopt.cli.debug", "Run a reproducer that --repro wrote."),
}
"""Where each command lives, and its help in one line, in the order of ``--help``."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, ``None`` when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` name; an unknown one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="graphopt")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error was raised.")
def cli() -> None:
    """Rewrite trained ONNX networks through verified passes into smaller, faster, equivalent ones.

    \b
    graphopt optimize model.onnx -o small.onnx
    graphopt compare model.onnx small.onnx --data inputs.npz
    """
