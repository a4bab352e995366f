"""docker-compose.yml and the manifests fit their schemas, and what does not fit is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.chart import of_kind
from tests.deploy.compose import COMPOSE
from tests.deploy.manifests import DOCUMENTS, containers, one
from tests.deploy.schemas import compose, kubernetes

Break = Callable[[dict[str, Any]], object]


def test_compose_fits_the_specification() -> None:
    assert not compose(COMPOSE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda item: f"{item['kind']}/{item['metadata']['name']}")
def test_manifests_fit(document: dict[str, Any]) -> None:
    assert not kubernetes(document)


COMPOSE_BREAKS: list[Break] = [
    lambda it: it["services"]["grafana"].update(read_onli=True),
    lambda it: it["services"]["moescope"].update(command=7),
    lambda it: it["services"]["moescope"]["depends_on"]["clickhouse"].update(condition=["healthy"]),
    lambda it: it["services"]["prometheus"]["healthcheck"].update(every="10s"),
    lambda it: it["services"].update(web="nginx"),
    lambda it: it.update(volume={}),
]


@pytest.mark.parametrize("number", range(len(COMPOSE_BREAKS)))
def test_a_broken_compose_file_is_found(number: int) -> None:
    document = copy.deepcopy(COMPOSE)
    COMPOSE_BREAKS[number](document)
    assert compose(document)


MANIFEST_BREAKS: list[tuple[str, Break]] = [
    ("StatefulSet", lambda it: it["spec"].update(replicas="one")),
    ("StatefulSet", lambda it: containers(it)["moescope"].update(imagePolicy="Always")),
    ("StatefulSet", lambda it: it["spec"].pop("selector")),
    ("StatefulSet", lambda it: containers(it)["moescope"]["securityContext"].update(capabilities=["ALL"])),
    ("Service", lambda it: it["spec"]["ports"][0].update(port="http")),
    ("ServiceAccount", lambda it: it.update(automountToken=False)),
    ("ServiceMonitor", lambda it: it["spec"]["endpoints"][0].update(tokenFile="x")),
    ("ServiceMonitor", lambda it: it["spec"]["endpoints"][0].update(interval="15 seconds")),
    ("ServiceMonitor", lambda it: it["spec"].pop("selector")),
    ("PodMonitor", lambda it: it["spec"]["podMetricsEndpoints"][0].update(targetport="http")),
    ("PodMonitor", lambda it: it["spec"]["podMetricsEndpoints"][0].update(scheme="ftp")),
    ("NetworkPolicy", lambda it: it["spec"]["ingress"][0].update(form=[])),
    ("NetworkPolicy", lambda it: it["spec"].update(policyTypes="Ingress")),
    ("AlertmanagerConfig", lambda it: it["spec"]["inhibitRules"][0].update(equals=[])),
    ("AlertmanagerConfig", lambda it: it["spec"]["route"].update(groupInterval="5 min")),
    ("AlertmanagerConfig", lambda it: it["spec"]["route"]["matchers"][0].update(matchType="~")),
    ("PrometheusRule", lambda it: it["spec"]["groups"][0]["rules"][0].pop("expr")),
    ("PrometheusRule", lambda it: it["spec"]["groups"][0]["rules"][0].update({"for": "5 min"})),
    ("PrometheusRule", lambda it: it["spec"]["groups"][0]["rules"][0].update(label={})),
]


def test_a_broken_scrape_config_is_found() -> None:
    document = copy.deepcopy(of_kind("clickhouse", "ScrapeConfig"))
    document["spec"]["staticConfigs"][0]["target"] = []
    assert kubernetes(document)


@pytest.mark.parametrize("number", range(len(MANIFEST_BREAKS)))
def test_a_broken_manifest_is_found(number: int) -> None:
    kind, change = MANIFEST_BREAKS[number]
    document = copy.deepcopy(one(kind))
    change(document)
    assert kubernetes(document)
