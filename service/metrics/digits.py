"""Numbers as the library's ``floatToGoString`` writes them, many at a time.

Whole numbers from 0 to 2**53, which counts are, are written by numpy: below a million as ``123456.0``, from
there on as ``1.234567e+06``. All others go through the library's function one by one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client.utils import floatToGoString

_EXACT: Final = 2**53
_POINT: Final = ord(".")
_POWERS: Final = 10 ** np.arange(1, 16, dtype=np.int64)
# Number n is the four digits of n, as four bytes in one number, so that numpy looks them up in one go.
_FOUR_DIGITS: Final = (
    (np.arange(10_000)[:, np.newaxis] // np.array([1000, 100, 10, 1]) % 10 + ord("0"))
    .astype(np.uint8)
    .view(np.uint32)
    .ravel()
)

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


def go_numbers(values: npt.NDArray[Any]) -> list[bytes]:
    """int64 or float64 [N] to N texts."""
    whole = _whole(values)
    if whole.all():
        return _write(values.astype(np.int64))
    texts = _write(np.where(whole, values, 0).astype(np.int64))
    for i in np.flatnonzero(~whole).tolist():
        texts[i] = go_number(values[i]).encode()
    return texts


def go_number(value: float) -> str:
    """One number."""
    return str(floatToGoString(float(value)))  # type: ignore[no-untyped-call]


def _whole(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values are whole numbers from 0 to 2**53; -0.0, infinities and NaN aren't."""
    within = (values >= 0) & (values <= _EXACT)
    if values.dtype.kind == "f":
        within &= (np.floor(values) == values) & ~np.signbit(values)
    return np.asarray(within)


def _write(numbers: _Ints) -> list[bytes]:
    if not len(numbers):
        return []
    lengths = _lengths(numbers)
    counts = np.bincount(lengths)
    present = np.flatnonzero(counts).tolist()
    if len(present) == 1:
        return _as_list(_texts(_put(numbers, present[0])))
    # All numbers of a length beside each other; their texts go back into order at the end.
    order = np.argsort(lengths, kind="stable")
    grouped = numbers[order]
    put = np.zeros((len(numbers), _width(present[-1])), dtype=np.uint8)
    start = 0
    for length in present:
        stop = start + int(counts[length])
        put[start:stop, : _width(length)] = _put(grouped[start:stop], length)
        start = stop
    grouped_texts = _texts(put)
    texts = np.empty_like(grouped_texts)
    texts[order] = grouped_texts
    return _as_list(texts)


def _lengths(numbers: _Ints) -> npt.NDArray[np.uint8]:
    """How many digits each number has."""
    lengths = np.ones(len(numbers), dtype=np.uint8)
    for power in _POWERS[: np.searchsorted(_POWERS, numbers.max(), side="right")]:
        lengths += numbers >= power
    return lengths


def _width(length: int) -> int:
    """Bytes that a number of so many digits takes: a point and a zero, or a point and an exponent."""
    return max(length + 2, length + 5 if length > 6 else 0)


def _put(numbers: _Ints, length: int) -> _Bytes:
    """The texts of N numbers that all have ``length`` digits: uint8 [N, width], with NULs at the end."""
    text = np.zeros((len(numbers), _width(length)), dtype=np.uint8)
    digits = _digits(numbers, length)
    if length <= 6:
        text[:, :length] = digits
        text[:, length:] = np.frombuffer(b".0", dtype=np.uint8)
        return text
    exponent = np.frombuffer(b"e+%02d" % (length - 1), dtype=np.uint8)
    text[:, 0] = digits[:, 0]
    text[:, 1] = _POINT
    text[:, 2 : length + 1] = digits[:, 1:]
    text[:, length + 1 :] = exponent
    _strip(text, np.flatnonzero(digits[:, -1] == ord("0")), digits, exponent)
    return text


def _strip(text: _Bytes, rows: npt.NDArray[np.intp], digits: _Bytes, exponent: _Bytes) -> None:
    """In these rows take the mantissa's trailing zeros away, and a point that nothing follows."""
    length = digits.shape[1]
    significant = length - np.argmax(digits[rows, ::-1] != ord("0"), axis=1)
    ends = np.where(significant > 1, significant + 1, 1)
    kept = text[rows]
    kept[np.arange(text.shape[1]) >= ends[:, np.newaxis]] = 0
    for i, char in enumerate(exponent.tolist()):
        kept[np.arange(len(rows)), ends + i] = char
    text[rows] = kept


def _digits(numbers: _Ints, length: int) -> _Bytes:
    """The last ``length`` digits, uint8 [N, length]."""
    chunks = -(-length // 4)
    digits = np.empty((len(numbers), chunks), dtype=np.uint32)
    left = numbers
    for chunk in range(chunks - 1, 0, -1):
        rest = left // 10_000
        digits[:, chunk] = _FOUR_DIGITS[left - rest * 10_000]
        left = rest
    digits[:, 0] = _FOUR_DIGITS[left]
    return digits.view(np.uint8)[:, 4 * chunks - length :]


def _texts(text: _Bytes) -> npt.NDArray[np.bytes_]:
    """uint8 [N, width] as N texts of numpy."""
    return text.view(f"S{text.shape[1]}").ravel()


def _as_list(texts: npt.NDArray[np.bytes_]) -> list[bytes]:
    """Python's bytes; those of numpy end at their trailing NULs."""
    written: list[bytes] = texts.tolist()
    return written
