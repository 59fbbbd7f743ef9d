"""Choices of splits measured as a whole.

What single splits cost the outputs does not add up: each takes power off what comes out, and the layers behind are as
short of it. So a few choices are made, and each network that comes of them is measured before one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir import Model
from graphopt.lowrank.apply import Chosen
from graphopt.lowrank.forms import Candidate, Split, Splitter
from graphopt.lowrank.losses import Losses
from graphopt.lowrank.sites import Site
from graphopt.lowrank.ways import PART, collect, samples_for, split_copy, waves
from graphopt.pruning.effects import Runs
from graphopt.pruning.relay import Relay


def measured(model: Model, choices: Sequence[Chosen], runner: Runs) -> list[float]:
    """Return what the outputs lose by each choice, as a share of their variance.

    Factors are fitted to one part of the data and losses measured on another. Raises GraphOptError.
    """
    fitting, held = runner.folds()
    splits = _splits(model, choices, fitting)
    with Relay(held, model, PART, samples_for(model, 1, 1.0)) as relay:
        losses = Losses(model, relay)
        if not losses.can_tell:
            return [0.0] * len(choices)
        copies = ({site: splits[site, item] for site, item in choice.items()} for choice in choices)
        return [losses.of(split_copy(model, copy)) for copy in copies]


def _splits(model: Model, choices: Sequence[Chosen], fitting: Runs) -> dict[tuple[Site, Candidate], Split]:
    # Gram matrices are collected again: those of all layers, or all candidates' factors, would not fit in memory.
    wanted = dict.fromkeys(pair for choice in choices for pair in choice.items())
    found: dict[tuple[Site, Candidate], Split] = {}
    for wave in waves(list(dict.fromkeys(site for site, _ in wanted))):
        grams = collect(model, wave, fitting)
        for site in wave:
            items = [item for other, item in wanted if other is site]
            splitter = Splitter(site, grams.get(site), forms=tuple({item.form for item in items}))
            found |= {(site, item): splitter.at(item.form, item.ranks) for item in items}
    return found
