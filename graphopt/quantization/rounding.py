"""Rounding weights to a grid so that a layer's output, not the weights, changes least."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.quantization.grid import Grid, IntArray, Real

Array = npt.NDArray[np.float64]


def round_to_grid(
    w: Real, gram: Real, grid: Grid, *, damping: float = 0.01, order: str = "gram", block: int = 128
) -> IntArray:
    """Return integers [O, K] for weights ``w`` [O, K] of inputs with Gram matrix ``gram`` [K, K]."""
    target, second = np.asarray(w, np.float64), np.asarray(gram, np.float64)
    width = target.shape[1]
    damped = second + np.eye(width) * (damping * np.trace(second) / width or 1.0)
    sequence = np.argsort(-np.diagonal(second), kind="stable") if order == "gram" else np.arange(width)
    back = sequence[::-1]
    # With H = R Rᵀ, R upper triangular, a column's share of the error depends on it and the columns before it only.
    factor = np.linalg.cholesky(damped[np.ix_(back, back)])[::-1, ::-1]
    scale, zero_point = grid.parameters(target.shape)
    scale, zero_point = np.broadcast_to(scale, target.shape), np.broadcast_to(zero_point, target.shape)
    result = np.zeros(target.shape, np.int64)
    left = np.zeros_like(target)
    for step, column in enumerate(sequence):
        wanted = target[:, column] + left[:, :step] @ factor[:step, step] / factor[step, step]
        steps = np.rint(wanted / scale[:, column]) + zero_point[:, column]
        result[:, column] = np.clip(steps, grid.qmin, grid.qmax)
        left[:, step] = target[:, column] - (result[:, column] - zero_point[:, column]) * scale[:, column]
    nearest = grid.quantize(target)
    better = row_errors(target, grid.dequantize(nearest), second) < row_errors(target, grid.dequantize(result), second)
    return np.where(better[:, None], nearest, result)


def row_errors(w: Real, w_hat: Real, gram: Real) -> Array:
    """Return the squared error [O] that ``w_hat`` [O, K] in place of ``w`` makes in each output."""
    change = np.asarray(w, np.float64) - w_hat
    return np.asarray(((change @ gram) * change).sum(axis=1), np.float64)


def output_error(w: Real, w_hat: Real, gram: Real) -> float:
    """Return the squared error of all outputs together, tr((w - ŵ) G (w - ŵ)ᵀ)."""
    return float(row_errors(w, w_hat, gram).sum())


def corrected_bias(w: Real, w_hat: Real, mean: Real, bias: Real | None) -> npt.NDArray[np.float32]:
    """Return the bias [O] that keeps the outputs' means, given the ``mean`` [K] of the inputs."""
    shift: npt.NDArray[Any] = (np.asarray(w, np.float64) - w_hat) @ np.asarray(mean, np.float64)
    return np.asarray(shift if bias is None else bias + shift, np.float32)
