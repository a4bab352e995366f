"""Windows of one phase: the two add up to the whole, and a rank whose phases are not known is left out."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.counts.phase_split import Phase
from moescope.service.live.producers import ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.phase_window import merge_spans_of_phase, spans_of_phase
from moescope.service.windows.window import merge_spans
from tests.service.frames import frame, halves, producer

WHOLE = {0: [40, 20, 10, 10], 3: [20, 20, 20, 20]}
DECODE = {0: [30, 0, 0, 0], 3: [0, 0, 10, 20]}


def _spans(phased: tuple[bool, ...] = (True, True)) -> list[ProducerSpan]:
    """Two DP ranks that counted alike, of which some told phases."""
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for rank, told in enumerate(phased):
        who = producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2)
        phases = {"decode": DECODE, "decode_steps": 5, "mixed_steps": 3} if told else {}
        state.ingest(frame(WHOLE, who=who, steps=9, placement=halves(4, 2), **phases))
    return state.spans(("prod", "tiny"), None, None)


def test_the_phases_add_up_to_the_whole() -> None:
    spans = _spans()
    whole = merge_spans_of_phase(spans, None)
    decode, prefill = (merge_spans_of_phase(spans, phase) for phase in (Phase.DECODE, Phase.PREFILL))
    assert (decode.phase, decode.phase_reason, whole.phase) == (Phase.DECODE, None, None)
    assert (whole.tokens, decode.tokens, prefill.tokens) == (80, 30, 50)
    for all_of_it, one, other in zip(whole.layers, decode.layers, prefill.layers, strict=True):
        np.testing.assert_array_equal(one.counts, 2 * np.array(DECODE[one.shape.layer]))
        for field in ("counts", "slots", "rows", "ep_slots"):
            both = getattr(one, field) + getattr(other, field)
            np.testing.assert_array_equal(both, getattr(all_of_it, field))


def test_the_work_by_phase_is_that_of_the_whole_whichever_phase_is_asked_for() -> None:
    spans = _spans()
    wanted = [rank.phases for rank in merge_spans(spans).dp_ranks]
    assert wanted[0] is not None
    assert wanted[0].decode_tokens == 15
    for phase in Phase:
        assert [rank.phases for rank in merge_spans_of_phase(spans, phase).dp_ranks] == wanted


def test_a_workers_reason_is_in_the_windows_reasons() -> None:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    who = producer(dp_size=1, ep_size=2)
    unavailable = {"phases": "no order of rows", "placement": "no map of experts"}
    state.ingest(frame(WHOLE, who=who, steps=9, unavailable=unavailable))
    spans = state.spans(("prod", "tiny"), None, None)
    window = merge_spans_of_phase(spans, Phase.DECODE)
    assert window.phase_reason is not None
    assert window.phase_reason.endswith("are not known: no order of rows")
    for layer in window.layers:
        assert layer.phase_reason == layer.not_seen
        assert layer.not_seen is not None
        assert layer.not_seen.endswith(": no order of rows")
    for layer in merge_spans(spans).layers:
        assert layer.ep_reason is not None
        assert layer.ep_reason.endswith("which ranks they went to: no map of experts")
        assert layer.phase_reason is None


@pytest.mark.parametrize("phase", Phase)
def test_a_rank_whose_phases_are_not_known_is_left_out_with_the_reason(phase: Phase) -> None:
    window = merge_spans_of_phase(_spans((True, False)), phase)
    assert window.phase_reason is not None
    assert window.phase_reason.startswith("the phases of 40 tokens of DP ranks [1] are not known")
    assert window.known_tokens is None
    assert window.dp_ranks[1].phases is None
    known = merge_spans_of_phase(_spans((True, False))[:1], phase)
    for layer, alone, rows in zip(window.layers, known.layers, (40, 40), strict=True):
        assert (layer.dp_ranks, layer.missing, layer.unphased) == ((0,), (1,), {1: rows})
        assert (layer.slots.shape, layer.rows.shape) == ((1,), (1,))
        assert layer.counts.tolist() == alone.counts.tolist()
        assert layer.slots.tolist() == [layer.counts.sum()]
    nobody = merge_spans_of_phase(_spans((False, False)), phase).layers[0]
    assert nobody.not_seen is not None
    assert nobody.not_seen.startswith("the phases of 80 tokens of DP ranks [0, 1]")


def test_spans_are_cut_to_a_phase() -> None:
    spans = _spans()
    assert [item.span.delta.tokens for item in spans_of_phase(spans, Phase.DECODE)] == [15, 15]
    assert [item.span.delta.tokens for item in spans_of_phase(spans, Phase.PREFILL)] == [25, 25]
    assert spans_of_phase(spans, None) == spans
