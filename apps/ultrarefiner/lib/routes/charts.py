"""Small pictures for the status page: inline SVG, made of numbers; and texts for it. Colours come from the page's style by class.

They are drawn for the width of a phone and grow with it; each says in words what it shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape as _escape

from ultrarefiner_monai.core.messages import public

_WIDTH, _HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 12, 26

_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
Point = tuple[float, float]


def escape(text: str) -> str:
    """Text for a page: markup is shown, not obeyed; without paths of the server, and what no page can hold."""
    return _escape(_NO_TEXT.sub("", public(text)))


def line_chart(
    says: str,
    points: Sequence[Point],
    ends: tuple[str, str],
    span: tuple[float, float] | None = None,
    marks: Iterable[tuple[float, str]] = (),
    across: tuple[float, float] | None = None,
    digits: int = 0,
) -> str:
    """A curve. says: what it shows, in words. ends: texts below its two ends. span: the least that the height covers.
    marks: (x, text) of upright lines. across: what the width covers, by default the points. digits: of the numbers at
    the side. Without a point an empty frame."""
    low, high = _span([y for _, y in points], span)
    x0, x1 = across or ((points[0][0], points[-1][0]) if points else (0.0, 1.0))
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> Point:
        share = (x - x0) / (x1 - x0) if x1 > x0 else 1.0
        return _LEFT + wide * min(1.0, max(0.0, share)), _TOP + tall * (1 - (y - low) / (high - low))

    parts = []
    for value in _ticks(low, high):
        y = place(x0, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>')
    for x, text in marks:
        at = place(x, low)[0]
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
            f"<title>{escape(text)}</title></line>"
        )
    places = [place(x, y) for x, y in points]
    if len(places) > 1:
        parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    if places:
        parts.append(f'<circle class="dot" cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3.5"/>')
    parts.append(f'<text class="tick" x="{_LEFT}" y="{_HEIGHT - 8}">{escape(ends[0])}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{escape(ends[1])}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(says)}"><title>{escape(says)}</title>'
        f"{''.join(parts)}</svg>"
    )


def bar(share: float, says: str) -> str:
    """A bar that is full to ``share``, 0 to 1."""
    width = 100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0))
    return (
        f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{escape(says)}">'
        f'<rect class="rail" width="100" height="8"/><rect class="full" width="{width:.1f}" height="8"/></svg>'
    )


def _span(values: Sequence[float], least: tuple[float, float] | None) -> Point:
    """What the height covers: all values and ``least``, ends included; never of no height."""
    low, high = min([*values, *(least or ())[:1]], default=0.0), max([*values, *(least or ())[1:]], default=1.0)
    if high - low < 1e-9:
        high = low + 1.0
    step = _step(high - low)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _ticks(low: float, high: float) -> list[float]:
    step = _step(high - low)
    return [low + step * k for k in range(round((high - low) / step) + 1)]


def _step(length: float) -> float:
    """A round number that fits a few times into ``length``."""
    rough = length / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return power * min((1, 2, 5, 10), key=lambda f: (abs(math.log(f * power / rough)), f))
