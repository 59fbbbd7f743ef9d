"""Set weights to zero, and let those that remain make up for it.

Before::

    y = Conv(x, W, b)                         # float W[64, 32, 3, 3]

After ``prune-weights{pattern=2:4}``::

    y = Conv(x, W', b')                       # W' of the same shape, in which W'[o, 4i:4i+4, r, s] has two zeros

What goes is what costs least in the layer's outputs once the other weights are refit, by the Gram matrix of the layer's
input over the calibration data; biases make up for the mean. Without data the smallest weights go.

Shapes stay: a runtime is faster only where it has kernels for the pattern, a file smaller only when compressed. Run
``lossless`` first, so that normalisations are in the weights and count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, nodes
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.pruning import sparse
from graphopt.pruning.prunable import LAYERS, Weights, known, prunable, requests
from graphopt.pruning.sparse import Pattern
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.half import is_named

_HALF = 0.5
_DENSE = "onnxruntime multiplies by zeros too: it is no faster for them, and the file smaller only when compressed"
_KERNELS = {
    "2:4": "TensorRT has kernels for 2:4 on GPUs from Ampere on, where sparse weights are switched on",
    "unstructured": "XNNPACK has kernels for mostly zero weights in Convs of kernel 1x1",
}


@dataclass(frozen=True, kw_only=True)
class PruneWeights(Pass):
    """Set single weights, N of every M or blocks of them to zero, and refit the weights that remain."""

    name: ClassVar[str] = "prune-weights"
    lossless: ClassVar[bool] = False
    preserves: ClassVar = (Shapes,)

    sparsity: float = option(0.0, "share of the weights that become zero; 0: what N:M says, else half", ge=0, lt=1)
    pattern: str = option("unstructured", "where zeros stand: unstructured, N:M as in 2:4, or blocks as in 4x1")
    criterion: str = option(
        "auto",
        "which go: the smallest, those that add least, those best made up for (auto, with data)",
        choices=("auto", "magnitude", "activation", "obs"),
    )
    scope: str = option(
        "auto",
        "each layer loses its share, or all compete (auto, unless by magnitude)",
        choices=("auto", "layer", "global"),
    )
    recover: bool = option(True, "refit the weights that remain, and biases; needs data")
    ignore: str = option("", "layers that stay: names or operators, with * and ?, separated by commas")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text. Raises UsageError for options that contradict each other and names of nothing."""
        pattern, share = self._pattern()
        ignored = self._ignored(model)
        refuse_quantized(ctx)
        ctx.get(Shapes)
        changes = Changes()
        found = prunable(
            ctx.nodes(*LAYERS), pattern, ignored, lambda node, why: ctx.missed("PRW001", node, f"stays dense: {why}")
        )
        if not found:
            ctx.missed("PRW002", None, "nothing was pruned: no layer has weights that can be")
            return changes
        criterion = self._criterion(ctx)
        if criterion != "magnitude" or (self.recover and _has_data(ctx)):
            found = _with_grams(found, ctx)
        notes: dict[str, Any] = {}
        for weights, part in zip(found, self._shares(found, pattern, share, criterion), strict=True):
            changes["layers pruned"] += self._prune(weights, pattern, part, criterion, ctx, notes)
        self._report(pattern, criterion, ctx, notes)
        return changes

    def _pattern(self) -> tuple[Pattern, float]:
        try:
            pattern = Pattern.parse(self.pattern)
        except ValueError as error:
            raise UsageError(str(error), where=f"{self.name}{{pattern}}") from error
        own = pattern.share
        if own is not None and self.sparsity not in (0, own):
            text = f"the pattern {pattern} makes {own:g} of the weights zero, not {self.sparsity:g}"
            raise UsageError(text, where=str(self), hint="leave out sparsity")
        if self.criterion == "obs" and not self.recover:
            text = "criterion=obs counts on the other weights being refit, so it needs recover=true"
            raise UsageError(text, where=str(self), hint="criterion=activation goes without")
        if self.scope == "global" and own is not None:
            text = f"with the pattern {pattern} every layer has the same share of zeros, so none can compete"
            raise UsageError(text, where=str(self), hint="leave out scope")
        return pattern, own if own is not None else self.sparsity or _HALF

    def _ignored(self, model: Model) -> set[Node]:
        found: set[Node] = set()
        for pattern in filter(None, (text.strip() for text in self.ignore.split(","))):
            named = {node for node in nodes(model) if is_named(node, pattern)}
            if not named:
                raise UsageError(f"no node and no operator is called {pattern!r}", where=f"{self.name}{{ignore}}")
            found |= named
        return found

    def _criterion(self, ctx: PassContext) -> str:
        has_data = _has_data(ctx)
        if self.criterion in ("auto", "magnitude") and self.recover and not has_data:
            text = "without calibration data the smallest weights go, and nothing makes up for them"
            ctx.missed("PRW003", None, text, "give a data set with --data")
        if self.criterion != "auto":
            return self.criterion
        return "magnitude" if not has_data else "obs" if self.recover else "activation"

    def _shares(self, found: list[Weights], pattern: Pattern, share: float, criterion: str) -> list[float]:
        """Return the share that each loses; what is not known to cost anything competes with nothing."""
        scope = ("layer" if criterion == "magnitude" else "global") if self.scope == "auto" else self.scope
        if scope == "layer" or pattern.share is not None:
            return [share] * len(found)
        result = dict.fromkeys(found, share)
        competing = [weights for weights in found if criterion == "magnitude" or weights.grams]
        scores = [weights.scores(criterion) for weights in competing]
        places = [weights.places for weights in competing]
        result.update(zip(competing, sparse.shares(scores, pattern, places, share), strict=True))
        return list(result.values())

    def _prune(
        self,
        weights: Weights,
        pattern: Pattern,
        share: float,
        criterion: str,
        ctx: PassContext,
        notes: dict[str, Any],
    ) -> bool:
        rows = weights.rows
        if pattern.holds(rows, weights.places, share):
            notes[weights.name] = {"weights": rows.size, "sparsity": _zeros(rows)}
            return False
        if not ctx.may_rewrite(weights.readers[0].node, f"make {share:.1%} of its weights zero"):
            return False
        found, error = weights.pruned(pattern, share, criterion, recover=self.recover)
        notes[weights.name] = {"weights": rows.size, "sparsity": _zeros(found), "error": error}
        weights.write(ctx.edit, found, biases=self.recover)
        return True

    def _report(self, pattern: Pattern, criterion: str, ctx: PassContext, notes: dict[str, Any]) -> None:
        """Say how sparse the layers are, and who gains from it."""
        if not notes:
            return
        total = sum(note["weights"] for note in notes.values())
        zeros = sum(note["weights"] * note["sparsity"] for note in notes.values())
        gains = "; ".join(filter(None, (_DENSE, _KERNELS.get(str(pattern)))))
        ctx.notes[self.name] = {
            "pattern": str(pattern),
            "criterion": criterion,
            "sparsity": zeros / total,
            "layers": notes,
            "gains": gains,
        }
        least, most = (choose(notes, key=lambda name: notes[name]["sparsity"]) for choose in (min, max))
        text = f"{zeros / total:.1%} of the weights of {len(notes)} layers are zero"
        if notes[least]["sparsity"] < notes[most]["sparsity"]:
            text += f", from {notes[least]['sparsity']:.1%} ({least}) to {notes[most]['sparsity']:.1%} ({most})"
        ctx.missed("PRW005", None, f"{text}; {gains}")


def _has_data(ctx: PassContext) -> bool:
    return ctx.runner is not None and ctx.runner.has_data


def _with_grams(found: list[Weights], ctx: PassContext) -> list[Weights]:
    """Return the weights with the Gram matrices of what their layers read, all from one run over the data."""
    wanted = [
        requests(weights, ctx.edit.model.graph, lambda node, why: ctx.missed("PRW004", node, why)) for weights in found
    ]
    statistics = ctx.statistics([request for asked in wanted for request in asked])
    return [known(weights, asked, statistics) for weights, asked in zip(found, wanted, strict=True)]


def _zeros(rows: np.ndarray[Any, Any]) -> float:
    return float(np.mean(rows == 0))
