"""The ways to split a layer into thin ones, what each saves and what it costs the layer's output.

With y = W x, G = E[x xᵀ] and W of K = C·kh·kw weights an output::

    matrix   W = A B                   Gemm, MatMul, Conv 1x1      r·(K + O) of O·K products
    channel  kxk to r, then 1x1        other Convs, also grouped   the same, r for each group
    spatial  kh x 1 to r, then 1 x kw  Conv of two spatial axes    r·(C·kh + O·kw)
    tucker   1x1 to q, kxk to p, 1x1   Conv of a larger kernel     C·q + q·p·kh·kw + p·O
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.lowrank.sites import Array, Site

FORMS = ("matrix", "channel", "spatial", "tucker")
"""The forms that there are."""


@dataclass(frozen=True)
class Candidate:
    """One way to split a site.

    ``ranks`` is (r,), for tucker (q, p): the channels between the thin layers. ``macs`` are of one run of the model,
    as ``site.macs``; ``parameters`` are the elements of the thin weights. ``error`` is E‖Wx - Ŵx‖² / E‖Wx‖² of exactly
    the factors that :meth:`Splitter.at` returns, about the means where a bias makes up for these; without data
    ‖W - Ŵ‖² / ‖W‖².
    """

    form: str
    ranks: tuple[int, ...]
    macs: int
    parameters: int
    error: float


@dataclass(frozen=True, eq=False)
class Split:
    """The thin layers of a candidate.

    ``weights`` are float64 in the order of the layers, each shaped as the initializer of its layer: [out, in / groups,
    *kernel] for a Conv, [in, out] for MatMul and Gemm ([out, in] with transB). ``biases`` are the biases float64[O] of
    the last thin layer for each of ``site.layers``, ``None`` to leave what there is.
    """

    candidate: Candidate
    weights: tuple[Array, ...]
    biases: tuple[Array | None, ...]


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
