"""The command line, as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from moescope.capture import wire
from moescope.service.cli.commands import command_line
from moescope.service.settings import FLAGS
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

Start = Callable[..., "subprocess.Popen[str]"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moescope.service", *arguments]
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start commands that go on; they are killed if the test leaves them."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "moescope.service", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
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
    with httpx.Client(base_url=url, timeout=60) as client:
        body = wire.encode_frame(frame({0: [2, 2]}))
        assert (
            client.post("/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE}).status_code
            == 200
        )
        process.send_signal(number)
        assert process.wait(60) == 0
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
    assert any("read 1 tokens: token_file" in process.stderr.readline() for _ in range(4))
    headers = {"authorization": "Bearer the-first-token-of-all"}
    assert httpx.get(f"{url}/v1/ranks", headers=headers).status_code == 200
    assert httpx.get(f"{url}/v1/ranks").status_code == 401


def test_the_commands_send_the_token_of_the_environment(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="the-only-token-there-is", min_tokens=1)
    service.push(frame({0: [200, 200]}), authorization="Bearer the-only-token-there-is")
    done = _run("ranks", "--url", service.url)
    assert (done.returncode, "MOESCOPE_TOKEN_FILE" in done.stderr) == (2, True)
    path = tmp_path / "token"
    path.write_text("the-only-token-there-is\n")
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(path))
    assert "tiny on prod" in _run("ranks", "--url", service.url).stdout
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(tmp_path / "none"))
    done = _run("ranks", "--url", service.url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "can't be read" in done.stderr


def test_the_log_can_be_json(start: Start) -> None:
    process = start("serve", "--port", "0", "--log-format", "json")
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    assert (line["level"], line["logger"]) == ("info", "moescope.service.cli.commands")
    assert line["message"].startswith("moescope serves at http://127.0.0.1:")
    line = json.loads(process.stderr.readline())
    assert line["message"] == "metrics_level: at layer_rank these alerts can't fire: MoescopeExpertDrift"


def test_a_taken_port_is_said_in_one_line(service: Service) -> None:
    done = _run("serve", "--port", service.url.rpartition(":")[2])
    assert done.returncode == 2
    assert done.stderr.startswith("moescope: can't listen on 127.0.0.1:")
    assert "--port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_open_ingest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "MOESCOPE_TOKEN" in done.stderr


def test_bad_settings_are_named(tmp_path: Path) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text("min_tokens = -4\n")
    done = _run("serve", "--config", str(config))
    assert done.returncode == 2
    assert done.stderr.startswith("moescope: min_tokens: ")


def test_balance_and_ranks_show_tables(service: Service) -> None:
    for dp_rank in (0, 1):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
        uncovered = [wire.UncoveredLayer(5, "monolithic kernel")]
        service.push(frame({3: [2000, 1000]}, who=who, placement=halves(2, 1), uncovered=uncovered))
    balance = _run("balance", "--url", service.url)
    assert (balance.returncode, balance.stderr) == (0, "")
    row = next(line for line in balance.stdout.splitlines() if line.startswith("│     3"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("3", "3,000", "4,000", "2,000", "1.333", "1.000", "1.333", "0")
    ]
    assert "worst 1.333 (layer 3)" in balance.stdout
    assert "layer 5 can't be seen: monolithic kernel" in balance.stdout
    ranks = _run("ranks", "--url", service.url)
    assert (ranks.returncode, ranks.stderr) == (0, "")
    assert "tiny on prod" in ranks.stdout
    assert "1,500" in ranks.stdout
    assert "of decode" in ranks.stdout
    assert "uncovered layers [5]" in ranks.stdout


def test_a_narrow_terminal_gets_the_hottest_rank_in_place_of_empty_columns(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dp_rank in range(32):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=32, ep_size=32)
        service.push(frame({3: [1000] * 31 + [3000]}, who=who, placement=halves(32, 1, 32)))
    for width, heads, slots in (
        ("80", "hottest EP its slots", ["31", "96,000"]),
        ("600", "EP 31", ["32,000"]),
    ):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setenv("NO_COLOR", "1")
        done = CliRunner().invoke(command_line(), ["balance", "--url", service.url])
        assert done.exit_code == 0
        assert all(word in done.stdout for word in heads.split()), done.stdout
        row = next(line for line in done.stdout.splitlines() if line.startswith("│     3"))
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[:2] == ["3", "544,000"]
        assert cells[2 : 2 + len(slots)] == slots
        assert cells[-4:] == ["2.824", "1.000", "2.824", "0"]


def test_ranks_names_who_never_reported_and_what_cant_be_seen(service: Service) -> None:
    uncovered = [wire.UncoveredLayer(5, "monolithic kernel")]
    service.push(frame({3: [2, 1]}, who=producer(dp_size=3), uncovered=uncovered))
    done = _run("ranks", "--url", service.url)
    assert "- DP ranks that never reported: 1, 2" in done.stdout
    assert "- layer 5 can't be seen: monolithic kernel" in done.stdout


def test_stragglers_show_steps_beside_the_window(service: Service) -> None:
    for dp_rank in (0, 1):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
        loads = wire.pack_step_loads(0, 3, np.array([0, 1]), np.array([[[2000, 0]], [[0, 2000]]]), 1)
        service.push(frame({3: [2000, 2000]}, who=who, placement=halves(2, 1), step_loads=loads))
    done = _run("stragglers", "--url", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if line.startswith("│     3"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "3",
        "2",
        "50.0 %",
        "0.0 %",
        "0",
        "50.0 %",
    ]
    assert "straggler cost 50.0 %; of the window's sums 0.0 %" in done.stdout
    assert "Stage 0: 3 steps joined, 0 incomplete, 0 pending" in done.stdout
    service.push(frame({0: [1, 1]}, who=producer(model="one")))
    alone = _run("stragglers", "--url", service.url, "--model", "one")
    assert "No straggler cost: ep_size is 1" in alone.stdout


@pytest.mark.parametrize("command", ["ranks", "balance", "stragglers", "drift", "advise"])
def test_names_that_look_like_markup_stand_as_they_are(service: Service, command: str) -> None:
    who = producer(model="m[/b]:100:[v2]", ep_size=2)
    for seq in (1, 2, 3):
        counts = {0: [20 * seq, 0, 0, 20 * seq]}
        made = frame(counts, who=who, seq=seq, after_s=90 + seq, placement=halves(4, 1))
        assert service.push(made).status_code == 200
        service.clock.now += 5
    done = _run(command, "--url", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m[/b]:100:[v2] on prod" in done.stdout


def test_notes_of_baselines_stand_as_they_are(service: Service) -> None:
    assert service.push(frame({0: [200, 200]})).status_code == 200
    note = "before [v2] and [/not]"
    assert _run("baseline", "pin", "one", "--url", service.url, "--note", note).returncode == 0
    listed = _run("baseline", "list", "--url", service.url)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "[v2]" in listed.stdout


def test_balance_of_idle_ranks_says_so(service: Service) -> None:
    service.push(frame({0: [0, 0]}))
    done = _run("balance", "--url", service.url)
    assert "over experts: idle: no tokens in the window" in done.stdout
    assert "over EP: ep_size is 1" in done.stdout


def test_balance_watch_refreshes_until_it_is_interrupted(
    start_service: Callable[..., Service], start: Start
) -> None:
    readings: list[float] = []

    def clock() -> float:
        readings.append(time.monotonic())
        return 1_700_000_100.0

    service = start_service(use_clock=clock)
    service.push(frame({0: [200, 200]}))
    readings.clear()
    process = start("balance", "--watch", "--url", service.url, "--interval-s", "0.1")
    deadline = time.monotonic() + 60
    while not readings or readings[-1] - readings[0] < 0.3:  # at least three answers
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.count("tiny on prod") >= 2, "a pipe gets every answer, not only the last"


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
    done = _run("balance", "--url", url)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_that_no_header_can_hold_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN", "line\nbreak")
    for arguments in (["ranks"], ["baseline", "pin", "one"]):
        done = _run(*arguments, "--url", service.url)
        assert done.returncode == 2
        assert "MOESCOPE_TOKEN" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_pipe_that_closes_early_is_no_fault(service: Service) -> None:
    service.push(frame({layer: [200, 200] for layer in range(200)}))
    command = f"{sys.executable} -m moescope.service balance --url {service.url} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_problem_of_the_service_is_passed_on(service: Service) -> None:
    done = _run("balance", "--url", service.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--worker-cls" in done.stderr


def test_help_teaches_with_examples() -> None:
    for command in ("serve", "balance", "stragglers"):
        done = _run(command, "--help")
        assert done.returncode == 0
        assert f"moescope {command} --" in done.stdout
    assert _run("version").stdout.startswith("moescope 0.")


def _commands(group: typer.core.TyperGroup) -> Iterator[typer.core.TyperCommand]:
    for command in group.commands.values():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command)
        else:
            assert isinstance(command, typer.core.TyperCommand)
            yield command


def test_no_word_of_the_help_is_taken_for_markup() -> None:
    group = typer.main.get_command(command_line())
    assert isinstance(group, typer.core.TyperGroup)
    commands = {command.name: command for command in _commands(group)}
    assert set(commands) >= {"serve", "advise", "simulate", "pin", "export"}
    for command in commands.values():
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert Text.from_markup(said).plain == said.replace("\\[", "["), (command.name, parameter.name)
    flags = {parameter.name for parameter in commands["serve"].params}
    assert flags == FLAGS | {"config"}


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    # A stand-in that fails as an absent package does, found before the installed one.
    for name in ("typer", "fastapi"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module', name={name!r})\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from moescope.service.cli import main; sys.exit(main())"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'moescope[service]'" in done.stderr
