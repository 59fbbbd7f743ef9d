"""``bench.py scale``: how time and memory grow, what start-up and verification cost, whether bytes repeat."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import onnx
import synthetic

WORKER = """
import json, sys, threading, time
from graphopt import optimize
from graphopt.pipeline.instruments import checks

verify, spent = checks.verify, [0.0]
def timed(*given):
    begin = time.process_time()
    verify(*given)
    spent[0] += time.process_time() - begin
checks.verify = timed

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))

peak, done = [0.0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], anonymous())

source, output = sys.argv[1], sys.argv[2]
optimize(sys.argv[3])  # what is paid once: caches of schemas, first sessions
thread = threading.Thread(target=watch)
thread.start()
spent[0], cpu, begin = 0.0, time.process_time(), time.perf_counter()
result = optimize(source, output=output)
seconds, share = time.perf_counter() - begin, spent[0] / (time.process_time() - cpu)
done.set()
thread.join()
print(json.dumps({"seconds": seconds, "verify": share, "anon_mb": peak[0], "nodes": len(list(result.model.graph))}))
"""


def measure(source: Path, output: Path, warm: Path) -> dict[str, float]:
    """Optimize in a process of its own: seconds from load to save, share of the verifier, peak of RssAnon in MB."""
    command = [sys.executable, "-c", WORKER, str(source), str(output), str(warm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def best(runs: int, source: Path, output: Path, warm: Path) -> dict[str, float]:
    """Return the fastest of several measurements."""
    return min((measure(source, output, warm) for _ in range(runs)), key=lambda fact: fact["seconds"])


def help_seconds() -> float:
    """Return the fastest of five runs of ``graphopt --help``."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "graphopt", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - begin)
    return min(times)


@click.command()
@click.option("--nodes", type=int, default=10_000, show_default=True, help="Size of the smaller network.")
@click.option("--most", type=int, default=100_000, show_default=True, help="Size of the largest network; 0: none.")
@click.option("--megabytes", type=int, default=2400, show_default=True, help="Weights of the heavy model; 0: none.")
@click.option("--runs", type=int, default=3, show_default=True, help="The fastest of so many counts.")
def scale(nodes: int, most: int, megabytes: int, runs: int) -> None:
    """Synthetic networks of growing size, gigabytes of weights, start-up, cost of verification, determinism."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = _network(folder, 240)
        one, two = _network(folder, nodes), _network(folder, 2 * nodes)
        first, second = (best(runs, path, folder / "out.onnx", warm) for path in (one, two))
        click.echo(f"{nodes} nodes: {first['seconds']:.2f} s; {2 * nodes}: {second['seconds']:.2f} s")
        click.echo(f"ratio: {second['seconds'] / first['seconds']:.2f}")
        click.echo(f"verification between passes: {100 * first['verify']:.1f} % of the run")
        digests = {_digest(measure(one, folder / f"same{i}.onnx", warm), folder / f"same{i}.onnx") for i in range(2)}
        click.echo(f"the same bytes twice: {'yes' if len(digests) == 1 else 'NO'}")
        if most:
            click.echo(f"{most} nodes: {measure(_network(folder, most), folder / 'out.onnx', warm)['seconds']:.1f} s")
        if megabytes:
            heavy = measure(synthetic.heavy(folder, megabytes), folder / "heavy_out.onnx", warm)
            click.echo(f"{megabytes} MB of weights: {heavy['seconds']:.1f} s, RssAnon peak {heavy['anon_mb']:.0f} MB")
    click.echo(f"graphopt --help: {help_seconds():.2f} s")


def _network(folder: Path, nodes: int) -> Path:
    path = folder / f"n{nodes}.onnx"
    onnx.save(synthetic.network(nodes), path)
    return path


def _digest(fact: dict[str, float], path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
