"""What the forms of a split are, and what they cost."""

from __future__ import annotations

import math

from graphopt.lowrank.sites import Site

FORMS = ("matrix", "channel", "spatial", "tucker")
"""The forms that there are."""


def forms_of(site: Site) -> tuple[str, ...]:
    """Return the forms that a site can be split in."""
    if math.prod(site.kernel) == 1:
        return ("matrix",) if site.groups == 1 else ("channel",)
    if site.groups > 1:
        return ("channel",)
    return ("channel", "spatial", "tucker") if len(site.kernel) == 2 and min(site.kernel) > 1 else ("channel", "tucker")


def full_ranks(site: Site, form: str) -> tuple[int, ...]:
    """Return the ranks at which a form gives what the layer gave."""
    outputs, width = len(site.weights) // site.groups, int(site.weights[0].size)
    if form == "tucker":
        return int(site.weights.shape[1]), len(site.weights)
    if form == "spatial":
        return (min(int(site.weights.shape[1]) * site.kernel[0], outputs * site.kernel[1]),)
    return (min(outputs, width),)


def macs_of(site: Site, form: str, ranks: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of the thin layers in one run of the model, for all of ``site.layers``."""
    outputs, inputs, *kernel = map(int, site.weights.shape)
    first, last = ranks[0], ranks[-1]
    total = 0
    for extent in site.extents:
        here = extent.positions
        if form == "tucker":
            total += extent.batch * math.prod(extent.inputs) * inputs * first
            total += here * (first * last * math.prod(kernel) + last * outputs)
        elif form == "spatial":
            total += extent.batch * extent.outputs[0] * extent.inputs[1] * first * inputs * kernel[0]
            total += here * outputs * first * kernel[1]
        else:
            total += here * first * (site.groups * inputs * math.prod(kernel) + outputs)
    return total


def parameters_of(site: Site, form: str, ranks: tuple[int, ...]) -> int:
    """Return the elements of the thin weights."""
    outputs, inputs, *kernel = map(int, site.weights.shape)
    first, last = ranks[0], ranks[-1]
    if form == "tucker":
        return inputs * first + first * last * math.prod(kernel) + last * outputs
    if form == "spatial":
        return first * (inputs * kernel[0] + outputs * kernel[1])
    return first * (site.groups * inputs * math.prod(kernel) + outputs)
