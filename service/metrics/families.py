"""From the samples of one scrape to a family as the library has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prometheus_client.core import HistogramMetricFamily, Metric

from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.family import Family
from moescope.service.metrics.instruments import Durations
from moescope.service.metrics.samples import NarrowMetric, Pairs, Sample, Table, WideMetric

Places = Mapping[tuple[str, str], Pairs]
"""For (server, model) the labels that the families of a deployment don't name, if it has any: its pool and
its role."""


@dataclass(slots=True)
class Gathered:
    """What a family has in one scrape: tables, or single samples, or a histogram."""

    samples: list[Sample] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    histogram: Durations | None = None

    def __len__(self) -> int:
        histogram = 0 if self.histogram is None else len(self.histogram.read()[0]) + 2
        return len(self.samples) + sum(len(table.values) for table in self.tables) + histogram


def shape_of(item: Sample | Table) -> tuple[str, int]:
    """The family that a sample or a table is of, and how many labels its series have."""
    return item.family, len(item.labels) if isinstance(item, Sample) else len(item.fixed) + 2


def fault_of(name: str, labels: int) -> str | None:
    """What the catalogue has against series of a family with so many labels; None: nothing.

    Numbers of labels are compared because the library drops what is too many or too few without a word.
    """
    family = CATALOGUE.get(name)
    if family is None:
        return f"there is no family {name}"
    if labels != len(family.labels):
        return f"{name} has {len(family.labels)} labels, not {labels}"
    return None


def _deployment(labels: tuple[str, ...]) -> tuple[str, str]:
    """The deployment that the first labels of a series name."""
    return labels[0], labels[1]


def metric_of(family: Family, found: Gathered, places: Places) -> Metric:
    """A family as the library has it, with the labels of each deployment's place."""
    told = places if family.by_deployment else {}
    if found.tables:
        wide = WideMetric(family.name, family.help, family.kind, family.unit, family.labels)
        wide.tables = [
            replace(table, more=told[deployment]) if deployment in told else table
            for table in found.tables
            for deployment in [_deployment(table.fixed)]
        ]
        return wide
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=(), unit=family.unit)
        if found.histogram is not None:
            histogram.add_metric((), *found.histogram.read())
        return histogram
    samples = found.samples
    if family.rank:  # a layer's `created` would be as many series again
        samples = [Sample(item.family, item.labels, item.value) for item in samples]
    more = [told.get(_deployment(item.labels), ()) for item in samples] if told else [()] * len(samples)
    return NarrowMetric(family.name, family.help, family.kind, family.unit, family.labels, samples, more)
