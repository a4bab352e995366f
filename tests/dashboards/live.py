"""A real Prometheus with the real rules, quickened: minutes become seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.prometheus import running_prometheus

RULES = Path(__file__).parents[2] / "dashboards" / "rules"
# Ranges, offsets and `for` of the rules, at one scrape a second.
QUICK = {"1d": "12s", "3h": "6s", "1h": "12s", "30m": "4s"}
QUICK |= {"15m": "5s", "10m": "5s", "5m": "5s", "3m": "3s", "2m": "3s"}

ONLY_WHEN_WRONG = {"layer:moescope_hot_expert:max_vio", "layer:moescope_new_dead_experts:count"}
"""They record nothing where all is well; `tests/e2e/test_notifications.py` raises the alerts on them."""


def quickened(text: str) -> str:
    """The rules with seconds for minutes; everything else as it is."""
    text = re.sub(r"\[(\w+):1m\]", lambda found: f"[{QUICK[found[1]]}:1s]", text)
    text = re.sub(r"\[(\d+[mhd])\]", lambda found: f"[{QUICK[found[1]]}]", text)
    text = text.replace("> 240", "> 3")  # of five minutes, how many seconds of the past are new
    text = re.sub(r"offset (\w+)", lambda found: f"offset {QUICK[found[1]]}", text)
    return re.sub(r"(?m)^( +)(for|interval): \w+$", r"\1\2: 1s", text)


@dataclass
class Prometheus:
    """A running Prometheus."""

    client: httpx.Client

    def query(self, text: str) -> list[dict[str, Any]]:
        """Instant query: series with ``metric`` and ``value``."""
        answer = self.client.get("/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", (text, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def wait(self, done: Callable[[], Any], seconds: float = 120.0) -> None:
        """Wait until ``done`` returns nothing; what it returned last is the error."""
        deadline = time.monotonic() + seconds
        while missing := done():
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)

    def firing(self) -> set[str]:
        """Names of the alerts that fire, by the rules' own evaluation."""
        answer = self.client.get("/api/v1/alerts").json()
        return {item["labels"]["alertname"] for item in answer["data"]["alerts"] if item["state"] == "firing"}


@contextmanager
def prometheus(service_url: str, folder: Path) -> Iterator[Prometheus]:
    """Scrapes the service each second, as job ``moescope`` of cluster ``test``."""
    for rules in RULES.glob("*.yml"):
        (folder / rules.name).write_text(quickened(rules.read_text()))
    target = {"targets": [urlsplit(service_url).netloc], "labels": {"cluster": "test"}}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "moescope-*.yml")],
        "scrape_configs": [{"job_name": "moescope", "static_configs": [target]}],
    }
    with running_prometheus(yaml.safe_dump(config), folder) as client:
        yield Prometheus(client)


def pin_baseline(service_url: str, server: str | None = None) -> None:
    """Pin a baseline as soon as there are tokens; the hour before, the other base, takes longer to come."""
    deadline = time.monotonic() + 120
    wanted = {} if server is None else {"server": server}
    while (answer := httpx.post(f"{service_url}/v1/baselines", json=wanted, timeout=60)).status_code != 201:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)


def board_queries(board: dict[str, Any], layer: str) -> dict[tuple[str, str, str], str]:
    """Each query of each panel, by (board, panel, ref id), with its variables filled in."""
    filled = {}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", "5s").replace('"$layer"', f'"{layer}"')
            filled[board["title"], panel["title"], target["refId"]] = re.sub(r'"\$\w+"', '".*"', text)
    return filled


def recorded(file: str = "moescope-recording.yml") -> list[str]:
    """Names of all recording rules of a file; those of drift need a baseline."""
    groups = yaml.safe_load((RULES / file).read_text())["groups"]
    return [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]


def without_data(running: Prometheus, boards: list[dict[str, Any]], layer: str) -> Callable[[], list[object]]:
    """The queries of panels and the recording rules that have had no data at any time that it was asked."""
    asked: dict[object, str] = {
        key: text for board in boards for key, text in board_queries(board, layer).items()
    }
    assert len(asked) > 50
    asked |= {name: name for name in recorded() if name not in ONLY_WHEN_WRONG}

    def ask() -> list[object]:
        for key in [key for key, text in asked.items() if running.query(text)]:
            del asked[key]
        return list(asked)

    return ask
