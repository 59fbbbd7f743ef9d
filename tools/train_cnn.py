"""Train models/fashion_cnn.onnx, a small convolutional network on Fashion-MNIST.

usage: python tools/train_cnn.py [--data FOLDER]      needs torch; a few minutes on one CPU thread

The network is written the long way on purpose, as networks come out of real exporters: input normalisation, explicit
one-sided Pad before strided convolutions, BatchNormalization kept, HardSwish as five operators, depthwise convolutions,
and residual sums. The data is Debian's package dataset-fashion-mnist, or a folder with the same four idx files.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from fashion import data_option, epochs_option, main, seed_option
from torch import Tensor, nn


class HardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0


class ConvNorm(nn.Sequential):
    def __init__(self, source: int, target: int, kernel: int, *, act: nn.Module, stride: int = 1, groups: int = 1):
        padding = kernel // 2
        layers: list[nn.Module] = []
        if stride == 2:
            layers.append(nn.ConstantPad2d((0, 1, 0, 1), 0.0))
            padding = 0
        layers += [
            nn.Conv2d(source, target, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(target),
            act,
        ]
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    def __init__(self, source: int, hidden: int, target: int, *, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(source, hidden, 1, act=HardSwish()),
            ConvNorm(hidden, hidden, 3, act=nn.ReLU6(), stride=stride, groups=hidden),
            ConvNorm(hidden, target, 1, act=nn.Identity()),
        )
        self.residual = stride == 1 and source == target

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class BasicBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, act=nn.ReLU())
        self.second = ConvNorm(channels, channels, 3, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class FashionCnn(nn.Module):
    """float32[N,1,28,28], 0 to 255, to logits float32[N,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 24, 3, act=nn.ReLU6(), stride=2)
        self.stages = nn.Sequential(
            InvertedResidual(24, 48, 24, stride=1),
            InvertedResidual(24, 48, 40, stride=2),
            InvertedResidual(40, 80, 40, stride=1),
            BasicBlock(40),
        )
        self.head = ConvNorm(40, 128, 1, act=HardSwish())
        self.classifier = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = (images / 255.0 - 0.286) / 0.353
        x = self.head(self.stages(self.stem(x)))
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@click.command(help=__doc__)
@data_option
@epochs_option
@seed_option
def train_cnn(data: Path, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    main(FashionCnn(), "fashion_cnn", data, epochs=epochs, peak_rate=0.006, shift=2, seed=seed)


if __name__ == "__main__":
    train_cnn()
