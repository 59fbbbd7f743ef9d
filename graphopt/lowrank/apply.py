"""Splitting the layers chosen, each fitted to what the network before gave, on what reaches it in the network so far.

A layer that reads something else than before is first fitted as a whole: that is the best it can do. What it does then
is split under the Gram matrix of what it reads now, which gives the best factors of that rank there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.analysis.statistics import Gram
from graphopt.ir import Editor, Model
from graphopt.lowrank.forms import Candidate, Splitter
from graphopt.lowrank.rewrite import replace
from graphopt.lowrank.sites import Site, site_of
from graphopt.lowrank.ways import collect, waves
from graphopt.pruning.effects import Runs
from graphopt.pruning.jobs import Declined, Job, refittable
from graphopt.pruning.matrices import write_rows
from graphopt.pruning.recovery import Refit, recover
from graphopt.pruning.refit import Fit

Chosen = Mapping[Site, Candidate]


def split_by_weights(edit: Editor, chosen: Chosen) -> None:
    """Split layers by their weights alone."""
    for site, candidate in chosen.items():
        _split(edit, site, candidate, None)


def split_by_data(edit: Editor, original: Model, chosen: Chosen, runner: Runs) -> None:
    """Split layers by what they read in ``original``, the model before any of them was split. Raises GraphOptError."""
    for wave in waves(list(chosen)):
        grams = collect(original, wave, runner)
        for site in wave:
            _split(edit, site, chosen[site], grams.get(site))


def split_in_turn(model: Model, edit: Editor, chosen: Chosen, runner: Runs, declined: Declined) -> list[Refit]:
    """Split layers in the order of the graph, each refit, and refit every layer behind. Raises GraphOptError.

    ``declined`` is told of layers that are not refit; those to be split are split all the same.
    """
    original = model.clone()
    original.meta.update(model.meta)
    alone = {site: item for site, item in chosen.items() if refittable(site.layer.node, declined) is None}
    in_turn = {_written(site): item for site, item in chosen.items() if site not in alone}
    starts = frozenset({*in_turn, *(str(layer.node.outputs[0].name) for site in alone for layer in site.layers)})
    split_by_data(edit, original, alone, runner)

    def write(job: Job, fit: Fit, gram: Gram) -> None:
        write_rows(edit, job.layer, fit.weights, fit.bias)
        candidate = in_turn.pop(str(job.layer.node.outputs[0].name), None)
        if candidate is not None:
            site = site_of(job.layer.node)
            assert isinstance(site, Site)
            _split(edit, site, candidate, gram)

    refits = recover(original, model, edit, {}, runner, declined=declined, starts=starts, write=write)
    split_by_data(edit, original, {site: item for site, item in chosen.items() if _written(site) in in_turn}, runner)
    return refits


def _written(site: Site) -> str:
    return str(site.layer.node.outputs[0].name)


def _split(edit: Editor, site: Site, candidate: Candidate, grams: Gram | list[Gram] | None) -> None:
    splitter = Splitter(site, grams, forms=(candidate.form,))
    replace(edit, site, splitter.at(candidate.form, candidate.ranks))
