"""A board with what its queries answer, as a Grafana server would ask them of Prometheus."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

Answers = dict[str, Any]
BOARDS: Final = Path(__file__).parents[2] / "dashboards" / "boards"


@dataclass(frozen=True)
class View:
    """What a person chose on a board.

    Attributes:
        start, end: the time range, seconds since 1970.
        scrape_s: Prometheus's scrape interval, and here the step of range queries.
        values: chosen values of variables; the others have All chosen.
    """

    start: float
    end: float
    scrape_s: int
    values: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        """The text with variables filled in; Grafana takes at least four scrapes as rate interval."""
        text = text.replace("$__rate_interval", f"{4 * self.scrape_s}s")
        text = re.sub(r'"\$(\w+)"', lambda found: f'"{self.values.get(found[1], ".*")}"', text)
        return re.sub(r"\$(\w+)", lambda found: self.values.get(found[1], found[0]), text)


def ask(client: httpx.Client, target: dict[str, Any], view: View) -> list[dict[str, Any]]:
    """The series of one query: ``metric`` and ``values``, pairs of time and text.

    Raises:
        httpx.HTTPStatusError: Prometheus refuses the query.
    """
    text = view.fill(target["expr"])
    if target.get("instant"):
        answer = client.get("/api/v1/query", params={"query": text, "time": view.end})
    else:
        times = {"start": view.start, "end": view.end, "step": view.scrape_s}
        answer = client.get("/api/v1/query_range", params={"query": text, **times})
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return [{"metric": one["metric"], "values": one.get("values") or [one["value"]]} for one in found]


def answered(client: httpx.Client, name: str, view: View) -> Answers:
    """A board's JSON with a ``result`` in each query, and the view, for draw.jsx."""
    board = json.loads((BOARDS / f"moescope-{name}.json").read_text())
    for panel in board["panels"]:
        panel["title"] = view.fill(panel["title"])
        for target in panel.get("targets", []):
            target["result"] = ask(client, target, view)
    return {"board": board, "from": view.start, "to": view.end, "step": view.scrape_s}


def without_data(answers: Answers) -> list[str]:
    """Titles of the panels of which no query found anything."""
    panels = [panel for panel in answers["board"]["panels"] if panel["type"] != "row"]
    return [panel["title"] for panel in panels if not any(target["result"] for target in panel["targets"])]
