"""A real Prometheus scrapes a real service; what it stores is what the API says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.prometheus import running_prometheus
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

_CONFIG = """
global: {{scrape_interval: 2s, scrape_timeout: 2s}}
scrape_configs:
  - job_name: moescope
    static_configs: [{{targets: ["{target}"]}}]
"""


@dataclass
class Prometheus:
    """A running Prometheus."""

    client: httpx.Client

    def query(self, text: str) -> dict[str, float]:
        """Instant query; label ``layer`` (or nothing) to value."""
        answer = self.client.get("/api/v1/query", params={"query": text}).json()
        assert answer["status"] == "success", answer
        return {item["metric"].get("layer", ""): float(item["value"][1]) for item in answer["data"]["result"]}

    def wait_for(self, text: str, wanted: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Query until the answer is as wanted."""
        deadline = time.monotonic() + 60
        while not wanted(found := self.query(text)):
            assert time.monotonic() < deadline, f"{text} is still {found}"
            time.sleep(0.2)
        return found


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    return start_service(use_clock=time.time, min_tokens=1)


@pytest.fixture
def prometheus(service: Service, tmp_path: Path) -> Iterator[Prometheus]:
    config = _CONFIG.format(target=urlsplit(service.url).netloc)
    with running_prometheus(config, tmp_path) as client:
        yield Prometheus(client)


def test_what_prometheus_stores_is_what_the_api_says(service: Service, prometheus: Prometheus) -> None:
    epoch = time.time_ns()
    for seq in (1, 2, 3):
        for dp_rank in (0, 1):
            who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
            counts = {0: [200 * seq, 100 * seq], 3: [90 * seq, 210 * seq]}
            made = frame(counts, who=who, seq=seq, epoch=epoch, placement=halves(2, 2))
            assert service.push(made).json()["result"] == "accepted"
    balance = service.get("/v1/balance", start="-60s")
    expected = {
        str(layer["layer"]): layer["over_ep_ranks"]["measures"]["imbalance_ratio"]
        for layer in balance["layers"]
    }
    assert expected == {"0": pytest.approx(4 / 3), "3": pytest.approx(1.4)}

    by_layer = prometheus.wait_for("moescope_layer_ep_imbalance_ratio", lambda found: len(found) == 2)
    assert by_layer == expected
    # The ratio from the counters, as recording rules would compute it.
    slots = "moescope_layer_ep_rank_slots_total"
    ratio = f"max by (layer) ({slots}) / avg by (layer) ({slots})"
    from_counters = prometheus.wait_for(ratio, lambda found: len(found) == 2)
    assert from_counters == pytest.approx(expected)
    assert prometheus.query("sum(moescope_tokens_total)") == {"": balance["tokens"]}
    assert prometheus.query("moescope_ep_imbalance_ratio") == {
        "": balance["summary"]["over_ep_ranks"]["ratio_of_sums"]
    }
    prometheus.wait_for("up", lambda found: found == {"": 1})
