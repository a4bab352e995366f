"""What requests name of the stored things: the store itself, a page of traces, a baseline."""

from __future__ import annotations

from typing import Final, TypeVar

from moescope.service.api.problems import ProblemError
from moescope.service.drift.baseline import Baseline, BaselineBook
from moescope.service.store.interface import Absence

T = TypeVar("T")
NO_STORE: Final = "Start the service with --store FOLDER (MOESCOPE_STORE) to keep traces."
"""What to do where traces are wanted and there is no store."""

WHY_ABSENT: Final[dict[Absence | None, str]] = {
    None: "it wasn't sampled (MOESCOPE_TRACE_RATE), still runs, or was removed long ago.",
    "incomplete": "parts of its trace came, others did not: they still come, or their worker was killed.",
    "expired": "it was removed, its time to live was over (keep_traces_s).",
    "evicted": "it was removed to make room for newer ones (store_mib).",
}
"""Why no trace of an id is here, by what the store knows of it."""

_LARGEST_CURSOR: Final = (1 << 63) - 1  # a row's number is an int64


def existing(store: T | None) -> T:
    """The store, or something that there is with every store.

    Raises:
        ProblemError: there is none (404).
    """
    if store is None:
        raise ProblemError(404, "no-store", "Traces are not kept here", NO_STORE)
    return store


def parse_cursor(text: str | None) -> int | None:
    """The number of the trace that a page ended with; None: the first page is wanted.

    Raises:
        ProblemError: no answer can have had this cursor (400).
    """
    if not text:
        return None
    # The length is looked at first: Python refuses to convert very long numbers.
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST_CURSOR))
    if not is_number or int(text) > _LARGEST_CURSOR:
        raise ProblemError(
            400, "bad-cursor", "Not a cursor", "Give next_cursor of the page before as it was, or none."
        )
    return int(text)


def find_baseline(book: BaselineBook, name: str, server: str | None, model: str | None) -> Baseline:
    """The one baseline that is meant.

    Raises:
        ProblemError: there is none (404), or several deployments have one of this name (400).
    """
    known = [item for item in book.all() if server in (None, item.server) and model in (None, item.model)]
    found = [item for item in known if item.name == name]
    if not found:
        names = ", ".join(sorted({item.name for item in known})) or "none"
        raise ProblemError(
            404,
            "no-such-baseline",
            "No such baseline",
            f"There is no baseline {name!r}; there are: {names}. POST /v1/baselines pins one.",
        )
    if len(found) > 1:
        listing = ", ".join(f"server={item.server} model={item.model}" for item in found)
        raise ProblemError(
            400, "several-baselines", "Several have this name", f"Choose one by server and model: {listing}."
        )
    return found[0]
