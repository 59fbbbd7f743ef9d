"""Give symbolic dimensions of the inputs a size.

``fix-shapes{batch=1,seq=64}`` fixes dimensions by name; ``fix-shapes{input_ids.1=64}`` by input and axis.

Before::

    input_ids: int64[batch, seq]

After::

    input_ids: int64[1, 64]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import UsageError
from graphopt.ir import Dim, Model, Value, graphs, shape_of
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class FixShapes(Pass):
    """Give symbolic dimensions a size, by their name (batch=1) or by input and axis (input.0=1)."""

    name: ClassVar[str] = "fix-shapes"
    free_options: ClassVar[str | None] = "sizes"
    sizes: tuple[tuple[str, int], ...] = option((), "NAME=SIZE or INPUT.AXIS=SIZE, as many as needed")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Rewrite input and output shapes, and forget inferred ones. Raises UsageError for a name that nothing has."""
        sizes = dict(self.sizes)
        known = _names(model)
        for key, size in sizes.items():
            if key not in known:
                raise UsageError(f"no input has a dimension {key!r}", hint=f"there are: {', '.join(known) or 'none'}")
            if size < 1:
                raise UsageError(f"{key} must be at least 1, not {size}", where="fix-shapes")
        by_name = sizes | {name: sizes[key] for key, name in known.items() if key in sizes and name is not None}
        changes = Changes()
        for value in [*model.graph.inputs, *model.graph.outputs]:
            changes["shapes fixed"] += _fix(value, by_name, ctx)
        if changes:
            _forget_names(model, by_name, ctx)
        return changes


def _names(model: Model) -> dict[str, str | None]:
    """Return what a dimension can be called: its own name, and INPUT.AXIS with the name that it stands for, if any."""
    found: dict[str, str | None] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(shape_of(value) or ()):
            if isinstance(dim, int):
                continue
            found[f"{value.name}.{axis}"] = dim
            if dim is not None:
                found[dim] = dim
    return found


def _fix(value: Value, sizes: dict[str, int], ctx: PassContext) -> bool:
    shape = shape_of(value)
    if shape is None:
        return False
    fixed = tuple(_size(f"{value.name}.{axis}", dim, sizes) for axis, dim in enumerate(shape))
    if fixed == shape or not ctx.may_rewrite(value, f"give it the shape {list(fixed)}"):
        return False
    ctx.edit.set_input_shape(value, fixed)
    return True


def _size(place: str, dim: Dim, sizes: dict[str, int]) -> Dim:
    if isinstance(dim, int):
        return dim
    return sizes.get(place, sizes.get(dim, dim) if dim is not None else None)


def _forget_names(model: Model, sizes: dict[str, int], ctx: PassContext) -> None:
    """Write the sizes into shapes inside too, so that no declared shape keeps a name that is gone."""
    outer = {*model.graph.inputs, *model.graph.outputs}
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                shape = shape_of(value)
                if value in outer or shape is None or not any(dim in sizes for dim in shape if isinstance(dim, str)):
                    continue
                ctx.edit.annotate(value, value.dtype, [_size("", dim, sizes) for dim in shape])
