"""``graphopt toolchains``: which vendors' toolchains are there, and making the environment of one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from graphopt.backend.environments import RECIPES, folder_of, install, python_of
from graphopt.cli.common import json_option, print_json

_PACKAGES = {
    "qnn": ("onnxruntime-qnn", "pip install 'graphopt[qnn]'"),
    "openvino": ("openvino", "pip install 'graphopt[openvino]'"),
    "ort": ("onnxruntime", "comes with graphopt"),
}


@click.command()
@click.option("--install", "wanted", type=click.Choice(sorted(RECIPES)), help="Make the environment of this one.")
@click.option("--to", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Where to put it.")
@click.option("--python", metavar="PYTHON", help="The interpreter to make it with.")
@json_option
def toolchains(wanted: str | None, folder: Path | None, python: str | None, as_json: bool) -> None:
    """List the vendors' toolchains, or install one that needs its own environment.

    They are what `graphopt check` asks. An environment made elsewhere with --to is found when GRAPHOPT_RKNN names it.
    """
    if wanted is not None:
        place = install(wanted, folder, python)
        if as_json:
            print_json({"installed": {wanted: str(place)}})
            return
        click.echo(f"{wanted}: {place}")
        if place != folder_of(wanted).absolute():
            click.echo(f"export GRAPHOPT_{wanted.upper()}={place}")
        return
    found = {name: (_version(package), how) for name, (package, how) in _PACKAGES.items()}
    for name in RECIPES:
        found[name] = (python_of(name), f"graphopt toolchains --install {name}")
    if as_json:
        print_json({"toolchains": {name: state or None for name, (state, _) in found.items()}})
        return
    for name, (state, how) in found.items():
        click.echo(f"{name}: {state or f'not installed: {how}'}")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
