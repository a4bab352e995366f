"""What the command line says about itself."""

from __future__ import annotations

import re

import pytest
import typer
from rich.text import Text

from moescope.service.settings import SERVE_FLAGS
from tests.service.cli.listing import every_command
from tests.service.cli.running import run


def test_no_word_of_the_help_is_taken_for_markup() -> None:
    commands = every_command()
    assert set(commands) >= {"serve", "advise", "simulate", "baseline pin", "traces export"}
    for command in commands.values():
        assert Text.from_markup(command.help or "").plain == command.help, command.name
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert Text.from_markup(said).plain == said.replace("\\[", "["), (command.name, parameter.name)
    flags = {parameter.name for parameter in commands["serve"].params}
    assert flags == SERVE_FLAGS | {"config", "no_store"}


@pytest.mark.parametrize("name", list(every_command()))
def test_help_teaches_with_a_sentence_and_an_example(name: str) -> None:
    done = run(*name.split(), "--help", columns=200)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    usage = next(at for at, line in enumerate(lines) if line.startswith(f"Usage: moescope {name} "))
    first = lines[usage + 2 : lines.index("", usage + 2)]
    assert first[-1].endswith("."), first
    assert any(line.startswith(f"moescope {name}") for line in lines), "no example"


def test_every_option_has_a_sentence_and_a_default() -> None:
    for command in every_command().values():
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert re.match(r"([A-Z`]|vLLM).*[.\]]$", said), (command.name, parameter.name, said)
            if isinstance(parameter, typer.core.TyperArgument) or parameter.required or parameter.is_flag:
                continue
            told = parameter.default not in (None, "") or re.search(r"when absent|default: ", said)
            assert told, (command.name, parameter.name, "its default")


def test_the_address_is_explained() -> None:
    text = " ".join(run("balance", "--help", columns=200).stdout.split())
    assert "Address of the running service, http or https." in text
    assert "MOESCOPE_URL; without it http://127.0.0.1:9890" in text
    assert "MOESCOPE_URL" in run("--help").stdout
