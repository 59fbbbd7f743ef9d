"""Targets: where a model is to run, described by facts that were measured. See ``Target``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from graphopt.errors import UsageError
from graphopt.targets.host import host_target

HOST = "ort-cpu"
"""Names the CPU target of the machine that graphopt runs on."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a target wants of quantized models; types are numpy's names.

    ``kernels`` maps an operator to the inputs that must be quantized for its integer kernel, ``moves`` names the
    operators that work on integers of any scale as long as input and output share it; around ``on_integers``, which are
    some of them, the runtime leaves Q/DQ pairs, so that they have to be written on integers. ``absorbed`` maps an
    operator to those whose work its integer kernel does too, so that no Q/DQ pair may stand in between.
    ``needs_output`` names the operators whose integer kernel writes integers only. ``pair_limit`` is the largest sum of
    two neighbouring weights along the reduction axis that the 8-bit kernel can multiply with 255 without saturating, 0
    where it never does. ``product`` is an operator, domain::name, for a product of integers with a bias in floats,
    if the runtime does not merge the bias by itself.
    """

    activations: str
    activations_symmetric: bool
    weights: str
    weights_symmetric: bool
    per_channel: bool
    bias: str
    min_opset: int
    kernels: Mapping[str, tuple[int, ...]]
    moves: frozenset[str]
    absorbed: Mapping[str, frozenset[str]]
    needs_output: frozenset[str]
    on_integers: frozenset[str] = frozenset()
    product: str = ""
    wide_activations: str = ""
    pair_limit: int = 0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place where models run.

    ``provider`` is onnxruntime's name of the execution provider, ``domains`` the operator domains that it runs besides
    ONNX's own, ``floats`` the floating-point types that it runs models in, ``vector_width`` the number of channels
    that it computes at a time, ``verified`` whether its facts were checked on the real thing, ``source`` where they
    come from.
    """

    name: str
    description: str
    provider: str
    source: str
    verified: bool
    domains: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset({"float32"})
    vector_width: int = 1
    quantization: Quantization | None = None

    @property
    def is_host(self) -> bool:
        """Whether models for this target can be timed on this machine."""
        return self.name == host_target()


def names() -> list[str]:
    """Return the names of all targets, the host's alias first."""
    files = (item.name for item in resources.files("graphopt.targets").iterdir())
    return [HOST, *sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))]


def find(name: str) -> Target:
    """Return the target called ``name``; ``ort-cpu`` is this machine's. Raises UsageError with the nearest name."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise UsageError(f"there is no target called {name!r}", hint=hint)
    return _read(host_target() if name == HOST else name)


@cache
def _read(name: str) -> Target:
    facts = tomllib.loads(resources.files("graphopt.targets").joinpath(f"{name}.toml").read_text())
    quantization = facts.pop("quantization", None)
    domains, floats = frozenset(facts.pop("domains", ())), frozenset(facts.pop("floats", ("float32",)))
    made = None if quantization is None else _quantization(quantization)
    return Target(name=name, domains=domains, floats=floats, quantization=made, **facts)


def _quantization(facts: dict[str, Any]) -> Quantization:
    return Quantization(
        **{
            **facts,
            "kernels": {operator: tuple(inputs) for operator, inputs in facts["kernels"].items()},
            "moves": frozenset(facts["moves"]),
            "on_integers": frozenset(facts.get("on_integers", ())),
            "absorbed": {operator: frozenset(names) for operator, names in facts["absorbed"].items()},
            "needs_output": frozenset(facts["needs_output"]),
        }
    )
