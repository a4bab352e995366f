"""How a table fits a terminal: no number, name or id is ever broken or cut for it.

Where a terminal is too narrow, sentences go on in the next line, headings too. Then columns that matter less
are left out, and a line says which. If what is left is still too wide, the table is shown in pieces, one
below the other, each with the columns that say what a row is about. If these leave no room, each row becomes
a list.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from moescope.service.cli.sheets import NONE, Column, Readers, Sheet
from moescope.service.logs import printable

_FRAME = 1  # the border at the left
_BETWEEN = 3  # a blank at both sides of a cell, and a border
_MOST_PROSE = 24  # characters that a column of sentences needs at least, if its words are shorter
_PIECES = 4  # more of them are harder to read than lists


@dataclass(frozen=True, slots=True)
class Grid:
    """A part of a table as text.

    Attributes:
        columns: of it.
        cells: texts, a row a list.
        widths: of the columns, in cells of a terminal.
    """

    columns: list[Column]
    cells: list[list[str]]
    widths: list[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is shown.

    Attributes:
        grids: its pieces; empty: as lists.
        records: the whole table, for lists.
        said: columns that have one value in all rows, and are left out: title and value.
        left_out: titles of the columns that are left out.
    """

    grids: list[Grid]
    records: Grid | None
    said: list[tuple[str, str]]
    left_out: list[str]


def text_of(sheet: Sheet, columns: Sequence[Column]) -> list[list[str]]:
    """The cells of some of its columns as people see them, each in one line."""
    places = [list(sheet.columns).index(column) for column in columns]
    pairs = list(zip(places, columns, strict=True))
    return [[printable(column.form(row[i])).replace("\n", " ") for i, column in pairs] for row in sheet.rows]


def shown_columns(sheet: Sheet, wide: bool) -> list[Column]:
    """The columns for people, in order."""
    hidden = {Readers.PROGRAMS} if wide else {Readers.PROGRAMS, Readers.WIDE}
    return [column for column in sheet.columns if column.readers not in hidden]


def fit(sheet: Sheet, width: int, wide: bool) -> Layout:
    """Lay a table out in ``width`` columns of a terminal; if ``wide``, nothing is left out."""
    columns = shown_columns(sheet, wide)
    if (grid := _grid(sheet, columns, width)) is not None:
        return Layout([grid], None, [], [])
    cells = text_of(sheet, columns)
    same = [i for i, column in enumerate(columns) if column.same and len({row[i] for row in cells}) == 1]
    said = [(columns[i].title, cells[0][i]) for i in same if cells[0][i] != NONE]
    columns = [column for i, column in enumerate(columns) if i not in same]
    left_out: list[str] = []
    spares = [] if wide else sorted({column.spare for column in columns if column.spare}, reverse=True)
    for spare in [None, *spares]:
        left_out += _titles([column for column in columns if spare and column.spare == spare])
        columns = [column for column in columns if not spare or column.spare != spare]
        if (grid := _grid(sheet, columns, width)) is not None:
            return Layout([grid], None, said, left_out)
    pieces = _pieces(sheet, columns, width)
    apart = sum(not column.key for column in columns) < 2 * len(pieces)
    if pieces and not apart and (wide or len(pieces) <= _PIECES):
        return Layout(pieces, None, said, left_out)
    columns = [column for i, column in enumerate(shown_columns(sheet, wide)) if i not in same]
    records = Grid(columns, text_of(sheet, columns), [0] * len(columns))
    return Layout([], records, said, [])


def wrapped(text: str, width: int, indent: int = 0, hang: int = 0) -> list[str]:
    """A paragraph in lines of ``width``; a word that is longer stays whole."""
    found = textwrap.wrap(
        printable(text),
        max(width, indent + hang + 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return found or [""]


def _titles(columns: Sequence[Column]) -> list[str]:
    """Their titles; of many only the first and the last."""
    titles = [column.title for column in columns]
    return titles if len(titles) <= 3 else [f"{titles[0]} to {titles[-1]}"]


def _grid(sheet: Sheet, columns: list[Column], width: int) -> Grid | None:
    """The table with these columns; None: it doesn't fit."""
    cells = text_of(sheet, columns)
    by_column = [[row[i] for row in cells] for i in range(len(columns))]
    pairs = list(zip(columns, by_column, strict=True))
    least = [_least(column, texts) for column, texts in pairs]
    wished = [max(map(cell_len, [column.title, *texts])) for column, texts in pairs]
    room = width - _FRAME - _BETWEEN * len(columns) - sum(least)
    if room < 0:
        return None
    for prose in (False, True):  # headings in one line first, then sentences
        mine = [i for i, column in enumerate(columns) if column.prose is prose]
        for i, share in _shares([wished[i] - least[i] for i in mine], room):
            least[mine[i]] += share
            room -= share
    return Grid(columns, cells, least)


def _least(column: Column, texts: list[str]) -> int:
    words = [cell_len(part) for part in column.title.split()]
    if not column.prose:
        return max([*words, *map(cell_len, texts)])
    longest = max((cell_len(part) for text in texts for part in text.split()), default=0)
    whole = max(map(cell_len, texts), default=0)
    return max([*words, longest, min(whole, _MOST_PROSE)])


def _shares(wishes: list[int], room: int) -> Iterator[tuple[int, int]]:
    """Share room out: the small wishes first, so that as many as possible come true."""
    left = len(wishes)
    for i in sorted(range(len(wishes)), key=wishes.__getitem__):
        given = min(wishes[i], room // left)
        room, left = room - given, left - 1
        yield i, given


def _pieces(sheet: Sheet, columns: list[Column], width: int) -> list[Grid]:
    """The table in pieces, each with the columns that say what a row is; empty: some column has no room."""
    keys = [column for column in columns if column.key]
    others = [column for column in columns if not column.key]
    found: list[Grid] = []
    while others:
        count = next((n for n in range(len(others), 0, -1) if _grid(sheet, [*keys, *others[:n]], width)), 0)
        grid = _grid(sheet, [*keys, *others[:count]], width) if count else None
        if grid is None:
            return []
        found.append(grid)
        others = others[count:]
    return found
