"""Reasons that the service doesn't know are one: producers can't make series without end."""

from __future__ import annotations

from moescope.capture.wire import DROPS, TRACE_DROPS
from moescope.service.counts.account import Account
from moescope.service.counts.reasons import known_drops, known_traces
from tests.service.frames import frame


def test_known_reasons_stay_and_the_others_add_up() -> None:
    assert known_drops({"steps_lost": 3, "": 1, "a": 2, "snapshots_put_off": 0}) == {
        "steps_lost": 3,
        "other": 3,
        "snapshots_put_off": 0,
    }
    faults = {"dropped_fault:KeyError": 2, "dropped_fault:OSError": 1}
    found = known_traces({"captured": 9, "delivered": 1, **faults, "dropped_x": 3})
    assert found == {"captured": 9, "delivered": 1, "dropped_fault": 3, "dropped_other": 3}
    assert known_drops(dict.fromkeys(DROPS, 1)) == dict.fromkeys(DROPS, 1)
    traces = {f"dropped_{reason}": 1 for reason in TRACE_DROPS}
    assert known_traces(traces) == traces


def test_new_names_in_every_frame_are_one_reason() -> None:
    """64 new names in each frame made 34,816 series of one producer within 45 s."""
    account = Account(max_epochs=4)
    for seq in range(1, 40):
        drops = {f"reason {seq} {i}": seq for i in range(64)}
        traces = {f"dropped_{name}": 1 for name in drops}
        account.post(frame({0: [1, 1]}, seq=seq, drops=drops, traces=traces))
    assert account.totals.drops == {"other": 39 * 64}
    assert account.latest is not None
    assert account.latest.traces == {"dropped_other": 64}
