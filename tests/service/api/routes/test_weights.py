"""Weights that change: windows of drift and advice begin with the newest ones, unless all are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.trace_parts import part

EXPERTS = 8
TOKENS = (500 // EXPERTS * 2 * EXPERTS + 500) // 2
"""Of a rank in a minute."""


class Trained:
    """A deployment of two DP ranks whose weights change: each version prefers another expert."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.counts = np.zeros((2, EXPERTS), np.int64)
        self.versions = [0, 0]
        self.seq = 0

    def run(self, minutes: int, ranks: tuple[int, ...] = (0, 1)) -> None:
        """Frames of a minute each: 500 tokens a rank, half of the slots with the version's own expert."""
        for _ in range(minutes):
            self.service.clock.now += 60
            self.seq += 1
            for rank in ranks:
                self.counts[rank] += 500 // EXPERTS * 2
                self.counts[rank][self.versions[rank] % EXPERTS] += 500
                self.tell(rank)

    def change(self, *ranks: int) -> None:
        """Their workers tell new weights at once, before they compute anything with them."""
        self.seq += 1
        for rank in ranks:
            self.versions[rank] += 1
            self.tell(rank)

    def tell(self, rank: int) -> None:
        values = (self.counts[rank] // 2 * 2).tolist()
        values[0] += sum(values) % 2
        made = frame(
            {1: values},
            who=producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2),
            seq=self.seq,
            after_s=self.service.clock.now - 1_700_000_000,
            placement=halves(EXPERTS, layers=1),
            weights_version=self.versions[rank],
            weights_label=f"step-{self.versions[rank]}" if self.versions[rank] else "",
        )
        assert self.service.push(made).status_code == 200


def test_drift_and_advice_are_of_the_newest_weights_and_say_so(service: Service) -> None:
    trained = Trained(service)
    trained.run(10)
    assert service.get("/v1/drift", start="-3m")["window"]["weights"] is None
    changed = service.clock.now
    trained.change(0, 1)
    trained.run(2)
    drift = service.get("/v1/drift", start="-5m")
    assert drift["window"]["start"] == changed
    assert "weights were changed" in drift["window"]["weights"]
    assert drift["tokens"] == 2 * 2 * TOKENS
    assert drift["layers"][0]["divergence"] is None  # nothing older is of these weights
    trained.run(6)
    drift = service.get("/v1/drift", start="-5m")
    assert "the hour before has what was counted since" in drift["window"]["weights"]
    assert drift["baseline_start"] == changed
    assert drift["layers"][0]["divergence"] < 1e-3
    mixed = service.get("/v1/drift", start="-5m", weights="all")
    assert mixed["window"]["weights"] is None
    assert mixed["layers"][0]["divergence"] > 0.02
    advice = service.get("/v1/advice", start="-15m", min_tokens=100)
    assert advice["fit"]["start"] == changed
    assert "weights=all" in advice["fit"]["weights"]
    of_all = service.get("/v1/advice", start="-15m", min_tokens=100, weights="all")
    assert of_all["fit_tokens"] + of_all["held_out_tokens"] > advice["fit_tokens"] + advice["held_out_tokens"]
    assert "tokens of several versions are in it" in of_all["fit"]["weights"]
    placement = service.get("/v1/advice/placement", start="-15m", min_tokens=100)
    assert placement["window"]["start"] == changed
    assert "versions are in it" in service.get("/v1/histogram", start="-15m")["window"]["weights"]


def test_a_baseline_is_of_one_version_and_is_not_compared_with_another_unless_asked(service: Service) -> None:
    trained = Trained(service)
    trained.run(10)
    assert service.client.post("/v1/baselines", json={"name": "first"}).status_code == 201
    trained.run(1)
    assert service.get("/v1/drift", baseline="first")["layers"][0]["divergence"] is not None
    trained.change(0, 1)
    trained.run(6)
    told = service.get("/v1/drift", baseline="first")
    assert told["layers"][0]["divergence"] is None
    assert told["layers"][0]["reason"].startswith("other weights")
    asked = service.get("/v1/drift", baseline="first", weights="all")
    assert asked["layers"][0]["divergence"] > 0.02
    metrics = service.client.get("/metrics").text.splitlines()
    versions = [line for line in metrics if line.startswith("moescope_weights_version{")]
    assert [line.split()[-1] for line in versions] == ["1.0", "1.0"]
    distances = [line for line in metrics if "divergence" in line and 'baseline="' in line]
    assert not any('baseline="first"' in line for line in distances)
    pinned = service.client.post("/v1/baselines", json={"name": "second"}).json()
    both = service.client.post("/v1/baselines", json={"name": "both", "weights": "all"}).json()
    assert pinned["tokens"] < both["tokens"]
    assert service.get("/v1/drift", baseline="second")["layers"][0]["divergence"] < 1e-3


def test_ranks_say_their_weights_and_ranks_that_disagree_are_told(service: Service) -> None:
    trained = Trained(service)
    trained.run(3)
    trained.change(1)
    changed = service.clock.now
    service.clock.now += 2
    assert service.get("/v1/histogram", start="-1s")["window"]["weights"] is None  # the other may follow yet
    trained.run(2)
    word = service.get("/v1/histogram", start="-30s")["window"]["weights"]
    assert "0 on DP ranks [0], 1 (step-1) on DP ranks [1]" in word
    ranks = service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    found = [rank["producers"][0] for rank in ranks]
    assert [(item["weights_version"], item["weights_label"]) for item in found] == [(0, ""), (1, "step-1")]
    assert [item["weights_changed_at"] for item in found] == [None, changed]


def test_a_window_that_begins_at_a_change_says_also_that_ranks_disagree(service: Service) -> None:
    trained = Trained(service)
    trained.run(10)
    trained.change(0)
    trained.run(3)
    disagree = "1 (step-1) on DP ranks [0]"
    for path in ("/v1/drift", "/v1/advice/placement"):
        said = service.get(path, start="-5m", min_tokens=100)["window"]["weights"]
        assert said.startswith("begins at"), path
        assert said.count(disagree) == 1, path
    advice = service.get("/v1/advice", start="-5m", min_tokens=100)
    assert advice["fit"]["weights"].startswith("begins at")
    for window in ("fit", "held_out"):
        assert advice[window]["weights"].count(disagree) == 1


def test_advice_says_that_weights_were_changed_in_any_piece_of_what_it_judges_by(service: Service) -> None:
    trained = Trained(service)
    trained.run(10)
    trained.change(0, 1)
    trained.run(2)
    words = service.get("/v1/advice", start="-8m", min_tokens=100, weights="all")["held_out"]["weights"]
    assert words.count("tokens of several versions are in it") == 1


def test_a_trace_says_which_weights_computed_which_position(
    start_service: Callable[..., Service], store_setting: str
) -> None:
    service = start_service(store=store_setting)

    def send(**fields: Any) -> None:
        answer = service.client.post(
            "/v1/traces", content=encode_part(part(**fields)), headers={"content-type": TRACE_CONTENT_TYPE}
        )
        assert answer.status_code in (200, 202), answer.text

    send(trace=1, tokens=6, parts=2, part=0, runs=[(2, 6)], weights_version=3)
    send(trace=1, tokens=4, parts=2, part=1, runs=[(7, 4)], weights_version=4)
    send(trace=2, tokens=5, weights_version=4)
    send(trace=3, tokens=5)
    detail = service.get("/v1/traces/x1")
    assert detail["weights"] == [
        {"version": 3, "first": 2, "end": 8},
        {"version": 4, "first": 7, "end": 11},  # position 7 was computed again
    ]
    listed = {
        version: [item["names"][-1] for item in service.get("/v1/traces", weights_version=version)["traces"]]
        for version in (0, 3, 4, 5)
    }
    assert listed == {0: ["x3"], 3: ["x1"], 4: ["x2", "x1"], 5: []}
