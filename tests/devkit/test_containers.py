"""`make containers` takes minutes and root, so no test runs it: only what it reads of the project's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from devkit.containers.__main__ import bases, main
from devkit.containers.composed import PORTS
from devkit.containers.service import IMAGE, VLLM
from devkit.containers.stand_in import PROMETHEUS, package_settings
from tests.deploy.compose import SERVICES


def test_images_are_those_of_the_files() -> None:
    found = bases()
    assert found["prometheus"] == f"docker.io/{SERVICES['prometheus']['image']}"
    assert found["python"].startswith("docker.io/library/python:3.")
    assert found["vllm"].startswith("docker.io/vllm/vllm-openai:v")
    assert (SERVICES["moescope"]["image"], SERVICES["vllm"]["image"]) == (IMAGE, VLLM)


def test_the_stand_in_for_prometheus_writes_where_the_file_mounts() -> None:
    prometheus = SERVICES["prometheus"]
    assert f"USER {prometheus['user']}" in PROMETHEUS
    (target,) = [
        mount.split(":")[1] for mount in prometheus["volumes"] if mount.startswith("prometheus-data:")
    ]
    assert f"VOLUME {target}\n" in PROMETHEUS
    assert prometheus["healthcheck"]["test"][1] in PROMETHEUS  # wget


def test_ports_are_those_of_the_file() -> None:
    published = [SERVICES[name]["ports"][0].split(":")[-2] for name in ("moescope", "prometheus")]
    assert [str(port) for port in PORTS] == published


def test_settings_of_pip_are_files_that_exist() -> None:
    assert all(Path(path).exists() for path in package_settings())


def test_help_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "It needs root" in capsys.readouterr().out
