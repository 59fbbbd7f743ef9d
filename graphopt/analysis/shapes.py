"""Dtype and shape of every value, inferred once and kept on the values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from graphopt.diagnostics import Diagnostic, Severity
from graphopt.ir import DataType, Editor, Model, TensorType, Value, nodes
from graphopt.ir.infer import infer
from graphopt.ir.query import Dim, shape_of

if TYPE_CHECKING:
    from graphopt.analysis.manager import AnalysisManager


INVENTED = "unk__"
"""How the names begin that inference makes up for sizes it knows to be equal and nothing else."""


@dataclass(frozen=True)
class Shapes:
    """Annotates the values of the model: after it, ``ir.shape_of(value)`` and ``value.dtype`` are to be trusted.

    A value that a rewrite makes later gets its dtype and shape from the pass that makes it. Rewrites that keep what a
    value means keep its shape too, so lossless passes preserve this analysis. ``contradiction`` is what ONNX's
    inference finds wrong in the model, empty for a sound one.
    """

    contradiction: str = ""

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Infer, and write dtype and shape to the values; a declared output shape that is wrong is reported."""
        known, contradiction = infer(model, written=manager.editor.written)
        if manager.editor.revision:
            _forget_stale(model, known, manager.editor)
        outputs = set(model.graph.outputs)
        for value, (dtype, shape) in known.items():
            if value.type is not None and not isinstance(value.type, TensorType):
                continue
            if value in outputs:
                _compare_output(value, dtype, shape, manager)
                dtype, shape = dtype if dtype is not None else value.dtype, _merged(shape, shape_of(value))
            if dtype is None and shape is None:
                continue
            manager.editor.annotate(value, dtype, shape)
        return cls(contradiction)


def _forget_stale(model: Model, known: Collection[Value], editor: Editor) -> None:
    """Forget sizes that an earlier inference named and this one says nothing of: it may have used the name again."""
    for value in (value for node in nodes(model) for value in node.outputs if value not in known):
        shape = shape_of(value)
        if shape is not None and any(isinstance(dim, str) and dim.startswith(INVENTED) for dim in shape):
            editor.annotate(value, value.dtype, None)


def _merged(inferred: tuple[Dim, ...] | None, declared: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Return what an output's shape is: what was inferred, and the declared names where nothing was."""
    if inferred is None or declared is None or len(inferred) != len(declared):
        return declared if inferred is None else inferred
    return tuple(_merged_dim(a, b) for a, b in zip(inferred, declared, strict=True))


def _merged_dim(inferred: Dim, declared: Dim) -> Dim:
    if isinstance(inferred, int) or declared is None:
        return inferred
    named = isinstance(inferred, str) and not inferred.startswith(INVENTED)
    return inferred if named and isinstance(declared, int) else declared


def _compare_output(
    value: Value, dtype: DataType | None, shape: tuple[Dim, ...] | None, manager: AnalysisManager
) -> None:
    declared = shape_of(value)
    clash = dtype is not None and value.dtype is not None and dtype != value.dtype
    if shape is not None and declared is not None:
        clash = clash or len(shape) != len(declared)
        sizes = zip(shape, declared, strict=False)
        clash = clash or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
    if clash:
        text = f"is declared {_text(value.dtype, declared)} and is {_text(dtype, shape)}; the declaration is corrected"
        manager.report(Diagnostic(Severity.WARNING, "SHAPE001", text, value.name))


def _text(dtype: DataType | None, shape: tuple[Dim, ...] | None) -> str:
    dims = "" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
    return f"{dtype.name.lower() if dtype else '?'}{dims}"
