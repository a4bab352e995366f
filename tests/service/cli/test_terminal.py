"""What others chose, such as a deployment's name, is shown at the operator's terminal and never obeyed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.color import ColorSystem
from rich.table import Table

from moescope.capture.wire import UncoveredLayer
from moescope.service.cli import terminal as module
from moescope.service.cli.terminal import say, terminal
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame, producer

HOSTILE = "\x1b[2Jgood\r\x9b31m\u202egnorw\x07\ttab\x00"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def hostile(service: Service) -> Service:
    who = producer(server=HOSTILE, host=HOSTILE, pool=HOSTILE, dp_size=2)
    for seq in (1, 2):
        service.push(
            frame(
                {0: [4, 4]},
                who=who,
                seq=seq,
                state="disabled",
                state_reason=HOSTILE,
                uncovered=[UncoveredLayer(5, HOSTILE)],
                drops={HOSTILE: 1},
            )
        )
    return service


def test_commands_obey_nothing(hostile: Service) -> None:
    for command in (
        ("ranks",),
        ("pools",),
        ("pools", HOSTILE),
        ("pools", "none"),
        ("balance",),
        ("stragglers",),
        ("advise",),
        ("drift",),
        ("balance", "--server", "none"),
        ("traces", "list"),
    ):
        for form in ([], ["--json"]):
            done = run(*command, *form, "--url", hostile.url, columns=200)
            assert not OBEYED.search(done.stdout), done.stdout
            assert not OBEYED.search(done.stderr), done.stderr
            if command == ("ranks",) and not form:
                assert "good" in done.stdout
                assert "\N{REPLACEMENT CHARACTER}" in done.stdout


def test_the_consoles_own_styles_stay() -> None:
    console, made = terminal(), io.StringIO()
    console.file, console._force_terminal, console._color_system = made, True, ColorSystem.STANDARD
    table = Table(title=HOSTILE)
    table.add_column("a")
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, style="bold")
    text = re.sub(r"\x1b\[[0-9;]*m", "", made.getvalue())
    assert text != made.getvalue()
    assert not OBEYED.search(text)


def test_lines_obey_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True)
    out, err = capsys.readouterr()
    assert not OBEYED.search(out + err)


def test_every_command_prints_by_way_of_these_functions() -> None:
    folder = Path(module.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "terminal.py":
            found = re.findall(r"typer\.echo\(|\bConsole\(|^\s*print\(", path.read_text(), re.MULTILINE)
            assert not found, path.name
