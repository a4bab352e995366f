"""Straggler cost: the service's answer, and what follows from the loads of steps."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from moescope.capture.wire import Int64Array
from tests.e2e.cluster import SETTLE_SECONDS, Cluster
from tests.e2e.reading import forward_passes, last_frames


def settled_stragglers(cluster: Cluster) -> dict[str, Any]:
    """The service's answer once the ranks have done their last dummy steps, and no more steps are joined.

    Steps whose frames went elsewhere in an earlier test may still wait.
    """
    cluster.settled_when_idle()
    deadline = time.monotonic() + SETTLE_SECONDS
    before: list[Any] = []
    while True:
        ends = {forward_passes(frame) for frame in last_frames(cluster).values()}
        answer: dict[str, Any] = cluster.service.get("/v1/stragglers")
        if len(ends) == 1 and answer["stages"] == before:
            return answer
        assert time.monotonic() < deadline, (ends, answer["stages"])
        before = answer["stages"]
        time.sleep(0.5)


def sums_of(loads: dict[int, Int64Array]) -> tuple[list[int], list[float], list[list[float]]]:
    """What the loads of steps, each [layers, EP ranks], add up to, by definition.

    For each layer: the sum over steps of the largest load, the sum of the mean load, and how often each EP
    rank was the hottest. Ranks that are hottest together share the step.
    """
    every = np.stack(list(loads.values()))
    most = every.max(axis=2, keepdims=True)
    hot = (every == most) & (most > 0)
    shared = hot / np.maximum(hot.sum(axis=2, keepdims=True), 1)
    return (
        most.sum(axis=(0, 2)).tolist(),
        every.mean(axis=2).sum(axis=0).tolist(),
        shared.sum(axis=0).tolist(),
    )


def assert_rise(after: dict[str, Any], before: dict[str, Any], loads: dict[int, Int64Array]) -> None:
    """The answer after differs from the one before by the loads of these steps, in every layer."""
    most, mean, hottest = sums_of(loads)
    for i, (layer, was) in enumerate(zip(after["layers"], before["layers"], strict=True)):
        assert layer["max_slots"] - was["max_slots"] == most[i]
        assert layer["mean_slots"] - was["mean_slots"] == pytest.approx(mean[i])
        np.testing.assert_allclose(np.array(layer["hottest"]) - np.array(was["hottest"]), hottest[i])
