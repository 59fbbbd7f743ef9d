"""Names for nodes: the format lets nodes go without, and lets several have the same."""

from __future__ import annotations

import onnx_ir

from graphopt.ir.query import nodes


def name_nodes(model: onnx_ir.Model) -> int:
    """Give every node without a name, or with one that an earlier node has, a name of its own; how many were given."""
    taken = {node.name for node in nodes(model) if node.name}
    seen: set[str] = set()
    given = 0
    for index, node in enumerate(nodes(model)):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.name or node.op_type}/{index}"
        while name in taken:
            name = f"{name}_"
        node.name = name
        taken.add(name)
        seen.add(name)
        given += 1
    return given
