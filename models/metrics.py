"""Data sets and the task metric of the project's own Fashion-MNIST models, for ``--data`` and ``--metric``.

``models.metrics:fashion_test`` yields the labelled sample in batches, ``models.metrics:fashion_calibration`` training
images without labels, and ``models.metrics:fashion_accuracy`` scores outputs on ``fashion_test``, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SAMPLE = Path(__file__).with_name("fashion_sample.npz")
_BATCH = 50

Feed = dict[str, NDArray[np.float32]]


def fashion_test() -> Iterator[Feed]:
    """Yield ``{"images": float32[50,1,28,28]}``, pixels 0 to 255, over the 1,000 labelled test images."""
    return _batches("test_images")


def fashion_calibration() -> Iterator[Feed]:
    """Yield ``{"images": float32[N,1,28,28]}``, N up to 50, over 256 training images."""
    return _batches("calibration_images")


def fashion_accuracy(outputs: Sequence[dict[str, NDArray[np.float32]]]) -> float:
    """Return the share of right answers, 0 to 1, of the ``logits`` on the batches of :func:`fashion_test`.

    Raises:
        ValueError: there are more logits than labels.
    """
    logits = np.concatenate([batch["logits"] for batch in outputs])
    labels = _load()["test_labels"]
    if len(logits) > len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labelled images")
    return float((logits.argmax(axis=1) == labels[: len(logits)]).mean())


def _batches(key: str) -> Iterator[Feed]:
    images = _load()[key]
    for start in range(0, len(images), _BATCH):
        yield {"images": images[start : start + _BATCH, None].astype(np.float32)}


@cache
def _load() -> dict[str, NDArray[np.uint8]]:
    with np.load(_SAMPLE) as data:
        return {key: data[key] for key in data.files}
