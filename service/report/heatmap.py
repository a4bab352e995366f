"""A matrix as a picture in the page: an indexed PNG with one pixel a cell, in the colours of both themes.

A cell without a sample is transparent: the page's background shows there, and no colour of the scale.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.service.report.markup import text

# From far below a fair share over fair to far above: the colours of the service's page (js/palette.js).
DIVERGING: Final = {
    "light": ("#123f73", "#2f72b3", "#8bb8de", "#f1f3f5", "#f3b375", "#cf6a14", "#7a3503"),
    "dark": ("#9cd0ff", "#4a93d6", "#265079", "#20262d", "#7d4a1b", "#d98032", "#ffcf9e"),
}


def picture(values: npt.NDArray[np.float64], label: str) -> str:
    """An image of values in [0, 1], [rows, columns], for both themes; NaN is no sample."""
    known = np.nan_to_num(np.clip(values, 0, 1))
    cells = np.where(np.isnan(values), 0, 1 + np.rint(known * 254)).astype(np.uint8)
    light, dark = (_data_url(cells, theme) for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class=cells src="{light}" alt="{text(label)}"></picture>'
    )


def _data_url(cells: npt.NDArray[np.uint8], theme: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(cells, DIVERGING[theme])).decode()


def png(cells: npt.NDArray[np.uint8], stops: tuple[str, ...]) -> bytes:
    """A PNG of palette indices [rows, columns]: 0 is transparent, 1 to 255 blend the stops (#rrggbb)."""
    height, width = cells.shape
    colours = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops], float)
    at = np.concatenate([[0.0], np.linspace(0, len(stops) - 1, 255)])
    palette = np.stack([np.interp(at, np.arange(len(stops)), colours[:, c]) for c in range(3)], axis=1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), cells], axis=1)  # filter 0 before each row
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", np.rint(palette).astype(np.uint8).tobytes())
        + _chunk(b"tRNS", b"\x00")
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deviation(loads: Any) -> npt.NDArray[np.float64]:
    """Loads over their mean on a logarithmic scale: 1/8 of the mean is 0, the mean 0.5, 8 times the mean 1.

    All are NaN where no load is above 0.
    """
    values = np.asarray(loads, float)
    mean = values.mean() if values.size else 0.0
    if not mean:
        return np.full(values.shape, np.nan)
    with np.errstate(divide="ignore"):
        return np.clip(np.log2(values / mean) / 6 + 0.5, 0, 1)
