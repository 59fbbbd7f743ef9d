"""Measure graphopt against other tools.

usage: python tools/bench.py simplify|quantize|scale|prune-structure [--model NAME]... [--tool NAME]... [--json FILE]
"""

from __future__ import annotations

import click
from bench_prune import prune_structure
from bench_quantize import quantize
from bench_scale import scale
from bench_simplify import simplify


@click.group(help=__doc__)
def bench() -> None:
    pass


bench.add_command(simplify)
bench.add_command(quantize)
bench.add_command(scale)
bench.add_command(prune_structure)

if __name__ == "__main__":
    bench()
