"""What of a request's end can be told from vLLM's own classes of its parameters, and what can't."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.kv_transfer import KVTransferConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.request import Request, RequestStatus
from vllm.v1.worker.gpu_worker import Worker

from moescope.capture.seam.ends import LastToken, Limits, limits_of, lora_name, read_limits, request_end

SERVER = Limits(max_length=20, may_fail=False)
EOS = 7


def new_request(params: SamplingParams, prompt: int = 4, lora: LoRARequest | None = None) -> NewRequestData:
    return NewRequestData(
        req_id="a",
        prompt_token_ids=[1] * prompt,
        mm_features=[],
        sampling_params=params,
        pooling_params=None,
        block_ids=([],),
        num_computed_tokens=0,
        lora_request=lora,
    )


def parameters(**fields: Any) -> SamplingParams:
    params = SamplingParams(**{"max_tokens": 5} | fields)
    params.update_from_generation_config({}, EOS)
    return params


PATTERN = RepetitionDetectionParams(max_pattern_size=1, min_pattern_size=1, min_count=3)
REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_REPETITION: "repetition",
}


@pytest.mark.parametrize(
    ("fields", "prompt", "tokens"),
    [
        ({}, 4, [3, 3, EOS]),
        ({}, 4, [3, 3, 3, 3, EOS]),  # the last one that it may have, too
        ({"ignore_eos": True}, 4, [3, EOS, 3, 3, 3]),
        ({"stop_token_ids": [9]}, 4, [3, 9]),
        ({}, 4, [3] * 5),
        ({"max_tokens": 50}, 17, [3, 3, 3]),  # as many as the model takes
        ({"repetition_detection": PATTERN}, 4, [4, 3, 3, 3]),
        ({"repetition_detection": PATTERN}, 4, [4, 4, 3, 3, 3]),  # and as many as it may have
        ({"repetition_detection": PATTERN, "min_tokens": 4}, 4, [3, 3, 3, 3]),
    ],
)
def test_reasons_are_those_of_vllms_scheduler(fields: dict[str, Any], prompt: int, tokens: list[int]) -> None:
    params = parameters(**fields)
    request = Request("a", [1] * prompt, params, None)
    request.status = RequestStatus.RUNNING
    end = request_end(new_request(params, prompt), SERVER)
    generated: list[int] = []
    for number, token in enumerate(tokens):
        request.append_output_token_ids(token)
        stopped = check_stop(request, 20)
        found = end.last_token([token], prompt + number, generated)
        assert stopped == (found is not None) == (number == len(tokens) - 1)
        if found is not None:
            assert found == LastToken(0, REASONS[request.status])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "server", "of_length", "otherwise"),
    [
        ({}, SERVER, "length", "abort"),
        ({"stop": ["x"]}, SERVER, "", ""),
        ({"structured_outputs": StructuredOutputsParams(json_object=True)}, SERVER, "length", ""),
        ({}, Limits(20, may_fail=True), "length", ""),
    ],
)
def test_what_may_have_been_something_else_is_not_told(
    fields: dict[str, Any], server: Limits, of_length: str, otherwise: str
) -> None:
    """A stop string may match in the last token too, and the client is told `stop` then."""
    end = request_end(new_request(parameters(**fields)), server)
    assert end.last_token([3] * 5, 4) == LastToken(4, of_length)  # type: ignore[arg-type]
    assert end.last_token([EOS], 4) == LastToken(0, "stop")
    assert end.otherwise == otherwise


def test_an_image_that_is_missing_is_an_error() -> None:
    new = new_request(parameters())
    new.mm_features = [SimpleNamespace()]  # type: ignore[list-item]
    assert request_end(new, SERVER).otherwise == ""


def test_parameters_of_old_versions_do_not_hold_the_models_stop_token() -> None:
    """Then neither an abort nor a length is certain."""
    params = SimpleNamespace(max_tokens=5, stop_token_ids=[9], extra_args=None)
    new: Any = SimpleNamespace(prompt_token_ids=[1] * 4, prompt_embeds=None, sampling_params=params)
    end = request_end(new, SERVER)
    assert (end.last_token([3] * 5, 4), end.otherwise) == (LastToken(4, ""), "")
    assert end.last_token([9], 4) == LastToken(0, "stop")
    params.ignore_eos = True
    assert request_end(new, SERVER).otherwise == "abort"


def test_pooled_requests_have_no_end_that_we_know() -> None:
    new = new_request(parameters())
    new.sampling_params = None
    end = request_end(new, SERVER)
    assert (end.max_length, end.stop_tokens, end.otherwise) == (None, frozenset(), "")


@pytest.mark.parametrize(
    ("transfer", "may_fail"),
    [
        (None, False),
        (KVTransferConfig(kv_connector="X", kv_role="kv_both"), True),
        (KVTransferConfig(kv_connector="X", kv_role="kv_both", kv_load_failure_policy="recompute"), False),
    ],
)
def test_limits_of_a_server(transfer: KVTransferConfig | None, may_fail: bool) -> None:
    config = SimpleNamespace(
        kv_transfer_config=transfer, model_config=SimpleNamespace(max_model_len=480), ec_transfer_config=None
    )
    assert read_limits(config) == Limits(480, may_fail)


def test_vllm_may_lower_the_greatest_length_once_the_model_is_loaded() -> None:
    """With ``--max-model-len auto``; a request that reaches it is no aborted one."""
    config = SimpleNamespace(kv_transfer_config=None, model_config=SimpleNamespace(max_model_len=480))
    read = limits_of(config)
    assert read() == Limits(480, may_fail=False)
    worker: Any = SimpleNamespace(model_config=config.model_config, model_runner=None)
    Worker.update_max_model_len(worker, 20)
    assert read() == SERVER


def test_the_name_of_an_adapter() -> None:
    adapter = LoRARequest(lora_name="sql", lora_int_id=1, lora_path="/adapters/sql")
    assert lora_name(new_request(parameters(), lora=adapter)) == "sql"
    assert lora_name(new_request(parameters())) == ""
    long = LoRARequest(lora_name="x" * 2000, lora_int_id=1, lora_path="/adapters/x")
    assert len(lora_name(new_request(parameters(), lora=long))) == 1024
