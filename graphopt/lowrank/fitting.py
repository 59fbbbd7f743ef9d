"""Factors of a layer's weights in each form, and what is left of the layer's output power as error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.statistics import Gram
from graphopt.lowrank.factors import Principal, Shifted, even, orthonormal, principal
from graphopt.lowrank.sites import Array, Site
from graphopt.pruning.matrices import has_bias

_ROUNDS, _STEPS = {"spatial": 2, "tucker": 1}, 6
"""How often the first of two factors is improved, and steps of conjugate gradients each time."""

_SPARE = {"spatial": 1.25, "tucker": 1.1}
"""Features that two factors are fitted in, as a multiple of the largest rank."""

_DAMPING, _LEAST, _LARGEST = 0.3, 1e-6, 1.0
"""What :func:`damping_of` takes of (K / count)², and its bounds."""

_NOTHING = 1e-12
"""Share of the power under the damped matrix that is rounding."""

_WHOLE = 1024
"""Rows of the first factor's matrix up to which it is taken whole; of more, only the principal outputs are."""

_ENOUGH = 1e-10
"""Share of the power that is no error worth improving."""


def damping_of(width: int, count: int) -> float:
    """Return how much of the mean of its diagonal is added to a Gram matrix [K, K] of ``count`` inputs.

    The fewer inputs for each weight, the more of the matrix is chance, and the more a fit to it loses on other data.
    The square of K / count came out best on the convolutions of a VGG16, judged by other photos: K / count of 0.1, 0.5
    and 1.5 want about 0.01, 0.1 and 0.5.
    """
    return min(max(_DAMPING * (width / max(count, 1)) ** 2, _LEAST), _LARGEST)


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of what a site's layers read: ``gram`` [groups, K, K] with ``ridge`` on its diagonal.

    They are about the means where a layer has a bias to make up for these; ``means`` [groups, K] are then those of each
    layer, else None. ``gram`` is None without data, and then stands for the identity.
    """

    gram: Array | None
    ridge: float
    means: tuple[Array | None, ...]

    @classmethod
    def of(cls, site: Site, grams: Sequence[Gram] | None, damping: float | None) -> Moments:
        """Return the moments over all layers; ``damping`` times the mean of the diagonal is the ridge."""
        if grams is None:
            return cls(None, 0.0, (None,) * len(site.layers))
        total: Array | None = None
        means: list[Array | None] = []
        count = sum(gram.count for gram in grams)
        for layer, gram in zip(site.layers, grams, strict=True):
            square = gram.matrix / count
            mean = gram.mean if has_bias(layer) else None
            if mean is not None:
                square -= mean[:, :, None] * (mean * (gram.count / count))[:, None, :]
            total = square if total is None else total + square
            means.append(mean)
        assert total is not None
        if damping is None:
            damping = damping_of(total.shape[1], count)
        diagonal = np.einsum("gkk->gk", total)
        ridge = damping * float(diagonal.mean()) or 1.0
        diagonal += ridge
        return cls(total, ridge, tuple(means))


class ChannelFit:
    """W = A B for each group, B the layer of r outputs that reads the input and A the one behind it."""

    def __init__(self, site: Site, moments: Moments) -> None:
        """Compute the principal parts of each group's weights."""
        self._site = site
        rows = site.weights.reshape(site.groups, -1, site.weights[0].size)
        grams = [None] * site.groups if moments.gram is None else list(moments.gram)
        self.parts: list[Principal] = [principal(block, gram) for block, gram in zip(rows, grams, strict=True)]
        # Of the power under the damped matrix the ridge's part is no power of the data.
        power = sum(part.power - moments.ridge * np.square(part.rows).sum(axis=1) for part in self.parts)
        tails = np.maximum(power, 0.0)[::-1].cumsum()[::-1]
        self._tails = np.append(tails, 0.0)
        whole = sum(float(part.power.sum()) for part in self.parts)
        self.total = float(tails[0]) if tails[0] > _NOTHING * whole else 0.0
        """E‖W x‖² under the matrix as it was measured; 0 where that is rounding."""

    def error(self, ranks: tuple[int, ...]) -> float:
        """Return E‖W x - Ŵ x‖²."""
        return float(self._tails[ranks[0]])

    def factors(self, ranks: tuple[int, ...]) -> tuple[Array, ...]:
        """Return B [groups·r, C / groups, *kernel] and A [O, r, 1, ...]."""
        (rank,) = ranks
        weights = self._site.weights
        turn = even(rank)
        first = np.concatenate([turn @ part.rows[:rank] for part in self.parts])
        last = np.concatenate([part.basis[:, :rank] @ turn.T for part in self.parts])
        ones = (1,) * (weights.ndim - 2)
        return first.reshape(-1, *weights.shape[1:]), last.reshape(-1, rank, *ones)

    def product(self, factors: tuple[Array, ...]) -> Array:
        """Return Ŵ, shaped as the site's weights."""
        first, last = (factor.reshape(len(factor), -1) for factor in factors)
        groups, rank = self._site.groups, last.shape[1]
        blocks = last.reshape(groups, -1, rank) @ first.reshape(groups, rank, -1)
        return blocks.reshape(self._site.weights.shape)


class SharedFit:
    """Forms whose first layer is the same at several shifts: at the kernel's columns (spatial), at all of it (tucker).

    The first layer is looked for among the ``most`` principal parts of the input, seen at one shift, and a few more.
    """

    def __init__(self, site: Site, moments: Moments, form: str, most: int, channel: ChannelFit) -> None:
        """Reduce the input to as many features as a first layer of ``most`` outputs can be made of."""
        self._weights, self._form, self._ridge = site.weights, form, moments.ridge
        outputs, *_ = site.weights.shape
        kernel = site.kernel
        shifts = kernel[1] if form == "spatial" else math.prod(kernel)
        self._wide = site.weights.reshape(outputs, -1, shifts)
        features = self._wide.shape[1]
        size = min(features, math.ceil(_SPARE[form] * most))
        gram = None if moments.gram is None else moments.gram[0]
        flat = site.weights.reshape(outputs, -1)
        cross = channel.parts[0].basis @ channel.parts[0].moved
        whole = Shifted(
            None if gram is None else gram.reshape(features, shifts, features, shifts),
            cross.reshape(outputs, features, shifts),
            float(np.vdot(cross, flat)),
        )
        self._basis = orthonormal(self._start(whole, channel, size)[:size])
        self._problem = whole.seen_through(self._basis)
        self._plain = Shifted(None, self._wide, float(np.vdot(flat, flat))).seen_through(self._basis)
        self._found: dict[int, _Pair] = {}

    def _start(self, whole: Shifted, channel: ChannelFit, size: int) -> Array:
        """Return the principal parts [k, n] of the input at one shift, k >= ``size``, strongest first."""
        outputs, features, shifts = self._wide.shape
        wide = self._wide
        needed = math.ceil(max(1.5 * size, _WHOLE) / shifts)
        if needed < outputs and whole.gram is not None:
            wide = channel.parts[0].rows[:needed].reshape(-1, features, shifts)
        gram = None if whole.gram is None else np.einsum("nsms->nm", whole.gram)
        return principal(wide.transpose(0, 2, 1).reshape(-1, features), gram).rows

    def error(self, ranks: tuple[int, ...]) -> float:
        """Return E‖W x - Ŵ x‖²."""
        pair = self._pair(ranks[0])
        outer = pair.outer[:, : ranks[1]] if self._form == "tucker" else pair.outer
        second = _along(outer @ outer.T, pair.second) if self._form == "tucker" else pair.second
        missing = self._problem.power - pair.explained(outer.shape[1])
        moved = self._plain.seen_through(pair.first).cross
        distance = self._plain.power - 2 * np.vdot(moved, second) + np.vdot(second, second)
        return max(missing - self._ridge * max(float(distance), 0.0), 0.0)

    def factors(self, ranks: tuple[int, ...]) -> tuple[Array, ...]:
        """Return [r, C, kh, 1] and [O, r, 1, kw], or for tucker [q, C, 1, ...], [p, q, *kernel] and [O, p, 1, ...]."""
        _, inputs, *kernel = self._weights.shape
        pair = self._pair(ranks[0])
        turn = even(ranks[0])
        first = turn @ pair.first @ self._basis
        second = np.einsum("qr,ors->oqs", turn, pair.second, optimize=True)
        if self._form == "spatial":
            return first.reshape(-1, inputs, kernel[0], 1), second[:, :, None, :]
        ones = (1,) * len(kernel)
        outer = pair.outer[:, : ranks[1]] @ even(ranks[1]).T
        core = _along(outer.T, second).reshape(ranks[1], ranks[0], *kernel)
        return first.reshape(-1, inputs, *ones), core, outer.reshape(*outer.shape, *ones)

    def product(self, factors: tuple[Array, ...]) -> Array:
        """Return Ŵ, shaped as the site's weights."""
        first, second = factors[0].reshape(len(factors[0]), -1), factors[1]
        flat = second.reshape(*second.shape[:2], -1)
        whole = np.stack([flat[:, :, shift] @ first for shift in range(flat.shape[2])], axis=2)
        if self._form == "tucker":
            whole = _along(factors[2].reshape(factors[2].shape[:2]), whole)
        return whole.reshape(self._weights.shape)

    def _pair(self, rank: int) -> _Pair:
        """Return the factors with ``rank`` features between them: one is improved and the other fitted, in turn."""
        if rank not in self._found:
            wanted = self._outputs_for(rank)
            pair = self._fitted(np.eye(rank, len(self._basis)))
            for _ in range(_ROUNDS[self._form]):
                if self._problem.power - pair.explained(wanted) <= _ENOUGH * self._problem.power:
                    break
                outer = pair.outer[:, :wanted]
                inner = Shifted(self._problem.gram, _along(outer.T, self._problem.cross), self._problem.power)
                after = self._fitted(inner.improved(pair.first, _along(outer.T, pair.second), _STEPS))
                if after.explained(wanted) <= pair.explained(wanted):
                    break
                pair = after
            self._found[rank] = pair
        return self._found[rank]

    def _outputs_for(self, rank: int) -> int:
        """Return for how many of the principal outputs the first layer is improved: all that the second layer has."""
        if self._form == "spatial":
            return len(self._weights)
        outputs, inputs = map(int, self._weights.shape[:2])
        return min(max(round(rank * outputs / inputs), 1), outputs)

    def _fitted(self, first: Array) -> _Pair:
        small = self._problem.seen_through(first)
        second = small.second()
        outputs = len(second)
        if self._form == "spatial":
            return _Pair(first, second, np.eye(outputs), np.einsum("ors,ors->o", small.cross, second))
        power, outer = np.linalg.eigh(small.cross.reshape(outputs, -1) @ second.reshape(outputs, -1).T)
        return _Pair(first, second, outer[:, ::-1], power[::-1])


@dataclass(frozen=True, eq=False)
class _Pair:
    """V [r, R] and H [O, r, s]; ``power`` [O] is what H gives along each column of ``outer`` [O, O].

    For tucker these are the principal directions of what H gives, strongest first, else the outputs as they are.
    """

    first: Array
    second: Array
    outer: Array
    power: Array

    def explained(self, outputs: int) -> float:
        """Return how much of the wanted power is there with the first ``outputs`` columns."""
        return float(self.power[:outputs].sum())


def _along(matrix: Array, array: Array) -> Array:
    """Return ``matrix`` [m, O] times ``array`` [O, ...]."""
    return (matrix @ array.reshape(len(array), -1)).reshape(-1, *array.shape[1:])
