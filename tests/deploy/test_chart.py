"""The Helm chart: what Helm itself makes of it for each file of values, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from moescope.dashboards import build
from moescope.dashboards.alert_rules import Links
from moescope.dashboards.kubernetes import manifests
from tests.deploy.chart import (
    CHART,
    ROOT,
    VALUES,
    documents,
    kinds,
    of_kind,
    pod,
    render,
    service_of,
)
from tests.deploy.schemas import kubernetes

NAMES = [path.stem for path in VALUES]
SHARED = ["Service", "ServiceAccount", "StatefulSet"]
OTHERS = {
    "clickhouse": [
        *("Deployment", "NetworkPolicy", "PodDisruptionBudget"),
        *("PrometheusRule", "ScrapeConfig", "Service", "ServiceAccount"),
    ],
    "example": ["Deployment", *SHARED],
    "fast-disk": ["PrometheusRule", "ServiceMonitor", *SHARED],
    "memory": ["Deployment", "Service", "ServiceAccount", "ServiceMonitor"],
    "operator": [
        *("AlertmanagerConfig", *["ConfigMap"] * 5, "NetworkPolicy"),
        *("PrometheusRule", "ServiceMonitor", *SHARED),
    ],
    "own-image": ["Deployment", *SHARED],
    "shared": SHARED,
    "sidecar": [*["ConfigMap"] * 5, "PodMonitor", "PrometheusRule"],
    "sidecar-example": ["Deployment"],
    "tls": ["Deployment", "NetworkPolicy", "ServiceMonitor", *SHARED],
}
"""What there is besides the ConfigMap of the tokens."""


def test_there_are_ten_sets_of_values() -> None:
    assert len(NAMES) == 10
    assert set(OTHERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rendered_fits_the_schemas(name: str) -> None:
    assert kinds(name) == sorted([*OTHERS[name], "ConfigMap"])
    complaints = {
        f"{document['kind']}/{document['metadata']['name']}": kubernetes(document)
        for document in documents(name)
    }
    assert not {name: found for name, found in complaints.items() if found}


def test_large_numbers_are_written_out(tmp_path: Path) -> None:
    """Helm reads numbers of YAML as floats: 1048576 would be written as 1.048576e+06, and be refused."""
    file = tmp_path / "large.yaml"
    file.write_text("store: {mib: 1048576}")
    assert "--store-mib=1048576\n" in render([file])[str(file)]["templates"]["workload"]


def test_selectors_find_the_pods() -> None:
    for name in NAMES:
        for document in documents(name):
            if document["kind"] in ("StatefulSet", "Deployment"):
                labels = document["spec"]["template"]["metadata"]["labels"]
                assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for name in ("operator", "tls"):
        labels = of_kind(name, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
        service = of_kind(name, "Service")
        assert service["spec"]["selector"].items() <= labels.items()
        assert of_kind(name, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        monitor = of_kind(name, "ServiceMonitor")["spec"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    example = of_kind("sidecar-example", "Deployment")["spec"]["template"]["metadata"]["labels"]
    monitor = of_kind("sidecar", "PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= example.items()
    ports = service_of(pod("sidecar-example"))["ports"]
    assert monitor["podMetricsEndpoints"][0]["port"] == ports[0]["name"]


def test_the_job_is_the_one_that_alerts_ask_for() -> None:
    for name, kind, key in (
        ("operator", "ServiceMonitor", "endpoints"),
        ("sidecar", "PodMonitor", "podMetricsEndpoints"),
    ):
        relabelings = of_kind(name, kind)["spec"][key][0]["relabelings"]
        assert {"targetLabel": "job", "replacement": "moescope"} in relabelings
    assert of_kind("clickhouse", "ScrapeConfig")["spec"]["jobName"] == "moescope"
    assert 'up{job="moescope"}' in manifests()["prometheusrule.json"].replace("\\", "")


def test_several_services_are_scraped_at_their_shared_address() -> None:
    spec = of_kind("clickhouse", "ScrapeConfig")["spec"]
    assert spec["staticConfigs"] == [{"targets": ["moescope.serving.svc:9890"]}]
    assert of_kind("clickhouse", "Service")["spec"]["sessionAffinity"] == "ClientIP"
    container = service_of(pod("clickhouse"))
    assert {item["name"] for item in container["env"]} == {"MOESCOPE_STORE"}
    assert not any("store" in word for word in container["args"])


def test_rules_and_boards_are_those_of_the_files() -> None:
    links = Links("https://git.example.org/moescope/docs/runbook.md", "https://grafana.example.org")
    for name, chosen in (("operator", links), ("sidecar", Links())):
        made = of_kind(name, "PrometheusRule")["spec"]["groups"]
        wanted = json.loads(manifests(chosen)["prometheusrule.json"])["spec"]["groups"]
        assert sorted(made, key=lambda group: group["name"]) == sorted(
            wanted, key=lambda group: group["name"]
        )
    boards = {
        key: text
        for item in documents("operator")
        if item["kind"] == "ConfigMap" and "-board-" in item["metadata"]["name"]
        for key, text in item["data"].items()
    }
    assert boards == build.documents()


def test_notifications_are_those_of_the_file() -> None:
    file = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())

    def plain(matchers: list[dict[str, str]]) -> list[str]:
        return [f'{item["name"]}{item["matchType"]}"{item["value"]}"' for item in matchers]

    spec = of_kind("operator", "AlertmanagerConfig")["spec"]
    (ours,) = file["route"]["routes"]
    assert plain(spec["route"]["matchers"]) == ours["matchers"]
    assert spec["route"]["groupBy"] == ours["group_by"]
    assert [
        (plain(route["matchers"]), route["receiver"], route["groupWait"], route["repeatInterval"])
        for route in spec["route"]["routes"]
    ] == [
        (route["matchers"], route["receiver"], route["group_wait"], route["repeat_interval"])
        for route in ours["routes"]
    ]
    rules = spec["inhibitRules"]
    made = [(plain(rule["sourceMatch"]), plain(rule["targetMatch"]), rule["equal"]) for rule in rules]
    wanted = file["inhibit_rules"]
    assert made == [(rule["source_matchers"], rule["target_matchers"], rule["equal"]) for rule in wanted]
    names = [receiver["name"] for receiver in spec["receivers"]]
    assert {receiver["name"] for receiver in file["receivers"]} == set(names)


REFUSED = {
    "fleet: tiny": "/fleet",
    "replicas: 2": "/replicas",
    "mod: sidecar": "'mod' not allowed",
    "store: {kind: clickhouse}": "/store/clickhouse/secret",
    "store: {kind: s3}": "/store/kind",
    "store: {mib: 4}": "/store/mib",
    "extraArgs: [--insecure]": "/extraArgs/0",
    "extraEnv: [{name: MOESCOPE_INSECURE, value: '1'}]": "/extraEnv/0/name",
    "auth: {secret: ''}": "/auth/secret",
    "auth: {keys: {read: ''}}": "/auth/keys/read",
    "mode: sidecar\ntls: {secret: x}": "/tls/secret",
    "service: {port: 80}": "/service/port",
    "vllm: {traceRate: 2}": "/vllm/traceRate",
    "prometheus: {monitor: {interval: 15}}": "/prometheus/monitor/interval",
}
"""Values, and what the error names."""


def test_values_that_can_not_be_are_refused_by_name(tmp_path: Path) -> None:
    files = []
    for number, text in enumerate(REFUSED):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    made = render(files)
    for file, (text, said) in zip(files, REFUSED.items(), strict=True):
        assert said in made[str(file)].get("error", ""), (text, made[str(file)])


def test_the_schema_has_every_value() -> None:
    """And no other: each name in values.yaml is in the schema, down to the leaves that it describes."""

    def differing(values: dict[str, Any], schema: dict[str, Any], where: str) -> list[str]:
        known = schema.get("properties")
        if known is None or schema.get("additionalProperties") is not False:
            return []
        found = [f"{where}.{name}" for name in set(values) ^ (set(known) - {"global", "claims"})]
        for name, value in values.items():
            if isinstance(value, dict) and value:
                found += differing(value, known[name], f"{where}.{name}")
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not differing(values, json.loads((CHART / "values.schema.json").read_text()), "")


def test_versions_are_those_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    assert chart["version"] == version
