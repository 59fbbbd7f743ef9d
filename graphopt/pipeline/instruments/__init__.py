"""Instruments: what watches a run from outside the passes. Each is an ``Instrument``, given to ``run_pipeline``."""

from graphopt.pipeline.instruments.checks import NumericCheck, Verify
from graphopt.pipeline.instruments.dumps import Dump
from graphopt.pipeline.instruments.measures import Snapshot, Statistics, Timing, measure
from graphopt.pipeline.instruments.reproducer import Repro, Reproducer, read_repro

__all__ = [
    "Dump",
    "NumericCheck",
    "Repro",
    "Reproducer",
    "Snapshot",
    "Statistics",
    "Timing",
    "Verify",
    "measure",
    "read_repro",
]
