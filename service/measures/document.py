"""What documents and the built-in page say of the measures, made from their declarations.

``python -m moescope.service.measures.document docs/measures.md`` writes the table of measures into that
document, and ``page/js/measures.js``. A test compares both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from moescope.service.measures.balance import HOT, MEASURES
from moescope.service.measures.measure import AXES, Measure

SCRIPT: Final = Path(__file__).parents[1] / "page" / "js" / "measures.js"
BEGIN: Final = "<!-- made by python -m moescope.service.measures.document docs/measures.md -->\n"
END: Final = "<!-- end of what is made -->\n"

_HEAD: Final = """\
| measure | name in answers | formula | best | worst | meaning | gauge |
|---|---|---|---|---|---|---|
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


def with_table(document: str) -> str:
    """A document with its table as it should be.

    Raises:
        ValueError: the document has no place for it.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no lines that say where the table of measures begins and ends")
    return f"{before}{BEGIN}{table()}{END}{after}"


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


if __name__ == "__main__":
    SCRIPT.write_text(script())
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
