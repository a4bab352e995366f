"""The page around the sections: everything inline, nothing fetched, no script."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files

from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, text
from moescope.service.report.sections import SECTIONS


def document(facts: Facts) -> str:
    """The report as HTML."""
    sections = [found for make in SECTIONS if (found := make(facts)) is not None]
    model, server = text(facts.balance["model"]), text(facts.balance["server"])
    style = files("moescope.service").joinpath("report", "style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>Routing of {model}</title><style>{style}</style></head><body><main>"
        f"<header><h1>Routing of {model}</h1><p>{server} · {_when(facts)}</p></header>"
        f"{''.join(map(_markup, sections))}"
        f"<footer><p>moescope {text(version('moescope'))}. Tokens are rows that the model computed; a slot "
        "is a token's choice of one expert.</p></footer></main></body></html>\n"
    )


def _markup(section: Section) -> str:
    lead = f"<p class=lead>{text(section.lead)}</p>" if section.lead else ""
    return f"<section><h2>{text(section.title)}</h2>{lead}{section.body}</section>"


def _when(facts: Facts) -> str:
    first, last = (
        datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for instant in (facts.at - facts.since_s, facts.at)
    )
    return f"{first} to {last} UTC"
