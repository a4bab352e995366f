"""Names of what other programs than ``vllm serve`` start: engines of their own, Ray, torchrun, scripts."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform

from moescope.capture.seam.deployment import Place, name_deployment
from moescope.capture.seam.launch import find_launch, started_with
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.settings.surroundings import Surroundings
from tests.capture.seam.command_lines import NAMELESS, Configure, launched
from tests.capture.seam.processes import ENGINE, proc


def test_an_engine_in_another_program_is_named_by_its_port_and_device(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One process a GPU, with CUDA_VISIBLE_DEVICES, as Dynamo starts prefill and decode in one pod."""

    one, two = configure(""), configure("--data-parallel-size 2")

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


def test_ranks_of_several_starts_have_one_name_whatever_ray_starts_for_each() -> None:
    """What the plugin passes on is another name in each start."""
    starts = [CaptureSettings(surroundings=Surroundings(launched_as=f"{host}:8000")) for host in "ab"]
    worker = launched("node-7", "", ("ray::RayWorkerWrapper.execute",))
    for told in starts:
        for changes in (
            {"data_parallel_external_lb": True},
            {"data_parallel_hybrid_lb": True},
            {"data_parallel_size_local": 1, "data_parallel_backend": "mp"},  # --headless
        ):
            assert name_deployment(ray(**changes), told, worker).name == "10.0.0.4:29550"
        assert name_deployment(ray(data_parallel_size_local=1), told, worker).name.endswith(":8000")


def test_rays_own_address_is_what_is_left_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.9:6379"))
    worker = launched("node-7", "", ("ray::RayWorkerWrapper.execute",))
    assert name_deployment(ray(data_parallel_size=1), NAMELESS, worker).name == "node-7"
    monkeypatch.setitem(sys.modules, "ray", module)
    assert name_deployment(ray(data_parallel_size=1), NAMELESS, worker).name == "10.0.0.9:6379"


def test_without_ray_what_the_plugin_passes_on_is_not_asked(configure: Configure) -> None:
    """It may be that of a server which started a program that started another server."""
    told = CaptureSettings(surroundings=Surroundings(launched_as="gpu-17:8000"))
    assert configure.name("a", "--port 8001", told) == "a:8001"


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
    assert configure.name("a", line) == "a:8000"  # no torchrun after all


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
