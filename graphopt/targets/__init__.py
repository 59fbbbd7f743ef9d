"""Targets: where a model is to run, described by facts that were measured. See ``Target``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from graphopt.errors import UsageError
from graphopt.targets.facts import Quantization as Quantization
from graphopt.targets.facts import Rule as Rule
from graphopt.targets.facts import Target as Target
from graphopt.targets.host import host_target

HOST = "ort-cpu"
"""Names the CPU target of the machine that graphopt runs on."""


def names() -> list[str]:
    """Return the names of all targets, the host's alias first."""
    files = (item.name for item in resources.files("graphopt.targets").iterdir())
    return [HOST, *sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))]


def find(name: str) -> Target:
    """Return the target called ``name``; ``ort-cpu`` is this machine's.

    Options may follow: ``qnn-htp:soc=43``. Raises UsageError, with the nearest name, for what is not known.
    """
    plain, colon, settings = name.partition(":")
    known = names()
    if plain not in known:
        raise UsageError(f"there is no target called {plain!r}", hint=_nearest(plain, known))
    target = _read(host_target() if plain == HOST else plain)
    if colon and not settings:
        raise UsageError("expected TARGET:OPTION=VALUE", where=name)
    for setting in settings.split(",") if settings else []:
        target = _with_option(target, setting)
    return target


def _with_option(target: Target, setting: str) -> Target:
    key, equals, value = setting.partition("=")
    if not equals:
        raise UsageError("expected TARGET:OPTION=VALUE", where=f"{target.name}:{setting}")
    if key not in target.options:
        hint = _nearest(key, target.options) if target.options else "it has none"
        raise UsageError(f"the target {target.name} has no option {key!r}", hint=hint)
    if value not in target.choices[key]:
        raise UsageError(f"{key}={value} is not known of {target.name}", hint=_nearest(value, target.choices[key]))
    return replace(target, options={**target.options, key: value})


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


@cache
def _read(name: str) -> Target:
    facts = tomllib.loads(resources.files("graphopt.targets").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    quantization = facts.pop("quantization", None)
    return Target(
        name=name,
        domains=frozenset(facts.pop("domains", ())),
        floats=frozenset(facts.pop("floats", ("float32",))),
        rules=tuple(rule for text in facts.pop("rules", ()) for rule in _rules(text)),
        quantization=None if quantization is None else _quantization(quantization),
        **facts,
    )


def _rules(facts: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of one table: one for each operator that it names, whose name stands for {op}."""
    when = {name: tuple(values) for name, values in facts.get("when", {}).items()}
    operators = [facts["op"]] if isinstance(facts["op"], str) else facts["op"]
    read = {**facts, "when": when, "types": frozenset(facts.get("types", ()))}
    return [Rule(**{**read, "op": op, "why": facts["why"].replace("{op}", op)}) for op in operators]


def _quantization(facts: dict[str, Any]) -> Quantization:
    return Quantization(
        **{
            **facts,
            "kernels": {operator: tuple(inputs) for operator, inputs in facts["kernels"].items()},
            "moves": frozenset(facts["moves"]),
            "on_integers": frozenset(facts.get("on_integers", ())),
            "absorbed": {operator: frozenset(names) for operator, names in facts["absorbed"].items()},
            "needs_output": frozenset(facts["needs_output"]),
            "wide_biased": frozenset(facts.get("wide_biased", ())),
        }
    )
