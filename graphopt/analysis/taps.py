"""What to read of a run of a model: values from within it, and values from which on it is to run."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir import Model


@dataclass(frozen=True, eq=False)
class Tap:
    """A model, the names of the values ``wanted`` of it, and those that are ``given``, so that nothing before is run.

    Values of nested graphs can be neither. ``loose``: the sizes that the model notes do not hold, it is run on more
    samples than it says.
    """

    model: Model
    wanted: tuple[str, ...]
    given: tuple[str, ...] = ()
    loose: bool = False
