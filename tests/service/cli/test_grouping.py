"""Commands that take their options in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from moescope.service.cli.grouping import add_command


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(default_factory=lambda: 3)]
    height: Annotated[int, typer.Option("--tall", min=1)] = 2


@dataclass(frozen=True)
class Colours:
    name: Annotated[list[str] | None, typer.Option()] = None


@dataclass(frozen=True)
class Other:
    width: int = 1


def call(*arguments: str) -> tuple[object, ...]:
    seen: list[tuple[object, ...]] = []

    def paint(
        what: Annotated[str, typer.Argument()], size: Size, colours: Colours, twice: bool = False
    ) -> None:
        seen.append((what, size, colours, twice))

    app = typer.Typer()
    add_command(app, paint, "Paint.")
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return seen[0]


def test_each_field_is_an_option_and_the_command_gets_the_dataclasses() -> None:
    assert call("wall") == ("wall", Size(3, 2), Colours(), False)
    given = call("--name", "red", "wall", "--width", "7", "--tall", "5", "--name", "blue", "--twice")
    assert given == ("wall", Size(7, 5), Colours(["red", "blue"]), True)


def test_two_groups_that_have_the_same_option_are_refused() -> None:
    def clash(size: Size, other: Other) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):
        add_command(typer.Typer(), clash, "Clash.")
