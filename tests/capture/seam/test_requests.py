"""What the scheduler's output says of a step's requests, and by which names clients know them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from moescope.capture.seam.ends import RequestEnd
from moescope.capture.seam.requests import OPT_IN, NewRequest, client_ids, read_requests
from tests.capture.scheduler import Scheduling, full_attention, model_config


def new_request(
    name: str, prompt: int, computed: int = 0, extra: dict[str, Any] | None = None, **params: Any
) -> Any:
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=[1] * prompt,
        prompt_embeds=None,
        num_computed_tokens=computed,
        sampling_params=SimpleNamespace(extra_args=extra, **params),
    )


def test_the_requests_of_a_step() -> None:
    embedded = new_request("c", 0)
    embedded.prompt_token_ids, embedded.prompt_embeds = None, torch.zeros(6, 2)
    step = read_requests(
        SimpleNamespace(
            scheduled_new_reqs=[
                new_request("b", 5, 2, {OPT_IN: 1}, max_tokens=7, stop_token_ids=[3], _eos_token_id=9),
                embedded,
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=["a", "d"], num_computed_tokens=[10, 0], resumed_req_ids={"d"}
            ),
            finished_req_ids={"e"},
            num_scheduled_tokens={"a": 3, "b": 3, "c": 6, "d": 4},
            scheduled_spec_decode_tokens={"a": [-1, -1]},
        )
    )
    assert step.new == [
        NewRequest("b", 5, 2, True, RequestEnd(12, frozenset({3, 9}), certain=True)),
        NewRequest("c", 6, 0, False),
    ]
    assert step.rows() == ({"a": 10, "b": 2, "c": 0, "d": 0}, {"a": 2})
    assert (step.finished, step.resumed) == (("e",), {"d"})
    assert step.num_tokens == {"a": 3, "b": 3, "c": 6, "d": 4}


def test_vllms_scheduler_tells_the_adapter_of_each_request(tmp_path: Path) -> None:
    """Of a request that is new, and of nobody else's."""
    scheduling = Scheduling(model_config(tmp_path / "model"), [full_attention(4)], 60)
    sql = LoRARequest(lora_name="sql", lora_int_id=1, lora_path="/adapters/sql")
    for name, adapter in (("base", None), ("adapted", sql)):
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        scheduling.scheduler.add_request(Request(name, [1, 2, 3], params, None, lora_request=adapter))
    step = read_requests(scheduling.schedule())
    assert {new.request_id: new.lora for new in step.new} == {"base": "", "adapted": "sql"}


@pytest.mark.parametrize(
    ("internal", "names"),
    [
        ("cmpl-abc-0-0123abcd", ["cmpl-abc-0", "cmpl-abc", "abc"]),
        ("chatcmpl-my-1-0123abcd", ["chatcmpl-my-1", "my-1"]),
        ("2_cmpl-abc-1-0123abcd", ["cmpl-abc-1", "cmpl-abc", "abc"]),
        ("resp_77-0123abcd", ["resp_77", "77"]),
        ("5", ["5"]),
        ("cmpl-abc-0", ["cmpl-abc-0", "cmpl-abc", "abc"]),
    ],
)
def test_ids_by_which_a_client_knows_a_request(internal: str, names: list[str]) -> None:
    assert client_ids(internal) == names
