"""Folders of images, made into input arrays as a TOML file says.

The steps run in this order, each only where its key is there::

    resize = 256              # the short side, keeping the ratio; or [height, width], not keeping it
    interpolation = "bilinear"  # nearest, bilinear (default), bicubic, lanczos
    size = 224                # side or [height, width] of the part that is kept
    crop = "center"           # where that part is; the only place there is
    channels = "rgb"          # rgb (default), bgr, gray
    scale = "1/255"           # required: multiplies the pixel values 0..255; a number or a fraction
    mean = [0.485, 0.456, 0.406]  # subtracted after scale; one number or one for each channel
    std = [0.229, 0.224, 0.225]   # divides after mean
    layout = "nchw"           # nchw (default) or nhwc
    dtype = "float32"         # default: the model's

An image becomes ``(pixels * scale - mean) / std``. A network fed with raw bytes has ``scale = 1`` and nothing else; one
whose pixels run from -1 to 1 has ``scale = 1``, ``mean = 127.5``, ``std = 127.5``. Resizing by the short side rounds
the long side down; the crop's offset is rounded to the nearest pixel.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
EXAMPLE = 'resize = 256, size = 224, scale = "1/255", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]'
_CHOICES = {
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "crop": ("center",),
    "channels": ("rgb", "bgr", "gray"),
    "layout": ("nchw", "nhwc"),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes one sample; the keys of the TOML file (see the module)."""

    scale: float
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    size: tuple[int, int] | None = None
    crop: Literal["center"] = "center"
    channels: str = "rgb"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "nchw"
    dtype: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        extent = self.size or self.resize
        assert isinstance(extent, tuple)
        depth = 1 if self.channels == "gray" else 3
        return (depth, *extent) if self.layout == "nchw" else (*extent, depth)

    def sample(self, path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the image in ``path`` as an array of :attr:`shape` and ``dtype``.

        Raises UsageError naming the file when it is no image, smaller than the crop, or out of the dtype's range.
        """
        pixels = self._pixels(path).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (pixels * np.float32(self.scale) - mean) / std
        if self.layout == "nchw":
            values = values.transpose(2, 0, 1)
        if dtype.kind not in "ui":
            return np.ascontiguousarray(values).astype(dtype)
        limits, values = np.iinfo(dtype), np.rint(values)
        if values.min() < limits.min or values.max() > limits.max:
            span = f"{values.min():g} to {values.max():g}"
            raise UsageError(
                f"values from {span} do not fit {dtype}", where=str(path), hint="check scale, mean and std"
            )
        return np.ascontiguousarray(values).astype(dtype)

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        """Return uint8[height, width, channels], resized and cropped."""
        pillow = _pillow()
        try:
            with pillow.open(path) as file:
                image = file.convert("L" if self.channels == "gray" else "RGB")
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise UsageError(f"not a readable image: {error}", where=str(path)) from error
        image = self._cropped(self._resized(image, pillow), path)
        pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8)
        if self.channels == "gray":
            return pixels[:, :, None]
        return pixels[:, :, ::-1] if self.channels == "bgr" else pixels

    def _resized(self, image: Any, pillow: Any) -> Any:
        if self.resize is None:
            return image
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short = min(image.size)
            width, height = (self.resize * side // short for side in image.size)
        return image.resize((width, height), getattr(pillow.Resampling, self.interpolation.upper()))

    def _cropped(self, image: Any, path: Path) -> Any:
        if self.size is None:
            return image
        height, width = self.size
        if image.height < height or image.width < width:
            found = f"{image.height}x{image.width}"
            hint = "give `resize`, or a larger one"
            raise UsageError(f"{found} is smaller than the crop of {height}x{width}", where=str(path), hint=hint)
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))


def read_preprocessing(path: Path) -> Preprocessing:
    """Read the TOML file. Raises UsageError naming the key that is unknown, missing or of the wrong type."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the preprocessing file cannot be read: {error}", where=str(path)) from error
    known = [f.name for f in fields(Preprocessing)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"unknown key {key!r}", where=str(path), hint=hint)
    if "scale" not in table:
        raise UsageError("the key 'scale' is missing", where=str(path), hint=f"for instance: {EXAMPLE}")
    values = {key: _value(key, value, str(path)) for key, value in table.items()}
    result = Preprocessing(**values)
    _check(result, str(path))
    return result


def _value(key: str, value: Any, where: str) -> Any:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise UsageError(f"{key} = {value!r}: expected one of {', '.join(_CHOICES[key])}", where=where)
        return value
    try:
        if key == "scale":
            return float(Fraction(value))
        if key in ("mean", "std"):
            return tuple(float(v) for v in (value if isinstance(value, list) else [value]))
        if key == "dtype":
            return np.dtype(value).name
        if key == "resize" and isinstance(value, int):
            return _positive(value)
        height, width = value if isinstance(value, list) else (value, value)
        return _positive(height), _positive(width)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{key} = {value!r} is not usable: {error}", where=where) from error


def _positive(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("expected positive whole numbers")
    return value


def _check(spec: Preprocessing, where: str) -> None:
    if spec.size is None and not isinstance(spec.resize, tuple):
        raise UsageError("images would differ in size", where=where, hint="give `size`, or `resize = [height, width]`")
    depth = 1 if spec.channels == "gray" else 3
    for key, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (1, depth):
            raise UsageError(f"{key} has {len(numbers)} numbers for {depth} channels", where=where)
    if 0.0 in spec.std:
        raise UsageError("std must not be 0", where=where)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        hint = "pip install 'graphopt[images]'"
        raise UsageError("reading images needs Pillow, which is not installed", hint=hint) from error
    return Image
