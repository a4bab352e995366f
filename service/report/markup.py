"""Pieces of the page. Every text that comes from outside goes through :func:`text`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a title, a sentence that says how to read it, and markup."""

    title: str
    lead: str
    body: str


def text(value: object) -> str:
    """A value as text that is safe in markup and in attributes."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there was no sample."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose cells are markup; the first ``words`` columns are words, the others numbers."""
    kinds = ["" if i < words else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th scope=col{kind}>{name}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def bar(share: float, hot: bool = False) -> str:
    """A bar that fills a share of its place, from 0 to 1; ``hot`` gives it the colour of a warning."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar{" hot" if hot else ""}"><i style="width:{width:.1f}%"></i></span>'


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """A few large numbers; each item is (name, value, note), all markup."""
    inner = (
        f"<div class=tile><dt>{name}</dt><dd>{value}</dd><p>{note}</p></div>" for name, value, note in items
    )
    return f"<dl class=tiles>{''.join(inner)}</dl>"
