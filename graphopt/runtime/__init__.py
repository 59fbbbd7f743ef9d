"""Running models: sessions, comparison of two models, timing."""

from graphopt.runtime.bench import BenchResult, Spread, bench
from graphopt.runtime.callables import is_callable_spec, load_callable
from graphopt.runtime.compare import Comparison, MetricValues, OutputDifference, compare, differences, measure
from graphopt.runtime.session import InputInfo, Session, evaluate

__all__ = [
    "BenchResult",
    "Comparison",
    "InputInfo",
    "MetricValues",
    "OutputDifference",
    "Session",
    "Spread",
    "bench",
    "compare",
    "differences",
    "evaluate",
    "is_callable_spec",
    "load_callable",
    "measure",
]
