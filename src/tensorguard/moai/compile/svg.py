"""Small SVG charts from numbers: presentation attributes only, no style, no script, no reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Role = Literal["unit", "worst", "truth"]
_STROKES: dict[Role, tuple[str, float]] = {
    "unit": ("#6ea8dc", 1.2),
    "worst": ("#c8322b", 1.6),
    "truth": ("#1b1f24", 2.0),
}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 260, 64, 28, 10
_LABEL = 'font-family="system-ui,sans-serif" font-size="12" fill="#57606a"'


@dataclass(frozen=True, eq=False)
class Curve:
    """Points to be joined, in order of `x`."""

    x: Floats
    y: Floats
    role: Role


def chart(
    curves: Sequence[Curve], counts: Floats | None = None, edges: Floats | None = None
) -> str:
    """Return curves in one frame, over a histogram if there is one."""
    x = np.concatenate([curve.x for curve in curves])
    y = np.concatenate([curve.y for curve in curves])
    if edges is not None:
        x = np.concatenate([x, edges])
    left, right = _span(x)
    low, high = _span(y)

    def across(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (_WIDTH - _LEFT - 10)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [_open(_HEIGHT)]
    if counts is not None and edges is not None:
        tallest = max(float(counts.max()), 1.0)
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
            tall = float(count) / tallest * (_HEIGHT - _BOTTOM - _TOP)
            parts.append(
                f'<rect x="{across(float(start)):.1f}" y="{_HEIGHT - _BOTTOM - tall:.1f}" '
                f'width="{max(across(float(end)) - across(float(start)), 0.5):.1f}" '
                f'height="{tall:.1f}" fill="#e3e7ec"/>'
            )
    for curve in curves:
        points = " ".join(
            f"{across(float(a)):.1f},{up(float(b)):.1f}"
            for a, b in zip(curve.x, curve.y, strict=True)
        )
        colour, thick = _STROKES[curve.role]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="{thick}" points="{points}"/>'
        )
    parts += [
        _text(_LEFT - 6, up(place) + 4, f"{place:.3g}", "end")
        for place in np.linspace(low, high, 4).tolist()
    ]
    parts += [
        _text(across(place), _HEIGHT - 8, f"{place:.3g}", "middle")
        for place in np.linspace(left, right, 5).tolist()
    ]
    return "".join((*parts, "</svg>"))


def bars(names: Sequence[str], values: Sequence[float]) -> str:
    """Return one horizontal bar for each value, on a logarithmic scale; zero has none."""
    positive = [math.log10(value) for value in values if value > 0]
    low = math.floor(min(positive, default=0.0)) - 0.5
    high = max(max(positive, default=1.0), low + 1)
    tall, start = 22, 150
    parts = [_open(tall * len(names) + 6)]
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = row * tall + 4
        parts.append(_text(start - 8, y + 13, name, "end"))
        long = (math.log10(value) - low) / (high - low) * 460 if value > 0 else 0.0
        parts.append(
            f'<rect x="{start}" y="{y}" width="{long:.1f}" height="{tall - 6}" fill="#6ea8dc"/>'
        )
        parts.append(_text(start + long + 6, y + 13, f"{value:.2g}", "start"))
    return "".join((*parts, "</svg>"))


def _open(height: int) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_LABEL}>{escape(text)}</text>'


def _span(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.02 * (high - low) or 1e-9 + abs(low) * 1e-6
    return low - room, high + room
