"""The IR: onnx-ir's classes behind one door, and the functions that read and write them.

Everything outside ``graphopt.ir`` and ``graphopt.io`` uses these names only. Reading goes through the classes and
``ir.query``; writing goes through :class:`Editor` alone, so that uses, names and indexes stay right.
"""

from onnx_ir import (
    Attr,
    AttributeType,
    DataType,
    ExternalTensor,
    Function,
    Graph,
    Model,
    Node,
    Shape,
    SymbolicDim,
    Tensor,
    TensorProtocol,
    TensorType,
    Value,
)

from graphopt.ir.edit import Editor
from graphopt.ir.fingerprint import fingerprint, tensor_hash
from graphopt.ir.query import (
    Dim,
    attr,
    constant,
    constant_size,
    graphs,
    is_constant,
    nodes,
    opset,
    rank_of,
    shape_of,
    static_shape,
    subgraphs,
)
from graphopt.ir.verify import INVARIANTS, verify

__all__ = [
    "INVARIANTS",
    "Attr",
    "AttributeType",
    "DataType",
    "Dim",
    "Editor",
    "ExternalTensor",
    "Function",
    "Graph",
    "Model",
    "Node",
    "Shape",
    "SymbolicDim",
    "Tensor",
    "TensorProtocol",
    "TensorType",
    "Value",
    "attr",
    "constant",
    "constant_size",
    "fingerprint",
    "graphs",
    "is_constant",
    "nodes",
    "opset",
    "rank_of",
    "shape_of",
    "static_shape",
    "subgraphs",
    "tensor_hash",
    "verify",
]
