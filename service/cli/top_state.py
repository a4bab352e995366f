"""What the user of ``moescope top`` has chosen, and what the keys do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from moescope.service.cli.sheets import Sheet
from moescope.service.cli.top_facts import VIEWS, Snapshot

WINDOWS: Final = ("-1m", "-5m", "-15m", "-1h")
KEYS: Final = (
    ("q, Ctrl-C", "quit"),
    ("Tab, 1, 2, 3", "the next view; EP ranks, layers, DP ranks"),
    ("left, right, < or >", "sort by another column"),
    ("r", "sort the other way round"),
    ("up, down, PgUp, PgDn, Home, End", "scroll"),
    ("space, p", "pause, go on"),
    ("d", "the next deployment"),
    ("w", "the next window: 1, 5, 15 minutes, 1 hour"),
    ("h, ?", "this help"),
)
_ESCAPES: Final = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "[5~": "pgup",
    "[6~": "pgdn",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
    "OH": "home",
    "OF": "end",
    "[Z": "tab",
}
_KEY: Final = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Za-z])|(.)", re.DOTALL)


def keys_of(typed: str) -> list[str]:
    """The keys of what a terminal sent; escape sequences that nobody knows are left out."""
    found = []
    for escape, char in _KEY.findall(typed):
        key = _ESCAPES.get(escape, "") if escape else {"\t": "tab", " ": "space"}.get(char, char)
        found += [key] if key else []
    return found


@dataclass(slots=True)
class State:
    """What is shown, and how.

    Attributes:
        view: one of ``VIEWS``.
        sort: by view, which column, and whether its largest value comes first.
        top: first row that is shown.
        rows: as many as fit; drawing sets it.
        window: begin of the window.
        paused: nothing new is asked or shown.
        helps: the keys are shown in place of the table.
        deployment: server and model; None: whichever there is.
        ended: the user wants to quit.
    """

    window: str
    deployment: tuple[str | None, str | None]
    view: str = VIEWS[0]
    sort: dict[str, tuple[int, bool]] = field(default_factory=lambda: dict.fromkeys(VIEWS, (1, True)))
    top: int = 0
    rows: int = 10
    paused: bool = False
    helps: bool = False
    ended: bool = False

    def press(self, key: str, snapshot: Snapshot | None) -> bool:
        """Do what a key says; whether something else must be asked for."""
        before = self.window, self.deployment, self.paused
        self._press(key, snapshot)
        return (self.window, self.deployment, self.paused) != before

    def _press(self, key: str, snapshot: Snapshot | None) -> None:
        sheet = None if snapshot is None else snapshot.sheets.get(self.view)
        if key == "q":
            self.ended = True
        elif key in ("h", "?"):
            self.helps = not self.helps
        elif key in ("p", "space"):
            self.paused = not self.paused
        elif key in ("tab", "1", "2", "3"):
            number = VIEWS.index(self.view) + 1 if key == "tab" else int(key) - 1
            self.view, self.top, self.helps = VIEWS[number % len(VIEWS)], 0, False
        elif key == "w":
            found = WINDOWS.index(self.window) + 1 if self.window in WINDOWS else 0
            self.window = WINDOWS[found % len(WINDOWS)]
        elif key == "d":
            self._go_on(snapshot)
        elif sheet is not None:
            self._look(key, sheet)

    def _go_on(self, snapshot: Snapshot | None) -> None:
        """To the deployment after the one that is shown."""
        if snapshot is not None and snapshot.chosen is not None:
            others = snapshot.deployments
            self.deployment = others[(others.index(snapshot.chosen) + 1) % len(others)]
            self.top = 0

    def _look(self, key: str, sheet: Sheet) -> None:
        """Scroll, or sort."""
        column, falling = self.sort[self.view]
        if key in ("left", "<", "right", ">"):
            column = (column + (-1 if key in ("left", "<") else 1)) % len(sheet.columns)
            self.sort[self.view], self.top = (column, not sheet.columns[column].key), 0
        elif key == "r":
            self.sort[self.view], self.top = (column, not falling), 0
        steps = {"up": -1, "down": 1, "pgup": -self.rows, "pgdn": self.rows}
        ends = {"home": 0, "end": len(sheet.rows)}
        wanted = ends.get(key, self.top + steps.get(key, 0))
        self.top = max(0, min(wanted, len(sheet.rows) - self.rows))

    def sorted_rows(self, sheet: Sheet) -> list[Sequence[Any]]:
        """The rows in the order that is wanted; those without a value come last."""
        column, falling = self.sort[self.view]
        known = [row for row in sheet.rows if row[column] is not None]
        rest = [row for row in sheet.rows if row[column] is None]
        return sorted(known, key=lambda row: row[column], reverse=falling) + rest
