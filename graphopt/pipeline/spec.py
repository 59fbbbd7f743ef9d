"""Pipelines as text and as TOML, two spellings of the same thing.

Text: ``fold-constants{max_bytes=4096},fixpoint{max=4}(simplify,fuse-batchnorm)``. TOML::

    description = "what it is for"
    steps = [
        { preset = "lossless" },
        "fold-constants",
        { pass = "insert-qdq", calibrate = "mse" },
        { fixpoint = ["simplify", "fuse-batchnorm"], max = 4 },
    ]

The steps of a preset stand for it from then on: the text knows no presets, so it says what ran whatever they become.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.registry import lookup, nearest

MAX_ROUNDS = 16


@dataclass(frozen=True)
class Fixpoint:
    """Runs its steps in turn, again and again, until none of them changes anything or ``max`` rounds are over."""

    steps: tuple[Step, ...]
    max: int = MAX_ROUNDS

    def __str__(self) -> str:
        options = "" if self.max == MAX_ROUNDS else f"{{max={self.max}}}"
        return f"fixpoint{options}({','.join(map(str, self.steps))})"


Step = Pass | Fixpoint


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of steps. ``str(spec)`` is its canonical text and ``parse(str(spec)) == spec``."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline's text. Raises UsageError with a caret under the place that is wrong."""
        return parse(text)

    @classmethod
    def preset(cls, name: str) -> Pipeline:
        """Return a pipeline that graphopt ships. Raises UsageError for an unknown name."""
        return load_preset(name)

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))

    def passes(self) -> list[Pass]:
        """Return the passes in order of their first run, those inside fixpoint groups included."""
        found: list[Pass] = []
        stack = list(reversed(self.steps))
        while stack:
            step = stack.pop()
            if isinstance(step, Fixpoint):
                stack.extend(reversed(step.steps))
            else:
                found.append(step)
        return found


def parse(text: str) -> Pipeline:
    """Read a pipeline's text. Raises UsageError with a caret under the place that is wrong."""
    return _Parser(text).pipeline()


def from_toml(text: str) -> Pipeline:
    """Read a pipeline's TOML. Raises UsageError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the pipeline file is not TOML: {error}") from None
    unknown = sorted(set(table) - {"description", "steps"})
    if unknown or not isinstance(table.get("steps"), list):
        raise UsageError(
            f"a pipeline file holds 'steps' and 'description', not {', '.join(unknown) or 'nothing'}",
            hint='write steps = ["fold-constants", { pass = "NAME", option = 1 }, { fixpoint = ["NAME"], max = 4 }]',
        )
    return Pipeline(tuple(_steps_from_toml(table["steps"])))


def to_toml(spec: Pipeline) -> str:
    """Return the pipeline as TOML; ``from_toml(to_toml(spec)) == spec``."""
    return tomli_w.dumps({"steps": [_step_to_toml(step) for step in spec.steps]})


def load_preset(name: str) -> Pipeline:
    """Return a pipeline that graphopt ships. Raises UsageError with the nearest name when there is none."""
    known = presets()
    if name not in known:
        raise UsageError(f"there is no preset called {name!r}", hint=nearest(name, list(known), f"use one of {known}"))
    return from_toml(_preset_folder().joinpath(f"{name}.toml").read_text())


def presets() -> dict[str, str]:
    """Return the names of the presets and what each is for."""
    files = sorted(item.name for item in _preset_folder().iterdir() if item.name.endswith(".toml"))
    texts = {name.removesuffix(".toml"): _preset_folder().joinpath(name).read_text() for name in files}
    return {name: str(tomllib.loads(text).get("description", "")) for name, text in texts.items()}


def _preset_folder() -> Any:
    return resources.files("graphopt.pipeline") / "presets"


def load_config(path: str | Path) -> Pipeline:
    """Read a pipeline's TOML file. Raises UsageError when it cannot be read."""
    try:
        return from_toml(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the pipeline file: {error}", where=str(path)) from None


def _steps_from_toml(items: list[Any]) -> Iterator[Step]:
    for item in items:
        if isinstance(item, dict) and set(item) == {"preset"}:
            yield from load_preset(str(item["preset"])).steps
        else:
            yield _step_from_toml(item)


def _step_from_toml(item: Any) -> Step:
    if isinstance(item, str):
        return make(item, {})
    if isinstance(item, dict) and isinstance(item.get("fixpoint"), list):
        unknown = sorted(set(item) - {"fixpoint", "max"})
        if unknown:
            raise UsageError(f"a fixpoint group has the option 'max', not {', '.join(unknown)}")
        return fixpoint(list(_steps_from_toml(item["fixpoint"])), item.get("max", MAX_ROUNDS))
    if isinstance(item, dict) and isinstance(item.get("pass"), str):
        return make(item["pass"], {key: value for key, value in item.items() if key != "pass"})
    raise UsageError(
        f"{item!r} is no step of a pipeline", hint="write a pass's name or a table with 'pass' or 'preset'"
    )


def _step_to_toml(step: Step) -> str | dict[str, Any]:
    if isinstance(step, Fixpoint):
        options = {} if step.max == MAX_ROUNDS else {"max": step.max}
        return {"fixpoint": [_step_to_toml(inner) for inner in step.steps], **options}
    return {"pass": step.name, **step.options()} if step.options() else step.name


def fixpoint(steps: list[Step], rounds: Any) -> Fixpoint:
    """Return a fixpoint group. Raises UsageError for a bound that is not a positive whole number."""
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise UsageError(f"max must be a whole number of at least 1, not {rounds!r}", where="fixpoint")
    return Fixpoint(tuple(steps), rounds)


def make(name: str, options: dict[str, Any]) -> Pass:
    """Build a pass from its name and options, converting each to the option's type. Raises UsageError."""
    kind = lookup(name)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind) if options else {}
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in fields and kind.free_options is not None:
            values.setdefault(kind.free_options, []).append((key, _convert(name, key, value, int)))
            continue
        if key not in fields or key == kind.free_options:
            known = ", ".join(fields) or "none"
            hint = nearest(key, list(fields), f"its options are: {known}")
            raise UsageError(f"the pass {name} has no option {key!r}", hint=hint)
        values[key] = _convert(name, key, value, hints[key])
    if kind.free_options in values:
        values[kind.free_options] = tuple(sorted(values[kind.free_options]))
    return kind(**values)


def _convert(name: str, key: str, value: Any, kind: Any) -> Any:
    text = value if isinstance(value, str) else None
    if kind is bool and (isinstance(value, bool) or text in ("true", "false")):
        return value if isinstance(value, bool) else text == "true"
    if kind is int and not isinstance(value, bool):
        if isinstance(value, int) or (text is not None and re.fullmatch(r"[+-]?\d+", text)):
            return int(value)
    elif kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif kind is str and text is not None:
        return text
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise UsageError(f"{key} must be {words.get(kind, kind)}, not {value!r}", where=name)


class _Parser:
    """Recursive descent over the text; every error shows the text with a caret under the place."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def pipeline(self) -> Pipeline:
        steps = self.steps()
        if self.at < len(self.text):
            self.fail(f"unexpected {self.text[self.at]!r}", hint="steps are separated by ','")
        return Pipeline(tuple(steps))

    def steps(self) -> list[Step]:
        found: list[Step] = []
        if self.space() == len(self.text) or self.peek(")"):
            return found
        found.append(self.step())
        while self.take(","):
            found.append(self.step())
        return found

    def step(self) -> Step:
        start = self.at = self.space()
        name = self.match(r"[A-Za-z_][\w.-]*", "the name of a pass")
        options = self.options() if self.take("{") else {}
        try:
            if name != "fixpoint":
                return make(name, options)
            self.take("(", required=True)
            steps = self.steps()
            self.take(")", required=True)
            unknown = sorted(set(options) - {"max"})
            if unknown:
                raise UsageError(f"a fixpoint group has the option 'max', not {', '.join(unknown)}")
            return fixpoint(steps, _number(options.get("max", MAX_ROUNDS)))
        except UsageError as error:
            if error.context is not None:
                raise
            self.fail(str(error.message), at=self.spot(start, error), hint=error.hint)

    def spot(self, start: int, error: UsageError) -> int:
        """Return where the caret goes: under the option that the error names, else under the pass."""
        named = re.search(r"'([^']+)'|^(\w+) must", error.message)
        word = next((group for group in named.groups() if group), None) if named else None
        found = self.text.find(word, start, self.at) if word else -1
        return start if found < 0 else found

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.take("}"):
            start = self.space()
            key = self.value("an option")
            self.take("=", required=True)
            if key in found:
                self.fail(f"the option {key!r} is given twice", at=start)
            found[key] = self.value()
            if not self.take(",") and not self.peek("}"):
                self.fail("expected ',' or '}'")
        return found

    def value(self, what: str = "a value") -> str:
        self.space()
        quoted = re.compile(r'"((?:[^"\\]|\\.)*)"').match(self.text, self.at)
        if quoted:
            self.at = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted.group(1))
        return self.match(r"[^\s,{}()\"=]+", what)

    def match(self, pattern: str, what: str) -> str:
        self.space()
        found = re.compile(pattern).match(self.text, self.at)
        if not found:
            self.fail(f"expected {what}")
        self.at = found.end()
        return found.group()

    def peek(self, char: str) -> bool:
        self.space()
        return self.text.startswith(char, self.at)

    def take(self, char: str, *, required: bool = False) -> bool:
        if self.peek(char):
            self.at += 1
            return True
        if required:
            self.fail(f"expected {char!r}")
        return False

    def space(self) -> int:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at

    def fail(self, message: str, *, at: int | None = None, hint: str | None = None) -> NoReturn:
        place = self.at if at is None else at
        flat = re.sub(r"\s", " ", self.text)
        raise UsageError(message, where="pipeline", context=f"{flat}\n{' ' * place}^", hint=hint)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value
