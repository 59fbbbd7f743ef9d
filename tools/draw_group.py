"""Draw the prune groups of a residual block: writes docs/prune_group.svg.

usage: python tools/draw_group.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "prune_group.svg"
COLORS = {"A": "#d95f02", "B": "#1b6ca8"}
SHADE, INK, SIDE, TOP = "#e8e8e8", "#222222", 88, 112
# Where on an axis the channel that is drawn lies, as a share of the axis.
PLACES = {"A": 0.30, "B": 0.62}


class Weight(NamedTuple):
    """A convolution's weight and bias: the groups on axis 0 (outputs) and axis 1 (inputs), none where pinned."""

    name: str
    x: int
    shape: str
    outputs: str | None
    inputs: str | None


class Activation(NamedTuple):
    """A tensor between convolutions: the group on its axis 1."""

    name: str
    x: int
    label: str
    group: str


WEIGHTS = (
    Weight("W0", 70, "64 x 3 x 7 x 7", "A", None),
    Weight("W1", 290, "64 x 64 x 3 x 3", "B", "A"),
    Weight("W2", 510, "64 x 64 x 3 x 3", "A", "B"),
    Weight("W3", 790, "128 x 64 x 3 x 3", None, "A"),
)
ACTIVATIONS = (
    Activation("h0", 224, "Relu", "A"),
    Activation("h1", 444, "Relu", "B"),
    Activation("h2", 724, "Relu", "A"),
)
SUM_X = 662


def drawing() -> str:
    """Return the picture as SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 330" font-family="sans-serif" font-size="13"'
        f' fill="{INK}">',
        '<rect width="940" height="330" fill="white"/>',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
        *_arrows(),
        *(part for weight in WEIGHTS for part in _weight(weight)),
        *(part for activation in ACTIVATIONS for part in _activation(activation)),
        f'<circle cx="{SUM_X}" cy="{TOP + SIDE // 2}" r="13" fill="white" stroke="{INK}"/>',
        _text(SUM_X, TOP + SIDE // 2 + 5, "+"),
        _text(SUM_X, TOP + SIDE + 22, "Add"),
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _weight(weight: Weight) -> list[str]:
    x = weight.x
    parts = [_rect(x, TOP, SIDE, SIDE, SHADE), _rect(x + SIDE + 4, TOP, 9, SIDE, SHADE)]
    if weight.inputs:
        parts.append(_rect(x + PLACES[weight.inputs] * SIDE, TOP, 9, SIDE, COLORS[weight.inputs]))
    if weight.outputs:
        y, color = TOP + PLACES[weight.outputs] * SIDE, COLORS[weight.outputs]
        parts += [_rect(x, y, SIDE, 9, color), _rect(x + SIDE + 4, y, 9, 9, color)]
    middle = x + SIDE / 2
    parts += [
        _text(middle, TOP + SIDE + 22, f"Conv, {weight.name} and bias"),
        _text(middle, TOP + SIDE + 39, weight.shape),
        _text(middle, TOP - 6, "inputs", 11),
        f'<text transform="translate({x - 6},{TOP + SIDE / 2}) rotate(-90)" text-anchor="middle" font-size="11">'
        "outputs</text>",
    ]
    return parts


def _activation(activation: Activation) -> list[str]:
    x, color = activation.x, COLORS[activation.group]
    return [
        _rect(x, TOP, 18, SIDE, SHADE),
        _rect(x, TOP + PLACES[activation.group] * SIDE, 18, 9, color),
        _text(x + 9, TOP + SIDE + 22, activation.label),
    ]


def _arrows() -> list[str]:
    y = TOP + SIDE / 2
    spans = [(20, 52), (174, 222), (244, 274), (394, 442), (464, 494), (614, 648), (676, 722), (744, 774), (894, 926)]
    line = f'stroke="{INK}" fill="none" marker-end="url(#tip)"'
    shortcut = f"M{ACTIVATIONS[0].x + 9},{TOP} V60 H{SUM_X} V{y - 15}"
    return [
        *(f'<path d="M{first},{y} H{last}" {line}/>' for first, last in spans),
        f'<path d="{shortcut}" {line}/>',
        _text((ACTIVATIONS[0].x + SUM_X) / 2, 52, "shortcut"),
    ]


def _legend() -> list[str]:
    texts = {
        "A": "group A, one channel: what is added has to keep the same channels, so they go everywhere or nowhere",
        "B": "group B, one channel: only W1 writes it, only W2 reads it",
    }
    parts = []
    for index, (group, text) in enumerate(texts.items()):
        y = 276 + 26 * index
        parts += [_rect(70, y, 16, 12, COLORS[group]), f'<text x="96" y="{y + 11}">{text}</text>']
    return parts


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{color}"/>'


def _text(x: float, y: float, text: str, size: int = 13) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}">{text}</text>'


if __name__ == "__main__":
    OUTPUT.write_text(drawing())
