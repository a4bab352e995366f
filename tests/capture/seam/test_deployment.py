"""Names of deployments, from real command lines: what vLLM's own parser and configuration make of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moescope.capture.protocol import MAX_NAME
from moescope.capture.seam.deployment import Place, name_deployment, name_of_server, this_host, this_place
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.seam.command_lines import NAMELESS, Configure, launched


def kv(role: str) -> str:
    return f'--kv-transfer-config {{"kv_connector":"ExampleConnector","kv_role":"{role}"}}'


HEAD = "--data-parallel-address 10.0.0.4"
KV_ROLES = ("kv_producer", "kv_consumer")
PORT_7 = "--master-addr fd00::4 --master-port 7"
DP2, DP4 = "--data-parallel-size 2", "--data-parallel-size 4 --data-parallel-size-local 2"

TOGETHER = {
    "external LB over hosts": (
        [
            ("a", f"{DP2} {HEAD} --data-parallel-rank 0"),
            ("b", f"{DP2} {HEAD} --data-parallel-rank 1 --port 8001"),
        ],
        "10.0.0.4:29550",
    ),
    "external LB on one host": (
        [("a", f"{DP2} --data-parallel-rank {rank} --port {8000 + rank}") for rank in (0, 1)],
        "a:29550",
    ),
    "external LB, a port of its own": (
        [("a", f"{DP2} --data-parallel-rank {rank} --data-parallel-rpc-port 13345") for rank in (0, 1)],
        "a:13345",
    ),
    "external LB by nodes": (
        [
            ("a", f"{DP2} --data-parallel-external-lb --nnodes 2 --node-rank {rank} --master-addr node-0.lws")
            for rank in (0, 1)
        ],
        "node-0.lws:29501",
    ),
    "hybrid LB": (
        [
            (host, f"{DP4} {HEAD} --data-parallel-hybrid-lb --data-parallel-start-rank {rank}")
            for host, rank in (("a", 0), ("b", 2))
        ],
        "10.0.0.4:29550",
    ),
    "headless": (
        [("a", f"{DP4} {HEAD}"), ("b", f"{DP4} {HEAD} --data-parallel-start-rank 2 --headless")],
        "10.0.0.4:29550",
    ),
    "headless, the head has no ranks": (
        [("b", f"{DP2} {HEAD} --headless")],
        "10.0.0.4:29550",
    ),
    "TP over nodes": (
        [
            ("a", "--tensor-parallel-size 2 --nnodes 2 --node-rank 0 --master-addr 10.0.0.4"),
            ("b", "--tensor-parallel-size 2 --nnodes 2 --node-rank 1 --master-addr 10.0.0.4 --headless"),
        ],
        "10.0.0.4:29501",
    ),
    "PP over nodes, a port of its own": (
        [
            (
                "a",
                f"--pipeline-parallel-size 2 --nnodes 2 --node-rank {rank} {PORT_7}",
            )
            for rank in (0, 1)
        ],
        "[fd00::4]:7",
    ),
    "DP and TP over nodes": (
        [
            (
                host,
                f"{DP2} --tensor-parallel-size 2 --nnodes 2 --node-rank {rank} --master-addr 10.0.0.4{more}",
            )
            for host, rank, more in (("a", 0, ""), ("b", 1, " --headless"))
        ],
        "10.0.0.4:29501",
    ),
    "internal LB": ([("a", DP2)], "a:8000"),
    "internal LB with an address": ([("a", f"{DP2} {HEAD} --port 8005")], "a:8005"),
    "TP on one host": ([("a", "--tensor-parallel-size 2 --port 8006")], "a:8006"),
    "a socket": ([("a", "--uds /run/vllm/a.sock")], "a:/run/vllm/a.sock"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_steps_together_has_one_name(configure: Configure, case: str) -> None:
    starts, expected = TOGETHER[case]
    assert {configure.name(host, line) for host, line in starts} == {expected}


APART = {
    "ports on one host": [("a", "--port 8000"), ("a", "--port 8001")],
    "addresses of one host, with one port": [("a", "--host 10.0.0.1"), ("a", "--host 10.0.0.2")],
    "hosts, as pods are": [("vllm-7d9f-x2x4", ""), ("vllm-7d9f-b7kq", "")],
    "internal LB on one host, with the same address": [
        ("a", f"{DP2} {HEAD}"),
        ("a", f"{DP2} {HEAD} --port 8001"),
    ],
    "two heads": [
        (host, f"{DP2} --data-parallel-address {address} --data-parallel-rank 0")
        for host, address in (("a", "10.0.0.4"), ("b", "10.0.0.5"))
    ],
    "loopback of two hosts": [(host, f"{DP2} --data-parallel-rank 0") for host in "ab"],
    "two headless nodes of two heads on one host": [
        ("a", f"{DP2} --data-parallel-address {address} --headless") for address in ("10.0.0.4", "10.0.0.5")
    ],
    "two masters": [
        ("a", f"--tensor-parallel-size 2 --nnodes 2 --master-addr 10.0.0.4 --master-port {port}")
        for port in (1, 2)
    ],
    "prefill and decode with default ports": [
        ("a", f"{DP2} --data-parallel-rank 0 {kv(role)}") for role in KV_ROLES
    ],
}


@pytest.mark.parametrize("case", APART)
def test_what_does_not_step_together_has_names_of_its_own(configure: Configure, case: str) -> None:
    starts = APART[case]
    assert len({configure.name(host, line) for host, line in starts}) == len(starts) > 1


def test_an_address_that_means_this_host_is_its_name(configure: Configure) -> None:
    for address in ("127.0.0.1", "localhost", "127.1.2.3", "::1", "[::1]", "0.0.0.0"):
        line = f"{DP2} --data-parallel-rank 0 --data-parallel-address {address}"
        assert configure.name("a", line) == "a:29550"


def test_the_operators_name_is_over_all(configure: Configure) -> None:
    settings = CaptureSettings(server="prod")
    assert name_deployment(configure(DP2), settings) == ("prod", "MOESCOPE_SERVER")


def test_ranks_of_a_model_without_experts_are_deployments_of_their_own(configure: Configure) -> None:
    config = configure(DP2)
    config.parallel_config.data_parallel_rank = config.parallel_config.data_parallel_index = 1
    config.parallel_config.reconfigure_for_independent_dp_rank()
    assert name_deployment(config, NAMELESS, launched("a", "")).name == "a:8000#1"


@pytest.mark.parametrize("config", [None, object(), SimpleNamespace(parallel_config=SimpleNamespace())])
def test_a_configuration_that_cannot_be_read_still_has_a_name(config: Any) -> None:
    assert name_deployment(config, NAMELESS, launched("a", "--port 8001")).name == "a:8001"
    assert name_deployment(config, NAMELESS, Place("a", None)).name == "a"
    long = name_deployment(config, NAMELESS, Place("x" * 300, None)).name
    assert len(long) == MAX_NAME


def test_a_pods_namespace_is_in_its_hosts_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "vllm-0")
    assert this_host(tmp_path / "none") == "vllm-0"
    (tmp_path / "namespace").write_text("prod\n")
    assert this_host(tmp_path / "namespace") == "vllm-0.prod"
    (tmp_path / "namespace").write_text("")
    assert this_host(tmp_path / "namespace") == "vllm-0"
    monkeypatch.setattr("socket.gethostname", lambda: os.fsdecode(b"vllm-\xff"))
    assert this_host(tmp_path / "none") == "vllm-?"
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert this_host(tmp_path / "none") == "localhost"


def test_this_process_has_a_place() -> None:
    place = this_place()
    assert place.host.startswith(socket.gethostname())
    assert place.launch is not None
    assert name_of_server(place) is None  # pytest is no server
