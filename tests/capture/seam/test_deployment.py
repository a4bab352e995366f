"""Names of deployments, from real command lines: what vLLM's own parser and configuration make of them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from devkit.tiny_moe import ensure_checkpoint
from moescope.capture.protocol import MAX_NAME
from moescope.capture.seam.deployment import Place, name_deployment, name_of_server, this_host, this_place
from moescope.capture.seam.launch import Launch, find_launch, started_with
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.settings.surroundings import Surroundings
from tests.capture.seam.processes import ENGINE, proc

NAMELESS = CaptureSettings()
SERVE = ("python", "/usr/bin/vllm", "serve")

Configure = Callable[[str], Any]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """vLLM's configuration of a command line of ``vllm serve``."""
    model = str(ensure_checkpoint(tmp_path_factory.mktemp("model")))
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())

    def made(line: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            words = ["--model", model, "--enforce-eager", "--max-model-len", "64", *line.split()]
            arguments, _ = parser.parse_known_args(words)  # the rest is the API server's
            engine = AsyncEngineArgs.from_cli_args(arguments)
            return engine.create_engine_config(headless="--headless" in words)

    return made


def launched(host: str, line: str, program: tuple[str, ...] = SERVE) -> Place:
    return Place(host, Launch(1, (*program, *line.split()), Path("/nowhere")))


def name(configure: Configure, host: str, line: str, settings: CaptureSettings = NAMELESS) -> str:
    return name_deployment(configure(line), settings, launched(host, line)).name


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
    assert {name(configure, host, line) for host, line in starts} == {expected}


APART = {
    "ports on one host": [("a", "--port 8000"), ("a", "--port 8001")],
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
    assert len({name(configure, host, line) for host, line in starts}) == len(starts) > 1


def test_an_address_that_means_this_host_is_its_name(configure: Configure) -> None:
    for address in ("127.0.0.1", "localhost", "127.1.2.3", "::1", "[::1]", "0.0.0.0"):
        line = f"{DP2} --data-parallel-rank 0 --data-parallel-address {address}"
        assert name(configure, "a", line) == "a:29550"


def test_the_operators_name_is_over_all(configure: Configure) -> None:
    settings = CaptureSettings(server="prod")
    assert name_deployment(configure(DP2), settings) == ("prod", "MOESCOPE_SERVER")


def test_an_engine_in_another_program_is_named_by_its_port_and_device(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One process a GPU, with CUDA_VISIBLE_DEVICES, as Dynamo starts prefill and decode in one pod."""

    one, two = configure(""), configure(DP2)

    def named(script: str = "-m dynamo.vllm") -> str:
        return name_deployment(one, NAMELESS, launched("pod", script, ("python",))).name

    assert named() == "pod"  # CPUs have no devices
    assert named("server.py --port 7000") == "pod:7000"
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    monkeypatch.setattr(type(current_platform), "device_type", "cuda")
    monkeypatch.setattr(type(current_platform), "device_control_env_var", "CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert named() == "pod:cuda0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert named() == "pod:cuda3"
    assert named("server.py --port 7000") == "pod:7000:cuda3"
    # With DP, each rank of an earlier vLLM has devices of its own: what the program began with counts.
    folder, engine = proc(
        tmp_path, [("python", "-m", "dynamo.vllm"), ENGINE], {"CUDA_VISIBLE_DEVICES": "6,7"}
    )
    monkeypatch.setattr("moescope.capture.seam.deployment.started_with", partial(started_with, proc=folder))
    place = Place("pod", find_launch(engine, folder))
    assert name_deployment(two, NAMELESS, place).name == "pod:cuda6"
    uuid = "GPU-1b2c3d4e-5f60-7182-93a4-b5c6d7e8f901"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
    monkeypatch.setattr("os.getpid", lambda: 100)
    (folder / "100/environ").write_text(f"CUDA_VISIBLE_DEVICES={uuid}\0")
    assert named() == "pod:GPU-1b2c3d4e"


def ray(**changes: Any) -> Any:
    """As much of a configuration for Ray as is read: Ray isn't installed here."""
    fields = {
        "distributed_executor_backend": "ray",
        "data_parallel_backend": "ray",
        "data_parallel_size": 2,
        "data_parallel_size_local": 2,
        "data_parallel_master_ip": "10.0.0.4",
        "data_parallel_rpc_port": 29550,
    }
    return SimpleNamespace(parallel_config=SimpleNamespace(**(fields | changes)))


def test_rays_workers_are_named_by_where_vllm_was_started() -> None:
    worker = launched("node-7", "", ("ray::RayWorkerWrapper.execute",))
    told = CaptureSettings(surroundings=Surroundings(launched_as="gpu-17:8000"))
    for config in (ray(), ray(data_parallel_size=1), ray(data_parallel_backend="mp", data_parallel_size=1)):
        assert name_deployment(config, told, worker).name == "gpu-17:8000"
    assert name_deployment(ray(), NAMELESS, worker).name == "10.0.0.4:29550"


def test_rays_own_address_is_what_is_left_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.9:6379"))
    worker = launched("node-7", "", ("ray::RayWorkerWrapper.execute",))
    assert name_deployment(ray(data_parallel_size=1), NAMELESS, worker).name == "node-7"
    monkeypatch.setitem(sys.modules, "ray", module)
    assert name_deployment(ray(data_parallel_size=1), NAMELESS, worker).name == "10.0.0.9:6379"


def test_without_ray_what_the_plugin_passes_on_is_not_asked(configure: Configure) -> None:
    """It may be that of a server which started a program that started another server."""
    told = CaptureSettings(surroundings=Surroundings(launched_as="gpu-17:8000"))
    assert name(configure, "a", "--port 8001", told) == "a:8001"


def test_torchruns_processes_are_told_apart_by_engine(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "--tensor-parallel-size 2 --distributed-executor-backend external_launcher"
    config = configure(line)

    def named(rank: int, address: str = "10.0.0.4") -> str:
        surroundings = Surroundings.from_environment(
            {"MASTER_ADDR": address, "MASTER_PORT": "29400", "RANK": str(rank)}
        )
        settings = CaptureSettings(surroundings=surroundings)
        return name_deployment(config, settings, launched("a", "", ("python", "rl.py"))).name

    assert [named(rank) for rank in range(4)] == ["10.0.0.4:29400"] * 2 + ["10.0.0.4:29400#1"] * 2
    assert named(0, "localhost") == "a:29400"
    assert name(configure, "a", line) == "a:8000"  # no torchrun after all


def test_offline_scripts_with_dp_are_named_by_their_variables(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {
        "SIZE": "2",
        "RANK": "1",
        "MASTER_IP": "10.0.0.4",
        "MASTER_PORT": "41234",
    }.items():
        monkeypatch.setenv(f"VLLM_DP_{variable}", value)
    config = configure("")
    assert config.parallel_config.data_parallel_size == 2
    script = launched("a", "", ("python", "batch.py"))
    assert name_deployment(config, NAMELESS, script).name == "10.0.0.4:41234"


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
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert this_host(tmp_path / "none") == "localhost"


def test_this_process_has_a_place() -> None:
    place = this_place()
    assert place.host.startswith(socket.gethostname())
    assert place.launch is not None
    assert name_of_server(place) is None  # pytest is no server
