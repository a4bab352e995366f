"""What a scrape of many ranks needs for a moment: no arrays by expert of each rank, and no differences."""

from __future__ import annotations

import tracemalloc

from prometheus_client import CollectorRegistry

from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import Settings
from tests.service.frames import frame, halves, producer

RANKS, LAYERS, EXPERTS = 64, 8, 1024
OF_EACH_RANK = RANKS * LAYERS * EXPERTS * 8  # 4 MiB


def test_a_scrape_holds_no_counts_of_each_rank_and_no_differences() -> None:
    now = [1_700_000_100.0]
    state = LiveState(Settings(), lambda: now[0])

    def push(seq: int) -> None:
        now[0] += 20  # the window of the gauges begins between two frames, so all ranks are subtracted
        for rank in range(RANKS):
            who = producer(dp_rank=rank, dp_size=RANKS, ep_rank=rank % 2, ep_size=2)
            counts = {layer: [seq] * EXPERTS for layer in range(LAYERS)}
            state.ingest(frame(counts, seq=seq, who=who, placement=halves(EXPERTS, LAYERS)))

    for seq in (1, 2, 3):
        push(seq)
    registry, writer = CollectorRegistry(), Writer()
    registry.register(RoutingCollector(state, Settings(window_s=25), Instruments()))
    writer.write(registry.collect(), openmetrics=False)
    push(4)
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        try:
            text = writer.write(registry.collect(), openmetrics=False)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert b"moescope_layer_ep_imbalance_ratio" in text
    assert b'moescope_scrape_part_success{part="balance"} 1.0' in text
    assert peaks[0] < OF_EACH_RANK / 4
    assert peaks[1] < OF_EACH_RANK / 8, "nothing changed, so no window is made"
