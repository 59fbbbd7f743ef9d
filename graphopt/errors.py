"""Errors a user can meet. Each kind has its own exit code, so that scripts can tell them apart."""

from __future__ import annotations

from typing import ClassVar


class GraphOptError(Exception):
    """Base of every error that graphopt reports on purpose.

    ``message`` says what is wrong, ``where`` names the place (a node, file or option), ``context`` holds a few lines of
    IR or text around it, and ``hint`` says what to do next.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, where: str | None = None, context: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = where
        self.context = context
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.context:
            parts.append("\n".join(f"  | {line}" for line in self.context.splitlines()))
        if self.hint:
            parts.append(f"  hint: {self.hint}")
        return "\n".join(parts)

    def to_json(self) -> dict[str, object]:
        """Return the error as plain values for ``--json``."""
        return {
            "kind": self.kind,
            "message": self.message,
            "where": self.where,
            "context": self.context,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(GraphOptError):
    """The command line, an option, a pipeline text or a data set is wrong."""

    exit_code = 2
    kind = "usage error"


class ModelError(GraphOptError):
    """The input model cannot be read, or contradicts itself."""

    exit_code = 3
    kind = "model error"


class PassError(GraphOptError):
    """A pass failed; the message names it."""

    exit_code = 4
    kind = "pass error"


class VerifyError(GraphOptError):
    """A model broke an invariant, or two models that should agree do not."""

    exit_code = 5
    kind = "verification error"


class TargetError(GraphOptError):
    """The target or its toolchain is missing, or refuses the model."""

    exit_code = 6
    kind = "target error"


class CheckError(GraphOptError):
    """The target's toolchain works, and the model did not pass its check."""

    exit_code = 7
    kind = "check failed"
