r"""Models as text: ONNX's own text syntax, one value and one node a line, so that dumps diff line by line.

    <
       ir_version: 10,
       opset_import: ["" : 21]
    >
    main (
       float[N,8] x
    ) => (
       float[N,4] y
    )
    <
       float[8,4] w = ["location": "sha256-0fe1abd1a08215353c233d6e009613e95eec4253832a761af28ff37ac5a150c"],
       float[4] b = {0.0, 0.5, 1.0, -1.0},
       float[N,4] t
    >
    {
       [matmul] t = MatMul (x, w)
       y = Add (t, b)
    }

``onnx.parser.parse_model`` reads the dump of an ordinary model. A weight of more elements than asked for is written as
its shape and :func:`~graphopt.ir.tensors.tensor_hash`, in the form of a tensor with external data; everything else is
written out, so that ``fingerprint(parse(dump(model))) == fingerprint(model)`` for every model.

Elements of tensors stand as ONNX has them: numbers for the float, double, complex (two a number) and integer types, for
booleans 0 and 1, and for the other float types the bit pattern as an unsigned number.

Where ONNX's syntax has no form, this one adds:

- ``@{key: value, ...}`` behind a value, tensor, attribute, node or graph, with ``doc_string: "..."``,
  ``metadata_props: ["key": "value"]``, ``quantization_annotation: ["SCALE_TENSOR": "s"]`` (values) and
  ``device_configurations: [...]`` (nodes and the header of the model; the fields of ONNX's messages in order).
  A function has ``doc_string`` and ``metadata_props`` in its header.
- ``x"00ff"``, bytes in hexadecimal: in place of a string that is not printable UTF-8 text; in place of the elements of
  a tensor, or of a float, whose NaN has a payload, or of a tensor whose data does not fill its shape.
- ``float[N @"BATCH"] @"IMAGE"``: denotations of dimensions and types. ``?`` as a type: no type.
- ``sparse_tensor(float[3,4]) s = (float[2] {1.0, 2.0}, int64[2] {0, 5})``: a sparse tensor by values and indices, as an
  initializer or (name and ``=`` left out) as an attribute.
- Quotes around any name: domains, operators, attributes and subgraphs too. Type names for the types of 2, 4 and 6 bits;
  their elements are written one by one, not packed.

A text without header gets IR version 10 and opset 21. Nodes may stand in any order.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir.text._build import Builder
from graphopt.ir.text._lexer import Source
from graphopt.ir.text._parser import Parser
from graphopt.ir.text._print import print_model
from graphopt.ir.text._values import Resolver

__all__ = ["Resolver", "dump", "parse"]


def dump(model: ir.Model, *, weights: int = 16) -> str:
    """Return ``model`` as text, tensors of more than ``weights`` elements by shape and content hash.

    Raises ModelError when a tensor is known by its hash alone and is to be written out, OSError or ValueError when
    external data cannot be read.
    """
    return print_model(model, weights)


def parse(text: str, resolve: Resolver | None = None) -> ir.Model:
    """Return the model that ``text`` describes.

    ``resolve`` gets the hex sha256 of each tensor that the text gives by hash, and returns the tensor or raises
    KeyError. Without it these become :class:`~graphopt.ir.tensors.UnresolvedTensor`. Raises ModelError with line,
    column and a caret under the place when the text is wrong.
    """
    source = Source(text)
    parser = Parser(source, resolve)
    return Builder(source).model(*parser.model())
