"""The ways to split a layer into thin ones, what each saves and what it costs the layer's output.

With y = W x, G = E[x xᵀ] and W of K = C·kh·kw weights an output::

    matrix   W = A B                   Gemm, MatMul, Conv 1x1      r·(K + O) of O·K products
    channel  kxk to r, then 1x1        other Convs, also grouped   the same, r for each group
    spatial  kh x 1 to r, then 1 x kw  Conv of two spatial axes    r·(C·kh + O·kw)
    tucker   1x1 to q, kxk to p, 1x1   Conv of a larger kernel     C·q + q·p·kh·kw + p·O
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.statistics import Gram
from graphopt.ir.linear import Linear
from graphopt.ir.query import attr
from graphopt.lowrank.costs import FORMS, forms_of, full_ranks, macs_of, parameters_of
from graphopt.lowrank.fitting import ChannelFit, Moments, SharedFit
from graphopt.lowrank.sites import Array, Site
from graphopt.pruning.matrices import bias_of

MOST = 16
"""Candidates of a form at most."""

_RANKS = {"spatial": 7, "tucker": 4}
"""First ranks that are tried of the forms whose ranks take work, each of its own."""

_WORTH = {"spatial": 0.65, "tucker": 0.4}
"""Share of the MACs above which these are not tried: high ranks take long, and other forms have less error there."""

_SECOND_RANKS = (1.0, 1.3, 1.7)
"""Ranks of the second layer of a tucker form, as multiples of its share of the outputs; they take no work."""


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


class Splitter:
    """Splits one site; what is expensive is computed once."""

    def __init__(
        self,
        site: Site,
        grams: Gram | Sequence[Gram] | None,
        *,
        damping: float | None = None,
        forms: Sequence[str] = FORMS,
    ) -> None:
        """Take the Gram matrices of the site's layers (one for each of ``site.layers``; ``None``: plain SVD).

        G + ``damping`` · mean(diag G) · I is what factors are fitted to, so that directions that the data has nothing
        in are ordered as by plain SVD, and every system has one solution. By default :func:`damping_of` tells how much.
        """
        self._site = site
        self._forms = tuple(form for form in forms_of(site) if form in forms)
        self._moments = Moments.of(site, (grams,) if isinstance(grams, Gram) else grams, damping)
        self._channel = ChannelFit(site, self._moments)
        self._shared: dict[tuple[str, int], SharedFit] = {}

    def candidates(self, align: int = 1) -> list[Candidate]:
        """Return every way to split that saves MACs, ranks in multiples of ``align``: at most MOST of each form.

        Sorted by form, then by MACs; within a form no candidate has both more MACs and more error than another. Empty
        where nothing saves.
        """
        found = []
        for form in self._forms:
            ranks = [ranks for ranks in self._ranks(form, max(align, 1)) if self._saves(form, ranks)]
            found += _undominated(self._candidate(form, chosen) for chosen in ranks)
        return found

    def at(self, form: str, ranks: tuple[int, ...]) -> Split:
        """Return the factors of any ranks, whether they save or not. Raises ValueError for ranks that do not exist."""
        if form not in forms_of(self._site):
            raise ValueError(f"{self._site.name} has no form {form!r}")
        full = full_ranks(self._site, form)
        if len(ranks) != len(full) or not all(1 <= rank <= most for rank, most in zip(ranks, full, strict=True)):
            raise ValueError(f"ranks {ranks} of {form} are not within 1 and {full}")
        candidate = self._candidate(form, ranks)
        fit = self._fit(form, ranks[0])
        factors = fit.factors(ranks)
        lost = (self._site.weights - fit.product(factors)).reshape(self._site.groups, -1, self._site.weights[0].size)
        biases = tuple(
            None if mean is None else bias_of(layer) + _alpha(layer) * (lost @ mean[:, :, None]).reshape(-1)
            for layer, mean in zip(self._site.layers, self._moments.means, strict=True)
        )
        return Split(candidate, tuple(self._stored(factor) for factor in factors), biases)

    def _stored(self, factor: Array) -> Array:
        """Return a thin weight [out, in, *kernel] as its layer's initializer holds it."""
        node = self._site.layer.node
        outputs_first = node.op_type == "Conv" or (node.op_type == "Gemm" and attr(node, "transB", 0))
        return np.ascontiguousarray(factor if outputs_first else factor.T)

    def _candidate(self, form: str, ranks: tuple[int, ...]) -> Candidate:
        site, total = self._site, self._channel.total
        error = self._fit(form, ranks[0]).error(ranks) / total if total > 0 else 0.0
        return Candidate(form, ranks, macs_of(site, form, ranks), parameters_of(site, form, ranks), error)

    def _fit(self, form: str, rank: int) -> ChannelFit | SharedFit:
        """Return the factors of a form; those that are tried have one fit, a higher ``rank`` has another."""
        if form not in ("spatial", "tucker"):
            return self._channel
        tried = max(self._evenly(form, 1, 1), default=1)
        most = tried if rank <= tried else full_ranks(self._site, form)[0]
        if (form, most) not in self._shared:
            self._shared[form, most] = SharedFit(self._site, self._moments, form, most, self._channel)
        return self._shared[form, most]

    def _saves(self, form: str, ranks: tuple[int, ...]) -> bool:
        return macs_of(self._site, form, ranks) < _WORTH.get(form, 1.0) * self._site.macs

    def _ranks(self, form: str, align: int) -> list[tuple[int, ...]]:
        """Return ranks to try: multiples of ``align``, evenly up to the last that saves."""
        site = self._site
        if form != "tucker":
            step = align // math.gcd(align, site.groups)
            return [(rank,) for rank in self._evenly(form, step, _RANKS.get(form, MOST))]
        outputs, inputs = map(int, site.weights.shape[:2])
        found: list[tuple[int, ...]] = []
        for first in self._evenly(form, align, _RANKS[form]):
            seconds = {round(share * first * outputs / inputs / align) * align for share in _SECOND_RANKS}
            found += [(first, second) for second in sorted(seconds) if 0 < second <= outputs]
        return found

    def _evenly(self, form: str, step: int, count: int) -> list[int]:
        """Return at most ``count`` first ranks, multiples of ``step`` that save."""
        outputs, inputs = map(int, self._site.weights.shape[:2])
        low, high = 0, full_ranks(self._site, form)[0] // step
        while low < high:
            middle = (low + high + 1) // 2
            rank = middle * step
            ranks = (rank, max(round(rank * outputs / inputs), 1)) if form == "tucker" else (rank,)
            low, high = (middle, high) if self._saves(form, ranks) else (low, middle - 1)
        picks = {math.ceil(low * index / count) for index in range(1, count + 1)}
        return [pick * step for pick in sorted(picks) if pick > 0]


def _alpha(layer: Linear) -> float:
    return float(attr(layer.node, "alpha", 1.0)) if layer.node.op_type == "Gemm" else 1.0


def _undominated(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates, by MACs, that have less error than all that have no more MACs."""
    found: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: (each.macs, each.error, each.ranks)):
        if not found or candidate.error < found[-1].error:
            found.append(candidate)
    return found
