"""A small deployment whose numbers are all fixed, as a registry of metrics."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry

from moescope.capture import wire
from moescope.service.drift.baseline import BaselineBook, baseline_of
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector, StoreHealth
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.windows.window import merge_spans
from tests.service.frames import frame, halves, producer

LOADS = np.array([[[6, 2], [4, 4]], [[0, 3], [3, 0]]])
"""Slots of two steps' tokens, by layer and EP rank."""


def registry() -> CollectorRegistry:
    """Two DP ranks of one deployment, its sibling, and one of another without EP; all numbers are fixed."""
    settings = Settings(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    ticks = itertools.count()
    instruments = Instruments(lambda: next(ticks) * 0.004)
    state = LiveState(settings, lambda: 1_700_000_100.0)
    for dp_rank in (0, 1):
        tokens = 500_150 + dp_rank
        made = frame(
            {0: [1_000_100, 100, 60, 40], 3: [150, 0, 50, 0]},
            who=producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2, pool="chat", role="decode"),
            rows=[tokens, tokens],  # layer 3 masks slots
            tokens=tokens,
            placement=halves(4, 2, version=4),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
            absent=[wire.UncoveredLayer(7, "not found")],
            idle_steps=7,
            drops={"steps_lost": 2},
            traces={"captured": 5, "delivered": 3, "dropped_fault": 1},
            decode={0: [1_000_000, 100, 0, 0], 3: [100, 0, 0, 0]},
            decode_rows=wire.pack_counts(np.array([500_050, 500_050])),
            steps=90,
            decode_steps=80,
            mixed_steps=7,
            step_loads=wire.pack_step_loads(40, 44, np.array([40, 42]), LOADS * (1 + dp_rank), 4),
        )
        with instruments.ingest.timed():
            state.ingest(made)
        instruments.took_in(1000)
    state.ingest(frame({0: [4, 2]}, who=producer(server='quo"te', model="back\\slash\nline")))
    state.ingest(frame({0: [8, 2, 0, 2]}, who=producer(server="second", pool="chat", role="decode")))
    state.count_refused("malformed")
    with instruments.scrape.timed():
        pass
    result = CollectorRegistry()
    book = BaselineBook()
    window = merge_spans(state.spans(("prod", "tiny"), None, None))
    even = window.layers[1].counts + 100
    changed = replace(window, layers=(window.layers[0], replace(window.layers[1], counts=even)))
    book.pin(baseline_of(changed, replace(changed, phase_reason="not told"), "release-1", "", state.now(), 1))
    drift = DriftWatch(state, book, settings.min_tokens)
    store = StoreHealth(lambda: None, lambda: {"account": 2})
    result.register(RoutingCollector(state, settings, instruments, drift, store))
    return result
