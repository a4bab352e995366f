"""Lines over time as SVG, with gaps where there was no sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from moescope.service.report.markup import text

_WIDTH, _HEIGHT = 960, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 26
_COLOURS: Final = 8  # of the style sheet: c0 to c7


@dataclass(frozen=True, slots=True)
class Line:
    """A name, and a value for each instant; None: no sample."""

    name: str
    values: Sequence[float | None]


def chart(at: Sequence[float], lines: Sequence[Line], label: str, floor: float = 0.0) -> str:
    """An SVG of lines.

    Args:
        at: instants, seconds of Unix time.
        lines: each has a value for every instant.
        label: what it shows, for screen readers.
        floor: where the scale of values begins.
    """
    known = [value for line in lines for value in line.values if value is not None]
    if len(at) < 2 or not known:
        return "<p class=empty>No sample in this window.</p>"
    # The scale spans at least a tenth. Else it would show the rounding of a value that never changes.
    ticks = _ticks(floor, max(*known, floor + 0.1))
    low, high = ticks[0], ticks[-1]

    def x(instant: float) -> float:
        return _LEFT + (instant - at[0]) / (at[-1] - at[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg class=chart viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img aria-label="{text(label)}">']
    parts += [
        f'<path class=grid d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f"<text x={_LEFT - 8} y={y(tick) + 4:.1f} text-anchor=end>{tick:,g}</text>"
        for tick in ticks
    ]
    for i in range(5):
        instant = at[0] + (at[-1] - at[0]) * i / 4
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        parts.append(
            f'<text x="{x(instant):.1f}" y={_HEIGHT - 6} text-anchor={anchor}>'
            f"{_clock(instant, at[-1] - at[0])}</text>"
        )
    many = len(lines) > _COLOURS
    for n, line in enumerate(lines):
        path = "".join(
            "M"
            + "L".join(f"{x(instant):.1f} {y(value):.1f}" for instant, value in run)
            + "h0" * (len(run) == 1)
            for run in _runs(at, line.values)
        )
        kind = "many" if many else f"c{n}"
        parts.append(f'<path class="line {kind}" d="{path}"><title>{text(line.name)}</title></path>')
    keys = "" if many else "".join(f"<li class=c{n}>{text(line.name)}</li>" for n, line in enumerate(lines))
    return "".join(parts) + f"</svg><ul class=keys>{keys}</ul>"


def _runs(at: Sequence[float], values: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    """The stretches without gaps, as (instant, value); a lone sample is a stretch too."""
    run: list[tuple[float, float]] = []
    for instant, value in zip(at, values, strict=True):
        if value is not None:
            run.append((instant, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round values that enclose the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _clock(instant: float, span_s: float) -> str:
    form = "%d %b %H:%M" if span_s > 86400 else "%H:%M:%S" if span_s < 600 else "%H:%M"
    return datetime.fromtimestamp(instant, UTC).strftime(form)
