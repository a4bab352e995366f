"""How commands reach a service: its address, the token, and what they say when they can't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame


def test_the_commands_send_the_token_of_the_environment(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="the-only-token-there-is", min_tokens=1)
    service.push(frame({0: [200, 200]}), authorization="Bearer the-only-token-there-is")
    done = run("ranks", "--url", service.url)
    assert (done.returncode, "MOESCOPE_TOKEN_FILE" in done.stderr) == (2, True)
    path = tmp_path / "token"
    path.write_text("the-only-token-there-is\n")
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(path))
    assert "tiny on prod" in run("ranks", "--url", service.url).stdout
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(tmp_path / "none"))
    done = run("ranks", "--url", service.url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "can't be read" in done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "start one with `moescope serve`"),
        ("ftp://x", "http://127.0.0.1:9890"),
        ("http://gpu-7:http", "http://127.0.0.1:9890"),
        ("http://[::1", "http://127.0.0.1:9890"),
    ],
)
def test_no_service_is_said_in_one_line(url: str, words: str) -> None:
    done = run("balance", "--url", url)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_that_no_header_can_hold_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN", "line\nbreak")
    for arguments in (["ranks"], ["baseline", "pin", "one"]):
        done = run(*arguments, "--url", service.url)
        assert done.returncode == 2
        assert "MOESCOPE_TOKEN" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_problem_of_the_service_is_passed_on(service: Service) -> None:
    done = run("balance", "--url", service.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--worker-cls" in done.stderr
