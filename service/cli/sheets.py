"""What a command shows: tables of raw values, and lines of text. How they look is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

NONE: Final = "-"
"""What people see where a value is not known, or there is none."""


class Readers(Enum):
    """Whom a column or a table is for."""

    ALL = "all"
    PEOPLE = "people"  # not in csv
    WIDE = "wide"  # people who ask for -o wide, and csv
    PROGRAMS = "programs"  # csv only


def plain(value: Any) -> str:
    """A name, a word or a small number as it is; "-": there is none."""
    return NONE if value is None or value == "" else str(value)


def count(value: float | None) -> str:
    """A number of things, with thousands set apart."""
    return NONE if value is None else f"{value:,.0f}"


def fixed(digits: int) -> Callable[[float | None], str]:
    """Rounded to so many digits after the point."""
    return lambda value: NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share of 1 in per cent."""
    return NONE if value is None else f"{value:.1%}"


def gain(value: float | None) -> str:
    """A share of 1 in per cent, with its sign."""
    return NONE if value is None else f"{value:+.1%}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: in csv; it never changes.
        title: for people.
        form: a raw value as people see it; csv has the raw value.
        number: set to the right. Numbers, names and ids are never broken.
        prose: sentences, which may go on in the next line of a narrow terminal.
        key: says what a row is about: it stays, and stands again where a table is shown in pieces.
        spare: where a terminal is too narrow, columns with the highest number are left out first; 0: never.
        same: said once above the table, where a terminal is too narrow and all rows have the same value.
        readers: who sees it.
    """

    name: str
    title: str
    form: Callable[[Any], str] = plain
    number: bool = True
    prose: bool = False
    key: bool = False
    spare: int = 0
    same: bool = False
    readers: Readers = Readers.ALL


def word(name: str, title: str, **more: Any) -> Column:
    """A column of names, ids or words."""
    return Column(name, title, number=False, **more)


def whose() -> tuple[Column, Column]:
    """The columns ``server`` and ``model`` of csv; people read them in the title."""
    return (
        word("server", "server", readers=Readers.PROGRAMS),
        word("model", "model", readers=Readers.PROGRAMS),
    )


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table.

    Attributes:
        title: line above it; empty: none.
        columns: in order.
        rows: raw values, one for each column; None: not known, or there is none.
        caption: line below it; empty: none.
        readers: who sees it. The tables that csv has are of one kind: their columns have the same meaning.
        chosen: rows that stand out.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    readers: Readers = Readers.ALL
    chosen: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, or a paragraph.

    Attributes:
        text: one paragraph; a narrow terminal breaks it between words only.
        style: of rich, on a terminal with colours.
        indent: blanks before it.
        hang: blanks before what follows its first line.
        exact: never broken, such as an address to copy.
    """

    text: str
    style: str = ""
    indent: int = 0
    hang: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What an answer looks like: tables and lines, in order."""

    parts: Sequence[Sheet | Line] = field(default_factory=tuple)

    def __add__(self, other: View) -> View:
        return View((*self.parts, *other.parts))


def notes(lines: Sequence[str], style: str = "dim") -> list[Line]:
    """Remarks below a table, each with a dash before it."""
    return [Line(f"- {line}", style, hang=2) for line in lines]
