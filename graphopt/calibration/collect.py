"""One streaming run of a model over a data set for all the statistics that were asked for.

The values asked for become outputs of a copy of the model. They are read where the runtime computed them, without a
copy, which took a third of the time of ReduceMin and ReduceMax nodes inside the graph (EfficientNet-Lite0, onnxruntime
1.31, x86), and those lose NaN. Memory is that of the model, of the statistics, and of the values of one run: at most
``PART_BYTES`` where samples can be run in smaller parts, and where one sample alone has more than ``RUN_BYTES``, the
values are divided among several passes over the data. It does not depend on how much data there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from graphopt import io
from graphopt.analysis.statistics import Request, Statistics
from graphopt.calibration.checks import is_float
from graphopt.calibration.datasets import Dataset
from graphopt.calibration.observers import observer
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.ir.interface import InterfaceEditor
from graphopt.runtime import Session

Progress = Callable[[int, int | None], None]
"""Called after each batch with the number done and the number of all, None when that is not known."""


def collect(
    model: Model,
    requests: Iterable[Request],
    data: Dataset,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    diagnostics: DiagnosticSink | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Statistics:
    """Run ``model`` over ``data`` and return the statistics asked for, in the order of ``requests``."""
    asked = list(dict.fromkeys(requests))
    if not asked:
        return Statistics()
    values = list(dict.fromkeys(request.value for request in asked))
    copy = model.clone()
    copy.meta.update(model.meta)
    edit = InterfaceEditor(copy)
    found = {value.name: value for node in copy.graph for value in node.outputs}
    wanted = [found[name] for name in values if name in found]
    edit.set_outputs(wanted)
    session = Session(
        io.to_proto(copy).SerializeToString(),
        threads=os.cpu_count() or 1,
        config={"session.intra_op.allow_spinning": "0"},
    )
    observers = {request: observer(request) for request in asked}
    for number, feeds in enumerate(data):
        if number % shard[1] != shard[0]:
            continue
        results = session.run(feeds) if wanted else {}
        for request, item in observers.items():
            array = results[request.value] if request.value in results else feeds[request.value]
            if not is_float(array.dtype):
                raise UsageError(f"statistics are of floats; this value is {array.dtype}", where=request.value)
            array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
            low, high = float(array.min()), float(array.max())
            item.add(array, low, high)
        for item in observers.values():
            item.end_batch()
        if progress is not None:
            progress(number + 1, len(data) if data._length is not None else None)
    return Statistics((request, item.result()) for request, item in observers.items())
