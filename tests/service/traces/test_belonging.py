"""Which requests of one id may be one, and which of them is the main one."""

from __future__ import annotations

from typing import Any

import pytest

from moescope.service.store.records import TracedRequest
from moescope.service.traces.belonging import SeveralError, main_of, narrowed
from tests.service.traces.stored_traces import request


def numbers(found: list[TracedRequest]) -> list[int]:
    return [item.number for item in found]


def test_vllms_own_id_means_its_requests_only() -> None:
    found = [request(2), request(1)]
    assert numbers(narrowed(found, "cmpl-x-0-00000001", None)) == [1]
    assert numbers(narrowed(found, "x", None)) == [2, 1]
    again = [request(number, request_id="cmpl-x-0") for number in (5, 4)]
    elsewhere = request(3, request_id="cmpl-x-0", server="p")
    assert numbers(narrowed([*again, elsewhere], "cmpl-x-0", None)) == [5, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, "Choose one by model"),
        ({"pool": "other"}, "Choose one by server"),
        ({"lora": "poet"}, "LoRA"),
        ({"request_id": "cmpl-x-1-00000002"}, "prompts of a completion"),
        ({"prompt_tokens": 41}, "lengths of the prompt"),
    ],
)
def test_what_tells_requests_apart(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SeveralError, match=said) as raised:
        narrowed([request(1), request(2, **change)], "x", None)
    assert "cmpl-x-0-00000001 (server=srv dp_rank=0, a prompt of 40)" in str(raised.value)


def test_samples() -> None:
    prefill = request(1)
    samples = [request(2 + n, request_id=f"{n}_cmpl-x-0-0000000a") for n in range(2)]
    with pytest.raises(SeveralError, match="sample=0, sample=1"):
        narrowed([*samples, prefill], "x", None)
    assert numbers(narrowed([*samples, prefill], "x", 1)) == [3, 1]
    with pytest.raises(LookupError, match="no sample 7"):
        narrowed([*samples, prefill], "x", 7)
    assert numbers(narrowed([prefill], "x", None)) == [1]


def test_the_main_one() -> None:
    def main(*several: tuple[TracedRequest, bool]) -> int:
        return main_of([item for item, _ in several], [generated for _, generated in several])

    decode, prefill = request(1, ended_at=1.0), request(2, ended_at=9.0)
    assert main((prefill, False), (decode, True)) == 1
    aborted, ended = request(1, finish_reason="abort", ended_at=9.0), request(2, ended_at=1.0)
    assert main((aborted, True), (ended, True)) == 1
    assert main((request(1, outcome="cut_off", ended_at=9.0), True), (ended, True)) == 1
    assert main((aborted, True), (ended, False)) == 0
    assert main((request(1, ended_at=3.0), True), (request(2, ended_at=2.0), True)) == 0
    assert main((request(1, ended_at=3.0), True), (request(2, ended_at=3.0), True)) == 1
