"""Tables and lines as text: framed on a terminal, and plain at full width in a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from moescope.service.cli.layout import Grid, Layout, fit, shown_columns, text_of, wrapped
from moescope.service.cli.sheets import Line, Readers, Sheet, View

_GAP = "  "


def for_people(view: View) -> list[Sheet | Line]:
    """The parts of a view that people see."""
    return [part for part in view.parts if isinstance(part, Line) or part.readers is not Readers.PROGRAMS]


def plain_lines(view: View, wide: bool) -> Iterator[str]:
    """Lines for a pipe: whole, however long, without frames and colours; columns are aligned."""
    before: Sheet | Line | None = None
    for part in for_people(view):
        if isinstance(part, Line):
            yield f"{' ' * part.indent}{part.text}"
        else:
            if isinstance(before, Sheet):
                yield ""
            yield from _plain_table(part, wide)
        before = part


def _plain_table(sheet: Sheet, wide: bool) -> Iterator[str]:
    columns = shown_columns(sheet, wide)
    rows = [[column.title for column in columns], *text_of(sheet, columns)]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(columns))]
    if sheet.title:
        yield sheet.title
    for row in rows:
        padded = []
        for column, text, width in zip(columns, row, widths, strict=True):
            blanks = " " * (width - cell_len(text))
            padded.append(f"{blanks}{text}" if column.number else f"{text}{blanks}")
        yield _GAP.join(padded).rstrip()
    if sheet.caption:
        yield sheet.caption


class Framed:
    """A view for a terminal, as wide as that is when it is drawn."""

    def __init__(self, view: View, wide: bool = False) -> None:
        self._view = view
        self._wide = wide

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, one below the other."""
        for part in for_people(self._view):
            if isinstance(part, Line):
                yield from _paragraph(part, options.max_width)
            else:
                yield from _framed(part, options.max_width, self._wide)


def _paragraph(line: Line, width: int) -> Iterator[Text]:
    if line.exact:
        yield _exact(f"{' ' * line.indent}{line.text}", line.style)
        return
    for text in wrapped(line.text, width, line.indent, line.hang):
        yield _exact(text, line.style)


def _exact(text: str, style: str = "") -> Text:
    """A line that nobody breaks; a terminal that is narrower shows it in two."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def _framed(sheet: Sheet, width: int, wide: bool) -> Iterator[RenderableType]:
    layout = fit(sheet, width, wide)
    for text in wrapped(sheet.title, width) if sheet.title else []:
        yield _exact(text, "italic")
    for title, value in layout.said:
        yield from _paragraph(Line(f"{title}: {value}", hang=2), width)
    for grid in layout.grids:
        yield _table(grid, sheet)
    if layout.records is not None:
        yield from _lists(layout.records)
    for line in _below(sheet, layout):
        yield from _paragraph(line, width)


def _below(sheet: Sheet, layout: Layout) -> Iterator[Line]:
    if sheet.caption:
        yield Line(sheet.caption, "dim")
    if layout.left_out:
        yield Line(f"- no room for {', '.join(layout.left_out)}: -o wide shows all", "dim", hang=2)


def _table(grid: Grid, sheet: Sheet) -> Table:
    table = Table()
    for column, width in zip(grid.columns, grid.widths, strict=True):
        justify: JustifyMethod = "right" if column.number else "left"
        table.add_column(Text(column.title), justify=justify, width=width, overflow="fold")
    for i, row in enumerate(grid.cells):
        table.add_row(*map(Text, row), style="green" if i in sheet.chosen else None)
    return table


def _lists(grid: Grid) -> Iterator[Text]:
    """Each row as a list of its values, a line a column."""
    width = max(cell_len(column.title) for column in grid.columns)
    for i, row in enumerate(grid.cells):
        if i:
            yield Text()
        for column, text in zip(grid.columns, row, strict=True):
            yield _exact(f"{column.title}{' ' * (width - cell_len(column.title))}{_GAP}{text}")
