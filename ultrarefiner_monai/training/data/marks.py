"""Marks burned into pictures: calipers, text, rulers, logos, arrows, body marks, focus triangles, drawn anywhere.

In public sets calipers stand beside lesions and give them away; a network that looks for crosses fails where nobody has
measured yet. Here marks stand at lesions, at tissue that only looks measured, and anywhere else, in images with and
without a lesion alike, so that they say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from PIL import Image, ImageDraw, ImageFont

from ultrarefiner_monai.training.data.random_image import plain

Random = np.random.RandomState | np.random.Generator
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
_LETTERS = np.array(list("ABCDEFGHIKLMNOPRSTUVWX0123456789012345.:/-  cmdB"))


class RandMarksd(RandomizableTransform, MapTransform):
    """With probability ``prob`` one to ``most`` marks are drawn into the image (1, S, S); the label stays as it is.

    at_lesion: share of the calipers that stand at the ends of the lesion (the label's first channel), where there is one;
    the others measure something that is none.
    """

    def __init__(
        self, image: Hashable, label: Hashable, prob: float = 0.5, most: int = 4, at_lesion: float = 0.3
    ) -> None:
        MapTransform.__init__(self, [image, label])
        RandomizableTransform.__init__(self, prob)
        self.image, self.label, self.most, self.at_lesion = image, label, most, at_lesion

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            box = lesion_box(np.asarray(out[self.label])[0] >= 0.5)
            pixels = plain(out[self.image])[0].numpy()
            count = int(self.R.randint(1, self.most + 1))
            out[self.image] = torch.from_numpy(with_marks(pixels, self.R, box, count, self.at_lesion))[None]
        return out


def lesion_box(lesion: np.ndarray) -> Box | None:
    """(H, W) bool -> the box around it, None for an empty one."""
    columns, rows = np.flatnonzero(lesion.any(0)), np.flatnonzero(lesion.any(1))
    return None if not len(rows) else (float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1]))


def with_marks(
    image: np.ndarray, rng: Random, lesion: Box | None = None, count: int = 3, at_lesion: float = 0.3
) -> np.ndarray:
    """image (H, W) float32 in [0, 1] -> a new one with ``count`` marks. Pixels off the marks keep their values."""
    pen = _Pen.new(image.shape, rng)
    for _ in range(count):
        pen.shade()
        if rng.uniform() < 0.45:
            here = lesion if lesion is not None and rng.uniform() < at_lesion else pen.somewhere()
            _calipers(pen, here)
        else:
            _OTHERS[int(rng.uniform(0, len(_OTHERS)))](pen)
    return pen.onto(image)


def with_calipers(image: np.ndarray, rng: Random, box: Box) -> np.ndarray:
    """image (H, W) float32 in [0, 1] -> a new one with calipers at the ends of ``box``, in pixels."""
    pen = _Pen.new(image.shape, rng)
    pen.shade()
    _calipers(pen, box)
    return pen.onto(image)


@dataclass
class _Pen:
    """Draws on a canvas of its own: 0 is nothing, 1 to 255 are black to white. fine: canvas pixels per image pixel."""

    canvas: Image.Image
    draw: ImageDraw.ImageDraw
    rng: Random
    fine: int
    unit: float  # canvas pixels per pixel of a 224 frame
    grey: int = 255
    width: int = 1

    @classmethod
    def new(cls, shape: tuple[int, ...], rng: Random) -> _Pen:
        fine = 1 if rng.uniform() < 0.5 else 2  # half of the pictures were made smaller after they were marked
        canvas = Image.new("L", (shape[1] * fine, shape[0] * fine))
        draw = ImageDraw.Draw(canvas)
        draw.fontmode = "L" if fine == 1 else "1"
        return cls(canvas, draw, rng, fine, fine * max(shape) / 224)

    def shade(self) -> None:
        """Another brightness and thickness: 1 to 2 pixels of a 224 frame."""
        self.grey = int(self.rng.uniform(90, 256)) if self.rng.uniform() < 0.6 else 255
        self.width = max(1, round(self.rng.uniform(0.7, 1.7) * self.unit))

    def length(self, low: float, high: float) -> float:
        """In pixels of a 224 frame -> on the canvas."""
        return float(self.rng.uniform(low, high)) * self.unit

    def place(self, edge: float = 0.02) -> tuple[float, float]:
        width, height = self.canvas.size
        return float(self.rng.uniform(edge, 1 - edge)) * width, float(self.rng.uniform(edge, 1 - edge)) * height

    def line(self, *points: tuple[float, float]) -> None:
        self.draw.line(points, fill=self.grey, width=self.width)

    def somewhere(self) -> Box:
        """A box of a lesion's size, in pixels of the image, where there need not be anything."""
        (x, y), width = self.place(0.1), self.length(12, 90)
        height = width * float(self.rng.uniform(0.5, 1.2))
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return left / self.fine, top / self.fine, right / self.fine, bottom / self.fine

    def onto(self, image: np.ndarray) -> np.ndarray:
        covered = self.canvas.point([0] + [255] * 255)
        canvas = self.canvas
        if self.fine > 1:
            canvas, covered = canvas.reduce(self.fine), covered.reduce(self.fine)
        alpha = np.asarray(covered, dtype=np.float32) / 255
        return np.clip(image * (1 - alpha) + np.asarray(canvas, dtype=np.float32) / 255, 0, 1)


# --- the marks --------------------------------------------------------------------------------------------------------


def _calipers(pen: _Pen, box: Box) -> None:
    """Crosses at the ends of one or two axes, a dotted line between them or a dashed ellipse around, with a letter."""
    rng = pen.rng
    left, top, right, bottom = (side * pen.fine for side in box)
    x, y, half_w, half_h = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    turn, arm, kind = rng.uniform(-0.35, 0.35), pen.length(2, 5), rng.uniform()
    dotted, saltire = rng.uniform() < 0.5, rng.uniform() < 0.3
    for axis in range(1 if rng.uniform() < 0.3 else 2):
        angle = turn + axis * math.pi / 2
        away = half_w * math.cos(angle), half_h * math.sin(angle)
        ends = [(x - away[0], y - away[1]), (x + away[0], y + away[1])]
        for end in ends:
            _cross(pen, end, arm, saltire)
        if dotted:
            _dots(pen, ends)
        if rng.uniform() < 0.3:
            _write(pen, (ends[1][0] + arm, ends[1][1] - arm), str(axis + 1))
    if kind < 0.2:
        frame = (left, top, right, bottom)
        for start in range(0, 360, 12):
            pen.draw.arc(frame, start, start + 6, fill=pen.grey, width=pen.width)


def _cross(pen: _Pen, at: tuple[float, float], arm: float, saltire: bool) -> None:
    x, y = at
    if saltire:
        pen.line((x - arm, y - arm), (x + arm, y + arm))
        pen.line((x - arm, y + arm), (x + arm, y - arm))
    else:
        pen.line((x - arm, y), (x + arm, y))
        pen.line((x, y - arm), (x, y + arm))


def _dots(pen: _Pen, ends: list[tuple[float, float]]) -> None:
    (x0, y0), (x1, y1) = ends
    count = max(2, int(math.hypot(x1 - x0, y1 - y0) / pen.length(3, 7)))
    for k in range(1, count):
        x, y = x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count
        pen.draw.rectangle((round(x), round(y), round(x) + pen.width - 1, round(y) + pen.width - 1), fill=pen.grey)


def _single_cross(pen: _Pen) -> None:
    _cross(pen, pen.place(), pen.length(2, 6), pen.rng.uniform() < 0.4)


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _write(pen: _Pen, at: tuple[float, float], words: str, size: float = 9) -> None:
    pen.draw.text(at, words, fill=pen.grey, font=_font(max(6, round(size * pen.unit))))


def _text(pen: _Pen) -> None:
    """One to four lines, as a rule in a corner, some on a black ground."""
    (x, y), size = pen.place(), float(pen.rng.uniform(7, 13))
    if pen.rng.uniform() < 0.6:
        width, height = pen.canvas.size
        x = width * float(pen.rng.choice([0.01, 0.7]))
        y = height * float(pen.rng.choice([0.01, 0.85]))
    lines = ["".join(pen.rng.choice(_LETTERS, int(pen.rng.uniform(2, 14)))) for _ in range(int(pen.rng.uniform(1, 5)))]
    words = "\n".join(lines)
    if pen.rng.uniform() < 0.25:
        box = pen.draw.multiline_textbbox((x, y), words, font=_font(max(6, round(size * pen.unit))))
        pen.draw.rectangle(box, fill=1)
    _write(pen, (x, y), words, size)


def _ruler(pen: _Pen) -> None:
    """Ticks along a side, every fifth longer, or a scale of dots."""
    width, height = pen.canvas.size
    step, tick, upright = pen.length(6, 22), pen.length(2, 6), pen.rng.uniform() < 0.75
    length, across = (height, width) if upright else (width, height)
    at = across * float(pen.rng.choice([0.01, 0.05, 0.94, 0.97]))
    for k in range(int(length / step) + 1):
        reach = tick * (2 if k % 5 == 0 else 1)
        ends = ((at, k * step), (at + reach, k * step))
        pen.line(*(ends if upright else tuple((y, x) for x, y in ends)))


def _bar(pen: _Pen) -> None:
    """The grey bar that shows the grey map."""
    width, height = pen.canvas.size
    x, top, bar = width * float(pen.rng.choice([0.01, 0.96])), pen.length(5, 40), pen.length(4, 9)
    top = min(top, height / 2)  # of a wide, low picture
    steps = 16
    tall = min(pen.length(50, 120), height - top) / steps
    for k in range(steps):
        grey = max(1, 255 - 255 * k // (steps - 1))
        pen.draw.rectangle((x, top + k * tall, x + bar, top + (k + 1) * tall), fill=grey)


def _logo(pen: _Pen) -> None:
    (x, y), size = pen.place(), pen.length(8, 18)
    tall = size * float(pen.rng.uniform(0.6, 1))
    box = (x, y, x + size, y + tall)
    if pen.rng.uniform() < 0.5:
        pen.draw.ellipse(box, outline=pen.grey, width=pen.width)
    else:
        round_off = size / 5 if tall > 4.5 else 0  # Pillow has no room for corners in less
        pen.draw.rounded_rectangle(box, round_off, fill=pen.grey if pen.rng.uniform() < 0.4 else None, outline=pen.grey)
    pen.draw.text((x + size / 4, y), str(pen.rng.choice(_LETTERS[:20])), fill=128, font=_font(max(6, round(size / 2))))


def _arrow(pen: _Pen) -> None:
    (x, y), angle, length, head = pen.place(), pen.rng.uniform(0, 2 * math.pi), pen.length(10, 30), pen.length(3, 7)
    pen.line((x, y), (x + length * math.cos(angle), y + length * math.sin(angle)))
    tips = [(x + head * math.cos(angle + s), y + head * math.sin(angle + s)) for s in (-0.5, 0.5)]
    pen.draw.polygon([(x, y), *tips], fill=pen.grey)


def _body_mark(pen: _Pen) -> None:
    """A breast as two arcs with the probe's place as a short line."""
    (x, y), r, angle = pen.place(0.1), pen.length(9, 18), pen.rng.uniform(0, math.pi)
    pen.draw.arc((x - r, y - r, x + r, y + r), 0, 360, fill=pen.grey, width=pen.width)
    pen.draw.ellipse((x - r / 8, y - r / 8, x + r / 8, y + r / 8), outline=pen.grey)
    a, b = r / 2 * math.cos(angle), r / 2 * math.sin(angle)
    spot = x + r / 2 * pen.rng.uniform(-1, 1), y + r / 2 * pen.rng.uniform(-1, 1)
    pen.line((spot[0] - a, spot[1] - b), (spot[0] + a, spot[1] + b))


def _focus(pen: _Pen) -> None:
    """One or two triangles at a side."""
    width, height = pen.canvas.size
    right, size = pen.rng.uniform() < 0.5, pen.length(3, 6)
    x, towards = (width * 0.98, -size) if right else (width * 0.02, size)
    for _ in range(1 if pen.rng.uniform() < 0.7 else 2):
        y = height * float(pen.rng.uniform(0.1, 0.9))
        pen.draw.polygon([(x + towards, y), (x, y - size), (x, y + size)], fill=pen.grey)


_OTHERS: tuple[Callable[[_Pen], None], ...] = (
    _single_cross,
    _text,
    _text,
    _ruler,
    _bar,
    _logo,
    _arrow,
    _body_mark,
    _focus,
)
