"""Tables that Gather reads rows of (embeddings), stored in 8 bits with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir import DataType, Editor, Node, Value, attr, constant, opset, rank_of
from graphopt.ir.query import constant_size
from graphopt.quantization.grid import weight_grid

OPSET = 21
"""The opset from which DequantizeLinear takes a scale for each block, here a row."""


@dataclass
class Tables:
    """Stores tables; each once, however many Gathers read it."""

    edit: Editor
    min_size: int
    _done: dict[Value, tuple[Value, Value]] = field(default_factory=dict)

    def refusal(self, node: Node) -> str | None:
        """Say why the table of a Gather stays in float; empty when nobody would expect otherwise, ``None`` if it need
        not stay."""
        table, rank = node.inputs[0], rank_of(node.inputs[0])
        size = constant_size(table) or 0
        if table is None or table.dtype != DataType.FLOAT or size < max(self.min_size, 1):
            return ""
        if rank != 2 or attr(node, "axis", 0) % rank:
            return ""
        if opset(self.edit.model) < OPSET:
            return f"a table of 8 bits needs opset {OPSET}"
        if table.is_graph_output() or any((use.node.op_type, use.idx) not in READERS for use in table.uses()):
            return "others read its table in float, so that a copy would be needed"
        array = constant(table)
        return None if array is not None and np.isfinite(array).all() else "its table is not of finite numbers"

    def rewrite(self, node: Node) -> None:
        """Make a Gather read integers and scales, decoded behind it; ask :meth:`refusal` first."""
        table, output, ids = node.inputs[0], node.outputs[0], node.inputs[1]
        array = constant(table)
        assert table is not None and array is not None
        if table not in self._done:
            grid = weight_grid(array, "int8", axis=0)
            integers = self.edit.constant(grid.quantize(array).astype(np.int8), f"{table.name}_int8")
            self._done[table] = integers, self.edit.constant(grid.scale.reshape(-1, 1), f"{table.name}_scale")
        rows, scales = (self.edit.insert_before(node, "Gather", [value, ids]) for value in self._done[table])
        attributes = {"axis": -1, "block_size": array.shape[1]}
        decode = self.edit.insert_before(
            node, "DequantizeLinear", [rows.outputs[0], scales.outputs[0]], attributes, like=output
        )
        self.edit.replace(node, decode.outputs)


READERS = {("Gather", 0), ("MatMul", 1), ("Gemm", 1)}
"""Where integers may be read instead of floats, as (operator, input)."""
