"""The lines of a wide family: what stays of them between scrapes, and how new numbers get into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.service.metrics.samples import Row, Table, WideMetric
from moescope.service.metrics.text.digits import Numbers, go_number
from moescope.service.metrics.text.scatter import scatter

# Lines written at a time, so that arrays on the way (about 100 bytes a line) stay in the processor's cache.
_BLOCK: Final = 16_384

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The labels of N lines.

    Attributes:
        groups: labels of one size: their lines [G], and their texts uint8 [G, size].
        ends: int64 [N], where each line would end if its number took no bytes.
    """

    groups: tuple[tuple[_Ints, _Bytes], ...]
    ends: _Ints

    @property
    def nbytes(self) -> int:
        return self.ends.nbytes + sum(lines.nbytes + texts.nbytes for lines, texts in self.groups)

    def labels(self) -> list[bytes]:
        """What is before each number."""
        found = [b""] * len(self.ends)
        for lines, texts in self.groups:
            for line, text in zip(lines.tolist(), texts, strict=True):
                found[line] = text.tobytes()
        return found

    def write(self, buffer: _Bytes, numbers: Numbers) -> int:
        """See :meth:`Lines.write`."""
        ends = self.ends + np.cumsum(numbers.sizes)
        starts = ends - numbers.sizes - 1
        # In this order, because writing a number overwrites what follows it.
        numbers.write(buffer, starts)
        buffer[ends - 1] = ord("\n")
        for lines, labels in self.groups:
            size = labels.shape[1]
            scatter(buffer, starts[lines] - size, labels, size)
        return int(ends[-1])


class Lines:
    """The lines of a table, without their numbers.

    Args:
        metric: the table's family.
        table: its labels are kept, its values aren't.

    Attributes:
        rows: the table's rows.
        nbytes: memory for what was made of the labels, besides their names in ``rows``.
    """

    def __init__(self, metric: WideMetric, table: Table) -> None:
        self.rows: tuple[Row, ...] = table.rows
        labels = list(_labels(metric, table))
        self._blocks = [_block(labels[i : i + _BLOCK]) for i in range(0, len(labels), _BLOCK)]
        self.nbytes = sum(block.nbytes for block in self._blocks)
        self._labels: list[bytes] | None = None

    def numbers(self, values: npt.NDArray[Any]) -> list[Numbers]:
        """Values, int64 or float64 [N], ready to be written: one item for each block of lines."""
        stops = np.cumsum([len(block.ends) for block in self._blocks])
        return [Numbers(part) for part in np.split(values, stops[:-1])] if self._blocks else []

    def text(self, values: npt.NDArray[Any]) -> bytes:
        """The lines as text, for tables of a few: their labels' texts are taken from where they are kept."""
        if self._labels is None:
            self._labels = [label for block in self._blocks for label in block.labels()]
        numbers = map(go_number, values.tolist())
        return b"".join(
            [
                b"%b%b\n" % (label, number.encode())
                for label, number in zip(self._labels, numbers, strict=True)
            ]
        )

    def size(self, numbers: list[Numbers]) -> int:
        """Bytes that the lines take with these numbers."""
        return sum(
            int(block.ends[-1] + part.sizes.sum()) for block, part in zip(self._blocks, numbers, strict=True)
        )

    def write(self, buffer: _Bytes, numbers: list[Numbers]) -> int:
        """Write the lines.

        Args:
            buffer: [>= size + digits.WIDTH]; written to. Up to WIDTH bytes after the lines are overwritten.
            numbers: the lines' numbers, see :meth:`numbers`.

        Returns:
            Bytes that the lines take.
        """
        end = 0
        for block, part in zip(self._blocks, numbers, strict=True):
            end += block.write(buffer[end:], part)
        return end


def _block(labels: list[bytes]) -> _Block:
    sizes = np.fromiter(map(len, labels), dtype=np.int64, count=len(labels))
    groups = []
    for size in np.unique(sizes).tolist():
        lines = np.flatnonzero(sizes == size)
        texts = np.frombuffer(b"".join([labels[i] for i in lines.tolist()]), dtype=np.uint8)
        groups.append((lines, texts.reshape(-1, size)))
    return _Block(tuple(groups), np.cumsum(sizes + 1))


def _labels(metric: WideMetric, table: Table) -> Iterator[bytes]:
    """What is before each number; only the last two labels differ within a table."""
    names = [*metric.labels, *(name for name, _ in table.more)]
    order = sorted(range(len(names)), key=names.__getitem__)
    last = order.index(len(metric.labels) - 1)
    more = [escaped(value) for _, value in table.more]
    known_columns: dict[tuple[str, ...], list[str]] = {}  # most rows have the same
    for row, columns in table.rows:
        known = [*map(escaped, (*table.fixed, row)), "", *more]
        pairs = [f'{names[i]}="{known[i]}' for i in order]
        at = last + 1
        before = metric.sample_name + "{" + '",'.join(pairs[:at])
        after = '",'.join(["", *pairs[at:]]) if at < len(pairs) else ""
        if columns not in known_columns:
            known_columns[columns] = list(map(escaped, columns))
        for column in known_columns[columns]:
            yield f'{before}{column}{after}"}} '.encode()


def escaped(value: str) -> str:
    """A label's value as it stands between quotation marks."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
