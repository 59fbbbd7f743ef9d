"""What ``bench.py npu`` measures on: networks with their sizes, calibration inputs, and metrics where they have one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from bench_quantize_data import (
    CALIBRATION_SEED,
    SHARED,
    TEST_SEED,
    Arrays,
    Runnable,
    all_tasks,
    cache_folder,
    line_texts,
    module_of,
    render,
)
from numpy.typing import NDArray

from graphopt import zoo

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "deeplab_mnv3")
TRANSFORMERS = frozenset({"minilm_l6_v2", "fashion_transformer", "vit_b_16"})
PAGE = 480
"""Rows and columns of a page for PP-OCR's detector."""
_RANDOM_SAMPLES = 8
_PAGES = 16
_LINES_OF_PAGE = 8
_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)

Score = Callable[[Runnable, "int | None"], float]


@dataclass(frozen=True)
class NpuModel:
    """A network of the table.

    ``dims`` are the sizes of its open dimensions besides the batch, which is 1; ``calibration`` writes inputs, samples
    along the first axis, to a .npz file; ``score`` runs a session over the first inputs of its test set and returns the
    share that is right. ``samples`` makes so many other inputs for a network without ``score``, whose own are random
    else. ``settings`` are inputs that become constants. ``least`` is how many inputs it takes to compare outputs.
    """

    name: str
    path: Callable[[], Path]
    calibration: Callable[[], Path]
    dims: Mapping[str, int] = field(default_factory=dict)
    score: Score | None = None
    settings: Mapping[str, int] = field(default_factory=dict)
    samples: Callable[[int], Arrays] | None = None
    least: int = 1

    @property
    def convolutional(self) -> bool:
        """Whether it consists of convolutions, not of attention or recurrence."""
        return self.name not in TRANSFORMERS and "silero" not in self.name


def npu_models() -> list[NpuModel]:
    """Return every network that can be had here; what is missing is said on stderr."""
    tasks = {task.name: task for task in all_tasks()}
    models = [_fashion("fashion_cnn"), _fashion("fashion_transformer")]
    for name in ("efficientnet_lite0", "cifar10_resnet20", "minilm_l6_v2"):
        if name in tasks:
            task = tasks[name]
            dims = {"sequence": 64, "seq": 64} if name == "minilm_l6_v2" else {}
            models.append(NpuModel(name, task.model, task.calibration, dims, task.score))
    lines = tasks["ppocrv4_rec"]
    models += [
        NpuModel(
            "ppocrv4_det",
            partial(zoo.fetch, "ppocrv4_det"),
            lambda: _stored("ppocrv4_det-pages", lambda: pages(CALIBRATION_SEED, _PAGES)),
            {"x.2": PAGE, "x.3": PAGE},
            samples=partial(pages, TEST_SEED),
        ),
        NpuModel("ppocrv4_rec", lines.model, lines.calibration, {"x.3": 320, "x.2": 48}),
        _random("ddddocr_det", partial(zoo.fetch, "ddddocr_det"), {"images": (3, 416, 416)}),
        # Its output is a single number, of whose range a few inputs say little.
        _random(
            "silero_vad_op18_ifless",
            partial(zoo.fetch, "silero_vad_op18_ifless"),
            {"input": (576,)},
            {"sr": 16000},
            256,
            64,
        ),
    ]
    if not (SHARED / "arch" / "materialize.py").is_file():
        click.echo(f"skipped {', '.join(ARCHITECTURES)}: there is no ../shared/arch", err=True)
        return models
    return models + [_random(name, partial(_architecture, name), {"x": (3, 224, 224)}) for name in ARCHITECTURES]


def open_dims(path: Path, known: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of all open dimensions of a model's inputs: those ``known``, 1 for the rest."""
    sizes: dict[str, int] = {}
    proto = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            name = _name_of(dim, place := f"{value.name}.{axis}")
            sizes[name] = known.get(place, known.get(name, 1))
    return sizes


def _name_of(dim: Any, place: str) -> str:
    """Return how fix-shapes calls an open dimension: its own name where that is one, else its place."""
    return dim.dim_param if dim.dim_param.isidentifier() else place


def _fashion(name: str) -> NpuModel:
    metrics = module_of(ROOT / "models" / "metrics.py")

    def calibration() -> Path:
        return _stored(name, lambda: {"images": np.concatenate([b["images"] for b in metrics.fashion_calibration()])})

    def score(session: Runnable, limit: int | None) -> float:
        batches = [batch["images"] for batch in metrics.fashion_test()]
        images: NDArray[Any] = np.concatenate(batches)[:limit]
        return float(metrics.fashion_accuracy([{"logits": session.run(None, {"images": images})[0]}]))

    return NpuModel(name, lambda: ROOT / "models" / f"{name}.onnx", calibration, {}, score)


def _random(
    name: str,
    path: Callable[[], Path],
    shapes: Mapping[str, tuple[int, ...]],
    settings: Mapping[str, int] | None = None,
    samples: int = _RANDOM_SAMPLES,
    least: int = 1,
) -> NpuModel:
    """Return a network that has no data here: its inputs are random, and there are ``samples`` to calibrate it."""
    dims = {f"{value}.{axis}": size for value, shape in shapes.items() for axis, size in enumerate(shape, start=1)}

    def calibration() -> Path:
        return _stored(name, lambda: random_inputs(path(), dims, samples, besides=settings or {}))

    return NpuModel(name, path, calibration, dims, settings=settings or {}, least=least)


def pages(seed: int, count: int) -> Arrays:
    """Return pages of text lines: float32[count,3,480,480], normalized as PP-OCR's detector wants them."""
    rng = np.random.default_rng(seed)
    texts = iter(line_texts(seed, _LINES_OF_PAGE * count))
    found = np.empty((count, 3, PAGE, PAGE), np.float32)
    for page in found:
        page[:] = rng.integers(170, 256, (3, 1, 1)) / 255
        for row in range(_LINES_OF_PAGE):
            line = render(next(texts), rng)
            line = line[:, :, line.any(axis=(0, 1))] / 2 + 0.5
            top, left = row * PAGE // _LINES_OF_PAGE + int(rng.integers(0, 10)), rng.integers(0, PAGE - line.shape[2])
            page[:, top : top + line.shape[1], left : left + line.shape[2]] = line
    return {"x": (found - _MEAN) / _DEVIATION}


def random_inputs(
    path: Path, known: Mapping[str, int], samples: int, seed: int = 0, *, besides: Collection[str] = ()
) -> Arrays:
    """Return ``samples`` random inputs of batch 1, stacked along a new first axis where an input has no batch.

    Inputs ``besides`` those get nothing.
    """
    sizes = open_dims(path, known)
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    proto = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in constants or value.name in besides:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [
            dim.dim_value if dim.HasField("dim_value") else sizes[_name_of(dim, f"{value.name}.{axis}")]
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        ]
        rows = (samples, *shape[1:]) if shape and shape[0] == 1 else (samples, *shape)
        whole = np.issubdtype(kind, np.integer)
        drawn = rng.integers(0, 2, rows) if whole else rng.standard_normal(rows)
        found[value.name] = np.asarray(drawn, kind)
    return found


def _stored(name: str, make: Callable[[], Arrays]) -> Path:
    path = cache_folder().with_name("bench-npu") / f"{name}-calibration-v2.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as part:
            np.savez(part, **make())  # pyright: ignore[reportArgumentType]
        Path(part.name).replace(path)
    return path


def _architecture(name: str) -> Path:
    """Return an architecture of ../shared/arch with its weights drawn."""
    path = cache_folder().with_name("bench-npu") / f"{name}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        materialize = module_of(SHARED / "arch" / "materialize.py").materialize
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx", delete=False) as part:
            onnx.save(materialize(SHARED / "arch" / f"{name}.onnx"), part.name)
        Path(part.name).replace(path)
    return path
