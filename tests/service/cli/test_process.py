"""What only a process of its own shows: signals, pipes, logs, the entry points, a missing extra."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from moescope.capture import wire
from tests.service.cli.running import COMMAND, DEADLINE_S, MODULE, run, run_process
from tests.service.conftest import Service
from tests.service.frames import frame

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start commands that run until they are ended; those that the test leaves running are killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*MODULE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def _url_of(process: subprocess.Popen[str]) -> str:
    """The address in the first line of the log."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "moescope serves at http://127.0.0.1:" in line, line
    return "http" + line.partition("http")[2].strip().rstrip('"}')


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert httpx.get(f"{url}/readyz", timeout=DEADLINE_S).status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly_when_asked_to_with_a_client_connected(
    start: Start, number: signal.Signals
) -> None:
    process = start("serve", "--port", "0")
    url = _url_of(process)
    _wait_until_it_answers(url)
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
        body = wire.encode_frame(frame({0: [2, 2]}))
        assert (
            client.post("/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE}).status_code
            == 200
        )
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
    _, errors = process.communicate()
    assert "Traceback" not in errors


def test_a_hang_up_reads_files_again_and_ends_nothing(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("the-first-token-of-all")
    process = start("serve", "--port", "0", "--token-file", str(path))
    url = _url_of(process)
    _wait_until_it_answers(url)
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert any("read 1 tokens: token_file" in process.stderr.readline() for _ in range(5))
    headers = {"authorization": "Bearer the-first-token-of-all"}
    assert httpx.get(f"{url}/v1/ranks", headers=headers, timeout=DEADLINE_S).status_code == 200
    assert httpx.get(f"{url}/v1/ranks", timeout=DEADLINE_S).status_code == 401


def test_the_log_can_be_json(start: Start) -> None:
    process = start("serve", "--port", "0", "--log-format", "json", "--metrics-level", "rank")
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    assert (line["level"], line["logger"]) == ("info", "moescope.service.cli.serve")
    assert line["message"].startswith("moescope serves at http://127.0.0.1:")
    said = [json.loads(process.stderr.readline())["message"] for _ in range(2)]
    assert said[0].startswith("keeps totals and history in memory only")
    assert said[1].startswith("metrics_level: at rank these alerts can't fire: MoescopeRankImbalance, ")


def test_balance_watch_refreshes_until_it_is_interrupted(
    start_service: Callable[..., Service], start: Start
) -> None:
    service = start_service()
    service.push(frame({0: [200, 200]}))
    process = start("balance", "--watch", "--url", service.url, "--interval-s", "0.1")
    assert process.stdout is not None
    too_late = threading.Timer(DEADLINE_S, process.kill)
    too_late.start()
    answers = (line for line in process.stdout if "tiny on prod" in line)
    for _ in range(3):
        assert next(answers, None) is not None, "a pipe gets every answer, not only the last"
    too_late.cancel()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (0, "")


def test_a_pipe_that_closes_early_is_no_fault(service: Service) -> None:
    service.push(frame({layer: [200, 200] for layer in range(200)}))
    command = f"{COMMAND} balance --url {service.url} | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("typer", ["version"]), ("fastapi", ["serve", "--port", "0"])],  # what all commands need, and one alone
)
def test_without_the_extra_the_command_says_how_to_install_it(
    tmp_path: Path, missing: str, arguments: list[str]
) -> None:
    # A module that fails as an absent package does; the interpreter finds it before the installed one.
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module', name={missing!r})\n")
    program = "import sys; from moescope.service.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    said = f"moescope: {missing} is not installed; run: pip install 'moescope[service]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("command", [(COMMAND,), MODULE])
def test_both_doors_lead_to_the_same_command(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*command, "version"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, run("version").stdout, "")


def test_a_process_and_a_run_within_the_tests_tell_the_same(service: Service) -> None:
    service.push(frame({3: [2000, 1000]}))
    for arguments in (
        ["balance", "--url", service.url],  # a table, with exit code 0
        ["balance", "--what"],  # an error of the command line
    ):
        assert run_process(*arguments) == run(*arguments)
