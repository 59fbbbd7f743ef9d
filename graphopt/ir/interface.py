"""An editor that changes what a model takes and gives back: for cutting models up, which no optimization does."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from graphopt.ir.edit import Editor
from graphopt.ir.query import Dim, graphs


class InterfaceEditor(Editor):
    """Writes to the inputs, the outputs and the notes of a model, besides what every editor does."""

    def add_input(self, base: str, dtype: onnx_ir.DataType, shape: Sequence[Dim] | None) -> onnx_ir.Value:
        """Add an input to the main graph, ``shape`` None for an unknown rank; its name is derived from ``base``."""
        value = onnx_ir.Value(
            name=self.new_name(base),
            type=onnx_ir.TensorType(dtype),
            shape=None if shape is None else onnx_ir.Shape(shape),
        )
        self.model.graph.inputs.append(value)
        self._touch()
        return value

    def set_outputs(self, values: Sequence[onnx_ir.Value]) -> None:
        """Make ``values``, all of the main graph, its outputs; what computed the others stays."""
        self.model.graph.outputs.clear()
        self.model.graph.outputs.extend(values)
        self._touch()

    def strip_notes(self) -> None:
        """Remove metadata and doc strings from the model, its graphs and its nodes, and the producer's name."""
        model = self.model
        model.doc_string = model.producer_name = model.producer_version = model.domain = None
        model.metadata_props.clear()
        for graph in graphs(model):
            graph.doc_string = None
            graph.metadata_props.clear()
            for node in graph:
                node.doc_string = None
                node.metadata_props.clear()
        self._touch()

    def strip_functions(self) -> None:
        """Remove the model's functions, which must not be called any more."""
        self.model.functions.clear()
        self._touch()
