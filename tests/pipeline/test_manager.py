"""Running pipelines: order, fixpoints, limits, analyses, errors."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from graphopt.analysis import AnalysisManager, Shapes
from graphopt.errors import PassError, UsageError
from graphopt.ir import Editor, Model, nodes, shape_of
from graphopt.pipeline import Changes, Fixpoint, Instrument, Pass, Pipeline, option, run_pipeline
from graphopt.runtime import evaluate
from tests.helpers import model_of, operators

CHAIN = "g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) c = Neg(b) y = Neg(c) }"


@dataclass(frozen=True, kw_only=True)
class ToExp(Pass):
    """Turn Neg into Exp, a few at a time."""

    name: ClassVar[str] = "to-exp"
    at_once: int = option(1, "how many", ge=1)

    def run(self, model, ctx):
        changes = Changes()
        for node in ctx.nodes("Neg")[: self.at_once]:
            if ctx.may_rewrite(node, "turn it"):
                ctx.edit.set_operator(node, "Exp")
                changes["turned"] += 1
        return changes


@dataclass(frozen=True, kw_only=True)
class Nothing(Pass):
    """Do nothing."""

    name: ClassVar[str] = "nothing"

    def run(self, model, ctx):
        return Changes()


@dataclass(frozen=True, kw_only=True)
class Crash(Pass):
    """Fail."""

    name: ClassVar[str] = "crash"

    def run(self, model, ctx):
        raise KeyError("oops")


def run(*steps, text=CHAIN, **options):
    model = model_of(text)
    return model, run_pipeline(model, Pipeline(steps), evaluate, **options)


def executed(outcome):
    return [record.text for record in outcome.records]


def test_a_fixpoint_goes_on_until_nothing_changes_and_skips_what_cannot():
    model, outcome = run(Fixpoint((ToExp(at_once=3), Nothing())))

    assert operators(model) == {"Exp": 4}
    # The second "nothing" runs because the model changed since the first; then neither could do anything.
    assert executed(outcome) == ["to-exp{at_once=3}", "nothing", "to-exp{at_once=3}", "nothing", "to-exp{at_once=3}"]


def test_a_fixpoint_is_bounded():
    model, outcome = run(Fixpoint((ToExp(),), 3))

    assert operators(model) == {"Exp": 3, "Neg": 1}
    assert len(outcome.records) == 3


def test_stop_after_counts_executions_of_passes():
    model, outcome = run(Fixpoint((ToExp(), Nothing())), ToExp(), stop_after=3)

    assert executed(outcome) == ["to-exp", "nothing", "to-exp"]
    assert operators(model) == {"Exp": 2, "Neg": 2}


def test_fuel_bounds_the_rewrites_of_one_pass_over_the_whole_run():
    model, outcome = run(Fixpoint((ToExp(at_once=2),)), fuel={"to-exp": 3})

    assert operators(model) == {"Exp": 3, "Neg": 1}
    assert [rewrite.index for rewrite in outcome.ctx.rewrites] == [0, 1, 2]


def test_the_log_tells_pass_node_and_deed_of_each_rewrite():
    _, outcome = run(ToExp())

    (rewrite,) = outcome.ctx.rewrites
    assert (rewrite.pass_name, rewrite.what) == ("to-exp", "turn it")
    assert "%a = Neg(%x)" in rewrite.node
    assert outcome.records[0].rewrites == 1


def test_a_crash_names_the_pass():
    with pytest.raises(PassError) as caught:
        run(Nothing(), Crash())

    assert caught.value.where == "pass crash"
    assert "KeyError: 'oops'" in caught.value.message


class Log(Instrument):
    def __init__(self):
        self.seen = []

    def start(self, run):
        self.seen.append("start")

    def before_pass(self, run, item):
        self.seen.append(f"before {item} {run.step}")

    def after_pass(self, run, item, changes):
        self.seen.append(f"after {item}: {changes}")

    def failed(self, run, item, error):
        self.seen.append(f"failed {item}: {run.remaining(item)}")

    def finish(self, run):
        self.seen.append("finish")


def test_instruments_see_every_execution():
    log = Log()
    run(ToExp(), Nothing(), instruments=[log])

    assert log.seen == [
        "start",
        "before to-exp 1",
        "after to-exp: 1 turned",
        "before nothing 2",
        "after nothing: no change",
        "finish",
    ]


@dataclass(frozen=True, kw_only=True)
class CrashLater(Pass):
    """Fail when half is done."""

    name: ClassVar[str] = "crash-later"

    def run(self, model, ctx):
        if len(ctx.nodes("Exp")) >= 2:
            raise ValueError("enough")
        return Changes()


def test_what_remains_after_a_failure_starts_with_the_pass_that_failed():
    log = Log()
    group = Fixpoint((ToExp(), CrashLater(), Nothing()), 5)
    with pytest.raises(PassError):
        run(group, ToExp(at_once=9), instruments=[log])

    rest = "crash-later,nothing,fixpoint{max=3}(to-exp,crash-later,nothing),to-exp{at_once=9}"
    assert log.seen[-1] == f"failed crash-later: {rest}"


class Count:
    made = 0

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager):
        cls.made += 1
        return cls()


@dataclass(frozen=True, kw_only=True)
class Ask(Pass):
    """Ask for the count."""

    name: ClassVar[str] = "ask"

    def run(self, model, ctx):
        assert ctx.get(Count) is ctx.get(Count)
        return Changes()


@dataclass(frozen=True, kw_only=True)
class Careful(ToExp):
    """Turn nodes, and leave the count right."""

    name: ClassVar[str] = "careful"
    preserves: ClassVar = (Count,)


@pytest.mark.parametrize(("between", "made"), [(Nothing(), 1), (Careful(), 1), (ToExp(), 2)])
def test_an_analysis_is_kept_until_a_pass_changes_the_model_without_preserving_it(between, made):
    Count.made = 0
    run(Ask(), between, Ask())
    # The second "ask" is skipped where nothing changed since the first; asking once more does not compute again.
    assert Count.made == made


class NeedsData:
    wants_data = True


@dataclass(frozen=True, kw_only=True)
class Calibrated(Nothing):
    """Need data."""

    name: ClassVar[str] = "calibrated"
    needs: ClassVar = (NeedsData,)


def test_a_pass_whose_data_is_missing_is_refused_before_anything_runs():
    log = Log()
    with pytest.raises(UsageError, match="calibrated needs calibration data"):
        run(ToExp(), Calibrated(), instruments=[log])

    assert log.seen == []


def test_shapes_are_written_to_the_values():
    model = model_of("g (float[n,3] x) => (float[a,b] y) { t = Transpose(x) y = Relu(t) }")
    AnalysisManager(Editor(model)).get(Shapes)

    assert next(shape_of(node.outputs[0]) for node in nodes(model)) == (3, "n")


@pytest.mark.parametrize(("value", "words"), [(0, "at least 1"), (-3, "at least 1")])
def test_an_option_out_of_bounds_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        ToExp(at_once=value)


def test_the_random_generator_depends_on_the_seed_and_the_pass_alone():
    drawn = []

    @dataclass(frozen=True, kw_only=True)
    class Draw(Pass):
        """Draw."""

        name: ClassVar[str] = "draw"

        def run(self, model, ctx):
            drawn.append(int(ctx.rng.integers(10**9)))
            return Changes()

    for seed in (0, 0, 1):
        run(Draw(), seed=seed)

    assert drawn[0] == drawn[1] != drawn[2]
