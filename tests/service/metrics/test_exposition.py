"""The exposition as a document: its families, labels and types; Prometheus' own tools read it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.settings import MetricsLevel
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, producer
from tests.service.metrics.families import FAMILY_OF, series_names
from tests.service.metrics.scraped import names_of, push_both, series_of


@pytest.mark.parametrize("level", list(MetricsLevel))
def test_each_level_shows_its_families_and_no_others(
    start_service: Callable[..., Service], level: MetricsLevel, tmp_path: Path
) -> None:
    service = start_service(min_tokens=1, metrics_level=level, store=str(tmp_path / "store"))
    push_both(service)
    assert service.client.post("/v1/baselines", json={}).status_code == 201
    for server in ("b", "c"):
        service.push(frame({0: [1, 1]}, who=producer(server=server, pool="p"), epoch=EPOCH + 1))
    families = [family for family in CATALOGUE.values() if family.shown(level)]
    assert names_of(series_of(service)) == {name for family in families for name in series_names(family)}


def test_labels_and_types_are_those_of_the_catalogue(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT, store=store)
    push_both(service)
    assert service.client.post("/v1/baselines", json={}).status_code == 201
    for server in ("b", "c"):
        service.push(frame({0: [1, 1]}, who=producer(server=server, pool="p")))
    text = service.client.get("/metrics").text
    for name, labels in series_of(service):
        family = FAMILY_OF[name]
        found = {label for label, _ in labels} - {"le"}
        assert set(family.labels) <= found <= set(family.possible_labels), name
    for family in CATALOGUE.values():
        assert f"# TYPE {family.name} {family.kind}\n" in text
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert family.unit == "" or family.name.removesuffix("_total").endswith(f"_{family.unit}")


def test_openmetrics_says_the_same(service: Service) -> None:
    push_both(service)
    accept = "application/openmetrics-text; version=1.0.0"
    response = service.client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    plain, open_metrics = series_of(service), series_of(service, accept)
    assert {key: value for key, value in plain.items() if "duration" not in key[0]} == {
        key: value
        for key, value in open_metrics.items()
        if "duration" not in key[0] and not key[0].endswith("_created")
    }


def test_promtool_has_nothing_to_say(start_service: Callable[..., Service]) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: install the package prometheus"
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    push_both(service)
    text = service.client.get("/metrics").content
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
