"""Puts thin layers in the place of a layer."""

from __future__ import annotations

from graphopt.ir import Editor, Node
from graphopt.lowrank.forms import Split
from graphopt.lowrank.sites import Site


def replace(edit: Editor, site: Site, split: Split) -> list[Node]:
    """Write the thin layers of every layer of the site; returns their nodes, in order, layer by layer.

    The last thin layer is the old node with other inputs: it keeps its name, its output and the bias (for a MatMul, the
    Add behind it). The layers of a shared weight share the thin weights. Names are derived from the old ones, shapes of
    the values between are annotated. The model is valid afterwards.
    """
    raise NotImplementedError
