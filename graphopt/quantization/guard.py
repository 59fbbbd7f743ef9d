"""A model is quantized once: passes that quantize refuse one that is quantized already."""

from __future__ import annotations

from typing import Protocol

from graphopt.errors import PassError
from graphopt.ir import Editor, Node
from graphopt.ir.edit import operator_key

QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        *(
            f"com.microsoft::{name}"
            for name in (
                "QuantizeLinear",
                "DequantizeLinear",
                "QGemm",
                "QAttention",
                "QEmbedLayerNormalization",
                "QMoE",
                "MatMulNBits",
                "MatMulBnb4",
                "MatMulInteger16",
                "MatMulIntegerToFloat",
                "DynamicQuantizeMatMul",
                "DynamicQuantizeLSTM",
                "GatherBlockQuantized",
            )
        ),
    }
)
"""The operators, by their key in the editor's index, that a quantized model has; also all of QLinear... there."""


class Context(Protocol):
    """What a refusal needs of a pass's context."""

    @property
    def edit(self) -> Editor:
        """The editor of the model."""
        ...

    def fail(self, message: str, node: Node, hint: str | None = None) -> PassError:
        """Return an error that names the pass and the node."""
        ...


def quantized_node(edit: Editor) -> Node | None:
    """Return a node that a float model does not have, nested graphs included; ``None`` for a float model."""
    found = sorted(key for key in edit.operators() if key in QUANTIZED or key.startswith("com.microsoft::QLinear"))
    return next(iter(edit.nodes(*found)), None)


def refuse_quantized(ctx: Context) -> None:
    """Raise PassError, naming a node and the way back, when the model is quantized already."""
    node = quantized_node(ctx.edit)
    if node is not None:
        raise ctx.fail(
            f"the model is quantized already: it has {operator_key(node)}",
            node,
            "start from the float model, or run strip-qdq first",
        )
