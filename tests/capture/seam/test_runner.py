"""Requests in vLLM's model runner."""

from types import SimpleNamespace

import pytest

from moescope.capture.seam.runner import holds_requests


@pytest.mark.parametrize(
    ("runner", "held"),
    [
        (SimpleNamespace(requests={"a": 1}), True),
        (SimpleNamespace(requests={}), False),
        (SimpleNamespace(req_states=SimpleNamespace(req_id_to_index={"a": 0})), True),
        (SimpleNamespace(req_states=SimpleNamespace(req_id_to_index={})), False),
        (SimpleNamespace(), False),
        (None, False),
    ],
)
def test_requests_are_seen_in_both_runners(runner: object, held: bool) -> None:
    assert holds_requests(runner) is held


def test_vllms_runners_have_what_is_looked_at() -> None:
    import inspect

    from vllm.v1.worker.gpu.states import RequestState
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "self.requests: dict" in inspect.getsource(GPUModelRunner.__init__)
    assert "self.req_id_to_index: dict" in inspect.getsource(RequestState.__init__)
