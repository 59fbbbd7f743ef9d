"""Copies of a model that give out values from within it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphopt.ahead import core_count
from graphopt.analysis.statistics import Request
from graphopt.calibration.checks import is_float
from graphopt.calibration.datasets import Feeds
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import UsageError
from graphopt.ir import Graph, Model, Value, graphs, is_constant
from graphopt.ir.interface import InterfaceEditor
from graphopt.ir.query import is_read, rank_of
from graphopt.runtime import InputInfo, Session

_OPSET = 13
"""What a model that uses no operator of ONNX itself is given to measure sizes with."""


def within_reach(model: Model, requests: Iterable[Request], diagnostics: DiagnosticSink) -> list[Request]:
    """Return the requests, each once, for values that a run can give out.

    Values of nested graphs and of functions cannot be: a warning names each. Raises UsageError for names that the model
    does not have, and for constants.
    """
    reach = _values(model)
    inner = {value.name for graph in graphs(model) if graph is not model.graph for value in _computed(graph)}
    inner |= {value.name for f in model.functions.values() for node in f for value in node.outputs}
    kept, out_of_reach = [], set()
    for request in dict.fromkeys(requests):
        value = reach.get(request.value)
        if value is not None and not (is_constant(value) and not value.is_graph_input()):
            kept.append(request)
        elif value is not None or _is_initializer(model, request.value):
            raise UsageError("a constant has no statistics over data", where=request.value)
        elif request.value in inner:
            out_of_reach.add(request.value)
        else:
            raise UsageError("the model has no such value", where=request.value)
    for name in sorted(out_of_reach):
        text = "no statistics: it is inside a nested graph or a function, where no run can read it"
        hint = "inline-if and inline-functions bring such values out"
        diagnostics.add(Diagnostic(Severity.WARNING, "CALIB001", text, name, hint, "calibration"))
    return kept


def _is_initializer(model: Model, name: str) -> bool:
    return any(name in graph.initializers for graph in graphs(model))


def _values(model: Model) -> dict[str, Value]:
    return {value.name: value for value in (*model.graph.inputs, *_computed(model.graph)) if value.name}


def _computed(graph: Graph) -> list[Value]:
    return [value for node in graph for value in node.outputs]


class Tapped:
    """A copy of ``model`` whose outputs are the named values, and which computes nothing else.

    The values that are ``given`` become inputs. ``inside`` are the names that are computed; the others are inputs.
    ``loose``: sizes that the model notes are forgotten.
    """

    def __init__(self, model: Model, names: Sequence[str], given: Sequence[str] = (), *, loose: bool = False) -> None:
        self.model = model.clone()
        self.model.meta.update(model.meta)
        computed = {value.name: value for value in _computed(self.model.graph)}
        self.inside = [name for name in names if name in computed and name not in given]
        self.names = list(names)
        self._edit = InterfaceEditor(self.model)
        self._edit.set_outputs([])
        for name in given:
            if name in computed:
                self._edit.give(computed[name])
        self._edit.set_outputs([computed[name] for name in self.inside])
        for name in self.inside:
            # What an analysis noted of a value is not needed, and the runtime would hold it against the model.
            self._edit.annotate(computed[name], None, None)
        self._sweep(bool(given))
        if loose:
            self._forget_sizes(computed.values())

    def _sweep(self, given: bool) -> None:
        for node in reversed(list(self.model.graph)):
            self._edit.erase_dead(node)
        for value in list(self.model.graph.inputs) if given else ():
            if not is_read(value):
                self._edit.remove_graph_input(value)
        self._edit.strip_notes()

    def _forget_sizes(self, computed: Iterable[Value]) -> None:
        for value in computed:
            self._edit.annotate(value, value.dtype, None)
        for value in self.model.graph.inputs:
            self._edit.set_input_shape(value, [None] * (rank_of(value) or 0))

    def session(self, *, floats: bool = True, threads: int | None = None) -> Session | None:
        """Return a session on ``threads`` (default: all) that gives out the values, None where all are inputs.

        Raises UsageError for one that is no float tensor unless ``floats`` is False, ModelError and TargetError.
        """
        if not self.inside:
            return None
        # Threads that wait by spinning would take the cores that the statistics are computed on.
        config = {"session.intra_op.allow_spinning": "0"}
        session = session_of(self.model, optimize=True, threads=threads or core_count(), config=config)
        for info in session.outputs if floats else ():
            check_float(info)
        return session

    def bytes_of(self, feeds: Feeds) -> dict[str, int]:
        """Run on ``feeds`` and return the bytes of each value that is computed, in float32, without keeping any."""
        if not self.inside:
            return {}
        counting = Tapped(self.model, self.inside)
        edit = counting._edit
        if "" not in counting.model.opset_imports:
            edit.set_opset(_OPSET)
        values = list(counting.model.graph.outputs)
        sizes = []
        for value in values:
            node = value.producer()
            assert node is not None
            sizes.append(edit.insert_after(node, "Size", [value]).outputs[0])
        edit.set_outputs(sizes)
        session = session_of(counting.model, threads=core_count())
        counts = session.run({name: array for name, array in feeds.items() if name in session.accepts})
        return {value.name or "": 4 * int(counts[size.name or ""]) for value, size in zip(values, sizes, strict=True)}


def check_float(info: InputInfo) -> None:
    """Raise UsageError unless this is a tensor of floats."""
    if info.kind != "tensor" or not is_float(info.dtype):
        found = info.kind if info.kind != "tensor" else "tensor of strings" if info.dtype == object else str(info.dtype)
        raise UsageError(f"statistics are for tensors of floats; this is {found}", where=info.name)
