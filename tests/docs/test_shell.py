"""Lines that README, docs/install.md and the tutorials tell to type: each runs, here or in a named test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.processes import free_port
from tests.docs.shell import DOCUMENTS, ROOT, typed
from tests.e2e.cluster import Service

PACKAGES = "tests/devkit/release/test_packages.py"
# What takes an environment or a vLLM of its own, and the test that runs it.
ELSEWHERE = {
    r"pip install \.": f"{PACKAGES}::test_a_plain_install_brings_the_capturer_only",
    r"pip install '\.\[service\]'": f"{PACKAGES}::test_the_extra_service_serves",
    r"uvx --from '\.\[service\]' moescope serve": f"{PACKAGES}::test_uvx_serves_from_a_checkout",
    r"pipx install '\.\[service\]'": f"{PACKAGES}::test_pipx_installs_the_command",
    r"make demo": "tests/e2e/test_readme.py::test_the_demo_counts_every_slot",
    r"MOESCOPE=1 .*vllm serve .*": "tests/e2e/test_readme.py::test_the_lines_for_vllm_are_those_that_ran",
    r"curl -s http://127\.0\.0\.1:8000/.*": "tests/e2e/test_readme.py::test_a_rollout_is_fetched",
    # The service that all other lines ask is started by this.
    r"moescope serve( --store \S+)?": "tests/docs/test_shell.py::service",
}
LINES = list(dict.fromkeys(line for document in DOCUMENTS for line in typed(document)))
HERE = [line for line in LINES if not any(re.fullmatch(pattern, line) for pattern in ELSEWHERE)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`moescope serve`, fed for a moment, so that there is something to be told."""
    folder = tmp_path_factory.mktemp("service")
    with Service(folder / "serve.log", store=folder / "store") as running:
        fleet = "moescope simulate --ranks 2 --layers 2 --experts 8 --top-k 2 --duration 3"
        assert shell(fleet, running, folder).returncode == 0
        yield running


def shell(line: str, service: Service, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOESCOPE_URL": service.url,
    }
    return subprocess.run(
        ["bash", "-c", line.replace("http://127.0.0.1:9890", service.url)],
        cwd=ROOT if line.startswith("make") else folder,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_runs_elsewhere_is_typed_and_its_test_is_there(pattern: str) -> None:
    assert any(re.fullmatch(pattern, line) for line in LINES)
    path, _, name = ELSEWHERE[pattern].partition("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("line", HERE)
def test_a_line_runs(line: str, service: Service, tmp_path: Path) -> None:
    if line.startswith("moescope simulate"):
        told = shell(f"{line} --server other --duration 1", service, tmp_path)
        assert re.search(r"\d+ frames", told.stdout + told.stderr)
    elif line.startswith("make demo ARGS=--simulate"):
        told = shell(f'make demo ARGS="--simulate --exit --port {free_port()}"', service, tmp_path)
        assert "32 DP ranks" in told.stdout
        assert "The 12 worst layers" in told.stdout
    else:
        asked = line if line.startswith("curl") else f"{line} --server simulated"
        told = shell(
            asked if line != "moescope" else "moescope verdict --server simulated", service, tmp_path
        )
        assert told.stdout
    # A verdict's exit code is its severity.
    assert told.returncode in ((0, 3, 4) if line == "moescope" else (0,)), told.stderr
    if "-o report.html" in line:
        assert "<html" in (tmp_path / "report.html").read_text()


def test_there_are_lines() -> None:
    assert len(HERE) > 6
    assert "make demo" in LINES
