"""Train models/fashion_transformer.onnx, a small patch transformer on Fashion-MNIST.

usage: python tools/train_transformer.py [--data FOLDER]      needs torch; a few minutes on one CPU thread

LayerNorm is written out, GELU exports as its Erf formula, attention as MatMul and Softmax between Reshape and Transpose
with the batch size read from the input's shape: the patterns that an optimizer meets in transformer exports. The data
is Debian's package dataset-fashion-mnist, or a folder with the same four idx files.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from fashion import data_option, epochs_option, main, seed_option
from torch import Tensor, nn

PATCH = 7
TOKENS = (28 // PATCH) ** 2


class LayerNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.reshape(y.shape[0], TOKENS, self.heads, self.size).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = torch.softmax(query @ key.transpose(-1, -2) / self.size**0.5, dim=-1)
        return self.out((scores @ value).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = LayerNorm(width), Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FashionTransformer(nn.Module):
    """float32[N,1,28,28], 0 to 255, to logits float32[N,10]."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = (images / 255.0 - 0.286) / 0.353
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


@click.command(help=__doc__)
@data_option
@epochs_option
@seed_option
def train_transformer(data: Path, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    main(FashionTransformer(), "fashion_transformer", data, epochs=epochs, peak_rate=0.003, shift=0, seed=seed)


if __name__ == "__main__":
    train_transformer()
