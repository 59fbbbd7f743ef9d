"""How long the thin layers of a split take beside the layer they replace.

On the machine that the model is meant for, networks with all layers split are timed kernel by kernel, one for each form
and a few sizes; between these sizes times are interpolated. Elsewhere a model of costs tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir import Editor, Model
from graphopt.ir.copies import numbered_copy
from graphopt.ir.query import attr
from graphopt.lowrank.costs import FORMS
from graphopt.lowrank.forms import Candidate, Split
from graphopt.lowrank.rewrite import replace
from graphopt.lowrank.sites import Site, site_of
from graphopt.quantization.measured import Timer

WORTH = 0.97
"""A split that takes more than this share of its layer's time is not worth it: the rest may be noise."""

_SIZES = 4
"""Candidates of each form and layer that are timed."""

_REPEATS = 3
"""How often a split is timed that seems to be slow."""

_BYTE = 4.0
"""Multiply-accumulates that take the time of writing and reading a byte of an activation, from the cache mostly."""


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds of all of the model, of its sites as they are, and of their candidates.

    Where they are not ``measured``, numbers that grow as they do stand for them, and those of all are not known.
    """

    measured: bool
    whole: float
    sites: Mapping[Site, float]
    splits: Mapping[tuple[Site, Candidate], float]

    def ratio(self, site: Site, candidate: Candidate) -> float:
        """Return the time of the thin layers over that of the site; 1 where the site takes none."""
        before = self.sites[site]
        return self.splits[site, candidate] / before if before > 0 else 1.0


def estimated(candidates: Mapping[Site, Sequence[Candidate]], width: int) -> Times:
    """Return times by a model of costs: multiply-accumulates of whole vectors, and what lies between thin layers.

    ``width`` is the number of channels that are computed at a time.
    """
    before = {site: float(site.macs) for site in candidates}
    after = {
        (site, item): item.macs * _padding(item.ranks, max(width, 1)) + _BYTE * 8 * _between(site, item)
        for site, items in candidates.items()
        for item in items
    }
    return Times(False, 0.0, before, after)


def _padding(ranks: Sequence[int], width: int) -> float:
    """Return by how much work grows when channels between thin layers fill up whole vectors."""
    return math.prod(-(-rank // width) * width / rank for rank in ranks) ** (1 / len(ranks))


def _between(site: Site, candidate: Candidate) -> float:
    """Return how many numbers thin layers hand on."""
    first, last, total = candidate.ranks[0], candidate.ranks[-1], 0
    for extent in site.extents:
        if candidate.form == "tucker":
            total += extent.batch * math.prod(extent.inputs) * first + extent.positions * last
        elif candidate.form == "spatial":
            total += extent.batch * extent.outputs[0] * extent.inputs[1] * first
        else:
            total += extent.positions * first * site.groups
    return total


class Clock:
    """Times splits of a model on this machine. Weights are drawn at random: no kernel's time depends on them."""

    def __init__(self, model: Model, sites: Sequence[Site], timer: Timer) -> None:
        self._timer = timer
        self._reference = numbered_copy(model)
        place = {node: index for index, node in enumerate(model.graph)}
        self._places = {site: tuple(place[layer.node] for layer in site.layers) for site in sites}

    def times(self, candidates: Mapping[Site, Sequence[Candidate]]) -> Times:
        """Time some candidates of each form and site, all sites at once, and interpolate between them."""
        known: dict[tuple[Site, str], dict[int, float]] = {}
        references = [self._timer.node_seconds(self._reference)]
        for chosen in _rounds(candidates):
            for site, seconds in self.seconds(chosen).items():
                of_form = known.setdefault((site, chosen[site].form), {})
                of_form[chosen[site].macs] = min(seconds, of_form.get(chosen[site].macs, math.inf))
            references.append(self._timer.node_seconds(self._reference))
        before = {site: self._least(references, site) for site in candidates}
        after = {
            (site, item): _interpolated(known[site, item.form], item.macs)
            for site, items in candidates.items()
            for item in items
        }
        return Times(True, min(sum(reference.values()) for reference in references), before, after)

    def seconds(self, chosen: Mapping[Site, Candidate]) -> dict[Site, float]:
        """Return the seconds of the thin layers of each site that is split."""
        copy, names = self._split(chosen)
        found = self._timer.node_seconds(copy)
        return {site: sum(found.get(name, 0.0) for name in names[site]) for site in chosen}

    def slow(self, chosen: Mapping[Site, Candidate]) -> dict[Site, float]:
        """Return the sites whose splits are not worth it, with their time over that of the site as it is.

        Other work on the machine makes single kernels look slow: a split is only that when it is so several times.
        """
        found = dict.fromkeys(chosen, math.inf)
        for _ in range(_REPEATS):
            after, reference = self.seconds(chosen), self._timer.node_seconds(self._reference)
            for site in found:
                found[site] = min(found[site], after[site] / (self._least([reference], site) or math.inf))
            found = {site: ratio for site, ratio in found.items() if ratio > WORTH}
            if not found:
                break
        return found

    def ratio(self, chosen: Mapping[Site, Candidate]) -> float:
        """Return the time of the whole model with splits over that of the model as it is."""
        return self._timer.latency_ratio(self._reference, self._split(chosen)[0])

    def _least(self, runs: Sequence[Mapping[str, float]], site: Site) -> float:
        return min(sum(seconds.get(f"node/{place}", 0.0) for place in self._places[site]) for seconds in runs)

    def _split(self, chosen: Mapping[Site, Candidate]) -> tuple[Model, dict[Site, list[str]]]:
        copy = self._reference.clone()
        edit, nodes, rng = Editor(copy), list(copy.graph), np.random.default_rng(0)
        names = {}
        for site, candidate in chosen.items():
            twin = site_of(nodes[self._places[site][0]])
            assert isinstance(twin, Site)
            thin = replace(edit, twin, _drawn(site, candidate, rng))
            names[site] = [str(node.name) for node in thin]
        return copy, names


def _rounds(candidates: Mapping[Site, Sequence[Candidate]]) -> list[dict[Site, Candidate]]:
    """Return which candidate of each site is timed together: all first forms, all second ones, in a few sizes each."""
    rounds: list[dict[Site, Candidate]] = [{} for _ in range(_SIZES * len(FORMS))]
    for site, items in candidates.items():
        forms = [[item for item in items if item.form == form] for form in FORMS]
        for number, of_form in enumerate(filter(None, forms)):
            for size, index in enumerate(np.linspace(0, len(of_form) - 1, _SIZES).round().astype(int)):
                rounds[number * _SIZES + size][site] = of_form[index]
    return [chosen for chosen in rounds if chosen]


def _interpolated(known: Mapping[int, float], macs: int) -> float:
    sizes = sorted(known)
    return float(np.interp(macs, sizes, [known[size] for size in sizes]))


def _drawn(site: Site, candidate: Candidate, rng: np.random.Generator) -> Split:
    """Return a split of random weights that do not let numbers grow or vanish much."""
    weights = []
    for shape in _shapes(site, candidate):
        widest = max(shape[0], math.prod(shape[1:]))
        weights.append(rng.standard_normal(shape) / math.sqrt(widest))
    return Split(candidate, tuple(weights), (None,) * len(site.layers))


def _shapes(site: Site, candidate: Candidate) -> list[tuple[int, ...]]:
    """Return the shapes of the thin weights, see :class:`graphopt.lowrank.forms.Split`."""
    outputs, inputs, *kernel = site.weights.shape
    first, last = candidate.ranks[0], candidate.ranks[-1]
    if site.layer.node.op_type != "Conv":
        turned = bool(attr(site.layer.node, "transB", 0))
        return [(first, inputs), (outputs, first)] if turned else [(inputs, first), (first, outputs)]
    points = [1] * len(kernel)
    if candidate.form == "spatial":
        return [(first, inputs, kernel[0], 1), (outputs, first, 1, kernel[1])]
    if candidate.form == "tucker":
        return [(first, inputs, *points), (last, first, *kernel), (outputs, last, *points)]
    return [(first * site.groups, inputs, *kernel), (outputs, first, *points)]
