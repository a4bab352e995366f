"""Exit codes: the same kind of end has the same code over all commands, and the documents say which."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moescope.service.cli.codes import ExitCode, code_of_status
from tests.service.cli.asking_commands import COMMANDS
from tests.service.cli.running import COMMAND, DEADLINE_S, MODULE, run
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"


@contextmanager
def answering(status: int, body: bytes = b'{"detail": "no."}') -> Iterator[str]:
    """What answers each request with this status, whatever is asked."""
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(DEADLINE_S)
                    while b"\r\n\r\n" not in connection.recv(65536):
                        pass
                    connection.sendall(head + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, 6), (403, 6), (404, 7), (409, 7), (422, 2), (429, 8), (500, 8), (503, 8)],
)
def test_a_service_that_refuses_gives_one_code_over_all_commands(status: int, code: int) -> None:
    with answering(status) as url:
        for command in COMMANDS:
            if command[:1] != ["simulate"]:  # sends more than it asks
                assert run(*command, "--url", url).returncode == code, command
    assert code_of_status(status) == code


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_where_nobody_answers(command: list[str]) -> None:
    assert run(*command, "--url", "http://127.0.0.1:1").returncode == 5


def test_where_something_else_answers() -> None:
    with answering(200, b"<html>hello</html>") as url:
        for command in COMMANDS:
            # These take the bytes of any service for their file, or read no answer at all.
            if command[:2] not in (["traces", "export"], ["baseline", "remove"]) and command[:1] != [
                "simulate"
            ]:
                assert run(*command, "--url", url).returncode == 5, command


@pytest.mark.parametrize("command", [*COMMANDS, ["serve"], ["token"], ["backup"]], ids=" ".join)
def test_bad_usage(command: list[str]) -> None:
    assert run(*command, "--no-such-option").returncode == 2
    assert run(*command, "--url", "ftp://x").returncode == 2


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["ranks"], 0),
        (["balance"], 0),
        (["balance", "--server", "other"], 7),
        (["balance", "--layer", "99"], 7),
        (["pools", "none"], 7),
        (["drift", "--baseline", "none"], 7),
        (["drift"], 7),  # nothing to compare with yet
        (["advise", "--ranks", "2"], 7),
        (["traces", "list"], 7),  # no store
        (["verdict"], 0),
        (["balance", "--start", "soon"], 2),
        (["balance", "-o", "xml"], 2),
        (["report", "-o", "csv"], 2),
        (["report", "--since", "soon"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_known_and_what_is_asked_wrongly(service: Service, command: list[str], code: int) -> None:
    service.push(frame({3: [2000, 1000]}))
    done = run(*command, "--url", service.url)
    assert done.returncode == code, done.output


def test_a_token_file_that_cant_be_read_is_bad_usage(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(tmp_path / "none"))
    for command in COMMANDS:
        assert run(*command, "--url", service.url).returncode == 2, command


def test_a_reader_that_goes_away_ends_the_command_without_a_word(service: Service) -> None:
    who = producer(ep_size=32)
    counts = {layer: [10_000] * 32 for layer in range(600)}  # more than a pipe holds
    assert service.push(frame(counts, who=who, placement=halves(32, 600, 32))).status_code == 200
    # Unbuffered, Python drops the rest of a text of which the pipe took a part, and says nothing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for words in (["balance"], ["balance", "-o", "csv"], ["balance", "--watch"]):
        command = [COMMAND, *words, "--url", service.url]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.wait(DEADLINE_S) == 141, words
            assert process.stderr.read() == b"", words


def test_ctrl_c_before_the_work_is_done() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(DEADLINE_S)
        command = [*MODULE, "balance", "--url", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1)  # it waits for an answer now
                os.kill(process.pid, signal.SIGINT)
                assert process.wait(DEADLINE_S) == 130
            assert process.stderr is not None
            assert process.stderr.read() == b""


def test_the_document_and_the_help_have_all_codes() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert rows == {str(int(code)): code.meaning for code in ExitCode}
    said = " ".join(run("--help", columns=200).stdout.split())
    for code in ExitCode:
        assert f"{int(code)} {code.meaning}" in said


def test_a_verdict_on_what_is_wrong_has_codes_of_its_own(
    start_service: Callable[..., Service],
) -> None:
    """What kind of verdict has which code is tested with each planted cause (verdict/test_planted.py)."""
    service = start_service(min_tokens=1)
    service.push(frame({3: [2000, 1000]}))
    service.clock.now += 600  # silent: critical
    assert run("verdict", "--url", service.url).returncode == ExitCode.CRITICAL
    assert run("--url", service.url, "-o", "json").returncode == ExitCode.CRITICAL
