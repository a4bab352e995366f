"""The fast path writes what the library writes, byte for byte."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from moescope.service.metrics.samples import Row, Table, WideMetric
from moescope.service.metrics.text.digits import WIDTH, Numbers
from moescope.service.metrics.text.exposition import expose, negotiate
from moescope.service.metrics.text.scatter import scatter
from moescope.service.metrics.text.writer import Families, Writer, without_created
from moescope.service.settings import MetricsLevel
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.metrics.deployment import registry

# Surrogates can't be in a label: they are not UTF-8.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["%", "%b", "a%%s", '"', "\\n", "\n"]
)
WHOLE = st.integers(0, 2**63 - 1) | st.sampled_from([0, 9, 10, 999_999, 10**6, 10**15, 2**53, 2**53 + 1])
FLOATS = st.floats(width=64) | WHOLE.map(float) | st.sampled_from([-0.0, 1e6, 123456.5, 1e16, -1e7])


def assert_same(metrics: list[Metric], writer: Writer) -> None:
    in_text = Families(*map(without_created, metrics))
    assert writer.write(metrics, openmetrics=False) == generate_latest(in_text)
    assert writer.write(metrics, openmetrics=True) == generate_openmetrics(Families(*metrics))


def written(values: npt.NDArray[Any]) -> list[bytes]:
    numbers = Numbers(values)
    starts = np.arange(len(values)) * 2 * WIDTH
    buffer = np.zeros(len(values) * 2 * WIDTH, dtype=np.uint8)
    numbers.write(buffer, starts)
    return [buffer[i : i + size].tobytes() for i, size in zip(starts, numbers.sizes, strict=True)]


@given(values=st.lists(WHOLE, max_size=40))
def test_whole_numbers_are_written_as_the_library_does(values: list[int]) -> None:
    expected = [floatToGoString(float(value)).encode() for value in values]
    assert written(np.array(values, dtype=np.int64)) == expected


@given(values=st.lists(FLOATS, max_size=40))
def test_floats_are_written_as_the_library_does(values: list[float]) -> None:
    expected = [floatToGoString(value).encode() for value in values]
    assert written(np.array(values, dtype=np.float64)) == expected


def test_every_length_and_every_number_of_trailing_zeros() -> None:
    values = [
        int(str(lead) + "0" * zeros) for lead in (1, 7, 12, 101, 1234567, 999999999) for zeros in range(8)
    ]
    expected = [floatToGoString(value).encode() for value in values]
    assert written(np.array(values)) == expected


@st.composite
def wide_metrics(draw: st.DrawFn) -> WideMetric:
    labels = draw(
        st.sampled_from([("b", "a"), ("a", "b"), ("server", "model", "layer", "expert"), ("z", "y", "x")])
    )
    typ = draw(st.sampled_from(["counter", "gauge"]))
    metric = WideMetric("wide", draw(TEXTS), typ, "", labels)
    for _ in range(draw(st.integers(0, 2))):
        columns = st.lists(TEXTS, max_size=4).map(tuple)
        rows = tuple(draw(st.lists(st.tuples(TEXTS, columns), min_size=1, max_size=3)))
        size = sum(len(names) for _, names in rows)
        numbers, dtype = draw(st.sampled_from([(WHOLE, np.int64), (FLOATS, np.float64)]))
        values = np.array(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=dtype)
        fixed = tuple(draw(st.lists(TEXTS, min_size=len(labels) - 2, max_size=len(labels) - 2)))
        metric.tables.append(Table(metric.name, fixed, rows, values))
    return metric


@settings(max_examples=100, deadline=None)
@given(metrics=st.lists(wide_metrics(), max_size=3))
def test_random_wide_families_are_the_same(metrics: list[Metric]) -> None:
    writer = Writer()
    assert_same(metrics, writer)
    assert_same(metrics, writer)  # from the label texts that were kept


@given(unit=st.sampled_from(["", "seconds"]), text=TEXTS, values=st.lists(st.tuples(TEXTS, FLOATS)))
def test_random_narrow_families_are_the_same(unit: str, text: str, values: list[tuple[str, float]]) -> None:
    counter = CounterMetricFamily("narrow_a", text, labels=["b", "a"], unit=unit)
    gauge = GaugeMetricFamily("narrow_b", text, labels=["x"], unit=unit)
    for label, value in values:
        counter.add_metric([label, "1"], value)
        gauge.add_metric([label], value)
    bare = GaugeMetricFamily("narrow_c", text, value=3)
    buckets = HistogramMetricFamily("narrow_d", text, buckets=[("0.5", 1), ("+Inf", 2)], sum_value=1.25)
    assert_same([counter, gauge, bare, buckets], Writer())


def test_what_the_fast_path_does_not_know_is_left_to_the_library() -> None:
    counter = CounterMetricFamily("a", "with a creation time", labels=["x"])
    counter.add_metric(["1"], 2, created=123.5)
    gauge = GaugeMetricFamily("b", "with a time", labels=["x"])
    gauge.add_metric(["1"], 2, timestamp=12.5)
    others = [
        InfoMetricFamily("c", "info", {"x": "y"}),
        SummaryMetricFamily("d", "summary", count_value=2, sum_value=3),
    ]
    assert_same([counter, gauge, *others], Writer())


def wide(fixed: tuple[str, ...], *rows: Row, values: npt.ArrayLike) -> WideMetric:
    metric = WideMetric("wide_enough", "help", "gauge", "", ("server", "layer", "expert"))
    metric.tables.append(Table(metric.name, fixed, rows, np.asarray(values)))
    return metric


def test_kept_labels_change_with_the_table() -> None:
    writer = Writer()
    for row, columns in (("r", ("1", "a")), ("r", ("1", "b")), ("s", ("1", "b")), ("s", ("1",)), ("s", ())):
        assert_same([wide(("x",), (row, columns), values=np.arange(len(columns)))], writer)


def test_kept_labels_are_bounded() -> None:
    room, writer = Writer(), Writer(cache_bytes=1000)
    for server in "abcdefgh":
        metric = wide((server,), ("r" * 100, ("1", "2")), values=[1, 2])
        assert_same([metric], writer)
        assert_same([metric], room)
    one = room.cached_bytes / 8
    assert 250 < one < 500  # two lines of 150 bytes
    assert writer.cached_bytes == 1000 // one * one


def test_lines_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.service.metrics.text.lines._BLOCK", 3)
    values = [0, 10**15, 2**53, 1.5, 999_999, 10**6, -1e300, 7, 2.0**60, math.nan, 12_345_678]
    rows = ("1", ("a", "bcd", "e")), ("22", ()), ("3", tuple("abcdefgh"))
    metrics: list[Metric] = [wide(("x",), *rows, values=values), wide(("y",), *rows, values=values[::-1])]
    writer = Writer()
    assert_same(metrics, writer)
    assert_same(metrics, writer)


def test_a_text_beyond_the_buffer_is_refused() -> None:
    buffer = np.zeros(5, dtype=np.uint8)
    texts = np.array([b"abc", b"de"])
    scatter(buffer, np.array([0, 3]), texts, 2)
    assert buffer.tobytes() == b"ab\0de"
    with pytest.raises(IndexError):
        scatter(buffer, np.array([0, 4]), texts, 2)


def test_a_table_of_another_size_than_its_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 series and values of shape \(3,\)"):
        Table("m", (), (("1", ("2", "3")),), np.zeros(3))


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4",
        "application/openmetrics-text;version=1.0.0;escaping=values",
        "text/plain;version=1.0.0;escaping=dots",
    ],
)
def test_whatever_is_asked_for_is_what_the_library_would_answer(accept: str) -> None:
    encode, content_type = choose_encoder(accept)
    plain, zipped = negotiate(accept, ""), negotiate(accept, "deflate, gzip;q=0.8")
    bodies = expose(registry(), Writer(), [plain, zipped])
    families = registry().collect()
    shown = families if plain.openmetrics else map(without_created, families)
    assert bodies[plain] == encode(Families(*shown))
    assert plain.headers["content-type"] == content_type
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(bodies[zipped]) == bodies[plain]


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0.001", True),
        ("", False),
        ("br, x-gzip2", False),
        ("gzip;q=0, identity", False),
        ("br, gzip; q=0.000", False),
    ],
)
def test_gzip_is_for_who_names_it_and_does_not_refuse_it(header: str, taken: bool) -> None:
    assert negotiate("", header).compressed is taken


def test_scrapers_can_ask_for_few_forms_whatever_they_send() -> None:
    kinds = ("text/plain", "application/openmetrics-text")
    escapings = ("", "allow-utf-8", "underscores", "dots", "values", "none")
    asked = [
        negotiate(f"{kind};version={version};escaping={escaping}", encoding)
        for kind in kinds
        for version in ("0.0.4", "1.0.0", *(f"1.{n}.0" for n in range(50)))
        for escaping in escapings
        for encoding in ("", "gzip", "br", "gzip;q=0.5, br")
    ]
    # Two formats, four escapings, gzip or not; and old text, of which there is no escaping.
    assert len(set(asked)) == 2 * 4 * 2 + 2


def test_the_service_compresses_only_for_who_takes_it(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    who = producer(dp_rank=0, ep_rank=0, ep_size=2)
    service.push(frame({0: [4, 2] * 32}, who=who, placement=halves(64, 1)))
    plain = service.client.get("/metrics", headers={"accept-encoding": "identity"})
    zipped = service.client.get("/metrics", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"]) / 4
    assert 'moescope_layer_expert_slots_total{expert="63",layer="0"' in zipped.text


def test_the_registry_of_the_service_is_written_alike_by_both() -> None:
    families: CollectorRegistry = registry()
    metrics = list(families.collect())
    assert any(isinstance(metric, WideMetric) for metric in metrics)
    assert_same(metrics, Writer())
