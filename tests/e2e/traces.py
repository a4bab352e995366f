"""Traces of a cluster, in the service and on the wire."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from devkit.vllm_server import MODEL_NAME
from moescope.capture.wire.traces import TracePart, decode_part
from moescope.client import Client, RequestRouting
from tests.e2e.cluster import SETTLE_SECONDS, Cluster, Request


def settled(cluster: Cluster) -> list[dict[str, int]]:
    """Each worker's account of its traces, once no trace is in flight."""
    cluster.settled_when_idle()
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        (deployment,) = cluster.service.get("/v1/ranks")["deployments"]
        accounts = [producer["traces"] for rank in deployment["dp_ranks"] for producer in rank["producers"]]
        if not any(account["in_flight"] for account in accounts) or time.monotonic() > deadline:
            return accounts
        time.sleep(0.1)


def all_traces(cluster: Cluster) -> list[dict[str, Any]]:
    """Every trace that is listed, page by page."""
    found: list[dict[str, Any]] = []
    page = cluster.service.get("/v1/traces", limit=7)
    found += page["traces"]
    while page["next_cursor"] is not None:
        page = cluster.service.get("/v1/traces", limit=7, cursor=page["next_cursor"])
        found += page["traces"]
    return found


def npz(cluster: Cluster, name: str) -> dict[str, Any]:
    """The arrays of a request's trace, as the service answers them."""
    response = httpx.get(f"{cluster.service.url}/v1/traces/{name}.npz", timeout=60)
    assert response.status_code == 200, response.text
    return dict(np.load(io.BytesIO(response.content)))


def ask_as(cluster: Cluster, request_id: str, request: Request, **fields: Any) -> None:
    """A greedy completion under a client's id, with more fields of its body."""
    body = {
        "model": MODEL_NAME,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        **fields,
    }
    headers = {"X-Request-Id": request_id}
    response = httpx.post(f"{cluster.vllm.url}/v1/completions", json=body, headers=headers, timeout=300)
    assert response.status_code == 200, response.text


def joined(cluster: Cluster, request_id: str) -> dict[str, Any]:
    """The joined routing of a request, once all layers of the model have come, or time is up."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        response = httpx.get(f"{cluster.service.url}/v1/requests/{request_id}/routing", timeout=60)
        whole = response.status_code == 200 and response.json()["layers"] == [1, 2, 3, 4]
        if whole or time.monotonic() > deadline:
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            return answer
        time.sleep(0.1)


def check_client(url: str, wanted: Mapping[str, dict[str, Any]]) -> None:
    """The client's whole requests, asked for alone and in an export, are the answers by these names.

    An export has each once: in place of its main trace, row by row.
    """
    with Client(url) as client:
        exported = [item for item in client.export_whole() if isinstance(item, RequestRouting)]
        for name, answer in wanted.items():
            [of_export] = [item for item in exported if name in item.info.names]
            for whole in (client.routing(name), of_export):
                np.testing.assert_array_equal(whole.experts, answer["routed_experts"])
                np.testing.assert_array_equal(whole.times_computed, answer["times_computed"])
                assert whole.layers.tolist() == answer["layers"]
                assert [(part.server, part.role) for part in whole.parts] == [
                    (part["server"], part["role"]) for part in answer["parts"]
                ]
                assert [[list(run) for run in part.positions] for part in whole.parts] == [
                    part["positions"] for part in answer["parts"]
                ]
                assert whole.is_whole
                assert (whole.part_of >= 0).all()


def parts_of(cluster: Cluster, name: str) -> list[TracePart]:
    """The parts of a request's trace that went over the wire, by worker and in the order of computing."""
    parts = [decode_part(body) for body in cluster.relay.trace_bodies]
    once = {(*part.producer.key, part.part): part for part in parts if name in part.client_ids}
    return [once[key] for key in sorted(once)]


def wire_counts(cluster: Cluster) -> dict[int, dict[int, np.ndarray]]:
    """DP rank to layer to slots by expert, of every row in every part that went over the wire.

    A part counts once: one that a service at its end did not take is sent again.
    """
    counts: dict[int, dict[int, np.ndarray]] = {}
    parts = [decode_part(body) for body in cluster.relay.trace_bodies]
    once = {(*part.producer.key, part.epoch, part.trace, part.part): part for part in parts}
    for part in once.values():
        of_rank = counts.setdefault(part.producer.dp_rank, {})
        for i, layer in enumerate(part.layers):
            found = np.bincount(part.ids_of(i).reshape(-1), minlength=layer.num_experts)
            of_rank[layer.layer] = of_rank.get(layer.layer, 0) + found
    return counts


def stored_counts(cluster: Cluster, names: list[str]) -> dict[int, np.ndarray]:
    """Layer to slots by expert, of these requests' positions as the service answers them."""
    counts: dict[int, np.ndarray] = {}
    for name in names:
        trace = npz(cluster, name)
        for i, layer in enumerate(trace["layers"].tolist()):
            ids = trace["routed_experts"][:, i].reshape(-1)
            found = np.bincount(ids[ids >= 0], minlength=int(trace["num_experts"][i]))
            counts[layer] = counts.get(layer, 0) + found
    return counts


def assert_sums(cluster: Cluster, recomputed: bool = False) -> None:
    """For each DP rank, layer and expert the traces' slots are those of the histogram."""
    for account in settled(cluster):
        assert account["captured"] == account["delivered"] > 0, account
    traces = all_traces(cluster)
    for dp_rank, layers in wire_counts(cluster).items():
        truth = cluster.layers(dp_rank)
        assert {layer: counts.tolist() for layer, counts in layers.items()} == {
            layer: found["counts"] for layer, found in truth.items()
        }
        mine = [trace for trace in traces if trace["dp_rank"] == dp_rank]
        assert sum(trace["tokens"] for trace in mine) == next(iter(truth.values()))["tokens"]
        if not recomputed:  # a position that was computed twice is answered once
            kept = stored_counts(cluster, [trace["request_id"] for trace in mine])
            assert {layer: counts.tolist() for layer, counts in kept.items()} == {
                layer: found["counts"] for layer, found in truth.items()
            }
