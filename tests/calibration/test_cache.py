"""Runs that were cut short go on where they were; files that do not fit are ignored."""

import itertools
import signal
from pathlib import Path

import pytest

from graphopt.analysis.statistics import Histogram, Request
from graphopt.calibration import collect as collect_module
from graphopt.calibration.collect import collect
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import UsageError
from tests.calibration.test_collect import ALL, NETWORK, PHOTOS, WEIGHTS, network, photos
from tests.helpers import model_of


class Counting:
    """Lets a run be interrupted after some batches, and counts the models that were run."""

    def __init__(self, monkeypatch, stop_after=None):
        self.runs = 0
        self.stop_after = stop_after
        original = collect_module._Pass._add_batch

        def counted(this, *args):
            self.runs += 1
            return original(this, *args)

        monkeypatch.setattr(collect_module._Pass, "_add_batch", counted)

    def progress(self, done, total):
        if done == self.stop_after:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = collect(network(), ALL, photos())
    counting = Counting(monkeypatch, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        collect(network(), ALL, photos(), cache=tmp_path, progress=counting.progress)
    assert counting.runs == 2

    counting.runs, counting.stop_after = 0, None
    stats = collect(network(), ALL, photos(), cache=tmp_path, progress=counting.progress)

    assert counting.runs == 2, "of four batches, two were done"
    assert dict(stats) == dict(whole)


def test_ctrl_c_within_a_batch_loses_nothing(tmp_path, monkeypatch):
    whole = collect(network(), ALL, photos())
    original = collect_module._Pass._add
    calls = itertools.count()

    def interrupted(this, *args):
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return original(this, *args)

    monkeypatch.setattr(collect_module, "PART_BYTES", 1)
    monkeypatch.setattr(collect_module._Pass, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(network(), ALL, photos(), cache=tmp_path)
    assert next(calls) == 4, "the batch of four samples is finished first"

    stats = collect(network(), ALL, photos(), cache=tmp_path)

    assert stats[ALL[2]] == whole[ALL[2]]
    assert stats[ALL[3]].batches == 4


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    first = collect(network(), ALL, photos(), cache=tmp_path)
    counting = Counting(monkeypatch)

    assert dict(collect(network(), ALL, photos(), cache=tmp_path)) == dict(first)
    assert counting.runs == 0


def other_data(data_file: Path):
    changed = PHOTOS.copy()
    changed[2] += 1
    return network(), photos(changed)


def fewer_data(data_file: Path):
    return network(), photos(PHOTOS[:8])


def damaged(data_file: Path):
    content = bytearray(data_file.read_bytes())
    content[len(content) // 2] ^= 255
    data_file.write_bytes(bytes(content))
    return network(), photos()


def cut_short(data_file: Path):
    data_file.write_bytes(data_file.read_bytes()[:100])
    return network(), photos()


def foreign(data_file: Path):
    data_file.write_bytes(b'{"magic": "graphopt statistics 1", "key": "other"}\n')
    return network(), photos()


def not_even_text(data_file: Path):
    data_file.write_bytes(bytes(range(256)))
    return network(), photos()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_data, "CALIB005"),
        (fewer_data, "CALIB005"),
        (damaged, "CALIB003"),
        (cut_short, "CALIB003"),
        (foreign, "CALIB003"),
        (not_even_text, "CALIB003"),
    ],
)
def test_a_cache_file_that_does_not_fit_is_ignored_with_a_remark(tmp_path, change, code):
    collect(network(), ALL, photos(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    model, data = change(file)
    sink = DiagnosticSink()

    stats = collect(model, ALL, data, cache=tmp_path, diagnostics=sink)

    assert [d.code for d in sink] == [code]
    assert dict(stats) == dict(collect(model, ALL, data))


def test_more_data_of_the_same_kind_go_on_from_the_cache(tmp_path, monkeypatch):
    collect(network(), ALL, photos(PHOTOS[:8]), cache=tmp_path)
    counting = Counting(monkeypatch)

    stats = collect(network(), ALL, photos(), cache=tmp_path)

    assert counting.runs == 2
    assert stats[ALL[2]] == Histogram.of(PHOTOS)


def test_another_graph_or_request_has_a_file_of_its_own(tmp_path):
    collect(network(), ALL, photos(), cache=tmp_path)
    other = model_of(NETWORK, weights=WEIGHTS | {"w": WEIGHTS["w"] * 2})

    stats = collect(other, ALL, photos(), cache=tmp_path)

    assert stats[ALL[0]].high == pytest.approx(2 * collect(network(), ALL, photos(), cache=tmp_path)[ALL[0]].high)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_comes_behind_the_values_does_not_matter_to_the_cache(tmp_path, monkeypatch):
    asked = [Request("h", "histogram")]
    collect(network(), asked, photos(), cache=tmp_path)
    counting = Counting(monkeypatch)
    other = model_of(NETWORK, weights=WEIGHTS | {"v": WEIGHTS["v"] * 2})

    collect(other, asked, photos(), cache=tmp_path)

    assert counting.runs == 0


def test_a_cache_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="cannot be the folder of the cache"):
        collect(network(), ALL, photos(), cache=tmp_path / "file")
