"""What a KV connector received reaches the traces, whichever of vLLM's calls returns it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from moescope.capture.attach.mixin import extended
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.tracing.origins import BlocksReceived
from tests.capture.seam.held_callbacks import holding

SCHEDULED = SimpleNamespace(
    scheduled_new_reqs=[],
    scheduled_cached_reqs=SimpleNamespace(
        req_ids=[], num_computed_tokens=[], resumed_req_ids=set(), new_block_ids=[]
    ),
    finished_req_ids=set(),
    num_scheduled_tokens={},
    scheduled_spec_decode_tokens={},
    total_num_scheduled_tokens=0,
    has_sync_kv_loads=False,
)
TOLD = ModelRunnerOutput([], {}, kv_connector_output=KVConnectorOutput(finished_recving={"a"}))


class Inner:
    """What is behind our worker class: its calls return what they are given."""

    model_runner = None

    def execute_model(self, scheduled: Any) -> Any:
        return scheduled.returns

    def sample_tokens(self, returns: Any) -> Any:
        return returns


def worker_of(monkeypatch: pytest.MonkeyPatch, connector: bool) -> Iterator[Any]:
    for name in ("tp", "pp", "ep"):
        group = SimpleNamespace(rank_in_group=0, world_size=1)
        monkeypatch.setattr(parallel_state, f"get_{name}_group", lambda group=group: group)
    config: Any = VllmConfig()
    config.model_config = SimpleNamespace(served_model_name="tiny", model="tiny", runner_type="generate")
    config.kv_transfer_config = SimpleNamespace() if connector else None
    made: Any = extended(type("Worker", (Inner,), {"__module__": "vllm.v1.worker.gpu_worker"}))()
    settings = {"MOESCOPE_ENDPOINT": "http://127.0.0.1:9", "MOESCOPE_TRACE_RATE": "1"}
    model = torch.nn.ModuleList([holding(0)])
    made._capture = session = CaptureSession(
        model, config, torch.device("cpu"), CaptureSettings.read(settings)[0]
    )
    yield made
    session.close()


def received(worker: Any) -> int:
    events = worker._capture._traces._assembly.events
    return sum(isinstance(event, BlocksReceived) for event in events)


@pytest.mark.parametrize("connector", [False, True])
def test_either_call_may_tell(monkeypatch: pytest.MonkeyPatch, connector: bool) -> None:
    """Without a connector nobody looks."""
    for worker in worker_of(monkeypatch, connector):
        assert worker.execute_model(SimpleNamespace(**vars(SCHEDULED), returns=TOLD)) is TOLD
        assert received(worker) == connector
        assert worker.sample_tokens(SimpleNamespace(model_runner_output=TOLD)).model_runner_output is TOLD
        assert received(worker) == 2 * connector
        assert worker.execute_model(SimpleNamespace(**vars(SCHEDULED), returns=None)) is None
        assert received(worker) == 2 * connector


def test_blocks_that_can_t_be_read_cost_origins_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another vLLM may tell its blocks otherwise."""
    unlike = SimpleNamespace(**vars(SCHEDULED), returns=None)
    unlike.scheduled_cached_reqs = SimpleNamespace(
        req_ids=[], num_computed_tokens=[], resumed_req_ids=set(), new_block_ids=None
    )
    for worker in worker_of(monkeypatch, connector=True):
        worker._capture._traces._on_failure = pytest.fail
        for _ in range(2):
            assert worker.execute_model(unlike) is None
        assert worker.execute_model(SimpleNamespace(**vars(SCHEDULED), returns=TOLD)) is TOLD
        assert received(worker) == 0
    assert [record.message for record in caplog.records if "who computed cached" in record.message] == [
        "moescope: traces don't say who computed cached prefixes any more: "
        "TypeError(\"object of type 'NoneType' has no len()\")"
    ]
