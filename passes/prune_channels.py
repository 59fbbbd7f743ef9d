"""Remove whole channels, neurons and attention heads, and rewire everything that depends on them.

Before, 64 channels between two convolutions, of which half are to go::

    h = Relu(Conv(x, W1[64, 3, 3, 3], b1[64]))
    y = Conv(h, W2[128, 64, 3, 3], b2)

After::

    h = Relu(Conv(x, W1[32, 3, 3, 3], b1[32]))
    y = Conv(h, W2[128, 32, 3, 3], b2)

What has to go together is one group: through a residual sum all that is added, through a Flatten a channel's pixels,
through attention a whole head. ``graphopt show MODEL --channels`` prints the groups and why other axes are pinned.

A second run takes its fraction of what the first one left. Run it before passes that fuse operators of other domains
(recognize-attention): what they compute from channels is not known, and their channels stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Channels, Group, HeadDimensions
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, nodes
from graphopt.ir.edit import operator_key
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.pruning.importance import CRITERIA, scores
from graphopt.pruning.rewire import remove
from graphopt.quantization.guard import quantized_node

_MOST_REASONS = 20
"""Reasons listed of a model with nothing to prune."""


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove channels, neurons and attention heads that matter least, and rewire what depends on them."""

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    preserves: ClassVar = ()

    channels: float = option(0.5, "fraction of the channels that every group keeps", gt=0, le=1)
    criterion: str = option("l1", "what tells how much a channel matters", choices=tuple(CRITERIA))
    min_channels: int = option(1, "channels that every group keeps at least", ge=1)
    ignore: str = option("", "layers whose channels all stay: names or operators, with * and ?, separated by commas")
    heads: str = option("heads", "what attention loses: heads, or dimensions of every head", choices=("heads", "dims"))

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text. Raises UsageError for a quantized model and for a pattern that matches nothing."""
        quantized = quantized_node(ctx.edit)
        if quantized is not None:
            raise UsageError(
                f"the model is quantized already: it has {operator_key(quantized)}",
                where=self.name,
                hint="prune the float model and quantize behind it, or run strip-qdq first",
            )
        ignored = self._ignored(model)
        analysis = ctx.get(HeadDimensions if self.heads == "dims" else Channels)
        if not analysis.groups:
            self._say_why_not(analysis, ctx)
            return Changes()
        removed = {}
        for group in analysis.groups:
            if any(use.node in ignored for use in group.writers):
                continue
            gone = lowest(scores(group, self.criterion), self._spared(group))
            if gone.any() and ctx.may_rewrite(_anchor(group), f"{gone.sum()} of {group.units} channels go"):
                removed[group.index] = gone
        if not removed:
            return Changes()
        shrunk = remove(model, ctx.edit, analysis, removed)
        count = sum(int(gone.sum()) for gone in removed.values())
        return Changes(groups=len(removed), channels=count, parameters=shrunk.parameters)

    def _spared(self, group: Group) -> int:
        """Return how many units of a group can go."""
        stay = min(group.units, max(self.min_channels, round(group.units * self.channels)))
        stay = -(-stay // group.multiple) * group.multiple
        return max(0, group.units - stay)

    def _ignored(self, model: Model) -> set[Node]:
        found: set[Node] = set()
        for pattern in filter(None, (text.strip() for text in self.ignore.split(","))):
            named = {node for node in nodes(model) if _is_called(node, pattern)}
            if not named:
                raise UsageError(
                    f"no node and no operator is called {pattern!r}",
                    where=f"{self.name}{{ignore}}",
                    hint="graphopt show MODEL --channels names the layers of each group",
                )
            found |= named
        return found

    def _say_why_not(self, analysis: Channels, ctx: PassContext) -> None:
        reasons = Counter(pin.why for pin in analysis.pins)
        listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(_MOST_REASONS))
        ctx.missed("PRUNE001", None, f"nothing can be pruned: {listed or 'no layer has weights with channels'}")


def lowest(numbers: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Return a mask of the ``count`` lowest numbers; of equal ones the later go first."""
    order = np.lexsort((-np.arange(len(numbers)), numbers))
    gone = np.zeros(len(numbers), np.bool_)
    gone[order[:count]] = True
    return gone


def _is_called(node: Node, pattern: str) -> bool:
    return fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern)


def _anchor(group: Group) -> Node:
    """Return the node by which messages name a group: a layer that produces or reads it."""
    uses = (*group.writers, *group.readers)
    if uses:
        return uses[0].node
    return next(use.node for member in group.members for use in member.axis.value.uses())
