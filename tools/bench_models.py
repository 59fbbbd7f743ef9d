"""The models that benchmarks run on, each with two seeded feeds: the zoo, the project's own, and ../shared/models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from graphopt import zoo
from graphopt.runtime import Session
from graphopt.zoo import InputSpec

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models"

Feed = Mapping[str, InputSpec]


@dataclass(frozen=True)
class BenchModel:
    """A model, how to get its file, and how to fill its inputs: two feeds, of different shape where shapes are free."""

    name: str
    path: Callable[[], Path]
    feeds: tuple[Feed, Feed]


def _tokens(batch: int, length: int) -> Feed:
    shape = (batch, length)
    return {
        "input_ids": InputSpec(shape=shape, high=30000),
        "attention_mask": InputSpec(shape=shape, value=1),
        "token_type_ids": InputSpec(shape=shape, value=0),
    }


def _image(name: str, *shape: int) -> Feed:
    return {name: InputSpec(shape=shape)}


_SHARED_FEEDS: dict[str, tuple[Feed, Feed]] = {
    "efficientnet_lite0": (_image("input", 1, 3, 224, 224), _image("input", 2, 3, 224, 224)),
    "cifar10_resnet20": (_image("input", 1, 3, 32, 32), _image("input", 4, 3, 32, 32)),
    "minilm_l6_v2": (_tokens(1, 64), _tokens(3, 17)),
}
_OWN = ("fashion_cnn", "fashion_transformer")


def all_models() -> list[BenchModel]:
    """Return every model that can be had here; what is missing is said on stderr."""
    models = []
    for name, feeds in _SHARED_FEEDS.items():
        file = SHARED / f"{name}.onnx"
        if file.is_file():
            models.append(BenchModel(name, partial(Path, file), feeds))
        else:
            click.echo(f"skipped {name}: there is no ../shared/models/{file.name}", err=True)
    models += [BenchModel(e.name, partial(zoo.fetch, e.name), (e.inputs[0], e.inputs[-1])) for e in zoo.list_zoo()]
    feeds = (_image("images", 1, 1, 28, 28), _image("images", 5, 1, 28, 28))
    models += [BenchModel(name, partial(Path, ROOT / "models" / f"{name}.onnx"), feeds) for name in _OWN]
    return models


def arrays(model: BenchModel, session: Session, seed: int = 0) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield the two feeds as arrays of the dtypes that the session asks for."""
    rng = np.random.default_rng(seed)
    for feed in model.feeds:
        yield {info.name: _array(feed[info.name], info.dtype, rng) for info in session.inputs}


def _array(spec: InputSpec, dtype: np.dtype[Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if spec.value is not None:
        return np.full(spec.shape, spec.value, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, spec.high, spec.shape).astype(dtype)
    return rng.standard_normal(spec.shape).astype(dtype)
