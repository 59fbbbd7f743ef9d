"""Run a user's GraphSurgeon function as a step: ``surgeon{function=my_module:my_function}``.

The function takes an ``onnx_graphsurgeon.Graph`` and changes it in place or returns another.

Before::

    y = Relu(x)

After ``def rename(graph): graph.nodes[0].op = "Sigmoid"``::

    y = Sigmoid(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import UsageError
from graphopt.ir import Model, fingerprint
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class Surgeon(Pass):
    """Run a GraphSurgeon function of the user's over the model."""

    name: ClassVar[str] = "surgeon"
    lossless: ClassVar[bool] = False
    function: str = option("", "the function to run, as module:callable")
    cleanup: bool = option(False, "remove unused nodes and tensors, and sort the nodes, afterwards")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Hand the model to the function. Raises UsageError without a function, PassError when the function fails."""
        if not self.function:
            raise UsageError(
                "say which function to run", where="surgeon", hint="surgeon{function=my_module:my_function}"
            )
        if ctx.surgeon is None:
            raise UsageError("this run was started without GraphSurgeon", where="surgeon")
        before = fingerprint(model)
        changed = ctx.surgeon(model, self.function, self.cleanup)
        if fingerprint(changed) == before:
            return Changes()
        ctx.edit.replace_model(changed)
        return Changes({"models replaced": 1})
