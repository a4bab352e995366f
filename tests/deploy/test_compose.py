"""docker-compose.yml, without Docker: what can be read, and every command that can be run here.

No container is started: there is no Docker engine here. The commands and files of moescope and of Prometheus
run natively, with the containers' paths and addresses put in place.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from moescope.service.settings import Settings
from tests.deploy.compose import COMPOSE, ROOT, SERVICES

MOESCOPE = Path(sys.executable).with_name("moescope")
TOKEN = "compose-token"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOESCOPE_")}
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=output, env={**env, "MOESCOPE_TOKEN": TOKEN}
        )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(60)


def wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(url, timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_things_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+(\.\d+){2,3}$", service["image"])
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service
    for port in service.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${MOESCOPE_LISTEN:-127.0.0.1}:"))
    if name != "vllm":  # whose image expects root and writes to many places
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"].split(":")[0] not in ("0", "root")


def test_dockerfiles_are_pinned_and_the_service_is_not_root() -> None:
    texts = [(ROOT / name).read_text() for name in ("Dockerfile", "Dockerfile.vllm")]
    for image in re.findall(r"^FROM (\S+)", "\n".join(texts), re.MULTILINE):
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    assert re.search(r"^USER 10001:10001$", texts[0], re.MULTILINE)
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", texts[0], re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    assert set(packages.values()) <= set(re.findall(r"^COPY (\w+) \w+$", texts[0], re.MULTILINE))
    assert re.findall(r"^[A-Z]+", texts[1], re.MULTILINE) == ["FROM", "RUN"]
    built = [re.search(r"docker build .*?-t (\S+) \.$", text, re.MULTILINE) for text in texts]
    images = [SERVICES[name]["image"] for name in ("moescope", "vllm")]
    assert [found and found[1] for found in built] == images


def test_what_is_mounted_and_depended_on_exists() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_grafana_is_provisioned_with_the_boards_and_the_data_source() -> None:
    folder = ROOT / "deploy" / "compose" / "grafana"
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load((folder / "dashboards" / "moescope.yml").read_text())["providers"][0]
    assert mounts["./dashboards/boards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "dashboards" / "boards" / Path(home).name).exists()
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"


def test_vllm_gets_the_worker_the_endpoint_and_the_token() -> None:
    vllm = SERVICES["vllm"]
    assert "--worker-cls=moescope.capture.worker.RoutingWorker" in vllm["command"]
    assert vllm["environment"]["MOESCOPE_ENDPOINT"] == "http://moescope:9890"
    assert "MOESCOPE_TOKEN" in vllm["environment"]


def test_clickhouse_is_waited_for_only_in_its_profile_and_its_data_is_kept() -> None:
    clickhouse = SERVICES["clickhouse"]
    assert clickhouse["profiles"] == ["clickhouse"]
    assert SERVICES["moescope"]["depends_on"]["clickhouse"] == {
        "condition": "service_healthy",
        "required": False,
    }
    assert "clickhouse-data:/var/lib/clickhouse" in clickhouse["volumes"]
    assert Settings(store="clickhouse://moescope:x@clickhouse:8123/moescope").store


def test_clickhouse_writes_only_where_it_may() -> None:
    """Its image's entry point writes to /tmp, to users.d and to the data; its log files are off."""
    clickhouse = SERVICES["clickhouse"]
    writable = [mount.split(":")[0] for mount in clickhouse["tmpfs"]]
    assert writable == ["/tmp", "/etc/clickhouse-server/users.d"]
    mounts = dict(mount.split(":")[:2] for mount in clickhouse["volumes"])
    settings = ElementTree.parse(ROOT / "deploy/compose/clickhouse.xml")
    assert mounts["./deploy/compose/clickhouse.xml"].startswith("/etc/clickhouse-server/config.d/")
    assert settings.findtext("logger/console") == "1"
    for name in ("log", "errorlog"):
        found = settings.find(f"logger/{name}")
        assert found is not None
        assert found.get("remove") == "1"


def test_the_commands_of_moescope_simulate_and_prometheus_work_together(tmp_path: Path) -> None:
    port, prometheus_port = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    (tmp_path / "data").mkdir()

    def native(command: list[str]) -> list[str]:
        places = {
            "0.0.0.0": "127.0.0.1",
            "http://moescope:9890": f"http://{address}",
        }
        return [str(MOESCOPE), *(places.get(word, word) for word in command)]

    setting = SERVICES["moescope"]["environment"]["MOESCOPE_STORE"]
    assert setting == "${MOESCOPE_STORE:-/data}"
    kept = ["--store", str(tmp_path / "data")]
    serve = [*native(SERVICES["moescope"]["command"]), *kept, "--port", str(port)]
    small = ["--ranks", "4", "--layers", "2", "--experts", "16", "--top-k", "4", "--interval", "0.5"]
    simulate = [*native(SERVICES["simulate"]["command"]), *small]

    config = tmp_path / "prometheus.yml"
    text = (ROOT / "deploy/compose/prometheus.yml").read_text()
    text = text.replace("/etc/prometheus/rules", str(ROOT / "dashboards/rules")).replace(
        "moescope:9890", address
    )
    config.write_text(text.replace("15s", "1s").replace("30s", "1s"))
    promtool, prometheus = shutil.which("promtool"), shutil.which("prometheus")
    assert promtool is not None
    assert prometheus is not None
    done = subprocess.run(
        [promtool, "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    flags = [
        flag.replace("/etc/prometheus/prometheus.yml", str(config))
        .replace("=/prometheus", f"={tmp_path / 'tsdb'}")
        .replace("0.0.0.0:9090", f"127.0.0.1:{prometheus_port}")
        for flag in SERVICES["prometheus"]["command"]
    ]
    check = SERVICES["moescope"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "python"]

    with process(serve, tmp_path / "serve.log"):
        wait_for(f"http://{address}/readyz", tmp_path / "serve.log")
        probe = [sys.executable, *check[2:-1], check[-1].replace("127.0.0.1:9890", address)]
        assert subprocess.run(probe, check=False, timeout=60).returncode == 0
        with (
            process(simulate, tmp_path / "simulate.log"),
            process([prometheus, *flags], tmp_path / "prometheus.log"),
        ):
            base = f"http://127.0.0.1:{prometheus_port}"
            wait_for(f"{base}/-/ready", tmp_path / "prometheus.log")
            deadline = time.monotonic() + 60
            query = {"query": "count(moescope_layer_expert_slots_total)"}
            while not (
                found := httpx.get(f"{base}/api/v1/query", params=query, timeout=60).json()["data"]["result"]
            ):
                assert time.monotonic() < deadline, (tmp_path / "simulate.log").read_text()
                time.sleep(0.3)
            assert float(found[0]["value"][1]) == 2 * 16
            groups = httpx.get(f"{base}/api/v1/rules", timeout=60).json()["data"]["groups"]
            assert {group["name"] for group in groups} >= {"moescope-rates", "moescope-balance-alerts"}
    assert list((tmp_path / "data").iterdir()), "nothing was kept in the volume"
    unhealthy = [sys.executable, *check[2:-1], check[-1].replace("127.0.0.1:9890", address)]
    assert subprocess.run(unhealthy, check=False, timeout=60, stderr=subprocess.DEVNULL).returncode != 0
