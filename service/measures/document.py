"""What documents and the built-in page say of the measures, made from their declarations.

``python -m moescope.service.measures.document docs/measures.md`` writes the tables of measures, of loads and
of requests, into that document, and ``page/js/measures.js``. A test compares all of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from moescope.service.measures.balance import HOT, MEASURES
from moescope.service.measures.measure import AXES, Measure
from moescope.service.measures.requests import REQUEST_MEASURES, RequestMeasure

SCRIPT: Final = Path(__file__).parents[1] / "page" / "js" / "measures.js"
BEGIN: Final = "<!-- made by python -m moescope.service.measures.document docs/measures.md -->\n"
END: Final = "<!-- end of what is made -->\n"
REQUESTS_BEGIN: Final = (
    "<!-- measures of requests, made by python -m moescope.service.measures.document docs/measures.md -->\n"
)

_HEAD: Final = """\
| measure | name in answers | formula | best | worst | meaning | gauge |
|---|---|---|---|---|---|---|
"""
_REQUESTS_HEAD: Final = """\
| measure of a request | name in answers | formula | unit | meaning |
|---|---|---|---|---|
"""
_SCRIPT_HEAD: Final = """\
// The measures of balance, in the order of answers. Made by python -m moescope.service.measures.document.

/**
 * @typedef {object} Measure
 * @property {string} title
 * @property {string} formula
 * @property {string} meaning
 * @property {"ratio"|"share"|"number"} unit
 * @property {string} best in terms of N, the number of loads
 * @property {string} worst
 */

"""


def table() -> str:
    """The table of measures, Markdown."""
    return _HEAD + "".join(map(_row, MEASURES.values()))


def table_of_requests() -> str:
    """The table of measures of requests, Markdown."""
    return _REQUESTS_HEAD + "".join(map(_request_row, REQUEST_MEASURES.values()))


def with_tables(document: str) -> str:
    """A document with its tables as they should be.

    Raises:
        ValueError: the document has no place for one of them.
    """
    for begin, made in ((BEGIN, table()), (REQUESTS_BEGIN, table_of_requests())):
        before, found, rest = document.partition(begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise ValueError(f"the document has no lines {begin.strip()} and {END.strip()} around a table")
        document = f"{before}{begin}{made}{END}{after}"
    return document


def script() -> str:
    """The page's module, JavaScript."""
    fields = ("title", "formula", "meaning", "unit", "best", "worst")
    known = {name: {field: getattr(item, field) for field in fields} for name, item in MEASURES.items()}
    return (
        f"{_SCRIPT_HEAD}/** @type {{Record<string, Measure>}} */\n"
        f"export const MEASURES = {json.dumps(known, indent=2)};\n\n"
        "/** A rank or an expert is hot from this multiple of a fair share on. */\n"
        f"export const HOT_FROM = {HOT:g};\n"
    )


def _row(measure: Measure) -> str:
    gauge = measure.gauge
    shown = f"`{gauge.name}`, over {AXES[gauge.axis]}" if gauge else ""
    meaning = f"{measure.meaning} Source: {measure.source}." if measure.source else measure.meaning
    cells = (measure.title, f"`{measure.name}`", measure.formula, measure.best, measure.worst, meaning, shown)
    return f"| {' | '.join(cells)} |\n"


def _request_row(measure: RequestMeasure) -> str:
    meaning = f"{measure.meaning} Source: {measure.source}." if measure.source else measure.meaning
    cells = (measure.title, f"`{measure.name}`", measure.formula, measure.unit, meaning)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    SCRIPT.write_text(script())
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
