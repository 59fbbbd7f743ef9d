"""What ``bench.py quantize`` measures on: four networks, each with calibration inputs, other inputs to score, a metric.

Calibration inputs are prepared once, into .npz files of a cache folder, and every tool reads the same file. The data of
three networks lie in ``../shared`` with the metrics for them; text lines for the fourth are rendered here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from graphopt import zoo

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
# Part of the names of cached files: raise it when the way they are made changes.
VERSION = 1
CIFAR_CALIBRATION, PHOTOS, LINES = 256, 900, 60
LINE_HEIGHT, LINE_WIDTH, LINE_BATCH = 48, 320, 10
CALIBRATION_SEED, TEST_SEED = 1, 2

Arrays = dict[str, NDArray[Any]]


class Runnable(Protocol):
    """The part of an onnxruntime session that the metrics use."""

    def get_inputs(self) -> list[Any]: ...

    def run(self, names: list[str] | None, feeds: Arrays) -> list[NDArray[Any]]: ...


@dataclass(frozen=True)
class Task:
    """A network and its data.

    ``make_calibration`` returns arrays by input name, samples along the first axis; ``score`` runs a session over the
    first ``limit`` test inputs (None: all) and returns the share that is right; ``sample`` is one test input.
    """

    name: str
    metric: str
    model: Callable[[], Path]
    make_calibration: Callable[[], Arrays]
    score: Callable[[Runnable, int | None], float]
    sample: Callable[[], Arrays]
    transformer: bool = False

    def calibration(self) -> Path:
        """Return the .npz file of calibration inputs, made now when it does not exist yet."""
        path = cache_folder() / f"{self.name}-calibration-v{VERSION}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npz")
            np.savez(part, **self.make_calibration())  # pyright: ignore[reportArgumentType]
            part.replace(path)
        return path


def cache_folder() -> Path:
    """Return the folder that prepared inputs are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphopt" / "bench-quantize"


def all_tasks() -> list[Task]:
    """Return every task whose data are here; what is missing is said on stderr."""
    lines = Task("ppocrv4_rec", "lines", partial(zoo.fetch, "ppocrv4_rec"), _line_inputs, _read_lines, _line_sample)
    file = next((path for path in (SHARED / "metrics.py", SHARED / "data" / "metrics.py") if path.is_file()), None)
    if file is None:
        click.echo("skipped efficientnet_lite0, cifar10_resnet20, minilm_l6_v2: there is no ../shared", err=True)
        return [lines]
    metrics = module_of(file)

    def photos(numbers: range) -> Arrays:
        return {"input": np.stack([metrics.photo(SHARED / f"data/imagenet_1000/{i:04d}.jpg") for i in numbers])}

    def cifar(file: str, count: int) -> Arrays:
        return {"input": metrics.cifar(metrics.cifar_images(SHARED / "data" / file, count)[0])}

    def texts(part: str, count: int | None = None) -> Arrays:
        data = np.load(SHARED / "data/wordnet.npz")
        ids, mask = (data[f"{part}_{kind}"][:count].astype(np.int64) for kind in ("ids", "mask"))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def model(name: str) -> Path:
        return SHARED / "models" / f"{name}.onnx"

    return [
        Task(
            "efficientnet_lite0",
            "top-1",
            partial(model, "efficientnet_lite0"),
            partial(photos, range(7, 1000, 10)),
            metrics.imagenet,
            partial(photos, range(1)),
        ),
        Task(
            "cifar10_resnet20",
            "top-1",
            partial(model, "cifar10_resnet20"),
            partial(cifar, "cifar10_train4096.npz", CIFAR_CALIBRATION),
            metrics.cifar10,
            partial(cifar, "cifar10_test.npz", 1),
        ),
        Task(
            "minilm_l6_v2",
            "probe",
            partial(model, "minilm_l6_v2"),
            partial(texts, "calib"),
            metrics.wordnet,
            partial(texts, "test", 1),
            transformer=True,
        ),
        lines,
    ]


def cifar_growth() -> tuple[Arrays, Arrays]:
    """Return calibration images for cifar10_resnet20: as many as it is calibrated on, and ten times as many."""
    metrics = module_of(SHARED / "metrics.py")
    images = metrics.cifar(metrics.cifar_images(SHARED / "data/cifar10_train4096.npz", 10 * CIFAR_CALIBRATION)[0])
    return {"input": images[:CIFAR_CALIBRATION]}, {"input": images}


def module_of(path: Path) -> Any:
    """Import a file that lies outside any package."""
    spec = importlib.util.spec_from_file_location("shared_metrics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_WORDS = (
    "amber apple basin bridge candle carbon castle copper desert engine falcon forest garden harbor island jacket "
    "kitchen ladder lemon marble meadow number ocean orange packet pencil pepper planet quartz rabbit ribbon river "
    "saddle silver spring summer tiger tunnel valley velvet violin walnut window winter yellow zebra"
)


def line_texts(seed: int, count: int) -> list[str]:
    """Return different lines of two words, or a word and a number, the same for the same seed."""
    words, rng = _WORDS.split(), np.random.default_rng(seed)
    texts: list[str] = []
    while len(texts) < count:
        first, second = rng.choice(len(words), 2, replace=False)
        last = words[second] if rng.random() < 0.6 else str(rng.integers(100, 99999))
        text = f"{words[first].capitalize()} {last}"
        # The parity of the first word keeps lines of odd seeds and lines of even seeds apart.
        if first % 2 == seed % 2 and text not in texts:
            texts.append(text)
    return texts


def render(text: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a line with Pillow's own font: float32[3,48,320] in -1..1, padded with zeros on the right."""
    font = ImageFont.load_default(size=int(rng.integers(26, 34)))
    left, top, right, bottom = font.getbbox(text)
    width = min(LINE_WIDTH, int(right - left) + 16)
    paper, ink = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    image = Image.new("RGB", (width, LINE_HEIGHT), tuple(int(v) for v in paper))
    place = (8 - left, (LINE_HEIGHT - bottom + top) / 2 - top)
    ImageDraw.Draw(image).text(place, text, fill=tuple(int(v) for v in ink), font=font)
    pixels = np.asarray(image, dtype=np.float64) + rng.normal(0, 4, (LINE_HEIGHT, width, 3))
    pixels = np.clip(np.rint(pixels), 0, 255)
    line = np.zeros((3, LINE_HEIGHT, LINE_WIDTH), np.float32)
    line[:, :, :width] = (pixels / 127.5 - 1.0).transpose(2, 0, 1)
    return line


def _lines(seed: int, count: int) -> tuple[NDArray[np.float32], list[str]]:
    texts = line_texts(seed, count)
    rng = np.random.default_rng(1000 + seed)
    return np.stack([render(text, rng) for text in texts]), texts


def _line_inputs() -> Arrays:
    return {"x": _lines(CALIBRATION_SEED, LINES)[0]}


def _line_sample() -> Arrays:
    return {"x": _lines(TEST_SEED, 1)[0]}


@cache
def _characters() -> list[str]:
    """Return the recogniser's characters by class: blank first, a space last, between them those in its metadata."""
    model = onnx.load(str(zoo.fetch("ppocrv4_rec")))
    listed = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ["", *listed.splitlines(), " "]


def decode(scores: NDArray[Any], characters: list[str]) -> Iterator[str]:
    """Read CTC scores [N, T, classes] greedily: the best class of each step, repeats merged, class 0 dropped."""
    for best in scores.argmax(axis=2):
        kept = best[np.concatenate(([True], best[1:] != best[:-1]))]
        yield "".join(characters[index] for index in kept if index)


def _read_lines(session: Runnable, limit: int | None) -> float:
    images, texts = _lines(TEST_SEED, LINES if limit is None else min(limit, LINES))
    name = session.get_inputs()[0].name
    right = 0
    for start in range(0, len(texts), LINE_BATCH):
        scores = session.run(None, {name: images[start : start + LINE_BATCH]})[0]
        pairs = zip(decode(scores, _characters()), texts[start:], strict=False)
        # The margins of a line come out as spaces.
        right += sum(found.strip() == text for found, text in pairs)
    return right / len(texts)
