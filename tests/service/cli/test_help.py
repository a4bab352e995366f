"""What the command line says about itself."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import typer
from rich.cells import cell_len
from rich.text import Text

from moescope.service.settings import SERVE_FLAGS
from tests.service.cli.listing import every_command
from tests.service.cli.running import plain, run, run_in_terminal


def test_no_word_of_the_help_is_taken_for_markup() -> None:
    commands = every_command()
    assert set(commands) >= {"serve", "advise", "simulate", "baseline pin", "traces export"}
    for command in commands.values():
        said = (command.help or "").replace("\b\n", "")  # which keeps lines in a help without rich
        assert Text.from_markup(said).plain == said, command.name
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert Text.from_markup(said).plain == said, (command.name, parameter.name)
    flags = {parameter.name for parameter in commands["serve"].params}
    assert flags == SERVE_FLAGS | {"config", "no_store"}


@pytest.mark.parametrize("name", ["", *every_command()])
def test_help_is_wrapped_once_at_the_width_of_the_terminal(name: str) -> None:
    """No line could have taken the first word of the next one, and none is wider than the terminal."""
    width = 72
    done = run_in_terminal(*name.split(), "-h", columns=width)
    assert done.returncode == 0
    lines = plain(done.stdout).splitlines()
    assert max(map(cell_len, lines)) <= width
    prose = [line.rstrip() for line in lines[: next(i for i, line in enumerate(lines) if line[:1] == "╭")]]
    examples = [line for line in prose if re.match(" (#|moescope|source|MOESCOPE=1)", line)]
    for line, following in pairwise(prose):
        if line.strip() and following.strip() and not {line, following} & set(examples):
            assert len(f"{line} {following.split()[0]}") > width - 1, (line, following)
    commands = [line.strip() for line in examples if line.startswith(" moescope")]
    assert commands, "no example"
    assert not [line for line in commands if re.search(r"\S\s{3,}\S", line)], "a comment behind a command"


@pytest.mark.parametrize("name", list(every_command()))
def test_help_teaches_with_a_sentence_and_an_example(name: str) -> None:
    done = run(*name.split(), "--help", columns=200)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    usage = next(at for at, line in enumerate(lines) if line.startswith(f"Usage: moescope {name} "))
    first = lines[usage + 2 : lines.index("", usage + 2)]
    assert first[-1].endswith("."), first
    assert any(line.startswith(f"moescope {name}") for line in lines), "no example"
    assert run(*name.split(), "-h", columns=200) == done
    assert not re.search("[\u2500-\u257f]", done.stdout), "a box in a pipe"


def test_every_option_has_a_sentence_and_a_default() -> None:
    for command in every_command().values():
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert re.match(r"([A-Z`]|vLLM).*[.)]$", said), (command.name, parameter.name, said)
            if isinstance(parameter, typer.core.TyperArgument) or parameter.required or parameter.is_flag:
                continue
            told = parameter.default not in (None, "") or re.search(r"when absent|default: ", said)
            assert told, (command.name, parameter.name, "its default")


def test_the_address_is_explained() -> None:
    text = " ".join(run("balance", "--help", columns=200).stdout.split())
    assert "Address of the running service, http or https." in text
    assert "MOESCOPE_URL; without it http://127.0.0.1:9890" in text
    assert "MOESCOPE_URL" in run("--help").stdout
