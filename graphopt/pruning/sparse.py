"""Which weights of a layer become zero, and what the remaining ones become, so that its outputs change least.

With G = E[x xᵀ] of the layer's input x, weights ŵ in place of w make the squared error (w - ŵ) G (w - ŵ)ᵀ in an output.

- Once it is settled which weights are zero, the best values of the others are a least-squares problem for each output.
  Removing one weight after the other with the exact update of optimal brain surgeon, as SparseGPT does (Frantar &
  Alistarh 2023, section 3), ends there when every update reaches all that remain. Here conjugate gradients solve all
  outputs' problems at once, preconditioned by the diagonal.
- Which weights are zero is found by the alternating direction method of multipliers (Boyd et al. 2011, section 9.1): in
  turn the error is made least near the last sparse weights, and what comes out is made sparse again, held together
  ever more tightly. It works for any pattern. On convolutions of a residual network it left as little error as removing
  the cheapest weight, one at a time with exact inverses, in a fiftieth of the time.
- Without the remaining weights moving, |w| √E[x²] tells what a weight costs (Wanda; Sun et al. 2023, section 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.pruning.inverse import inverse

Real = NDArray[Any]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

DAMPING = 0.01
"""What is added to the diagonal of G, as a share of its mean, against fitting weights to too few inputs."""

_TIGHTNESS = tuple(0.05 * 2.0**power for power in range(6))
_TURNS = 8
"""How tightly the sparse weights and the others are held together, for so many turns each, where G has diagonal 1."""

_MOST_EMPTY = 0.95
"""The share of a layer that goes at most when layers compete."""


@dataclass(frozen=True)
class Pattern:
    """Where zeros stand in weights [O, K], K being (input channel, place in the kernel) in row-major order.

    Zeros come in blocks of ``rows`` neighbouring outputs by ``columns`` neighbouring input channels, at one place of
    the kernel. With ``of`` not zero, ``keep`` of every ``of`` neighbouring input channels stay; otherwise any block may
    go.
    """

    rows: int = 1
    columns: int = 1
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``unstructured``, ``N:M`` or ``RxC``. Raises ValueError for anything else."""
        numbers = re.fullmatch(r"([1-9]\d{0,3})([:x])([1-9]\d{0,3})", text)
        if text == "unstructured":
            return cls()
        if numbers is None:
            raise ValueError(f"{text!r} is no pattern: unstructured, N:M as in 2:4, or ROWSxCOLUMNS as in 4x1")
        first, second = int(numbers[1]), int(numbers[3])
        if numbers[2] == "x":
            return cls(first, second)
        if first >= second:
            raise ValueError(f"{text} removes nothing: N must be below M")
        return cls(keep=first, of=second)

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return "unstructured" if self.rows == self.columns == 1 else f"{self.rows}x{self.columns}"

    @property
    def share(self) -> float | None:
        """The share of weights that the pattern itself removes, ``None`` where that is free."""
        return 1 - self.keep / self.of if self.of else None

    def refusal(self, outputs: int, channels: int) -> str | None:
        """Return why a layer of so many outputs and input channels (of a group) cannot have the pattern, or None."""
        if outputs % self.rows:
            return f"its {outputs} outputs are no multiple of {self.rows}"
        width = self.of or self.columns
        return f"its {channels} input channels are no multiple of {width}" if channels % width else None

    def blocks(self, scores: Real, places: int) -> Array:
        """Return the sums of ``scores`` [O, K] over blocks: [O / rows, C / columns, places]."""
        outputs, width = scores.shape
        split = (outputs // self.rows, self.rows, width // places // self.columns, self.columns, places)
        return np.asarray(scores.reshape(split).sum(axis=(1, 3)))

    def chosen(self, scores: Real, places: int, share: float) -> Mask:
        """Return which weights [O, K] stay: of ``share`` of the blocks, those with the lowest scores, none does.

        ``places`` is the size of the kernel. Of equal blocks the first go. With N:M the share is the pattern's own.
        """
        sums = self.blocks(scores, places)
        if self.of:
            groups = sums.reshape(len(sums), -1, self.of, places)
            lowest = np.argsort(groups, axis=2, kind="stable")[:, :, : self.of - self.keep]
            stays = np.ones(groups.shape, np.bool_)
            np.put_along_axis(stays, lowest, False, axis=2)
            return stays.reshape(scores.shape)
        stays = ~_lowest(sums, round(sums.size * share))
        return np.repeat(np.repeat(stays, self.rows, axis=0), self.columns, axis=1).reshape(scores.shape)

    def holds(self, weights: Real, places: int, share: float) -> bool:
        """Tell whether as many of ``weights`` [O, K] are zero, and where, as the pattern asks for."""
        return not np.any(weights[~self.chosen(weights != 0, places, share)])


def _lowest(values: Array, count: int) -> Mask:
    """Return a mask of the ``count`` lowest values, of equal ones the first."""
    flat = values.reshape(-1)
    if not count:
        return np.zeros(values.shape, np.bool_)
    bound = np.partition(flat, count - 1)[count - 1]
    mask = flat < bound
    mask[np.flatnonzero(flat == bound)[: count - int(np.count_nonzero(mask))]] = True
    return np.asarray(mask.reshape(values.shape), np.bool_)


def magnitudes(w: Real) -> Array:
    """Return the squares of ``w`` [O, K], so that blocks of them add up."""
    return np.asarray(w, np.float64) ** 2


def activation_scores(w: Real, gram: Real) -> Array:
    """Return w² E[x²] [O, K], what each of ``w`` alone costs in its output; ``gram`` as in :func:`refit_kept`."""
    second, weights = _grouped(w, gram)
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    return np.asarray(weights**2 * diagonal[:, None]).reshape(w.shape)


def refit_scores(w: Real, gram: Real) -> Array:
    """Return w² / (G⁻¹)ⱼⱼ [O, K], what each of ``w`` alone costs once all others are refit; ``gram`` as there."""
    second, weights = _grouped(w, gram)
    left = inverse(_damped(second, DAMPING))
    return np.asarray(weights**2 / np.diagonal(left, axis1=1, axis2=2)[:, None]).reshape(w.shape)


def shares(scores: Sequence[Array], pattern: Pattern, places: Sequence[int], share: float) -> list[float]:
    """Return for each layer the share of its blocks that goes, so that ``share`` of all go, the lowest of all layers.

    ``scores`` [O, K] of different layers are compared. At most 95 % of a layer's blocks go, unless ``share`` is more.
    """
    if not scores:
        return []
    found = [pattern.blocks(one, size).reshape(-1) for one, size in zip(scores, places, strict=True)]
    most = max(share, _MOST_EMPTY)
    guarded = [np.where(_lowest(one, int(one.size * most)), one, np.inf) for one in found]
    everything = np.concatenate(guarded)
    gone = _lowest(everything, round(everything.size * share))
    parts = np.split(gone, np.cumsum([one.size for one in found])[:-1])
    return [float(part.mean()) for part in parts]


def select(w: Real, gram: Real, pattern: Pattern, places: int, share: float, *, damping: float = DAMPING) -> Mask:
    """Return which of the weights ``w`` [O, K] stay, for the least error with :func:`refit_kept` behind it.

    ``gram`` as there, ``places`` and ``share`` as in :meth:`Pattern.chosen`. The arithmetic is float32's: what the
    weights become does not depend on it.
    """
    second, weights = _grouped(w, gram)
    damped = _damped(second, damping)
    scale = np.sqrt(np.diagonal(damped, axis1=1, axis2=2))[:, None]
    unit = (damped / scale / scale.swapaxes(1, 2)).astype(np.float32)
    sparse = (weights * scale).astype(np.float32)
    pulled, dual, stays = sparse @ unit, np.zeros_like(sparse), np.ones(w.shape, np.bool_)
    for tightness in np.array(_TIGHTNESS, np.float32):
        solver = inverse(unit + tightness * np.eye(unit.shape[-1]), np.float32)
        for _ in range(_TURNS):
            near = (pulled + tightness * (sparse - dual)) @ solver + dual
            stays = pattern.chosen((near * near).reshape(w.shape), places, share)
            sparse = near * stays.reshape(near.shape)
            dual = near - sparse
        dual /= 2  # what is kept is the multiplier, the product of the two
    return stays


def refit_kept(
    w: Real, gram: Real, kept: Mask, *, damping: float = DAMPING, tolerance: float = 1e-4, most: int = 200
) -> Array:
    """Return the weights [O, K], zero where not ``kept``, that change what ``w`` gives least: float64.

    ``gram`` is E[x xᵀ] of the inputs, [K, K], or [groups, K, K] where the rows of ``w`` are split among groups of
    inputs. ``damping``, as a share of the mean diagonal, pulls towards the old weights. It ends when what is left to
    gain falls below the square of ``tolerance`` as a share of each output's power, or after ``most`` steps.
    """
    second, weights = _grouped(w, gram)
    damped, free = _damped(second, damping), kept.reshape(weights.shape)
    diagonal = np.diagonal(damped, axis1=1, axis2=2)[:, None]
    found = weights * free
    left = ((weights - found) @ damped) * free
    step = left / diagonal
    gain = (left * step).sum(axis=2, keepdims=True)
    enough = tolerance**2 * ((weights @ damped) * weights).sum(axis=2, keepdims=True)
    for _ in range(most):
        going = gain > enough
        if not going.any():
            break
        pushed = (step @ damped) * free
        length = np.where(going, gain / _positive((step * pushed).sum(axis=2, keepdims=True)), 0.0)
        found += length * step
        left -= length * pushed
        before, gain = gain, (left * left / diagonal).sum(axis=2, keepdims=True)
        step = left / diagonal + gain / _positive(before) * step
    return found.reshape(w.shape)


def _positive(values: Array) -> Array:
    return np.where(values > 0, values, 1.0)


def _grouped(w: Real, gram: Real) -> tuple[Array, Array]:
    """Return the Gram matrices [groups, K, K] and the weights [groups, O / groups, K] in float64."""
    second = np.asarray(gram, np.float64).reshape(-1, *np.shape(gram)[-2:])
    return second, np.asarray(w, np.float64).reshape(len(second), -1, second.shape[-1])


def _damped(second: Array, damping: float) -> Array:
    """Return ``second`` with ``damping`` times the mean of its diagonal added to it, or 1 where all is zero."""
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    mean = diagonal.sum(axis=1) / np.maximum((diagonal > 0).sum(axis=1), 1)
    ridge = np.where(mean > 0, mean * damping, 1.0)
    return np.asarray(second + ridge[:, None, None] * np.eye(second.shape[-1]))
