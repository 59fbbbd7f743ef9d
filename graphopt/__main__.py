"""``graphopt`` and ``python -m graphopt``: runs the command line; every error becomes a message and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

import click

from graphopt.cli import cli
from graphopt.errors import GraphOptError, UsageError

_INTERRUPTED = 130
_INTERNAL_ERROR = 70
_BROKEN_PIPE = 141


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, an error's own, 130 after Ctrl-C, 70 for a bug in graphopt."""
    try:
        code = cli.main(list(arguments), prog_name="graphopt", standalone_mode=False)
        sys.stdout.flush()
    except GraphOptError as error:
        return _fail(error, arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    except click.ClickException as error:
        return _fail(_usage_error(error), arguments)
    except (click.Abort, KeyboardInterrupt):
        print("graphopt: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Without this, Python would complain when it flushes stdout on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    # The last resort: whatever else gets here is a bug of ours, and the user is to see a message and not a traceback.
    except Exception as error:  # noqa: BLE001
        return _bug(error, arguments)
    return code if isinstance(code, int) else 0


def _usage_error(error: click.ClickException) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} --help` explains" if context is not None else None
    return UsageError(error.format_message().rstrip("."), hint=hint)


def _fail(error: GraphOptError, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    _print_error(error.kind, str(error))
    if "--json" in arguments:
        print(json.dumps({"error": error.to_json()}, indent=2))
    return error.exit_code


def _bug(error: Exception, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}"
    _print_error(
        "internal error", f"{text}\n  this is a bug in graphopt; `graphopt --debug ...` shows where, please report it"
    )
    if "--json" in arguments:
        print(
            json.dumps({"error": {"kind": "internal error", "message": text, "exit_code": _INTERNAL_ERROR}}, indent=2)
        )
    return _INTERNAL_ERROR


def _print_error(kind: str, text: str) -> None:
    print(f"graphopt: {kind}: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
