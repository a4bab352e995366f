"""``-o``: in which form a command shows an answer. All commands that show one share this module."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
import yaml  # type: ignore[import-untyped]
from rich.live import Live

from moescope.service.cli.printing import Framed, plain_lines
from moescope.service.cli.sheets import Readers, Sheet, View
from moescope.service.cli.terminal import is_terminal, say, terminal

_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Form(StrEnum):
    """Forms of an answer."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    CSV = "csv"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Output:
    """The form that is wanted."""

    output_form: Annotated[
        Form,
        typer.Option(
            "--output",
            "-o",
            metavar="<form>",
            help="Form of the answer: table; wide, a table with all columns; json or yaml, the service's own "
            "answer; csv, numbers in full for programs.",
        ),
    ] = Form.TABLE
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False

    @property
    def wanted(self) -> Form:
        """The form, whichever of the two options named it."""
        return Form.JSON if self.as_json else self.output_form

    @property
    def for_programs(self) -> bool:
        """Whether nothing but the answer may go to stdout."""
        return self.wanted not in (Form.TABLE, Form.WIDE)


def show(output: Output, answer: Any, view: Callable[[Any], View]) -> None:
    """Print an answer in the form that is wanted; ``view`` says what it looks like as tables."""
    _print(output.wanted, answer, view)


def show_again(
    output: Output, ask: Callable[[], Any], view: Callable[[Any], View], period_s: float | None
) -> None:
    """Print what ``ask`` gives, once or every ``period_s`` seconds until Ctrl-C.

    A terminal shows tables in place. Otherwise one answer follows the other: json has one a line, yaml one a
    document, and csv a line of names first, with a column ``at``, Unix time in seconds. Another line of names
    comes where an answer has columns that there were not before, as after more EP ranks.
    """
    if period_s is None:
        show(output, ask(), view)
        return
    try:
        if output.for_programs or not is_terminal():
            _stream(output.wanted, ask, view, period_s)
        wide = output.wanted is Form.WIDE
        with Live(Framed(view(ask()), wide), console=terminal(), auto_refresh=False) as live:
            while True:
                time.sleep(period_s)
                live.update(Framed(view(ask()), wide), refresh=True)
    except KeyboardInterrupt:
        return


def _stream(form: Form, ask: Callable[[], Any], view: Callable[[Any], View], period_s: float) -> None:
    names: list[str] = []
    while True:
        answer = ask()
        if form is Form.JSON:
            say(json.dumps(answer))
        elif form is Form.YAML:
            say(f"---\n{_yaml(answer)}")
        elif form is Form.CSV:
            shown = view(answer)
            found = [{"at": time.time(), **record} for record in _records(shown)]
            merged = list(dict.fromkeys(["at", *names, *_names(shown)]))
            _say_csv(merged, found, heading=merged != names)
            names = merged
        else:
            _print(form, answer, view)
        sys.stdout.flush()
        time.sleep(period_s)


def _print(form: Form, answer: Any, view: Callable[[Any], View]) -> None:
    if form in (Form.JSON, Form.YAML):
        say(text_of(form, answer))
    elif form is Form.CSV:
        found = view(answer)
        _say_csv(_names(found), list(_records(found)))
    elif is_terminal():
        terminal().print(Framed(view(answer), form is Form.WIDE), crop=False)
    else:
        say("\n".join(plain_lines(view(answer), form is Form.WIDE)))


def text_of(form: Form, answer: Any) -> str:
    """An answer as JSON or YAML."""
    return json.dumps(answer, indent=2) if form is Form.JSON else _yaml(answer)


def _yaml(answer: Any) -> str:
    # Long texts stay in one line, lists of numbers too; what a terminal would obey is escaped.
    text: str = yaml.dump(answer, Dumper=_DUMPER, sort_keys=False, width=10**6, default_flow_style=None)
    return text.rstrip("\n")


def _sheets(view: View) -> list[Sheet]:
    """The tables that csv has."""
    sheets = [part for part in view.parts if isinstance(part, Sheet)]
    return [sheet for sheet in sheets if sheet.readers is not Readers.PEOPLE]


def _names(view: View) -> list[str]:
    """The columns of csv: those of all tables, each once."""
    columns = [column for sheet in _sheets(view) for column in sheet.columns]
    return list(dict.fromkeys(column.name for column in columns if column.readers is not Readers.PEOPLE))


def _records(view: View) -> Iterator[dict[str, Any]]:
    for sheet in _sheets(view):
        for row in sheet.rows:
            yield {column.name: value for column, value in zip(sheet.columns, row, strict=True)}


def _say_csv(names: list[str], records: Sequence[dict[str, Any]], heading: bool = True) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if heading:
        writer.writerow(names)
    writer.writerows([_raw(record.get(name)) for name in names] for record in records)
    if lines := text.getvalue():
        say(lines.rstrip("\n"))


def _raw(value: Any) -> Any:
    """A value as csv has it: numbers in full, nothing for what isn't known, lists with blanks between."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
