"""What the two training tools share: Fashion-MNIST from its idx files, the training loop, the export, the sample.

The data is Debian's package ``dataset-fashion-mnist`` (MIT licence), or any folder with the same four idx files,
gzipped or not, given as ``--data``.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from tqdm import tqdm

MODELS = Path(__file__).resolve().parent.parent / "models"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = MODELS / "fashion_sample.npz"
TEST_IMAGES = 1000
CALIBRATION_IMAGES = 256
OPSET = 17


@dataclass(frozen=True)
class Split:
    """Images uint8[N,28,28] and labels uint8[N]."""

    images: np.ndarray
    labels: np.ndarray


def load(folder: Path, split: str) -> Split:
    """Read the split ``train`` or ``t10k`` of the folder's idx files."""
    return Split(
        _read_idx(folder, f"{split}-images-idx3-ubyte").reshape(-1, 28, 28),
        _read_idx(folder, f"{split}-labels-idx1-ubyte"),
    )


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    packed = folder / f"{stem}.gz"
    if packed.is_file():
        raw = gzip.decompress(packed.read_bytes())
    elif (folder / stem).is_file():
        raw = (folder / stem).read_bytes()
    else:
        raise click.UsageError(f"{folder} has no {stem}[.gz]: install dataset-fashion-mnist or pass --data FOLDER")
    # An idx header is a magic number, whose last byte is the rank, and one big-endian int32 for each dimension.
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])


def write_sample(folder: Path) -> None:
    """Write the committed sample: the first test images with their labels, and training images to calibrate on."""
    test, train = load(folder, "t10k"), load(folder, "train")
    np.savez_compressed(
        SAMPLE,
        test_images=test.images[:TEST_IMAGES],
        test_labels=test.labels[:TEST_IMAGES],
        calibration_images=train.images[:CALIBRATION_IMAGES],
    )


def as_input(images: np.ndarray) -> Tensor:
    """float32[N,1,28,28], 0 to 255, from uint8[N,28,28]."""
    return torch.from_numpy(images.astype(np.float32)[:, None])


def train(
    model: nn.Module, split: Split, *, epochs: int, peak_rate: float, shift: int, seed: int, batch: int = 128
) -> None:
    """Train in place with AdamW on a one-cycle schedule; images are mirrored and shifted by up to ``shift`` pixels."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * (len(split.labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    model.train()
    for images, labels in tqdm(_augmented(split, epochs, batch, shift, rng), total=steps, unit="step"):
        loss = nn.functional.cross_entropy(model(as_input(images)), torch.from_numpy(labels), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _augmented(
    split: Split, epochs: int, batch: int, shift: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _ in range(epochs):
        order = rng.permutation(len(split.labels))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            images = np.pad(split.images[chosen], ((0, 0), (shift, shift), (shift, shift)))
            down, right = rng.integers(0, 2 * shift + 1, 2)
            images = images[:, down : down + 28, right : right + 28]
            mirrored = rng.random(batch) < 0.5
            images = np.where(mirrored[:, None, None], images[:, :, ::-1], images)
            yield images, split.labels[chosen].astype(np.int64)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the images whose largest logit is their label."""
    logits = torch.cat([model(as_input(part)) for part in np.array_split(split.images, 40)])
    return float((logits.argmax(1).numpy() == split.labels).mean())


def export(model: nn.Module, path: Path) -> None:
    """Write the trained network as it was written down: no folding, BatchNormalization kept, batch size free."""
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 28, 28),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    onnx.checker.check_model(str(path), full_check=True)


def main(model: nn.Module, name: str, data: Path, *, epochs: int, peak_rate: float, shift: int, seed: int) -> None:
    """Train, report, export to ``models/NAME.onnx`` and refresh the sample."""
    # The order of sums depends on the number of threads: a fixed number gives the same network for the same seed.
    torch.set_num_threads(1)
    train(model, load(data, "train"), epochs=epochs, peak_rate=peak_rate, shift=shift, seed=seed)
    test = load(data, "t10k")
    sample = Split(test.images[:TEST_IMAGES], test.labels[:TEST_IMAGES])
    export(model, MODELS / f"{name}.onnx")
    write_sample(data)
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(
        f"{name}: {parameters} parameters, test {accuracy(model, test):.4f}, sample {accuracy(model, sample):.4f}"
    )


data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEBIAN_FOLDER,
    show_default=True,
    help="folder with the four idx files of Fashion-MNIST",
)
epochs_option = click.option("--epochs", default=4, show_default=True, help="passes over the 60,000 training images")
seed_option = click.option("--seed", default=0, show_default=True, help="of weights, order and augmentation")
