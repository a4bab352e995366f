"""A vLLM whose environment has no moescope counts with a folder on PYTHONPATH: no image is built anew."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from devkit.tiny_moe import ensure_checkpoint
from devkit.vllm_server import MODEL_NAME, VllmOptions, VllmServer
from tests.e2e.cluster import SETTLE_SECONDS, Service
from tests.e2e.plugin_folder import install_into, without_moescope

pytestmark = pytest.mark.e2e

ASK = """
from importlib.metadata import entry_points
from importlib.util import find_spec
print(*(point.name for point in entry_points(group="vllm.general_plugins")))
found = find_spec("moescope")
found = found and find_spec("moescope.capture")
print(found and found.origin)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. What of it is copied into a pod is all of it."""
    work = tmp_path_factory.mktemp("plugin")
    install_into(work / "made", work)
    copied = work / "copied"
    copied.mkdir()
    subprocess.run(["cp", "-r", f"{work / 'made'}/.", str(copied)], check=True)  # as the init container does
    return copied


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_moescope(tmp_path_factory.mktemp("image") / "environment")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service") / "log") as running:
        yield running


def test_the_folder_is_small_and_has_moescope_only(plugin: Path) -> None:
    """Anything else in it would take the place of what vLLM has, since PYTHONPATH comes first."""
    names = {path.name for path in plugin.iterdir()}
    assert {name.split("-")[0] for name in names} <= {"moescope", "bin", ".lock"}
    size = sum(path.stat().st_size for path in plugin.rglob("*") if path.is_file())
    assert size < 8 << 20


def test_the_environment_has_no_moescope_and_the_folder_brings_its_entry_point(
    plugin: Path, python: Path, tmp_path: Path
) -> None:
    for path in (None, plugin):
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env |= {} if path is None else {"PYTHONPATH": str(path)}
        output = subprocess.check_output([str(python), "-c", ASK], env=env, text=True, cwd=tmp_path)
        names, place = output.splitlines()
        assert ("moescope" in names.split()) is (path is not None)
        assert place == ("None" if path is None else f"{path}/moescope/capture/__init__.py")


def test_a_real_vllm_counts_exactly(plugin: Path, python: Path, service: Service, tmp_path: Path) -> None:
    options = VllmOptions(
        model=ensure_checkpoint(tmp_path / "model"),
        python=python,
        env={
            "PYTHONPATH": str(plugin),
            "MOESCOPE": "1",
            "MOESCOPE_ENDPOINT": service.url,
            "MOESCOPE_INTERVAL": "0.1",
            "TORCH_COMPILE_DISABLE": "1",
        },
    )
    with VllmServer(options, log=tmp_path / "vllm.log") as vllm:
        asked = {"model": MODEL_NAME, "prompt": "Which experts?", "max_tokens": 12, "ignore_eos": True}
        answer = httpx.post(f"{vllm.url}/v1/completions", json=asked, timeout=300).json()
        usage = answer["usage"]
        computed = usage["prompt_tokens"] + usage["completion_tokens"] - 1
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = service.get("/v1/ranks")["deployments"]
            if found and found[0]["dp_ranks"][0]["tokens"] >= computed:
                break
            assert time.monotonic() < deadline, (tmp_path / "vllm.log").read_text()[-4000:]
            time.sleep(0.1)
        ((rank,),) = [deployment["dp_ranks"] for deployment in found]
        assert rank["tokens"] == computed
        layers = service.get("/v1/histogram")["layers"]
        assert [layer["slots"] for layer in layers] == [computed * 4] * 4
