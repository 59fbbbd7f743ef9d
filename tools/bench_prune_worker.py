"""Prune one model with calibration data in this process and print what it took, as one line of JSON.

usage: bench_prune_worker.py INPUT DATA OUTPUT PIPELINE

The time goes from file to file; graphopt is imported before the clock starts. Memory is the largest sum of anonymous
memory of this process and its children.
"""

from __future__ import annotations

import json
import sys
import time

from bench_memory import PeakMemory

import graphopt
from graphopt.analysis.cost import Cost


def main() -> None:
    source, data, target, pipeline = sys.argv[1:]
    with PeakMemory() as peak:
        start = time.perf_counter()
        result = graphopt.optimize(source, output=target, pipeline=pipeline, data=data)
        seconds = time.perf_counter() - start
    record = {
        "seconds": seconds,
        "peak_mb": peak.megabytes,
        "macs": Cost.measure(result.model).total_macs,
        "refit": sum(done.changes["refit"] for done in result.run.records),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
