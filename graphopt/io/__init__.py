"""Reading and writing models: files, protobufs, and GraphSurgeon graphs (in :mod:`graphopt.io.surgeon`)."""

from graphopt.ir import Model  # noqa: F401, I001 - graphopt.ir has to be imported before onnx_ir is
from graphopt.io.exporter import save, to_proto
from graphopt.io.importer import from_proto, load

__all__ = ["from_proto", "load", "save", "to_proto"]
