"""What the command line says about itself."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from rich.text import Text

from moescope.service.cli.commands import command_line
from moescope.service.settings import FLAGS
from tests.service.cli.running import run


def test_help_teaches_with_examples() -> None:
    for command in ("serve", "balance", "stragglers"):
        done = run(command, "--help")
        assert done.returncode == 0
        assert f"moescope {command} --" in done.stdout
    assert run("version").stdout.startswith("moescope 0.")


def every_command(group: typer.core.TyperGroup) -> Iterator[typer.core.TyperCommand]:
    for command in group.commands.values():
        if isinstance(command, typer.core.TyperGroup):
            yield from every_command(command)
        else:
            assert isinstance(command, typer.core.TyperCommand)
            yield command


def test_no_word_of_the_help_is_taken_for_markup() -> None:
    group = typer.main.get_command(command_line())
    assert isinstance(group, typer.core.TyperGroup)
    commands = {command.name: command for command in every_command(group)}
    assert set(commands) >= {"serve", "advise", "simulate", "pin", "export"}
    for command in commands.values():
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert Text.from_markup(said).plain == said.replace("\\[", "["), (command.name, parameter.name)
    flags = {parameter.name for parameter in commands["serve"].params}
    assert flags == FLAGS | {"config"}
