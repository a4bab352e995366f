"""Steps of tokens as they are kept: as they were, in few bytes, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.store.steps import encode_steps, read_steps


def _raw(steps: list[int]) -> bytes:
    return np.array(steps, "<i8").tobytes()


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1)), min_size=1, max_size=60), st.data())
def test_any_span_is_as_it_was(steps: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(steps)))
    end = data.draw(st.integers(start, len(steps)))
    found = read_steps(encode_steps(_raw(steps)), len(steps), start, end)
    assert found.dtype == np.int64
    assert found.tolist() == steps[start:end]


def test_prefill_in_chunks_and_decode_take_few_bytes() -> None:
    steps = [7] * 512 + [8] * 300 + list(range(9, 1009))
    stored = encode_steps(_raw(steps))
    assert stored is not None
    assert len(stored) < 24
    assert read_steps(stored, len(steps), 0, len(steps)).tolist() == steps


def test_steps_that_were_not_told_are_not_known() -> None:
    assert encode_steps(b"") is None
    assert read_steps(None, 5, 1, 4).tolist() == [-1, -1, -1]
    assert read_steps(b"", 5, 0, 1).tolist() == [-1]  # ClickHouse has no bytes where SQLite has NULL


@pytest.mark.parametrize(
    "damaged", [b"\xc1", b"\x93\x01\x01", b"\x92\x01\x04", b"\x92\x01\x00", b"\x80", "5", b"\x90"]
)
def test_damage_is_an_error(damaged: object) -> None:
    with pytest.raises(ValueError, match="damaged steps"):
        read_steps(damaged, 5, 0, 5)


def test_numbers_that_no_step_has_are_damage() -> None:
    stored = encode_steps(_raw([5, 4, 3]))
    assert stored is not None
    with pytest.raises(ValueError, match="below 0"):
        read_steps(stored.replace(b"\x05", b"\x01"), 3, 0, 3)
