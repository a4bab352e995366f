"""Where `moescope serve` keeps what it counted when nobody says where, and how to have it otherwise."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from devkit.processes import free_port
from moescope.capture import wire
from moescope.service.settings import default_store
from tests.service.cli.running import DEADLINE_S, MODULE
from tests.service.frames import frame

Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder of a test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Start services; they end with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(port: int, *flags: str) -> subprocess.Popen[str]:
        command = [*MODULE, "serve", "--port", str(port), *flags]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def _ready(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE_S).status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def _push(port: int, tokens: int, seq: int) -> None:
    made = frame({0: [tokens, tokens]}, seq=seq, acknowledged=seq - 1)
    url, headers = f"http://127.0.0.1:{port}/v1/ingest", {"content-type": wire.CONTENT_TYPE}
    answer = httpx.post(url, content=wire.encode_frame(made), headers=headers, timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text


def _tokens(port: int) -> list[str]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S).text
    return [line for line in text.splitlines() if line.startswith("moescope_tokens_total{")]


def test_by_default_counts_outlive_the_service_in_a_folder_of_its_port(home: Path, serve: Serve) -> None:
    port, other = free_port(), free_port()
    serve(other)
    first = serve(port)
    _ready(port)
    _push(port, 10, seq=1)
    first.terminate()
    assert first.wait(DEADLINE_S) == 0
    assert first.stderr is not None
    folder = default_store(port)
    assert folder is not None
    assert f"keeps totals and history in {folder}" in first.stderr.read()

    serve(port)
    _ready(port)
    assert _tokens(port) == []  # until its worker has said that nothing is missing
    _push(port, 15, seq=2)
    [line] = _tokens(port)
    assert line.endswith(" 15.0")
    _ready(other)
    assert sorted(path.name for path in (home / "moescope").iterdir()) == sorted(
        item.name for item in (folder, default_store(other)) if item is not None
    )


def test_no_store_leaves_nothing_behind(home: Path, serve: Serve) -> None:
    port = free_port()
    process = serve(port, "--no-store")
    _ready(port)
    _push(port, 10, seq=1)
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr is not None
    assert "in memory only" in process.stderr.read()
    assert not home.exists()


def test_a_folder_that_another_service_has_is_said_and_the_other_one_goes_on(
    tmp_path: Path, serve: Serve
) -> None:
    port, folder = free_port(), str(tmp_path / "shared")
    serve(port, "--store", folder)
    _ready(port)
    second = serve(free_port(), "--store", folder)
    assert second.wait(DEADLINE_S) == 2
    assert second.stderr is not None
    said = " ".join(second.stderr.read().split())
    assert "another service has it" in said
    assert "--store" in said
    assert "--no-store" in said
    _push(port, 10, seq=1)


def test_a_data_folder_that_can_not_be_used_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    process = serve(free_port())
    assert process.wait(DEADLINE_S) == 2
    assert process.stderr is not None
    said = " ".join(process.stderr.read().split())
    assert "can't be used as a store" in said
    assert "--no-store" in said


def test_flags_that_contradict_each_other_are_refused(tmp_path: Path, serve: Serve) -> None:
    process = serve(free_port(), "--store", str(tmp_path), "--no-store")
    assert process.wait(DEADLINE_S) == 2
    assert process.stderr is not None
    assert "contradict each other" in " ".join(process.stderr.read().split())
