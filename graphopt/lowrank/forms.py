"""The ways to split a layer into thin ones, what each saves and what it costs the layer's output.

With y = W x, G = E[x xᵀ] and W of K = C·kh·kw weights an output::

    matrix   W = A B                   Gemm, MatMul, Conv 1x1      r·(K + O) of O·K products
    channel  kxk to r, then 1x1        any Conv, also grouped      the same, r for each group
    spatial  kh x 1 to r, then 1 x kw  Conv of two spatial axes    r·(C·kh + O·kw)
    tucker   1x1, kxk, 1x1             Conv                        C·q + q·p·kh·kw + p·O
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.analysis.statistics import Gram
from graphopt.lowrank.sites import Array, Site

FORMS = ("matrix", "channel", "spatial", "tucker")
"""The forms that there are."""

DAMPING = 1e-6
"""Share of the mean diagonal of G that is added to its diagonal before anything is fitted to it."""


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
        self, site: Site, grams: Gram | Sequence[Gram] | None, *, damping: float = DAMPING, forms: Sequence[str] = FORMS
    ) -> None:
        """Take the Gram matrices of the site's layers (one for each of ``site.layers``; ``None``: plain SVD).

        G + ``damping`` · mean(diag G) · I is what factors are fitted to, so that directions that the data has nothing
        in are ordered as by plain SVD, and every system has one solution.
        """
        raise NotImplementedError

    def candidates(self, align: int = 1) -> list[Candidate]:
        """Return every way to split that saves MACs, ranks in multiples of ``align``: at most 16 of each form.

        Sorted by form, then by MACs; within a form no candidate has both more MACs and more error than another. Empty
        where nothing saves.
        """
        raise NotImplementedError

    def at(self, form: str, ranks: tuple[int, ...]) -> Split:
        """Return the factors of any ranks, whether they save or not. Raises ValueError for ranks that do not exist."""
        raise NotImplementedError
