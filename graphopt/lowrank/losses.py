"""What the outputs of a network lose when layers are split: measured against the network as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import DataType, Model, TensorType, Value
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import Stop


class Losses:
    """Measures on the samples of ``relay``, whose model is ``model`` and which has not moved yet.

    Outputs of floats tell, and where there is none those of integers. Of probabilities, what they are made of tells:
    where one class is certain, probabilities hide large errors.
    """

    def __init__(self, model: Model, relay: Relay) -> None:
        self._outputs = _telling(model.graph.outputs)
        self._relay = relay
        runs = relay.run(self._outputs) if self._outputs else ()
        self._exact = [[np.array(found[name], np.float64) for name in self._outputs] for _, found in runs]
        self._power = [_variance([batch[index] for batch in self._exact]) for index in range(len(self._outputs))]

    @property
    def can_tell(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._exact)

    def rest(self, stop: Stop) -> None:
        """Run everything from here on from ``stop``."""
        self._relay.move(stop)

    def of(self, changed: Model) -> float:
        """Return the mean squared error of the outputs of ``changed``, as a share of their variance.

        It has the values rested on, by their names. What is not finite any more counts as all lost.
        """
        total, count = np.zeros(len(self._outputs)), np.zeros(len(self._outputs))
        for (_, found), exact in zip(self._relay.run(self._outputs, changed), self._exact, strict=True):
            for index, name in enumerate(self._outputs):
                total[index] += _error(np.asarray(found[name], np.float64), exact[index], self._power[index])
                count[index] += exact[index].size
        return float(np.mean(total / np.maximum(count, 1) / np.where(self._power, self._power, 1.0)))


def _telling(outputs: Sequence[Value]) -> tuple[str, ...]:
    numbers = [value for value in outputs if isinstance(value.type, TensorType) and value.dtype not in _NO_NUMBERS]
    floats = [value for value in numbers if value.dtype is not None and value.dtype.is_floating_point()]
    return tuple(dict.fromkeys(str(_raw(value).name) for value in floats or numbers))


_NO_NUMBERS = (None, DataType.STRING)
_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid", "Tanh")


def _raw(value: Value) -> Value:
    """Return what probabilities are computed from, ``value`` itself where it is none."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type in _SQUASHING and not node.domain else None
    return value if source is None or source.producer() is None else source


def _variance(arrays: Sequence[NDArray[np.float64]]) -> float:
    every = np.concatenate([array.ravel() for array in arrays])
    finite = every[np.isfinite(every)]
    return float(np.var(finite)) if finite.size else 0.0


def _error(found: NDArray[np.float64], exact: NDArray[np.float64], power: float) -> float:
    if found.shape != exact.shape:
        return power * exact.size
    finite = np.isfinite(exact)
    error = found[finite] - exact[finite]
    kept = np.isfinite(error)
    return float((error[kept] ** 2).sum() + power * np.count_nonzero(~kept))
