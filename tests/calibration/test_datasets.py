"""Data sets: what each source yields, and what is said about data that does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.calibration import dataset_from_arrays, dataset_from_feeds, open_dataset
from graphopt.errors import UsageError
from graphopt.runtime import InputInfo


def tensor(name: str, *shape, dtype=np.float32, kind: str = "tensor") -> InputInfo:
    return InputInfo(name, np.dtype(dtype), shape, kind)


X = tensor("x", "N", 3)
IDS = tensor("ids", "N", None, dtype=np.int64)
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def shapes(dataset, name: str = "x") -> list[tuple[int, ...]]:
    return [feeds[name].shape for feeds in dataset]


def codes(dataset) -> list[str]:
    return [d.code for d in dataset.diagnostics]


# --- samples first --------------------------------------------------------------------------------------------------


def test_npz_is_cut_into_batches_and_can_be_read_again(tmp_path: Path):
    ids = np.arange(20).reshape(10, 2)
    data = open_dataset(npz(tmp_path / "d.npz", x=ROWS, ids=ids), [X, IDS], batch=4)
    assert len(data) == 3 and data.samples == 10
    for _ in range(2):
        assert shapes(data) == [(4, 3), (4, 3), (2, 3)]
        assert np.concatenate([feeds["ids"] for feeds in data]).tolist() == ids.tolist()
    assert codes(data) == []


def test_a_fixed_batch_is_kept_and_the_rest_dropped_with_a_warning(tmp_path: Path):
    data = open_dataset(npz(tmp_path / "d.npz", x=ROWS), [tensor("x", 4, 3)])
    assert shapes(data) == [(4, 3), (4, 3)] and len(data) == 2
    (warning,) = data.diagnostics
    assert warning.severity == "warning" and "2 of 10 samples are dropped" in warning.message
    with pytest.raises(UsageError, match="allows 4 only"):
        open_dataset(tmp_path / "d.npz", [tensor("x", 4, 3)], batch=2)
    with pytest.raises(UsageError, match="fixed at 16, found 10 samples"):
        open_dataset(tmp_path / "d.npz", [tensor("x", 16, 3)])


def test_limit_is_in_samples(tmp_path: Path):
    assert shapes(open_dataset(npz(tmp_path / "d.npz", x=ROWS), [X], batch=4, limit=5)) == [(4, 3), (1, 3)]


def test_npy_serves_a_model_with_one_input(tmp_path: Path):
    np.save(tmp_path / "d.npy", ROWS)
    assert shapes(open_dataset(str(tmp_path / "d.npy"), [X])) == [(8, 3), (2, 3)]
    with pytest.raises(UsageError, match="serves one input, the model has x, ids"):
        open_dataset(tmp_path / "d.npy", [X, IDS])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_the_same_mapped_and_compressed(tmp_path: Path, save, order):
    array = np.asarray(np.random.default_rng(0).random((700, 40, 12), np.float32), order=order)
    save(tmp_path / "d.npz", first=np.zeros(3), x=array)
    data = open_dataset(tmp_path / "d.npz", [tensor("x", "N", 40, 12)], batch=300)
    assert np.array_equal(np.concatenate([feeds["x"] for feeds in data]), array)


def test_a_large_npz_is_not_read_into_memory(tmp_path: Path):
    script = f"""
import numpy as np
from graphopt.calibration import open_dataset
from graphopt.runtime import InputInfo
np.savez({str(tmp_path / "d.npz")!r}, x=np.ones((400, 250_000), np.float32))
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return max(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = anonymous()
worst = 0
for feeds in open_dataset({str(tmp_path / "d.npz")!r}, [InputInfo("x", np.dtype("float32"), ("N", None))], batch=8):
    worst = max(worst, anonymous() - before)
print(worst // 1024)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure memory")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60, "MB, of a file of 400 MB"


def test_an_array_of_one_rank_more_gives_each_sample_its_own_input(tmp_path: Path):
    inputs = [tensor("x", "N", 3), tensor("state", 2, None, 5), tensor("rate", dtype=np.int64)]
    file = npz(tmp_path / "d.npz", x=ROWS, state=np.ones((10, 2, 1, 5), np.float32), rate=np.int64(16000))
    data = open_dataset(file, inputs)
    feeds = list(data)
    assert len(feeds) == 10
    assert [feeds[3][n].shape for n in ("x", "state", "rate")] == [(1, 3), (2, 1, 5), ()]
    rates = npz(tmp_path / "r.npz", x=ROWS, state=np.ones((10, 2, 1, 5), np.float32), rate=np.arange(10))
    assert [int(f["rate"]) for f in open_dataset(rates, inputs)] == list(range(10))
    with pytest.raises(UsageError, match="input state allows 1 only"):
        open_dataset(file, inputs, batch=2)


def test_safe_casts_are_done_and_remarked_on(tmp_path: Path):
    file = npz(tmp_path / "d.npz", x=ROWS.astype(np.float64), ids=np.ones((10, 2), np.int32))
    data = open_dataset(file, [X, IDS])
    (first, *_) = data
    assert first["x"].dtype == np.float32 and first["ids"].dtype == np.int64
    assert [d.message for d in data.diagnostics] == ["float64 is cast to float32", "int32 is cast to int64"]
    brain = dataset_from_arrays({"x": ROWS}, [tensor("x", "N", 3, dtype=ml_dtypes.bfloat16)])
    assert next(iter(brain))["x"].dtype == ml_dtypes.bfloat16


def test_text_for_a_string_input(tmp_path: Path):
    file = npz(tmp_path / "d.npz", s=np.array(["one", "two"]))
    (feeds,) = open_dataset(file, [tensor("s", "N", dtype=object)])
    assert feeds["s"].dtype == object and feeds["s"].tolist() == ["one", "two"]


def test_arrays_that_are_no_inputs_are_left_out_with_a_remark(tmp_path: Path):
    data = open_dataset(npz(tmp_path / "d.npz", x=ROWS, label=np.arange(10)), [X])
    assert list(next(iter(data))) == ["x"] and codes(data) == ["DATA003"]


BAD_ROWS = ROWS.copy()
BAD_ROWS[6, 1] = np.nan


@pytest.mark.parametrize(
    "arrays, inputs, message",
    [
        ({"y": ROWS}, [X], "no array for input 'x'; expected x; found y"),
        ({}, [X], "no array for input 'x'; expected x; found none"),
        ({"x": ROWS[:, :2]}, [X], "input x: expected x: float32[N, 3], found shape [10, 2]"),
        ({"x": ROWS[None, None]}, [X], "found shape [1, 1, 10, 3]"),
        ({"x": ROWS[:, 0]}, [X], "expected x: float32[N, 3] with the samples first, found shape [10]"),
        ({"x": ROWS, "ids": ROWS}, [X, IDS], "input ids: expected int64, found float32"),
        ({"x": np.array(["a"])}, [tensor("x", "N")], "input x: expected float32, found <U1"),
        ({"x": ROWS, "ids": np.ones((9, 2), int)}, [X, IDS], "differ in their number of samples: x: 10, ids: 9"),
        ({"x": ROWS[:0]}, [X], "the data set is empty"),
        ({"x": np.float32(1)}, [tensor("x")], "no array has an axis of samples"),
        ({"x": ROWS, "ids": np.ones((10, 2), int)}, [X, tensor("ids", kind="sequence")], "input ids is a sequence"),
        ({"x": ROWS, "z": ROWS}, [tensor("x", 1, 3), tensor("z", 2, 3)], "need different batch sizes: x: 1, z: 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path, arrays, inputs, message):
    with pytest.raises(UsageError) as caught:
        open_dataset(npz(tmp_path / "d.npz", **arrays), inputs)
    assert message in str(caught.value) and "d.npz" in str(caught.value)


@pytest.mark.parametrize(
    "array, info, message",
    [
        (BAD_ROWS, X, "input x: sample 6 holds NaN or infinity at [1]"),
        (np.array([1.0, 2.0, -np.inf]), tensor("x", "N"), "sample 2 holds NaN or infinity"),
        (np.array([[1.0], [1e39]]), tensor("x", "N", 1), "sample 1 holds a number that float32 cannot hold at [0]"),
        (np.array([5, 2**40]), tensor("x", "N", dtype=np.int32), "sample 1 holds a number that int32 cannot hold"),
        (np.array([5, 9]), tensor("x", "N", dtype=ml_dtypes.int4), "sample 1 holds a number that int4 cannot hold"),
        (np.array([5, np.nan]), tensor("x"), "sample 1 holds NaN"),
    ],
)
def test_values_that_no_model_should_see_name_the_sample(array, info, message):
    with pytest.raises(UsageError) as caught:
        list(dataset_from_arrays({"x": array}, [info], batch=1 if info.shape else None))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [(b"PK\x03\x04 broken", "cannot be read"), (b"", "cannot be read"), (b"not a zip", "cannot be read")],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_files_that_are_not_what_they_are_called(tmp_path: Path, content, message, suffix):
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        open_dataset(path, [X])


def test_damaged_and_pickled_archives(tmp_path: Path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((1000, 3)))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="array 'x' of the file cannot be read"):
        list(open_dataset(path, [X]))
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="python objects"):
        open_dataset(path, [X])


# --- batches as they are --------------------------------------------------------------------------------------------


def test_a_folder_of_npz_files_is_one_batch_each_in_the_order_of_names(tmp_path: Path):
    for index, rows in ((2, 1), (0, 4), (1, 5)):
        npz(tmp_path / f"b{index}.npz", x=ROWS[:rows])
    (tmp_path / "notes.txt").write_text("")
    data = open_dataset(tmp_path, [X])
    assert shapes(data) == [(4, 3), (5, 3), (1, 3)] and len(data) == 3
    assert codes(data) == ["DATA005"]
    assert shapes(open_dataset(tmp_path, [X], limit=4)) == [(4, 3)]
    assert "DATA004" in codes(open_dataset(tmp_path, [X], batch=2))
    npz(tmp_path / "b3.npz", x=ROWS[:, :2])
    with pytest.raises(UsageError, match=r"b3\.npz: input x: expected x: float32\[N, 3\], found shape \[10, 2\]"):
        list(data := open_dataset(tmp_path, [X]))


@pytest.mark.parametrize(
    "content, message", [(None, "but nothing"), ("a.txt", r"but \.txt"), ("a.png", "needs a prepro")]
)
def test_a_folder_without_data(tmp_path: Path, content, message):
    if content:
        (tmp_path / content).write_text("")
    with pytest.raises(UsageError, match=message):
        open_dataset(tmp_path, [X])


def test_missing_and_unknown_sources(tmp_path: Path):
    with pytest.raises(UsageError, match="no such file or folder"):
        open_dataset(tmp_path / "none.npz", [X])
    (tmp_path / "d.csv").write_text("1,2,3")
    with pytest.raises(UsageError, match="cannot tell what data this is"):
        open_dataset(tmp_path / "d.csv", [X])
    with pytest.raises(UsageError, match="at least 1"):
        open_dataset(tmp_path, [X], batch=0)
    with pytest.raises(UsageError, match="goes with a folder of images"):
        open_dataset(tmp_path / "d.csv", [X], preprocess=tmp_path / "p.toml")


MODULE = """
import numpy as np
X = np.ones((2, 3), np.float32)
def dicts():
    for scale in (1, 2): yield {"x": scale * X}
def arrays(): return [X, X, X]
def once(generator=iter([{"x": X}])): return generator
def fails(): raise KeyError("path")
def fails_late():
    yield {"x": X}
    raise OSError("disk gone")
def number(): return 5
def array(): return X
def lists(): return [[1, 2, 3]]
def wrong_name(): return [{"y": X}]
def wrong_rank(): return [{"x": X[0]}]
def nothing(): return []
def empty_batch(): return [X[:0]]
def nan(): return [X, X * np.nan]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "go_data.py").write_text(MODULE)
    yield "go_data"
    sys.modules.pop("go_data", None)


def test_a_callable_gives_dicts_or_arrays(module: str):
    data = open_dataset(f"{module}:dicts", [X])
    assert [feeds["x"][0, 0] for feeds in data] == [1, 2] == [feeds["x"][0, 0] for feeds in data]
    with pytest.raises(TypeError, match="not known beforehand"):
        len(data)
    assert shapes(open_dataset(f"{module}:arrays", [X])) == [(2, 3)] * 3
    assert shapes(open_dataset(f"{module}:arrays", [X], limit=3)) == [(2, 3)] * 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("fails", "it failed: KeyError: 'path'"),
        ("fails_late", "it failed: OSError: disk gone"),
        ("number", "must return an iterable of batches, not a int"),
        ("array", "must return an iterable of batches, not a ndarray"),
        ("lists", "batch 0 is a list, expected an array or a dict"),
        ("wrong_name", "batch 0: no array for input 'x'; expected x; found y"),
        ("wrong_rank", "expected x: float32[N, 3], found shape [3]"),
        ("nothing", "the data set is empty"),
        ("empty_batch", "input x: the array is empty"),
        ("nan", "batch 1: input x: sample 2 holds NaN"),
        ("absent", "go_data has no 'absent'"),
    ],
)
def test_a_callable_that_does_not_do_what_it_should(module: str, name: str, message: str):
    with pytest.raises(UsageError) as caught:
        list(open_dataset(f"{module}:{name}", [X]))
    assert message in str(caught.value) and "go_data" in str(caught.value)


def test_a_generator_that_is_used_up_is_empty_the_second_time(module: str):
    data = open_dataset(f"{module}:once", [X])
    assert len(list(data)) == 1
    with pytest.raises(UsageError, match="empty"):
        list(data)


def test_feeds_in_memory_keep_sequences_and_leave_out_optionals():
    inputs = [X, tensor("s", kind="sequence"), tensor("o", kind="optional")]
    data = dataset_from_feeds([{"x": ROWS, "s": [ROWS, ROWS]}], inputs)
    (feeds,) = data
    assert sorted(feeds) == ["s", "x"] and len(feeds["s"]) == 2
