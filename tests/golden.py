"""Golden cases of passes: files of ``.case`` cases, each a graph, a pipeline and the graph that has to come out.

    == A title in words
    pipeline: remove-identities,remove-dead
    --- before
    g (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }
    --- after
    g (
       float[2] x
    ) => (
       float[2] y
    )
    {
       y = Relu (x)
    }
    --- remarks
    remark CODE001 node: what the pipeline said, a line each; left out where it said nothing

Lines before the first title are comments. ``not-run: WHY`` and ``not-idempotent: WHY`` under the title switch off one
check each; ``data: random`` gives the pipeline calibration data. A graph without header has ONNX opset 21 and IR
version 10. ``pytest --update-golden`` rewrites what stands under ``--- after`` and ``--- remarks``.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt import io
from graphopt.calibration import Dataset, random_inputs
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.driver import optimize
from graphopt.ir import Editor, Model, nodes, shape_of
from graphopt.ir.infer import infer
from graphopt.ir.text import dump, parse
from graphopt.runtime import Session
from tests.helpers import check_equivalent, clone

WEIGHTS = 64
SEEDS = (0, 1)
_HEADER = re.compile(r'<\s*ir_version: 10,\s*opset_import: \["" : 21\]\s*>\s*')
_KEYS = ("pipeline", "not-run", "not-idempotent", "data")
_SECTIONS = ("before", "after", "remarks")
_HOW = "read the difference; if it is what you want, run pytest with --update-golden and commit the file"


@dataclass(frozen=True)
class Case:
    """One case; ``after`` and ``remarks`` are what is expected."""

    file: Path
    title: str
    pipeline: str
    before: str
    after: str = ""
    remarks: str = ""
    not_run: str = ""
    not_idempotent: str = ""
    data: str = ""

    def __str__(self) -> str:
        lines = [f"== {self.title}", f"pipeline: {self.pipeline}"]
        lines += [f"not-run: {self.not_run}"] if self.not_run else []
        lines += [f"not-idempotent: {self.not_idempotent}"] if self.not_idempotent else []
        lines += [f"data: {self.data}"] if self.data else []
        lines += ["--- before", self.before, "--- after", self.after]
        lines += ["--- remarks", self.remarks] if self.remarks else []
        return "\n".join(lines) + "\n"


def read_cases(file: Path) -> tuple[str, list[Case]]:
    """Return the comment at the top of a file, and its cases."""
    comment, *parts = re.split(r"^== ", file.read_text(), flags=re.MULTILINE)
    cases = [_read_case(file, part) for part in parts]
    titles = [case.title for case in cases]
    if not cases or len(set(titles)) != len(titles):
        raise ValueError(f"{file.name}: no case in it, or two with the same title")
    return comment, cases


def _read_case(file: Path, text: str) -> Case:
    head, *parts = re.split(r"^--- (\w+)\n", text, flags=re.MULTILINE)
    title, *lines = head.strip().splitlines()
    keys = dict(line.split(": ", 1) for line in lines)
    sections = {name: body.strip("\n") for name, body in zip(parts[::2], parts[1::2], strict=True)}
    if unknown := sorted({*keys} - {*_KEYS} | {*sections} - {*_SECTIONS}):
        raise ValueError(f"{file.name}: {title}: {unknown[0]!r} is neither of {', '.join(_KEYS + _SECTIONS)}")
    return Case(
        file,
        title,
        keys["pipeline"],
        sections["before"],
        sections.get("after", ""),
        sections.get("remarks", ""),
        keys.get("not-run", ""),
        keys.get("not-idempotent", ""),
        keys.get("data", ""),
    )


def check_case(case: Case, *, update: bool = False) -> None:
    """Run the pipeline of a case, and assert that the text, the numbers and a second run are as they have to be."""
    before = parse(case.before)
    # The parsed model shares nothing with the one that is changed, as long as each is read anew.
    model = parse(case.before)
    result = optimize(model, pipeline=case.pipeline, data=_data(case, before))
    remarks = "\n".join(str(diagnostic) for diagnostic in result.diagnostics)
    got = replace(case, after=_text(model), remarks=remarks)
    if got != case:
        if not update:
            raise AssertionError(f"{case.file.name}: {case.title}\n{_difference(case, got)}\n{_HOW}")
        _write(got)
    _check_annotations(model)
    if not case.not_run:
        _check_numbers(before, model)
    if not case.not_idempotent:
        again = clone(model)
        optimize(again, pipeline=case.pipeline, data=_data(case, before))
        second = replace(got, after=_text(again))
        assert second == got, f"{case.title}: a second run changes the graph again\n{_difference(got, second)}"


def _data(case: Case, model: Model) -> Dataset | None:
    """Return two random inputs as calibration data where the case asks for data."""
    if not case.data:
        return None
    inputs = Session(io.to_proto(model).SerializeToString(), optimize=False).inputs
    return dataset_from_feeds([random_inputs(inputs, seed) for seed in SEEDS], inputs)


def _text(model: Model) -> str:
    return _HEADER.sub("", dump(_bare(model), weights=WEIGHTS), count=1).strip("\n")


def _bare(model: Model) -> Model:
    """Return a copy without the dtypes and shapes of intermediate values, which are no part of the program."""
    copy = clone(model)
    edit = Editor(copy)
    for node in nodes(copy):
        for value in node.outputs:
            if not value.is_graph_output():
                edit.annotate(value, None, None)
    return copy


def _check_annotations(model: Model) -> None:
    """Assert that what passes wrote down about intermediate values is what inference finds without it."""
    known, contradiction = infer(_bare(model))
    assert not contradiction
    found = {value.name: shape for value, (_, shape) in known.items()}
    for value in (value for node in nodes(model) for value in node.outputs):
        pairs = zip(shape_of(value) or (), found.get(value.name) or (), strict=False)
        wrong = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        assert not wrong, f"{value.name!r} is said to be {shape_of(value)}, inference finds {found[value.name]}"


def _difference(want: Case, got: Case) -> str:
    lines = difflib.unified_diff(str(want).splitlines(), str(got).splitlines(), "expected", "got", n=3, lineterm="")
    return "\n".join(lines)


def _check_numbers(before: Model, after: Model) -> None:
    # The result may be stricter about its inputs than the original (fix-shapes), never the other way round.
    inputs = Session(io.to_proto(after).SerializeToString(), optimize=False).inputs
    for seed in SEEDS:
        check_equivalent(before, after, random_inputs(inputs, seed))


def _write(case: Case) -> None:
    comment, cases = read_cases(case.file)
    texts = [str(case if other.title == case.title else other) for other in cases]
    case.file.write_text(comment + "\n".join(texts))
