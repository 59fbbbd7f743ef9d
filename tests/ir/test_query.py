"""Questions about a model: what is not plain from the function itself."""

from __future__ import annotations

import onnx

from graphopt.ir.query import NESTING


def test_the_operators_that_hold_graphs_are_those_of_onnx():
    graph_types = {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""]
    assert {s.name for s in schemas if any(a.type in graph_types for a in s.attributes.values())} == NESTING
