"""Split layers into two or three thin ones where that saves work and time.

Before, a layer of 512 outputs whose 512 inputs mostly lie in 96 directions::

    y = Conv(x, W[512, 512, 3, 3], b)

After, as two of a quarter of the multiply-accumulates::

    h = Conv(x, V[96, 512, 3, 3])
    y = Conv(h, U[512, 96, 1, 1], b)

That is the form ``channel``. ``spatial`` makes of it a 3x1 and a 1x3 convolution, ``tucker`` a 1x1, a 3x3 and a 1x1;
a MatMul, a Gemm or a 1x1 convolution becomes two of its kind, ``matrix``.

With calibration data, factors are those that change the layer's outputs on that data least, not its weights. A budget
(macs, params, latency) is spent where it costs the outputs of the network least, over all layers and forms; then layers
are split in turn, each refit, on what reaches it in the network split so far, to what the original gave. No labels are
needed, and nothing is trained.

A split that is not measured to be faster on this machine is not made, nor any when the whole model is not faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.cost import Cost
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, Value
from graphopt.ir.edit import operator_key
from graphopt.ir.query import is_constant
from graphopt.lowrank.apply import split_by_data, split_by_weights, split_in_turn
from graphopt.lowrank.costs import FORMS
from graphopt.lowrank.forms import Candidate
from graphopt.lowrank.plan import BUDGETS, Goal, Plan, Planner, described
from graphopt.lowrank.sites import Site, site_of
from graphopt.lowrank.speed import Clock, Times, estimated
from graphopt.lowrank.trials import measured
from graphopt.lowrank.ways import Limits, Way, by_data, by_weights, why_blind
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.pruning.named import items
from graphopt.pruning.selection import OutOfReachError
from graphopt.quantization.guard import quantized_node
from graphopt.quantization.half import is_named

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_GOALS = (*BUDGETS, "energy", "ratio")
_WHOLES = ("model", "layers")
_SLOWEST = 0.99
"""Time of the whole model, over that before, above which a split model may as well be slower: nothing is split then."""

Ways = Mapping[Site, Sequence[Way]]


@dataclass(frozen=True, kw_only=True)
class SplitSvd(Pass):
    """Split a MatMul, Gemm or Conv into thin ones, fitted to the data, where that saves work and time."""

    name: ClassVar[str] = "split-svd"
    lossless: ClassVar[bool] = False
    preserves: ClassVar = ()

    macs: float = option(0.0, "fraction of the multiply-accumulates that stays at most", ge=0, le=1)
    params: float = option(0.0, "fraction of the parameters that stays at most", ge=0, le=1)
    latency: float = option(0.0, "fraction of the time on this machine, one thread, that stays at most", ge=0, le=1)
    energy: float = option(0.0, "fraction of each layer's output kept at least; 0.99 when nothing is given", ge=0, le=1)
    ratio: float = option(0.0, "fraction of each layer's multiply-accumulates that stays at most", ge=0, le=1)
    of: str = option("model", "what a budget is a fraction of: all, or the layers that may be split", choices=_WHOLES)
    forms: str = option("all", "forms to choose from: matrix, channel, spatial, tucker, separated by commas")
    only: str = option("", "layers that may be split: names or operators, with * and ?, separated by commas")
    ignore: str = option("", "layers that stay as they are: names or operators, with * and ?, separated by commas")
    align: int = option(-1, "ranks are multiples of this; -1: the target's vector width", ge=-1)
    refit: bool = option(True, "refit layers in turn where there is calibration data")
    speed: str = option(
        "auto",
        "what tells whether a split is faster: the clock, a model of costs, or nothing (any: split all the same); "
        "auto: the clock where this is the target",
        choices=("auto", "clock", "model", "any"),
    )

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text.

        Raises UsageError for a quantized model, a layer named that does not exist or cannot be split, several goals,
        and a budget that cannot be met.
        """
        quantized = quantized_node(ctx.edit)
        if quantized is not None:
            raise UsageError(
                f"the model is quantized already: it has {operator_key(quantized)}",
                where=self.name,
                hint="split the float model and quantize behind it, or run strip-qdq first",
            )
        kind, limits = self._kind(), Limits(self._forms(), self._width(ctx))
        ctx.get(Shapes)
        sites = self._sites(model, ctx)
        runner = ctx.runner if ctx.runner is not None and ctx.runner.has_data else None
        if runner is None and sites:
            ctx.warn("SPLIT003", None, "there is no calibration data: factors are those of plain SVD", "give --data")
        found = by_weights(sites, limits) if runner is None else by_data(model, sites, limits, runner)
        ways = dict(zip(sites, found, strict=True))
        for site in [site for site in sites if not ways[site]]:
            ctx.missed("SPLIT002", site.layer.node, "no form and rank saves work")
        clock = self._clock(model, sites, ctx)
        times = self._times(ways, clock, ctx.host_or_target.vector_width)
        measure = None if runner is None else partial(measured, model, runner=runner)
        plan = self._plan(Planner(ways, self._goal(model, kind, times), times, measure), clock)
        self._say(ctx, times, plan)
        if plan.ratio is not None and plan.ratio > _SLOWEST:
            ctx.warn("SPLIT006", None, f"nothing is split: the whole model would take {plan.ratio:.2f} of its time")
            return Changes()
        return self._split(model, ctx, plan)

    def _split(self, model: Model, ctx: PassContext, plan: Plan) -> Changes:
        chosen = {site: item for site, item in plan.chosen.items() if ctx.may_rewrite(site.layer.node, _text(item))}
        if not chosen:
            return Changes()
        before, refits = Cost.measure(model).parameters, []
        told = [described(site, item, plan.times.get(site)) for site, item in chosen.items()]
        ctx.notes[self.name] = {"ratio": plan.ratio, "splits": told}
        runner = ctx.runner
        if runner is None or not runner.has_data:
            split_by_weights(ctx.edit, chosen)
        elif self.refit:
            refits = split_in_turn(model, ctx.edit, chosen, runner, partial(_say_left, ctx))
            ctx.notes[self.name]["refit"] = [asdict(refit) for refit in refits]
        else:
            split_by_data(ctx.edit, model.clone(), chosen, runner)
        ctx.analyses.drop()
        saved = before - Cost.measure(model).parameters
        return Changes(layers=len(chosen), refit=len(refits), parameters=saved)

    def _kind(self) -> str:
        given = [kind for kind in _GOALS if getattr(self, kind)]
        if len(given) > 1:
            raise UsageError(f"one goal at a time, not {' and '.join(given)}", where=self.name)
        return given[0] if given else "energy"

    def _forms(self) -> tuple[str, ...]:
        names = FORMS if self.forms == "all" else tuple(items(self.forms))
        for name in names:
            if name not in FORMS:
                raise UsageError(
                    f"there is no form {name!r}", where=f"{self.name}{{forms}}", hint=f"there are {', '.join(FORMS)}"
                )
        return names

    def _width(self, ctx: PassContext) -> int:
        return self.align if self.align >= 0 else ctx.host_or_target.vector_width

    def _sites(self, model: Model, ctx: PassContext) -> list[Site]:
        """Return what may be split, with a remark on each layer that may not."""
        nodes = ctx.nodes(*_LAYERS)
        ignored = {node for pattern in items(self.ignore) for node in self._called(nodes, pattern, "ignore")}
        wanted = {pattern: self._called(nodes, pattern, "only") for pattern in items(self.only)}
        named = {node for of_pattern in wanted.values() for node in of_pattern}
        found: dict[Value, Site] = {}
        reasons: dict[Node, str] = {}
        for node in nodes:
            if node in ignored or (named and node not in named):
                continue
            site = site_of(node)
            if isinstance(site, str):
                reasons[node] = site
            elif any(layer.node.graph is not model.graph for layer in site.layers):
                reasons[node] = "it, or another layer of its weights, is in a branch, a loop or a function"
            elif not any(layer.node in ignored for layer in site.layers):
                found.setdefault(site.layer.weight, site)
        for pattern, of_pattern in wanted.items():
            if all(node in reasons for node in of_pattern):
                raise UsageError(
                    f"{pattern!r} cannot be split: {reasons[of_pattern[0]]}", where=f"{self.name}{{only={pattern}}}"
                )
        for node, why in reasons.items():
            if is_constant(node.inputs[1]):
                ctx.missed("SPLIT001", node, f"is not split: {why}")
        return list(found.values())

    def _called(self, nodes: list[Node], pattern: str, where: str) -> list[Node]:
        found = [node for node in nodes if is_named(node, pattern)]
        if not found:
            raise UsageError(
                f"no {', '.join(_LAYERS[:-1])} or {_LAYERS[-1]} is called {pattern!r}", where=f"{self.name}{{{where}}}"
            )
        return found

    def _clock(self, model: Model, sites: list[Site], ctx: PassContext) -> Clock | None:
        target = ctx.host_or_target
        can_time = target.is_host and ctx.runner is not None
        if not can_time and (self.latency or self.speed == "clock"):
            raise UsageError(f"nothing can be timed: this machine is not a {target.name}", where=self.name)
        if not can_time and self.speed == "auto":
            ctx.missed("SPLIT004", None, f"a model of costs tells what is faster: this machine is not a {target.name}")
        wanted = self.latency or self.speed in ("auto", "clock")
        return Clock(model, sites, ctx.runner) if can_time and wanted and ctx.runner is not None and sites else None

    def _times(self, ways: Ways, clock: Clock | None, width: int) -> Times | None:
        candidates = {site: [way.candidate for way in found] for site, found in ways.items()}
        if clock is not None:
            return clock.times(candidates)
        return None if self.speed == "any" else estimated(candidates, width)

    def _goal(self, model: Model, kind: str, times: Times | None) -> Goal:
        cost = Cost.measure(model)
        if kind == "macs" and cost.unknown:
            raise UsageError(
                f"the multiply-accumulates of {len(cost.unknown)} nodes are not known, {cost.unknown[0]} for one",
                where=self.name,
                hint="put the preset lossless, or fix-shapes, before it",
            )
        wholes = {"macs": cost.total_macs, "params": cost.parameters, "latency": times.whole if times else 0.0}
        return Goal(kind, getattr(self, kind) or 0.99, wholes.get(kind, 0.0), self.of == "layers")

    def _plan(self, planner: Planner, clock: Clock | None) -> Plan:
        try:
            return planner.plan(clock)
        except OutOfReachError as error:
            raise UsageError(
                f"{planner.goal.kind}={planner.goal.share:g} cannot be reached: the least that can stay is "
                f"{error.best:.3f}",
                where=self.name,
                hint="a smaller align, more forms, fewer layers in ignore, or speed=any let more go",
            ) from error

    def _say(self, ctx: PassContext, times: Times | None, plan: Plan) -> None:
        for site, ratio in plan.slow.items():
            how = "takes" if times is not None and times.measured else "would take, by a model of costs,"
            why = f"is not split: the fastest that saves work {how} {ratio:.2f} of its time"
            ctx.missed("SPLIT005", site.layer.node, why, hint="speed=any splits it all the same")
        for site in plan.chosen if ctx.runner is not None and ctx.runner.has_data else ():
            blind = why_blind(site)
            if blind is not None:
                ctx.missed("SPLIT007", site.layer.node, f"is split by plain SVD: {blind}")


def _say_left(ctx: PassContext, node: Node, why: str) -> None:
    ctx.missed("SPLIT008", node, f"its weights are not refit: {why}")


def _text(item: Candidate) -> str:
    return f"becomes thin layers of rank {' and '.join(map(str, item.ranks))} ({item.form})"
