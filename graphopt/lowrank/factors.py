"""The arithmetic of low-rank factors under a Gram matrix: principal parts, and two factors fitted in turn.

Of all Ŵ of rank r, ‖(W - Ŵ) G^½‖ is least for Ŵ = U Uᵀ W, where U holds the first r left singular vectors of W G^½:
the eigenvectors of W G Wᵀ. So neither G^½ nor its inverse is computed, and a singular G does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_Floats = NDArray[Any]  # of float32


@dataclass(frozen=True, eq=False)
class Principal:
    """``basis`` [m, k] are orthonormal columns U, ``rows`` [k, n] = Uᵀ W, ``power`` [k] falls: that of W x along each.

    ``moved`` [k, n] = Uᵀ W G. k is the smaller of m and n; with all of them U Uᵀ W is W.
    """

    basis: Array
    rows: Array
    moved: Array
    power: Array


def principal(matrix: Array, gram: Array | None) -> Principal:
    """Return the principal parts of ``matrix`` [m, n] for inputs of second moments ``gram`` [n, n] (None: identity)."""
    outer = None
    if len(matrix) > matrix.shape[1]:
        outer, matrix = np.linalg.qr(matrix)
    moved = matrix if gram is None else matrix @ gram
    power, inner = np.linalg.eigh(moved @ matrix.T)
    inner = inner[:, ::-1]
    basis = inner if outer is None else outer @ inner
    return Principal(basis, inner.T @ matrix, inner.T @ moved, np.maximum(power[::-1], 0.0))


@dataclass(frozen=True, eq=False)
class Shifted:
    """A layer whose K inputs are n features at s shifts, to be two layers of which the first is the same at all shifts.

    Wanted are V [r, n] and H [O, r, s] with Ŵ[o, (n, s)] = Σ H[o, r, s] V[r, n]. ``gram`` [n, s, n, s] are the second
    moments of the inputs (None: identity), ``cross`` [O, n, s] = W G those of wanted outputs with inputs, ``power`` is
    E‖W x‖².
    """

    gram: Array | None
    cross: Array
    power: float

    def seen_through(self, first: Array) -> Shifted:
        """Return what is left of it behind a first layer V [r, n] of orthonormal rows: r features instead of n."""
        features, shifts = self.cross.shape[1:]
        rows = len(first)
        cross = np.stack([self.cross[:, :, shift] @ first.T for shift in range(shifts)], axis=2)
        if self.gram is None:
            return Shifted(None, cross, self.power)
        # Rows of one shift lie at equal distances, so that each product runs on the matrix as it is.
        wide = self.gram.reshape(features, shifts, -1)
        half = np.stack([first @ wide[:, shift] for shift in range(shifts)], axis=1)
        half = half.reshape(rows * shifts, features, shifts)
        both = np.empty((rows * shifts, rows, shifts))
        for shift in range(shifts):
            both[:, :, shift] = half[:, :, shift] @ first.T
        return Shifted(both.reshape(rows, shifts, rows, shifts), cross, self.power)

    def second(self) -> Array:
        """Return the best H [O, n, s] when all features are passed on: the regression of the wanted outputs."""
        if self.gram is None:
            return self.cross
        size = self.cross[0].size
        square = self.gram.reshape(size, size)
        found = np.linalg.solve((square + square.T) / 2, self.cross.reshape(-1, size).T)
        return np.asarray(found.T, np.float64, order="C").reshape(self.cross.shape)

    def improved(self, first: Array, second: Array, steps: int) -> Array:
        """Return a better V [r, n] for the given H [O, r, s], of orthonormal rows.

        The best V solves a system of r·n equations. Only products with its matrix are formed: ``steps`` of conjugate
        gradients from ``first``, in float32, with a preconditioner that takes shifts as independent of each other.
        """
        rows, shifts = second.shape[1:]
        flat = second.reshape(len(second), rows * shifts)
        pairs = (flat.T @ flat).reshape(rows, shifts, rows, shifts)
        wanted = np.tensordot(second, self.cross, ((0, 2), (0, 2)))
        # As shares of their means, numbers of any size have room in float32.
        size = float(np.einsum("asas->", pairs)) / (rows * shifts) or 1.0
        pairs, wanted = pairs / size, wanted / size
        left = np.linalg.inv(_regular(np.einsum("asbs->ab", pairs)))
        if self.gram is None:
            return orthonormal(left @ wanted)
        features = len(self.gram)
        size = float(np.einsum("asas->", self.gram)) / (features * shifts) or 1.0
        gram, wanted = self.gram / size, wanted / size
        right = np.linalg.inv(_regular(np.einsum("asbs->ab", gram)))
        # Σ V[r, n] G[n, s, m, t] P[r, s, q, t]: with the axes in this order both sums are products of plain matrices.
        wide = gram.transpose(0, 1, 3, 2).astype(np.float32).reshape(features, -1)
        narrow = pairs.transpose(2, 0, 1, 3).astype(np.float32).reshape(rows, -1)

        def product(direction: _Floats) -> _Floats:
            return narrow @ (direction @ wide).reshape(-1, features)

        sides = left.astype(np.float32), right.astype(np.float32)
        return orthonormal(_conjugate(product, sides, wanted.astype(np.float32), first.astype(np.float32), steps))


def _conjugate(
    product: Callable[[_Floats], _Floats], sides: tuple[_Floats, _Floats], wanted: _Floats, found: _Floats, steps: int
) -> Array:
    """Return what ``product`` makes nearly ``wanted`` of, from ``found`` on; preconditioned from both ``sides``."""
    left, right = sides
    rest = wanted - product(found)
    ahead = left @ rest @ right
    step, power = ahead, float(np.vdot(rest, ahead))
    for _ in range(steps):
        moved = product(step)
        curvature = float(np.vdot(step, moved))
        if power <= 0 or curvature <= 0:
            break
        length = np.float32(power / curvature)
        found, rest = found + length * step, rest - length * moved
        ahead = left @ rest @ right
        before, power = power, float(np.vdot(rest, ahead))
        step = ahead + np.float32(power / before) * step
    return found.astype(np.float64)


def orthonormal(rows: Array) -> Array:
    """Return orthonormal rows [r, n] that span what ``rows`` [r, n], r <= n, span; so do the first k those of k."""
    return np.ascontiguousarray(np.linalg.qr(rows.T)[0].T)


def even(size: int) -> Array:
    """Return an orthogonal matrix [size, size] whose entries all are of about the same size: Hartley's.

    Between two factors it shares out among all channels what the first ones hold, so that one scale of an integer type
    does for all of them.
    """
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return np.asarray((np.cos(angles) + np.sin(angles)) / np.sqrt(size), np.float64)


def _regular(square: Array) -> Array:
    mean = float(np.trace(square)) / len(square)
    return (square + square.T) / 2 + (1e-6 * mean or 1.0) * np.eye(len(square))
