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
network, to what the original gave. No labels are needed; layers are fit one or two at a time.

Where the target is this machine, what was cut is timed: a network that is not faster gets its channels back, and a
budget of latency is held against the time itself (``check``). A named target that is another machine switches that off,
as does ``check=off``; the result then hangs on the input, the options and the seed alone.

A second run takes its fraction of what the first one left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels, Group, HeadDimensions
from graphopt.analysis.cost import Cost
from graphopt.errors import GraphOptError, UsageError
from graphopt.ir import Model, Node
from graphopt.ir.edit import operator_key
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.pruning import activations, importance, prune
from graphopt.pruning.choose import Limits, Removed
from graphopt.pruning.effects import Ranking
from graphopt.pruning.named import anchor, called, fractions
from graphopt.pruning.prune import Budget, Choice, History
from graphopt.pruning.selection import OutOfReachError
from graphopt.pruning.timed import SMALLEST, Trials
from graphopt.quantization.guard import quantized_node
from graphopt.quantization.measured import Timer

_TIE = 0.005
"""A budget of latency that is missed by no more than this is met."""

_ALL_THE_SAME = "check=off prunes it all the same"
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
    check: str = option(
        "whole",
        "time the result where the target is this machine: whole undoes cuts of a network that is not faster, "
        "layers all that do not make their layers faster",
        choices=("whole", "layers", "off"),
    )
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
        ignored = called(model, self.ignore, f"{self.name}{{ignore}}")
        floors = fractions(model, self.floors, f"{self.name}{{floors}}")
        wanted, criterion = self._budget(), self._criterion(ctx)
        changes, history, first = Changes(), History.of(model), 0.0
        for step in range(1, self.steps + 1):
            analysis = ctx.get(HeadDimensions if self.heads == "dims" else Channels)
            groups = [group for group in analysis.groups if not any(use.node in ignored for use in group.writers)]
            if not groups:
                ctx.warn("PRUNE001", None, f"nothing can be pruned: {prune.reasons(analysis)}")
                break
            if step == 1:
                self._say_computed(analysis, ctx)
            costs = wanted.costs(model, groups, ctx.runner)
            first = first or costs.whole
            share = min(1.0, wanted.share ** (step / self.steps) * first / costs.whole)
            ranked = prune.rankings(model, groups, criterion, ctx.runner)
            self._say_unknown(ctx, groups, ranked)
            choice = Choice(wanted, ranked, costs, self._limits(ctx, groups, floors), share)
            goal = wanted.share if wanted.kind == "latency" and step == self.steps else None
            removed = self._allowed(ctx, groups, self._paying(ctx, choice, history, analysis, goal))
            if not removed:
                break
            self._note(ctx, groups, removed)
            changes["groups"] = max(changes["groups"], len(removed))
            changes["channels"] += sum(int(gone.sum()) for gone in removed.values())
            changes["parameters"] += history.remove(model, ctx.edit, analysis, removed)
            ctx.analyses.drop()
            if self.recover and ctx.runner is not None and ctx.runner.has_data:
                ctx.get(Shapes)
                refits = history.recover(model, ctx.edit, ctx.runner, partial(_say_left, ctx))
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

    def _paying(
        self, ctx: PassContext, choice: Choice, history: History, analysis: Channels, goal: float | None
    ) -> Removed:
        """Return what goes (group index -> bool[units]): what the budget asks for, as far as time shows that it pays.

        ``goal`` is the share of the latency that is to be met.
        """
        removed = self._chosen(choice)
        timer = self._timer(ctx, history.original)
        if not removed or timer is None:
            return removed
        groups = {ranking.group.index: ranking.group for ranking in choice.ranked}
        each = self.check == "layers"
        trials = Trials(ctx.edit.model, history.original, type(analysis), groups.values(), timer, goal, each)
        try:
            found = trials.run(removed, choice.removed)
        except GraphOptError as error:
            ctx.missed("PRUNE007", None, f"no cut was timed: {error.message}")
            return removed
        if not found.removed:
            ctx.warn(
                "PRUNE004", None, f"nothing goes: cut, the network takes {found.ratio:.2f} of its time", _ALL_THE_SAME
            )
        for unpaid in found.unpaid:
            was, now = 1e3 * unpaid.before, 1e3 * unpaid.after
            node = anchor(groups[unpaid.group])
            ctx.missed(
                "PRUNE005", node, f"its channels stay: its layers take {was:.3f} ms, cut {now:.3f}", _ALL_THE_SAME
            )
        if goal is not None and found.removed and found.ratio > goal + _TIE:
            ctx.warn("PRUNE006", None, f"the network takes {found.ratio:.2f} of its time, {goal:g} was asked for")
        ctx.notes.setdefault(self.name, {}).setdefault("latency", []).append(found.ratio)
        return found.removed

    def _timer(self, ctx: PassContext, model: Model) -> Timer | None:
        """Return what times cuts, None where they are not to be timed or cannot be."""
        if self.check == "off" or ctx.runner is None or Cost.measure(model).total_macs < SMALLEST:
            return None
        if not ctx.host_or_target.is_host:
            ctx.missed("PRUNE007", None, f"no cut was timed: this machine is not a {ctx.host_or_target.name}")
            return None
        return ctx.runner

    def _chosen(self, choice: Choice) -> Removed:
        try:
            return choice.removed()
        except OutOfReachError as error:
            wanted = choice.wanted
            raise UsageError(
                f"{wanted.kind}={wanted.share:g} cannot be reached: the least that can stay is "
                f"{error.best / choice.costs.whole * wanted.share / choice.share:.3f}",
                where=self.name,
                hint="a smaller align or min_channels, lower floors, or fewer layers in ignore, let more go",
            ) from error

    def _allowed(self, ctx: PassContext, groups: list[Group], removed: Removed) -> Removed:
        by_index = {group.index: group for group in groups}
        return {
            index: gone
            for index, gone in removed.items()
            if ctx.may_rewrite(anchor(by_index[index]), f"{gone.sum()} of {len(gone)} channels go")
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

    def _limits(self, ctx: PassContext, groups: list[Group], floors: dict[Node, float]) -> Limits:
        align = self.align if self.align >= 0 else ctx.host_or_target.vector_width
        kept = {group.index: max([0.0, *(floors.get(use.node, 0.0) for use in group.writers)]) for group in groups}
        return Limits(align, self.min_channels, kept)

    def _say_unknown(self, ctx: PassContext, groups: list[Group], ranked: list[Ranking]) -> None:
        known = {ranking.group.index for ranking in ranked}
        for group in groups:
            if group.index not in known:
                ctx.missed("PRUNE002", anchor(group), "its channels stay: no layer tells what they are worth")

    def _say_computed(self, analysis: Channels, ctx: PassContext) -> None:
        for node, why in prune.computed(analysis).items():
            hint = "the preset lossless, run before, makes constants of most that is computed"
            ctx.missed("PRUNE008", node, f"channels stay: {why}", hint)


def _say_left(ctx: PassContext, node: Node, why: str) -> None:
    ctx.missed("PRUNE003", node, f"its weights are not refit: {why}")
