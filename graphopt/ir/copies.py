"""Copies of models to try something on."""

from __future__ import annotations

from onnx_ir import Model


def numbered_copy(model: Model) -> Model:
    """Return an independent copy, weights shared, whose main graph's nodes are called ``node/0``, ``node/1``, …

    Models may have nodes without a name, or several of one name; in the copy each can be told from all others.
    """
    copy = model.clone()
    for index, node in enumerate(copy.graph):
        node.name = f"node/{index}"
    return copy
