"""``moescope top`` as lines of a screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len
from rich.text import Text

from moescope.service.cli.layout import wrapped
from moescope.service.cli.sheets import Column, Sheet
from moescope.service.cli.terminal import utc
from moescope.service.cli.top_facts import VIEWS, Snapshot
from moescope.service.cli.top_state import KEYS, State
from moescope.service.logs import printable

_STYLES: Final = {"ok": "bold green", "info": "bold", "warning": "bold yellow", "critical": "bold red"}
_GAP: Final = 2
_MOST_WORDS: Final = 4  # lines of the verdict
_MOST_PROBLEM: Final = 3  # lines of what is wrong
_BAR: Final = 12  # columns that a bar needs at least
_HOT: Final = 2.0  # times an even share, from which on a rank or a layer stands out, as on the page
_OLD_S: Final = 10.0  # an age that stands out
_FOOT: Final = "q quit  Tab view  <> sort  r reverse  space pause  d deployment  w window  ? help"


@dataclass(frozen=True, slots=True)
class Moment:
    """What is drawn: the newest answers, and what went wrong since.

    Attributes:
        snapshot: None: none yet.
        problem: why the newest question has no answer; empty: it has one.
        now: seconds of Unix time.
    """

    snapshot: Snapshot | None
    problem: str
    now: float


def draw(moment: Moment, state: State, width: int, height: int) -> list[Text]:
    """The lines of a screen of so many columns and lines; it also tells ``state`` how many rows fit."""
    head = [*_title(moment, state, width), *_verdict(moment.snapshot, width), *_problem(moment, width)]
    room = max(1, height - len(head) - 2)
    state.rows = max(1, room - 1)
    sheet = sheet_of(moment.snapshot, state)
    if state.helps:
        body = [Text(f"  {keys:<33}{what}") for keys, what in KEYS]
    elif sheet is None:
        body = []
    else:
        body = _table(sheet, state, width)
    body = body[:room] + [Text()] * (room - len(body))
    lines = [*head, _tabs(sheet, state, width), *body, Text(_FOOT[:width].ljust(width), "reverse")]
    return lines[-height:] if len(lines) > height else lines


def sheet_of(snapshot: Snapshot | None, state: State) -> Sheet | None:
    """The table of the view that is shown; None: there is nothing to show."""
    return None if snapshot is None else snapshot.sheets.get(state.view)


def _title(moment: Moment, state: State, width: int) -> list[Text]:
    snapshot = moment.snapshot
    if snapshot is None or snapshot.chosen is None:
        return [_line("moescope top", "bold", width)]
    server, model = snapshot.chosen
    number, total = snapshot.deployments.index(snapshot.chosen) + 1, len(snapshot.deployments)
    several = f" ({number} of {total})" if total > 1 else ""
    paused = "  PAUSED" if state.paused else ""
    about = f"{utc(snapshot.at)[-8:]} UTC  window {state.window.removeprefix('-')}{paused}"
    name = printable(f"{model} on {server}{several}")
    if cell_len(name) + _GAP + len(about) > width:
        return [*(_line(line, "bold", width) for line in wrapped(name, width)), _line(about, "", width)]
    return [Text.assemble((name, "bold"), " " * _GAP, about)]


def _verdict(snapshot: Snapshot | None, width: int) -> list[Text]:
    if snapshot is None:
        return []
    style, before = "", ""
    if snapshot.verdict is not None:
        severity = snapshot.verdict["severity"]
        style, before = _STYLES[severity], f"{severity.upper()}: "
    lines = wrapped(f"{before}{snapshot.words}", width)
    if len(lines) > _MOST_WORDS:
        lines = [*lines[: _MOST_WORDS - 1], f"{lines[_MOST_WORDS - 1][: width - 4]} ..."]
    return [_line(line, style, width) for line in lines] + _numbers(snapshot, width)


def _numbers(snapshot: Snapshot, width: int) -> list[Text]:
    """The numbers of the whole deployment, each in one piece."""
    lines: list[str] = []
    for name, text in snapshot.numbers:
        item = f"{name} {text}"
        if lines and len(lines[-1]) + 3 + len(item) <= width:
            lines[-1] += f"   {item}"
        else:
            lines.append(item)
    return [_line(line, "", width) for line in lines]


def _problem(moment: Moment, width: int) -> list[Text]:
    """How old the numbers are, and why, where the service does not answer."""
    if not moment.problem:
        return []
    taken = moment.now if moment.snapshot is None else moment.snapshot.at
    words = f"These numbers are {moment.now - taken:,.0f} s old: {moment.problem}"
    return [_line(line, "bold white on red", width) for line in wrapped(words, width)[:_MOST_PROBLEM]]


def _tabs(sheet: Sheet | None, state: State, width: int) -> Text:
    text = Text()
    for i, (name, title) in enumerate(zip(VIEWS, ("EP ranks", "layers", "DP ranks"), strict=True), 1):
        text.append(f" {i} {title} ", "bold reverse" if name == state.view else "dim")
    if sheet is not None and len(sheet.rows) > state.rows:
        last = min(len(sheet.rows), state.top + state.rows)
        text.append(f"  {state.top + 1} to {last} of {len(sheet.rows)}")
    text.truncate(width)
    return text


def _table(sheet: Sheet, state: State, width: int) -> list[Text]:
    """The heading, and the rows that fit."""
    state.top = max(0, min(state.top, len(sheet.rows) - state.rows))
    by, falling = state.sort[state.view]
    rows = state.sorted_rows(sheet)
    texts = [[column.form(value) for column, value in zip(sheet.columns, row, strict=True)] for row in rows]
    titles = [
        f"{column.title} {'▼' if falling else '▲'}" if i == by else column.title
        for i, column in enumerate(sheet.columns)
    ]
    widths = [max([cell_len(title), *(len(row[i]) for row in texts)]) for i, title in enumerate(titles)]
    shown = _shown(sheet, widths, by, width)
    bar = width - sum(widths[i] + _GAP for i in shown)
    heading = Text()
    for i in shown:
        style = "bold underline" if i == by else "bold"
        heading.append(_padded(titles[i], widths[i], sheet.columns[i]), style)
        heading.append(" " * _GAP)
    lines = [heading]
    most = max((row[1] for row in rows if row[1] is not None), default=0.0)
    for row, cells in list(zip(rows, texts, strict=True))[state.top : state.top + state.rows]:
        line = Text()
        for i in shown:
            style = _style(sheet, i, row[i], len(rows))
            line.append(_padded(printable(cells[i]), widths[i], sheet.columns[i]), style)
            line.append(" " * _GAP)
        if bar >= _BAR and row[1] is not None and most > 0:
            line.append("█" * round((bar - 1) * row[1] / most), "yellow")
        lines.append(line)
    return lines


def _shown(sheet: Sheet, widths: list[int], by: int, width: int) -> list[int]:
    """The columns for which there is room; that which is sorted by always stays."""
    shown = list(range(len(sheet.columns)))
    while sum(widths[i] + _GAP for i in shown) > width:
        spares = [i for i in shown if sheet.columns[i].spare and i != by]
        if not spares:
            break
        shown.remove(max(spares, key=lambda i: (sheet.columns[i].spare, i)))
    return shown


def _padded(text: str, width: int, column: Column) -> str:
    blanks = " " * (width - cell_len(text))
    return f"{blanks}{text}" if column.number else f"{text}{blanks}"


def _style(sheet: Sheet, i: int, value: Any, rows: int) -> str:
    """Red for what stands out: a rank or a layer that causes much of the waiting, one that is silent."""
    name = sheet.columns[i].name
    if value is None:
        return "dim"
    if name in ("caused", "share") and rows > 1 and value > _HOT / rows:
        return "bold red"
    return "bold red" if name == "age" and value > _OLD_S else ""


def _line(text: str, style: str, width: int) -> Text:
    found = Text(printable(text), style=style, no_wrap=True)
    found.truncate(width, overflow="ellipsis")
    return found
