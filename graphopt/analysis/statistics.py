"""What calibration data tells of a model's values: requests for statistics, and the statistics. They form a monoid:
those of two parts of the data merge into those of the whole.

Collecting them needs a runtime and is done elsewhere (:mod:`graphopt.calibration`); passes ask for them with
``ctx.statistics(requests)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, order=True)
class Unfold:
    """How a convolution reads its input: the patches whose Gram matrix is wanted. Sizes are per spatial axis.

    ``pads`` are ONNX's (all begins, then all ends); ``auto_pad`` has been resolved. ``groups`` splits the channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, order=True)
class Request:
    """One statistic of one value (by its name in the model).

    ``range``: smallest and largest number. ``moving``: averages over batches of the smallest and the largest.
    ``histogram``: counts on a grid of power-of-two width. ``channel_range`` and ``channel_mean``: by index along
    ``axis``. ``gram``: sums of x xᵀ and of x over all rows x along ``axis`` or over all patches of ``unfold``.
    """

    value: str
    kind: Literal["range", "moving", "histogram", "channel_range", "channel_mean", "gram"]
    axis: int = -1
    unfold: Unfold | None = None


class CalibrationData:
    """Marks, in ``Pass.needs``, a pass that asks for statistics and so cannot run without calibration data."""

    wants_data: ClassVar[bool] = True
