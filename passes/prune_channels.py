"""Remove whole channels, neurons and attention heads, and rewire everything that depends on them.

Before, 64 channels between two convolutions, of which half are to go::

    h = Relu(Conv(x, W1[64, 3, 3, 3], b1[64]))
    y = Conv(h, W2[128, 64, 3, 3], b2)

After::

    h = Relu(Conv(x, W1[32, 3, 3, 3], b1[32]))
    y = Conv(h, W2[128, 32, 3, 3], b2)

What has to go together is one group: through a residual sum all that is added, through a Flatten a channel's pixels,
through attention a whole head. ``graphopt show MODEL --channels`` prints the groups and why other axes are pinned.

With calibration data, units go in the order in which the layers that read them can make up for them, where the outputs
of the network lose least for the cost that is saved; then every layer behind is refit, on what reaches it in the pruned
network, to what the original gave. No labels are needed, and nothing is trained.

A second run takes its fraction of what the first one left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels, Group, HeadDimensions
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, nodes
from graphopt.ir.edit import operator_key
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.pruning import activations, importance, prune
from graphopt.pruning.choose import Limits, Removed
from graphopt.pruning.costs import CostModel
from graphopt.pruning.effects import Ranking
from graphopt.pruning.prune import Budget, History
from graphopt.pruning.selection import OutOfReachError
from graphopt.quantization.guard import quantized_node
from graphopt.quantization.half import is_named

_MOST_REASONS = 20
"""Reasons listed of a model with nothing to prune."""

_CRITERIA = ("auto", prune.OBS, *activations.CRITERIA, *importance.CRITERIA)
_BUDGETS = ("macs", "params", "latency", "channels")


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove channels, neurons and attention heads that matter least, and rewire and refit what depends on them."""

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    preserves: ClassVar = ()

    macs: float = option(0.0, "fraction of the multiply-accumulates that stays at most", ge=0, le=1)
    params: float = option(0.0, "fraction of the parameters that stays at most", ge=0, le=1)
    latency: float = option(0.0, "fraction of the time on this machine, one thread, that stays at most", ge=0, le=1)
    channels: float = option(0.0, "fraction of the channels that stays; 0.5 when no budget is given", ge=0, le=1)
    criterion: str = option("auto", "how much a channel matters; auto: obs with data, else l1", choices=_CRITERIA)
    scope: str = option(
        "auto",
        "global spends the budget where it costs least, layer evenly; auto: layer for channels, else global",
        choices=("auto", "global", "layer"),
    )
    align: int = option(-1, "channels that stay are multiples of this; -1: the target's vector width", ge=-1)
    min_channels: int = option(1, "channels that every group keeps at least", ge=1)
    ignore: str = option("", "layers whose channels all stay: names or operators, with * and ?, separated by commas")
    floors: str = option("", "fractions that single layers keep at least: name or operator=fraction, with commas")
    heads: str = option("heads", "what attention loses: heads, or dimensions of every head", choices=("heads", "dims"))
    steps: int = option(1, "in how many steps, each ranked anew on the network refit after the last", ge=1, le=64)
    recover: bool = option(True, "refit what is left where there is calibration data")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text.

        Raises UsageError for a quantized model, a pattern that matches nothing, none or several budgets, a budget that
        cannot be met, and a criterion that needs data when there is none.
        """
        quantized = quantized_node(ctx.edit)
        if quantized is not None:
            raise UsageError(
                f"the model is quantized already: it has {operator_key(quantized)}",
                where=self.name,
                hint="prune the float model and quantize behind it, or run strip-qdq first",
            )
        wanted, ignored, criterion = self._budget(), self._ignored(model), self._criterion(ctx)
        floors = self._floors(model)
        changes, history, first = Changes(), History.of(model), 0.0
        for step in range(1, self.steps + 1):
            analysis = ctx.get(HeadDimensions if self.heads == "dims" else Channels)
            groups = [group for group in analysis.groups if not any(use.node in ignored for use in group.writers)]
            if not groups:
                self._say_why_not(analysis, ctx)
                break
            costs = wanted.costs(model, groups, self._seconds(model, ctx))
            first = first or costs.whole
            share = min(1.0, wanted.share ** (step / self.steps) * first / costs.whole)
            ranked = prune.rankings(model, groups, criterion, ctx.runner)
            kept = {group.index: max([0.0, *(floors.get(use.node, 0.0) for use in group.writers)]) for group in groups}
            removed = self._chosen(ranked, groups, wanted, share, costs, self._limits(ctx, kept), ctx)
            if not removed:
                break
            self._note(ctx, groups, removed)
            changes["groups"] = max(changes["groups"], len(removed))
            changes["channels"] += sum(int(gone.sum()) for gone in removed.values())
            changes["parameters"] += history.remove(model, ctx.edit, analysis, removed)
            ctx.analyses.drop()
            if self.recover and ctx.runner is not None and ctx.runner.has_data:
                ctx.get(Shapes)
                left = partial(_say_left, ctx)
                refits = history.recover(model, ctx.edit, ctx.runner, left)
                changes["refit"] = len(refits)
                ctx.notes.setdefault(self.name, {})["refit"] = [asdict(refit) for refit in refits]
        return changes

    def _budget(self) -> Budget:
        given = [kind for kind in _BUDGETS if getattr(self, kind)]
        if len(given) > 1:
            raise UsageError(f"one budget at a time, not {' and '.join(given)}", where=self.name)
        kind = given[0] if given else "channels"
        together = self.scope == "global" or (self.scope == "auto" and kind != "channels")
        return Budget(kind, getattr(self, kind) or 0.5, together)

    def _criterion(self, ctx: PassContext) -> str:
        has_data = ctx.runner is not None and ctx.runner.has_data
        if self.criterion == "auto":
            return prune.OBS if has_data else "l1"
        if self.criterion not in importance.CRITERIA and not has_data:
            raise UsageError(
                f"the criterion {self.criterion} needs calibration data",
                where=self.name,
                hint=f"give a data set with --data, or choose from {', '.join(importance.CRITERIA)}",
            )
        return self.criterion

    def _seconds(self, model: Model, ctx: PassContext) -> dict[str, float] | None:
        if not self.latency:
            return None
        if ctx.runner is None:
            raise UsageError("nothing here can measure latency", where=self.name)
        return ctx.runner.node_seconds(model)

    def _chosen(
        self,
        ranked: list[Ranking],
        groups: list[Group],
        wanted: Budget,
        share: float,
        costs: CostModel,
        limits: Limits,
        ctx: PassContext,
    ) -> Removed:
        """Return what goes (group index -> bool[units]) so that ``share`` of the costs stays."""
        known = {ranking.group.index for ranking in ranked}
        for group in groups:
            if group.index not in known:
                ctx.missed("PRUNE002", _anchor(group), "its channels stay: no layer tells what they are worth")
        try:
            removed = prune.pick(ranked, limits, wanted, costs, share)
        except OutOfReachError as error:
            raise UsageError(
                f"{wanted.kind}={wanted.share:g} cannot be reached: the least that can stay is "
                f"{error.best / costs.whole * wanted.share / share:.3f}",
                where=self.name,
                hint="a smaller align or min_channels, lower floors, or fewer layers in ignore, let more go",
            ) from error
        by_index = {group.index: group for group in groups}
        return {
            index: gone
            for index, gone in removed.items()
            if ctx.may_rewrite(_anchor(by_index[index]), f"{gone.sum()} of {len(gone)} channels go")
        }

    def _note(self, ctx: PassContext, groups: list[Group], removed: Removed) -> None:
        """Put what the groups keep into the report, a list for each step."""
        found = [
            {
                "written by": [use.node.name for use in group.writers],
                "channels": group.units,
                "kept": group.units - int(removed[group.index].sum() if group.index in removed else 0),
            }
            for group in groups
        ]
        ctx.notes.setdefault(self.name, {}).setdefault("groups", []).append(found)

    def _limits(self, ctx: PassContext, floors: dict[int, float]) -> Limits:
        align = self.align if self.align >= 0 else ctx.host_or_target.vector_width
        return Limits(align, self.min_channels, floors)

    def _ignored(self, model: Model) -> set[Node]:
        return {node for pattern in _items(self.ignore) for node in self._called(model, pattern, "ignore")}

    def _floors(self, model: Model) -> dict[Node, float]:
        found: dict[Node, float] = {}
        for item in _items(self.floors):
            pattern, _, text = item.rpartition("=")
            try:
                share = float(text)
            except ValueError:
                share = -1.0
            if not pattern or not 0 <= share <= 1:
                raise UsageError(
                    f"{item!r} is not a name, =, and a fraction from 0 to 1", where=f"{self.name}{{floors}}"
                )
            found |= dict.fromkeys(self._called(model, pattern.strip(), "floors"), share)
        return found

    def _called(self, model: Model, pattern: str, where: str) -> list[Node]:
        found = [node for node in nodes(model) if is_named(node, pattern)]
        if not found:
            raise UsageError(
                f"no node and no operator is called {pattern!r}",
                where=f"{self.name}{{{where}}}",
                hint="graphopt show MODEL --channels names the layers of each group",
            )
        return found

    def _say_why_not(self, analysis: Channels, ctx: PassContext) -> None:
        reasons = Counter(pin.why for pin in analysis.pins)
        listed = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(_MOST_REASONS))
        ctx.missed("PRUNE001", None, f"nothing can be pruned: {listed or 'no layer has weights with channels'}")


def _say_left(ctx: PassContext, node: Node, why: str) -> None:
    ctx.missed("PRUNE003", node, f"its weights are not refit: {why}")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _anchor(group: Group) -> Node:
    """Return the node by which messages name a group: a layer that produces or reads it."""
    uses = (*group.writers, *group.readers)
    if uses:
        return uses[0].node
    return next(use.node for member in group.members for use in member.axis.value.uses())
