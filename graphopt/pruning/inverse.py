"""Inverses of large positive definite matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 256
"""Rows up to which a triangular matrix is inverted at once."""


def inverse(matrix: NDArray[Any], dtype: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
    """Return the inverses of positive definite matrices [..., n, n], in ``dtype``.

    A = L Lᵀ, and A⁻¹ = L⁻ᵀ L⁻¹: half the work of solving for the identity, most of it products of matrices. (Inverting
    A itself block by block squares its condition.) L is computed in float64; its condition is the root of A's, so that
    float32 does for the rest. Raises numpy.linalg.LinAlgError for a matrix that is not positive definite.
    """
    root = _lower_inverse(np.linalg.cholesky(np.asarray(matrix, np.float64)).astype(dtype, copy=False))
    return np.asarray(root.swapaxes(-1, -2) @ root)


def _lower_inverse(lower: NDArray[Any]) -> NDArray[Any]:
    size = lower.shape[-1]
    if size <= _SMALL:
        return np.asarray(np.tril(np.linalg.inv(lower)))
    half = size // 2
    first, last = _lower_inverse(lower[..., :half, :half]), _lower_inverse(lower[..., half:, half:])
    found = np.zeros_like(lower)
    found[..., :half, :half], found[..., half:, half:] = first, last
    found[..., half:, :half] = -last @ lower[..., half:, :half] @ first
    return found
