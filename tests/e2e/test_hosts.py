"""Workers on several hosts give their deployment one name, untold; `devkit.hosts` has more layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devkit.hosts.layouts import TEST
from devkit.hosts.network import Network, why_no_namespaces
from devkit.hosts.runs import HOSTS, Seen, Workers, expected, run
from devkit.tiny_moe import ensure_checkpoint
from moescope.capture.wire import Producer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seen, Workers]]:
    """What the workers said, and what they should."""
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(f"no hosts of their own: {reason}")
    folder = tmp_path_factory.mktemp("hosts")
    with Network(HOSTS) as network:
        yield run(TEST, network, ensure_checkpoint(folder / "model"), folder), expected(TEST, network)


def producers(seen: Seen) -> dict[tuple[str, int], Producer]:
    """By host and DP rank."""
    return {(frame.producer.host, frame.producer.dp_rank): frame.producer for frame in seen.frames}


def test_workers_of_one_deployment_share_a_name_and_others_do_not(started: tuple[Seen, Workers]) -> None:
    seen, wanted = started
    assert seen.workers == wanted
    assert len(wanted) == 2


def test_a_worker_without_capture_belongs_to_the_same_deployment(started: tuple[Seen, Workers]) -> None:
    (off,) = (frame for frame in started[0].frames if frame.state == "disabled")
    assert "MOESCOPE_TRACE_RATE: 'lots'" in off.state_reason
    assert (off.producer.host, off.producer.dp_rank, off.producer.dp_size) == ("gpu-1", 1, 2)
    other = producers(started[0])["gpu-0", 0]
    assert (off.producer.server, off.producer.model) == (other.server, other.model)


def test_pool_role_and_start_are_told(started: tuple[Seen, Workers]) -> None:
    found = producers(started[0])
    prefill, ranks = found["gpu-1", 0], [found["gpu-0", 0], found["gpu-1", 1]]
    assert (prefill.pool, prefill.role) == ("tiny", "prefill")
    assert {(rank.pool, rank.role) for rank in ranks} == {("", "")}
    starts = {producer.start for producer in found.values()}
    assert len(starts) == 3  # as often was vLLM started
    assert "" not in starts
