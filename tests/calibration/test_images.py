"""Image folders: the arithmetic of preprocessing, and what is said about files and keys that are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.calibration import open_dataset, read_preprocessing
from graphopt.errors import UsageError
from graphopt.runtime import InputInfo

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
INPUT = InputInfo("image", np.dtype(np.float32), ("N", 3, 4, 4))


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "b").mkdir(parents=True)
    Image.fromarray(pixels(4, 4, 0)).save(tmp_path / "photos" / "b" / "0.png")
    Image.fromarray(pixels(4, 4, 1)).save(tmp_path / "photos" / "a.png")
    Image.fromarray(pixels(6, 8, 2)).save(tmp_path / "photos" / "c.PNG")
    return tmp_path / "photos"


def toml(folder: Path, text: str) -> Path:
    path = folder.parent / "p.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str, info: InputInfo = INPUT, **options) -> np.ndarray:
    data = open_dataset(folder, [info], preprocess=toml(folder, text), **options)
    return np.concatenate([feeds[info.name] for feeds in data])


def test_scale_mean_std_and_layout(folder: Path):
    text = 'size = 4\nscale = "1/255"\nmean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.25, 0.5]'
    batch = load(folder, text)
    raw = pixels(4, 4, 1)  # a.png comes first
    expected = (raw / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    assert batch.shape == (3, 3, 4, 4) and batch.dtype == np.float32
    np.testing.assert_allclose(batch[0], expected.transpose(2, 0, 1), atol=1e-5)
    assert np.array_equal(
        batch[1],
        (
            (pixels(4, 4, 0) * np.float32(1 / 255) - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.25, 0.5])
        ).transpose(2, 0, 1),
    )


def test_center_crop_channels_and_bytes(folder: Path):
    info = InputInfo("image", np.dtype(np.uint8), (1, 4, 4, 3))
    batch = load(folder, 'size = 4\nscale = 1\nlayout = "nhwc"\nchannels = "bgr"', info)
    assert np.array_equal(batch[2], pixels(6, 8, 2)[1:5, 2:6, ::-1])
    gray = InputInfo("image", np.dtype(np.float32), (None, 1, 4, 4))
    batch = load(folder, 'size = 4\nscale = 1\nchannels = "gray"', gray)
    red, green, blue = pixels(4, 4, 1).astype(np.float64).transpose(2, 0, 1)
    np.testing.assert_allclose(batch[0, 0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=1.0)


def test_resize_by_the_short_side_and_to_a_size(folder: Path):
    Image.fromarray(pixels(10, 17)).save(folder / "a.png")
    wide = InputInfo("image", np.dtype(np.float32), (1, 3, 5, 8))
    batch = load(folder, 'resize = 5\nsize = [5, 8]\nscale = 1\ninterpolation = "nearest"', wide, limit=1)
    expected = np.asarray(Image.fromarray(pixels(10, 17)).resize((8, 5), Image.Resampling.NEAREST))
    assert np.array_equal(batch[0], expected.transpose(2, 0, 1))
    batch = load(folder, "resize = [4, 4]\nscale = 1")
    expected = np.asarray(Image.fromarray(pixels(6, 8, 2)).resize((4, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(batch[2], expected.transpose(2, 0, 1))


def test_signed_bytes(folder: Path):
    info = InputInfo("image", np.dtype(np.int8), (1, 3, 4, 4))
    batch = load(folder, "size = 4\nscale = 1\nmean = 128", info)
    assert np.array_equal(batch[0], (pixels(4, 4, 1).astype(int) - 128).transpose(2, 0, 1))
    with pytest.raises(UsageError, match=r"do not fit int8"):
        load(folder, "size = 4\nscale = 1", info)


@pytest.mark.parametrize(
    "text, message",
    [
        ("size = 4", "'scale' is missing"),
        ("size = 4\nscale = 1\nmaen = 3", "unknown key 'maen'"),
        ("scale = 1", "would differ in size"),
        ("resize = 8\nscale = 1", "would differ in size"),
        ("size = 4\nscale = 1\nmean = [1, 2]", "mean has 2 numbers for 3 channels"),
        ("size = 4\nscale = 1\nstd = [1, 0, 1]", "std must not be 0"),
        ("size = 0\nscale = 1", "size = 0 is not usable"),
        ("size = [4, 4, 4]\nscale = 1", r"size = \[4, 4, 4\] is not usable"),
        ("size = 'big'\nscale = 1", "size = 'big' is not usable"),
        ("size = 4\nscale = '1/0'", "scale = '1/0' is not usable"),
        ("size = 4\nscale = 1\nlayout = 'chw'", "layout = 'chw': expected one of nchw, nhwc"),
        ("size = 4\nscale = 1\ndtype = 'floot'", "dtype = 'floot' is not usable"),
        ("size = ", "cannot be read"),
    ],
)
def test_preprocessing_files_that_are_wrong(tmp_path: Path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_preprocessing(path)
    assert caught.value.where == str(path)


def test_a_misspelt_key_gets_the_nearest_name(tmp_path: Path):
    (tmp_path / "p.toml").write_text("size = 4\nscale = 1\nmaen = 3")
    with pytest.raises(UsageError) as caught:
        read_preprocessing(tmp_path / "p.toml")
    assert caught.value.hint == "did you mean 'mean'?"


def test_files_that_are_wrong_are_named(folder: Path):
    with pytest.raises(UsageError, match=r"a\.png: 4x4 is smaller than the crop of 6x6"):
        load(folder, "size = 6\nscale = 1", InputInfo("image", np.dtype(np.float32), (1, 3, 6, 6)))
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"a\.png: not a readable image"):
        load(folder, "size = 4\nscale = 1")
    whole = (folder / "c.PNG").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"a\.png: not a readable image"):
        load(folder, "size = 4\nscale = 1")


def test_models_that_images_do_not_fit(folder: Path):
    text = "size = 4\nscale = 1"
    with pytest.raises(UsageError, match=r"expected image: float32\[1, 3, 8, 8\], found shape \[3, 3, 4, 4\]"):
        load(folder, text, InputInfo("image", np.dtype(np.float32), (1, 3, 8, 8)))
    with pytest.raises(UsageError, match="need an input of rank 4"):
        load(folder, text, InputInfo("image", np.dtype(np.float32), (1, 48)))
    with pytest.raises(UsageError, match="serves one input, the model has image, more"):
        open_dataset(folder, [INPUT, InputInfo("more", np.dtype(np.float32), ())], preprocess=toml(folder, text))
    with pytest.raises(UsageError, match="holds no image"):
        (folder / "empty").mkdir()
        open_dataset(folder / "empty", [INPUT], preprocess=toml(folder, text))


def test_without_pillow_the_extra_is_named(folder: Path):
    script = """
import sys
sys.modules["PIL"] = None
import numpy as np
from pathlib import Path
from graphopt.calibration import open_dataset
from graphopt.errors import UsageError
from graphopt.runtime import InputInfo
info = InputInfo("image", np.dtype(np.float32), (1, 3, 4, 4))
try:
    list(open_dataset(sys.argv[1], [info], preprocess=Path(sys.argv[2])))
except UsageError as error:
    print(error)
"""
    args = [str(folder), str(toml(folder, "size = 4\nscale = 1"))]
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True, timeout=60)
    assert "graphopt[images]" in done.stdout
