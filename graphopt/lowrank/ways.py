"""The ways in which each layer can be split, and what the network's outputs lose by each: measured on data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.cost import Cost
from graphopt.analysis.statistics import Gram
from graphopt.ir import Editor, Model
from graphopt.ir.query import shape_of
from graphopt.lowrank.forms import Candidate, Split, Splitter
from graphopt.lowrank.losses import Losses
from graphopt.lowrank.rewrite import replace
from graphopt.lowrank.sites import Site, site_of
from graphopt.pruning.budget import alignment
from graphopt.pruning.effects import Runs
from graphopt.pruning.matrices import WIDEST
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import resting_places

_SHARES = (0.75, 0.5)
"""Of what share of a layer's parameters the outputs' loss is measured; between these the layer's own error tells."""

_MEASURING = 5e11
"""Multiply-accumulates that may be spent on measuring losses, of all layers and of each choice."""

PART = 16
"""Samples that are run at a time."""

_FEWEST, _MOST = 8, 64
"""Samples that they are measured on; a choice is on as many as that work lets."""

_LENGTH = 64
"""What a size is taken for that the model leaves open: of a sequence mostly."""

_WAVE = 400 << 20
"""Bytes of Gram matrices that are held at a time."""


@dataclass(frozen=True)
class Way:
    """A candidate, and what the network's outputs are expected to lose by it, as a share of their variance."""

    candidate: Candidate
    loss: float


@dataclass(frozen=True)
class Limits:
    """``forms`` that may be used, and ``width``, the channels that the target computes at a time (1: any rank)."""

    forms: tuple[str, ...]
    width: int

    def align(self, site: Site) -> int:
        """Return what ranks of the site's splits are multiples of."""
        outputs = len(site.weights) // site.groups
        return alignment(min(outputs, site.weights[0].size), self.width)


def by_weights(sites: Sequence[Site], limits: Limits) -> list[list[Way]]:
    """Return the ways to split each site, from its weights alone."""
    found = [Splitter(site, None, forms=limits.forms).candidates(limits.align(site)) for site in sites]
    return [[Way(candidate, candidate.error) for candidate in candidates] for candidates in found]


def by_data(model: Model, sites: Sequence[Site], limits: Limits, runner: Runs) -> list[list[Way]]:
    """Return the ways to split each site of the main graph, with losses as measured on data held out.

    Factors are fitted to one part of the data and losses measured on another. Raises GraphOptError.
    """
    fitting, held = runner.folds()
    place = {node: index for index, node in enumerate(model.graph)}
    order = sorted(range(len(sites)), key=lambda index: place[sites[index].layer.node])
    in_order = [sites[index] for index in order]
    stops = resting_places(model, [site.layer.node for site in in_order])
    found: list[list[Way]] = []
    # On average half of the network is run for each.
    samples = min(_MOST, samples_for(model, len(_SHARES) * len(sites), 0.5))
    with Relay(held, model, PART, samples) as relay:
        losses = Losses(model, relay)
        for wave in waves(in_order):
            grams = collect(model, wave, fitting)
            for site in wave:
                stop = stops[len(found)]
                if stop is not None:
                    losses.rest(stop)
                splitter = Splitter(site, grams.get(site), forms=limits.forms)
                found.append(_ways(model, site, splitter, limits, losses))
    by_site = dict(zip(order, found, strict=True))
    return [by_site[index] for index in range(len(sites))]


def _ways(model: Model, site: Site, splitter: Splitter, limits: Limits, losses: Losses) -> list[Way]:
    """Scale the errors of the candidates by what the outputs lose for an error of some of them."""
    candidates = splitter.candidates(limits.align(site))
    if not candidates:
        return []
    ratios: dict[float, float] = {}
    for share in _SHARES if losses.can_tell else ():
        probe = min(candidates, key=lambda item: (abs(item.parameters - share * site.parameters), item.error))
        if probe.error > 0 and probe.error not in ratios:
            changed = split_copy(model, {site: splitter.at(probe.form, probe.ranks)})
            ratios[probe.error] = losses.of(changed) / probe.error
    errors = sorted(ratios)
    known = [ratios[error] for error in errors]
    return [
        Way(item, item.error * float(np.interp(item.error, errors, known) if known else 1.0)) for item in candidates
    ]


def split_copy(model: Model, splits: Mapping[Site, Split]) -> Model:
    """Return a copy of the model, other weights shared, in which sites are split."""
    copy = model.clone()
    edit = Editor(copy)
    twins = {node.outputs[0].name: node for node in copy.graph if node.outputs}
    for site, split in splits.items():
        twin = site_of(twins[site.layer.node.outputs[0].name])
        assert isinstance(twin, Site)
        replace(edit, twin, split)
    return copy


def collect(model: Model, sites: Sequence[Site], runner: Runs) -> dict[Site, list[Gram]]:
    """Return the Gram matrices of the layers of those sites that can have them."""
    wanted = {site: site.requests() for site in sites if why_blind(site) is None}
    requests = dict.fromkeys(request for of_site in wanted.values() for request in of_site)
    statistics = runner.collect(model, list(requests)) if requests else {}
    return {
        site: [statistics[request] for request in of_site]
        for site, of_site in wanted.items()
        if all(request in statistics for request in of_site)
    }


def why_blind(site: Site) -> str | None:
    """Return why a site is split by its weights alone although there is data, None where it is not."""
    if site.weights[0].size > WIDEST:
        return f"{site.weights[0].size} inputs are too many for a Gram matrix"
    try:
        site.requests()
    except ValueError as error:
        return str(error)
    return None


def waves(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """Yield the sites in bundles whose Gram matrices fit into memory together."""
    bundle: list[Site] = []
    size = 0
    for site in sites:
        further = 8 * site.groups * site.weights[0].size ** 2 * len(site.layers) if why_blind(site) is None else 0
        if bundle and size + further > _WAVE:
            yield bundle
            bundle, size = [], 0
        bundle.append(site)
        size += further
    if bundle:
        yield bundle


def samples_for(model: Model, times: int, share: float) -> int:
    """Return on how many samples losses are measured so many ``times``, if a ``share`` of the network is run each."""
    macs = max(Cost.measure(model).total_macs, 1) * math.prod(_LENGTH for _ in _unknown_sizes(model))
    return max(_FEWEST, int(_MEASURING / (share * macs * max(times, 1))))


def _unknown_sizes(model: Model) -> set[str]:
    """Return the symbolic sizes of inputs, other than that of the batch, which costs count as 1."""
    shapes = [shape_of(value) or () for value in model.graph.inputs]
    return {str(size) for shape in shapes for size in shape[1:] if not isinstance(size, int)}
