"""The commands of the command line, for tests of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from moescope.service.cli.commands import command_line


def every_command() -> dict[str, typer.core.TyperCommand]:
    """The commands by their whole names, such as ``baseline pin``."""
    group = typer.main.get_command(command_line())
    assert isinstance(group, typer.core.TyperGroup)
    return dict(_commands(group, ""))


def _commands(group: typer.core.TyperGroup, before: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, f"{before}{name} ")
        else:
            assert isinstance(command, typer.core.TyperCommand)
            yield f"{before}{name}", command
