"""Experts that the same tokens take: against counting one by one, and over a connection."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT, TRACE_CONTENT_TYPE, encode_part
from moescope.service.traces.coactivation import Pair, count_together, strongest
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.service.trace_parts import experts_of, part


def one_by_one(ids: np.ndarray, num_experts: int) -> np.ndarray:
    counts = np.zeros((num_experts, num_experts), int)
    for row in ids.tolist():
        for a, b in itertools.product(row, row):
            if a < num_experts and b < num_experts:
                counts[a, b] += 1
    return counts


def test_counts_are_those_of_counting_one_by_one() -> None:
    many, few = experts_of(1, 5000)[1], experts_of(2, 3)[1]
    counts, tokens = count_together([many, few], 64)
    np.testing.assert_array_equal(counts, one_by_one(np.concatenate([many, few]), 64))
    assert tokens == 5003


def test_masked_slots_are_no_experts() -> None:
    ids = np.array([[0, NO_EXPERT], [0, 1]], np.uint16)
    counts, _ = count_together([ids], 2)
    assert counts.tolist() == [[2, 1], [1, 1]]


def test_an_expert_counts_once_for_a_token() -> None:
    counts, tokens = count_together([np.array([[2, 0, 2], [1, 1, 1]], np.uint8)], 3)
    assert (counts.tolist(), tokens) == ([[1, 0, 1], [0, 1, 0], [1, 0, 1]], 2)


def test_the_strongest_pairs_by_lift() -> None:
    ids = np.array([[0, 1]] * 4 + [[0, 2]] * 2 + [[2, 3]] * 2 + [[3, 1]], np.uint8)
    counts, tokens = count_together([ids], 4)
    found = strongest(counts, tokens, number=2, min_tokens=2)
    assert found == [Pair(2, 3, 2, 2 * 9 / (4 * 3)), Pair(0, 1, 4, pytest.approx(4 * 9 / (6 * 5)))]
    assert strongest(counts, tokens, number=9, min_tokens=5) == []


def test_over_traces(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service(store=tmp_path)
    service.push(frame({1: [2] * 16, 3: [1] * 16 + [0] * 48}))  # layer 3 counted half of the tokens
    for number in range(1, 4):
        body = encode_part(part(number, tokens=20))
        assert service.client.post(
            "/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE}
        ).is_success
    answer = service.get("/v1/coactivation", layer=3, max_traces=2)
    ids = np.concatenate([experts_of(3, 20)[1], experts_of(2, 20)[1]])
    np.testing.assert_array_equal(answer["counts"], one_by_one(ids, 64))
    assert (answer["traces"], answer["truncated"], answer["tokens"]) == (2, True, 40)
    assert answer["not_conserved"] == "its rows don't add up to the tokens of DP rank 0: 8 of 16"
    assert not service.get("/v1/coactivation", layer=3)["truncated"]
    response = service.client.get("/v1/coactivation", params={"layer": 2})
    assert response.status_code == 404
    assert response.json()["type"] == "urn:moescope:problem:no-traces"


def test_a_layer_of_too_many_experts_is_refused_before_it_is_counted(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    """The counts of 8,192 experts would take 512 MiB."""
    service = start_service(store=tmp_path)
    made = part(1, 2, [np.array([[0, 1]] * 2, "<u2")], layers=[MoeLayer(1, 8192, 2)], id_bytes=2)
    service.push(frame({1: [1, 1]}))
    headers = {"content-type": TRACE_CONTENT_TYPE}
    assert service.client.post("/v1/traces", content=encode_part(made), headers=headers).status_code == 200
    answer = service.client.get("/v1/coactivation", params={"layer": 1})
    assert answer.status_code == 400
    assert "8192 experts; pairs are counted of 2048 at most" in answer.json()["detail"]
