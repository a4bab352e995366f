"""GET /: the live balance as one plain page, without scripts."""

from __future__ import annotations

from html import escape
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from moescope.service.assessment import Assessment, Cell, assess
from moescope.service.settings import Settings
from moescope.service.state import LiveState
from moescope.service.window import merge

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width"><title>moescope</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
td.none {{ color: #666; text-align: left; }}
</style></head><body>
<h1>moescope</h1>
<p><a href="/docs">API</a> · <a href="/metrics">metrics</a> · <a href="/v1/ranks">ranks</a></p>
{body}
</body></html>
"""
_EMPTY: Final = (
    "<p>No producer has reported yet. Start vLLM with "
    "<code>--worker-cls moescope.capture.worker.RoutingWorker</code>.</p>"
)


def home_router(state: LiveState, settings: Settings) -> APIRouter:
    """The page over ``state``."""
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> HTMLResponse:
        """Balance by layer since the start, refreshed every five seconds."""
        parts = [
            _deployment(assess(merge(state.spans(item, None, None)), settings.min_tokens))
            for item in state.deployments()
        ]
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        page = _PAGE.format(body="".join(parts) or _EMPTY)
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return router


def _deployment(found: Assessment) -> str:
    window = found.window
    ranks = "".join(
        f"<tr><td>{rank.rank}</td><td>{rank.tokens}</td><td>{rank.steps}</td><td>{rank.idle_steps}</td></tr>"
        for rank in window.dp_ranks
    )
    layers = "".join(_layer(found, i) for i in range(len(window.layers)))
    uncovered = "".join(
        f"<li>layer {layer}: {escape(reason)}</li>" for layer, reason in window.uncovered.items()
    )
    return (
        f"<h2>{escape(window.model)} on {escape(window.server)}</h2>"
        "<table><caption>Data-parallel ranks, since the start</caption>"
        f"<tr><th>DP rank</th><th>tokens</th><th>steps</th><th>idle steps</th></tr>{ranks}</table>"
        "<table><caption>Imbalance ratio (max / mean; 1 is best), since the start</caption>"
        "<tr><th>layer</th><th>tokens</th><th>over EP ranks</th><th>over DP ranks</th>"
        f"<th>over experts</th><th>slots by EP rank</th></tr>{layers}</table>"
        + (f"<p>Layers that can't be seen:</p><ul>{uncovered}</ul>" if uncovered else "")
    )


def _layer(found: Assessment, i: int) -> str:
    layer = found.window.layers[i]
    cells = (found.ep_ranks.cells[i], found.dp_ranks.cells[i], found.experts.cells[i])
    loads = found.ep_ranks.cells[i].loads
    slots = " / ".join(f"{value:.0f}" for value in loads) if loads is not None else "not known"
    return (
        f"<tr><td>{layer.shape.layer}</td><td>{int(layer.rows.sum())}</td>"
        f"{''.join(_cell(cell) for cell in cells)}<td>{slots}</td></tr>"
    )


def _cell(cell: Cell) -> str:
    if cell.measures is None:
        return f'<td class="none">{escape(cell.reason or "no sample")}</td>'
    return f"<td>{cell.measures['imbalance_ratio']:.3f}</td>"
