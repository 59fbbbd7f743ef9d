"""Give inputs that are settings their value.

``fix-inputs{sr=16000}`` makes the input ``sr`` the constant 16000. What the other values need goes with it: branches
for other settings can be decided then.

Before::

    m (float[1,576] x, int64 sr) => (float[1,1] y)
    c = Equal(sr, 16000)
    y = If(c) <...>

After::

    m (float[1,576] x) => (float[1,1] y)
    sr = 16000
    c = Equal(sr, 16000)
    y = If(c) <...>
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import UsageError
from graphopt.ir import Model, Value, shape_of
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class FixInputs(Pass):
    """Make constants of inputs that are settings, by their names (sr=16000)."""

    name: ClassVar[str] = "fix-inputs"
    free_options: ClassVar[str | None] = "values"
    values: tuple[tuple[str, int], ...] = option((), "INPUT=VALUE, as many as needed; an array gets it everywhere")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Put an initializer in each input's place. Raises UsageError for a name that no input has, and for values
        and shapes that make no constant."""
        changes = Changes()
        inputs = {value.name: value for value in model.graph.inputs}
        for name, number in self.values:
            if name not in inputs:
                known = ", ".join(str(other) for other in inputs) or "none"
                raise UsageError(f"there is no input {name!r}", where=self.name, hint=f"there are: {known}")
            value = inputs[name]
            array = _filled(value, number)
            if not ctx.may_rewrite(value, f"it is {number} from now on"):
                continue
            ctx.edit.remove_graph_input(value)
            ctx.edit.replace_uses(value, ctx.edit.constant(array, name))
            ctx.edit.erase_constant(value)  # a default that the input had
            changes["inputs fixed"] += 1
        return changes


def _filled(value: Value, number: int) -> NDArray[Any]:
    dims = shape_of(value)
    if value.is_graph_output():
        raise UsageError("it is an output too, which a constant cannot be", where=f"input {value.name}")
    if dims is None or value.dtype is None or any(not isinstance(dim, int) for dim in dims):
        raise UsageError("its size is open", where=f"input {value.name}", hint="put fix-shapes before fix-inputs")
    kind = value.dtype.numpy()
    array = np.full([dim for dim in dims if isinstance(dim, int)], number).astype(kind)
    if not np.all(array == number):
        raise UsageError(f"{number} is no number of type {value.dtype}", where=f"input {value.name}")
    return array
