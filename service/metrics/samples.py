"""Samples on their way to the exposition: single ones, and whole tables of a wide family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client.core import Metric
from prometheus_client.samples import Sample as LibrarySample

Pairs = tuple[tuple[str, str], ...]
"""Names and values of labels."""
Row = tuple[str, tuple[str, ...]]
"""(value of the last label but one, values of the last label)."""


class Sample(NamedTuple):
    """One series: its family, the values of the family's labels, its value.

    ``created`` is when the value was zero, seconds of Unix time; None: not said.
    """

    family: str
    labels: tuple[str, ...]
    value: float
    created: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Many series of one family that share all label values but the last two.

    Attributes:
        family: name of the family.
        fixed: values of the family's first labels.
        rows: layers, say, each with its ranks or experts; they need not have equally many.
        values: int64 or float64 [sum of the rows' lengths], row after row.
        more: names and values of labels that all these series have besides the family's.
    """

    family: str
    fixed: tuple[str, ...]
    rows: tuple[Row, ...]
    values: npt.NDArray[Any]
    more: Pairs = ()

    def __post_init__(self) -> None:
        expected = sum(len(columns) for _, columns in self.rows)
        if self.values.shape != (expected,):
            raise ValueError(f"{self.family}: {expected} series and values of shape {self.values.shape}")

    def label_values(self) -> Iterator[tuple[str, ...]]:
        """The label values of each series, in the order of ``values``."""
        for row, columns in self.rows:
            for column in columns:
                yield (*self.fixed, row, column)


class WideMetric(Metric):
    """A family as the library sees it, whose samples are made from tables when they are asked for."""

    def __init__(self, name: str, documentation: str, typ: str, unit: str, labels: tuple[str, ...]) -> None:
        counter = typ == "counter"
        super().__init__(name.removesuffix("_total") if counter else name, documentation, typ, unit)
        self.labels = labels
        self.tables: list[Table] = []
        self.sample_name = f"{self.name}_total" if counter else self.name

    @property
    def samples(self) -> list[LibrarySample]:
        """All series as the library's own writers want them. This is slow; our writer reads the tables."""
        return [
            LibrarySample(
                self.sample_name, dict(zip(self.labels, values, strict=True)) | dict(table.more), float(value)
            )
            for table in self.tables
            for values, value in zip(table.label_values(), table.values.tolist(), strict=True)
        ]

    @samples.setter
    def samples(self, _value: list[LibrarySample]) -> None:
        """Ignores the empty list that the base class sets: samples come from the tables."""

    def __len__(self) -> int:
        return sum(len(table.values) for table in self.tables)


class NarrowMetric(Metric):
    """A counter or a gauge as the library sees it, whose samples are made for it when they are asked for.

    Attributes:
        labels: names of the labels.
        found: the series.
        places: for each of them, names and values of labels that it has besides the family's.
        sample_name: the name that its lines begin with.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        typ: str,
        unit: str,
        labels: tuple[str, ...],
        found: Sequence[Sample] = (),
        places: Sequence[Pairs] = (),
    ) -> None:
        counter = typ == "counter"
        self._shown: list[LibrarySample] | None = None
        super().__init__(name.removesuffix("_total") if counter else name, documentation, typ, unit)
        self._shown = None
        self.labels = labels
        self.found = found
        self.places = places
        self.sample_name = f"{self.name}_total" if counter else self.name

    @property
    def samples(self) -> list[LibrarySample]:
        """All series as the library's own writers want them. This is slow; our writer reads ``found``."""
        return list(self._made()) if self._shown is None else self._shown

    @samples.setter
    def samples(self, value: list[LibrarySample]) -> None:
        """Shows other ones instead, to the library's writers."""
        self._shown = value

    def _made(self) -> Iterator[LibrarySample]:
        for sample, place in zip(self.found, self.places, strict=True):
            labels = dict(zip(self.labels, sample.labels, strict=True)) | dict(place)
            yield LibrarySample(self.sample_name, labels, float(sample.value))
            if sample.created is not None:
                yield LibrarySample(f"{self.name}_created", labels, sample.created)


def stacked(family: str, fixed: tuple[str, ...], rows: list[tuple[Row, npt.NDArray[Any]]]) -> Iterator[Table]:
    """A table of rows that each come with their values; nothing for no rows."""
    if rows:
        yield Table(family, fixed, tuple(row for row, _ in rows), np.concatenate([v for _, v in rows]))
