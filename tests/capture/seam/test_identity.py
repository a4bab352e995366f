"""Who a worker is, from whatever can be asked."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vllm.config.kv_transfer import KVTransferConfig

from moescope.capture.seam.deployment import this_host
from moescope.capture.seam.identity import guess_identity, read_belonging, read_identity
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.settings.surroundings import Surroundings
from moescope.capture.wire import Producer

PROD = CaptureSettings(server="prod", pool="deepseek")


def config(**parallel: Any) -> SimpleNamespace:
    sizes = {
        "data_parallel_rank": 1,
        "data_parallel_size": 2,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "prefill_context_parallel_size": 1,
        "enable_expert_parallel": False,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(served_model_name="tiny"),
        parallel_config=SimpleNamespace(**{**sizes, **parallel}),
    )


@pytest.mark.parametrize(
    ("rank", "pcp", "pp_rank", "tp_rank"),
    [(0, 1, 0, 0), (3, 1, 1, 1), (5, 1, 2, 1), (7, 2, 1, 1), (6 + 4, 1, 2, 0)],
)
def test_ranks_follow_from_the_workers_number_where_there_are_no_groups(
    rank: int, pcp: int, pp_rank: int, tp_rank: int
) -> None:
    """vLLM numbers workers TP first; with an external launcher the number begins with the DP rank."""
    worker = SimpleNamespace(vllm_config=config(prefill_context_parallel_size=pcp), rank=rank)
    found = guess_identity(worker, PROD)
    assert (found["dp_rank"], found["dp_size"]) == (1, 2)
    assert (found["pp_rank"], found["pp_size"]) == (pp_rank, 3)
    assert (found["tp_rank"], found["tp_size"]) == (tp_rank, 2)


@pytest.mark.parametrize(
    "worker", [object(), SimpleNamespace(vllm_config=None), SimpleNamespace(vllm_config=config())]
)
def test_whatever_is_missing_a_producer_comes_out(worker: object) -> None:
    who = msgspec.convert(guess_identity(worker, CaptureSettings()), Producer)
    assert who.server == this_host()  # this process is no server of vLLM's, and CPUs have no devices
    assert (who.pool, who.role, who.start) == ("", "", "")
    assert who.vllm_version
    assert who.pid


def test_whatever_is_not_utf_8_can_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsdecode(b"\xfc")
    monkeypatch.setattr("socket.gethostname", lambda: odd)
    whole = config()
    whole.model_config.served_model_name = whole.instance_id = odd
    surroundings = Surroundings(launched_as=odd)
    whole.parallel_config.distributed_executor_backend = "ray"
    whole.parallel_config.data_parallel_size = 1
    found = guess_identity(
        SimpleNamespace(vllm_config=whole, rank=0), CaptureSettings(surroundings=surroundings)
    )
    assert [found[name] for name in ("server", "model", "host", "start")] == ["?"] * 4
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found)) == found


def test_what_frames_with_counts_say_is_never_guessed() -> None:
    with pytest.raises(AssertionError):  # vLLM's: there are no groups
        read_identity(config(), PROD)


@pytest.mark.parametrize(
    ("kv_role", "said", "role"),
    [
        ("kv_producer", "", "prefill"),
        ("kv_consumer", "", "decode"),
        ("kv_both", "", ""),
        ("kv_both", "decode", "decode"),
        ("kv_producer", "decode", "decode"),
    ],
)
def test_pool_role_and_start_are_the_same_whether_a_worker_counts_or_not(
    kv_role: str, said: str, role: str
) -> None:
    whole = config()
    whole.kv_transfer_config = KVTransferConfig(kv_connector="NixlConnector", kv_role=kv_role)
    whole.instance_id = "1795899031716505076"
    settings = CaptureSettings(server="prod", pool="deepseek", role=said)
    counts = read_belonging(whole, settings)
    assert counts == {"server": "prod", "pool": "deepseek", "role": role, "start": "1795899031716505076"}
    off = guess_identity(SimpleNamespace(vllm_config=whole, rank=0), settings)
    assert {name: off[name] for name in counts} == counts
