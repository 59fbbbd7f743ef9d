"""Measure graphopt against other tools.

usage: python tools/bench.py COMMAND [OPTION]... (--help lists them)
"""

from __future__ import annotations

import click
from bench_npu import npu
from bench_prune import prune_structure
from bench_prune_accuracy import prune_accuracy
from bench_prune_speed import prune_speed
from bench_quantize import quantize
from bench_scale import scale
from bench_simplify import simplify
from bench_split import split


@click.group(help=__doc__)
def bench() -> None:
    pass


bench.add_command(simplify)
bench.add_command(quantize)
bench.add_command(scale)
bench.add_command(prune_structure)
bench.add_command(prune_accuracy)
bench.add_command(prune_speed)
bench.add_command(split)
bench.add_command(npu)

if __name__ == "__main__":
    bench()
