"""vLLM's internal ids, taken apart."""

from __future__ import annotations

import pytest

from moescope.service.traces.names import RequestName


@pytest.mark.parametrize(
    ("request_id", "outer", "prompt", "sample"),
    [
        ("cmpl-x-0-1a2b3c4d", "cmpl-x-0", 0, None),
        ("cmpl-x-12-1a2b3c4d", "cmpl-x-12", 12, None),
        ("3_cmpl-x-1-1a2b3c4d", "cmpl-x-1", 1, 3),
        ("chatcmpl-x-7-1a2b3c4d", "chatcmpl-x-7", 0, None),
        ("0_chatcmpl-x-1a2b3c4d", "chatcmpl-x", 0, 0),
        ("cmpl-x-5", "cmpl-x-5", 5, None),  # a vLLM that adds no random suffix
        ("cmpl-a-1-b-2-1a2b3c4d", "cmpl-a-1-b-2", 2, None),
        ("12_34", "12_34", 0, None),
        ("-1a2b3c4d", "-1a2b3c4d", 0, None),
        ("", "", 0, None),
    ],
)
def test_names(request_id: str, outer: str, prompt: int, sample: int | None) -> None:
    assert RequestName.of(request_id) == (outer, prompt, sample)
