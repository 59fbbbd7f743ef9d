"""An editor that changes what a model takes and gives back: for cutting models up, which no optimization does."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from graphopt.errors import PassError
from graphopt.ir.edit import Editor
from graphopt.ir.query import Dim, graphs, rank_of


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

    def give(self, value: onnx_ir.Value) -> None:
        """Make an input of a computed value of the main graph, under its name and with any sizes; no output reads it.

        Raises PassError when its type is not known.
        """
        if value.dtype is None or not value.name:
            raise PassError("the type of this value is not known, so that no run can start from it", where=value.name)
        name, rank = value.name, rank_of(value)
        value.name = None
        self._names[name] -= 1
        value.name = self.new_name(f"{name}/Computed")
        given = onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(value.dtype),
            shape=None if rank is None else onnx_ir.Shape([None] * rank),
        )
        self._names[name] += 1
        self.model.graph.inputs.append(given)
        self.replace_uses(value, given)

    def set_outputs(self, values: Sequence[onnx_ir.Value]) -> None:
        """Make ``values``, all of the main graph, its outputs; what computed the others stays."""
        self.model.graph.outputs.clear()
        self.model.graph.outputs.extend(values)
        self._touch()

    def insert_switch(
        self,
        value: onnx_ir.Value,
        on: onnx_ir.Value,
        chain: Sequence[tuple[str, Sequence[onnx_ir.Value]]],
        readers: Sequence[tuple[onnx_ir.Node, int]] | None = None,
    ) -> None:
        """Let readers of ``value`` get what ``chain`` makes of it, whenever the bool[] input ``on`` is true.

        Each item of ``chain`` is an operator, ``domain::name`` outside ONNX's own, and its further inputs; the first
        reads ``value``, the others the result of the one before. ``readers`` are nodes and the indices of their inputs,
        None for everybody. ``value`` belongs to the main graph.
        """
        producer = value.producer()
        base = value.name or "value"
        if producer is not None:
            same = self.insert_after(producer, "Identity", [value], name=f"{base}/Switched", like=value)
        else:
            same = self.insert_before(self.model.graph[0], "Identity", [value], name=f"{base}/Switched", like=value)
        current, steps = same.outputs[0], []
        for operator, further in chain:
            domain, _, name = operator.rpartition("::")
            steps.append(onnx_ir.Node(domain, name, [current, *further], name=self.new_name(f"{base}/{name}")))
            current = steps[-1].outputs[0]
        copy = onnx_ir.Node("", "Identity", [same.outputs[0]], name=self.new_name(f"{base}/Identity"))
        branches = {"then_branch": steps, "else_branch": [copy]}
        attributes = {name: self._branch(name, nodes, value) for name, nodes in branches.items()}
        choice = self.insert_after(same, "If", [on], attributes, name=f"{base}/If", like=value)
        if readers is None:
            self.replace_uses(value, choice.outputs[0])
            self.set_input(same, 0, value)
        for node, index in readers or ():
            self.set_input(node, index, choice.outputs[0])

    def _branch(self, name: str, nodes: Sequence[onnx_ir.Node], like: onnx_ir.Value) -> onnx_ir.Attr:
        for node in nodes:
            node.outputs[0].name = self.new_name(f"{node.name}_output")
        result = nodes[-1].outputs[0]
        result.type = like.type
        return onnx_ir.AttrGraph(name, onnx_ir.Graph([], [result], nodes=nodes, name=self.new_name(name)))

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
