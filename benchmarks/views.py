"""What the page asks for after new frames of many ranks: processor milliseconds of each answer and event.

    python -m benchmarks.views

A fleet of `benchmarks.scale` has sent three frames from each rank: DeepSeek-V3's shape (58 layers of 256
experts, top-8), in one deployment. Then each question is asked over the application itself, without a socket:
what the views Overview, Heatmap and Ranks ask of the last seconds, a deployment's totals, and one phase.
"event" is what `GET /v1/live` makes when frames have come. Figures are medians of process time, with all that
an answer needs: the check of its parameters, its thread, its JSON.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx
from fastapi import FastAPI, Request

from benchmarks.results_file import keep, parser_of
from benchmarks.scale import Fleet
from moescope.capture import wire
from moescope.service.api.app import create_app
from moescope.service.settings import Settings

RESULTS: Final = Path(__file__).parent / "results" / "views.json"
LAYERS: Final = 58
ROUNDS: Final = 3
NOW: Final = 1e9
QUESTIONS: Final = {
    "overview": ("/v1/view", {"start": NOW + 1.5, "parts": ["ep_ranks", "hot"]}),
    "heatmap": ("/v1/view", {"start": NOW + 1.5, "parts": ["counts", "owners"]}),
    "ranks": ("/v1/view", {"start": NOW + 1.5, "parts": ["owners", "flows"], "flow_layer": 0}),
    "since the start": ("/v1/view", {}),
    "prefill": ("/v1/view", {"start": NOW + 1.5, "phase": "prefill"}),
}


async def measured(ranks: int, runs: int) -> dict[str, Any]:
    """A row: milliseconds by question, and the bytes of its answer."""
    now = [NOW]
    app = create_app(Settings(history_mib=256, min_tokens=1), lambda: now[0])
    fleet, row = Fleet(1, ranks, LAYERS), {}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for seq in range(1, ROUNDS + 1):
            now[0] += 1
            for body in fleet.round(seq):
                headers = {"content-type": wire.CONTENT_TYPE}
                (await client.post("/v1/ingest", content=body, headers=headers)).raise_for_status()
        for name, (path, params) in QUESTIONS.items():

            async def ask(path: str = path, params: Any = params) -> int:
                return len((await client.get(path, params=params)).raise_for_status().content)

            row[name], row[f"{name} bytes"] = await timed(ask, runs)
    row["event"], row["event bytes"] = await timed(lambda: event(app), runs)
    return {"ranks": ranks, **row}


async def timed(ask: Callable[[], Awaitable[int]], runs: int) -> tuple[float, int]:
    """The median of processor milliseconds, and the bytes of the answer; the first run doesn't count."""
    nbytes, times = await ask(), []
    for _ in range(runs):
        began = time.process_time()
        await ask()
        times.append((time.process_time() - began) * 1e3)
    return round(statistics.median(times), 2), nbytes


async def event(app: FastAPI) -> int:
    """The first event of a stream; its bytes."""
    [route] = [route for route in app.routes if getattr(route, "path", "") == "/v1/live"]
    answer = await route.endpoint(Request({"type": "http", "app": app}))  # type: ignore[attr-defined]
    stream = answer.body_iterator
    await anext(stream)  # how soon to connect again
    told = await anext(stream)
    await stream.aclose()
    return len(told)


def main() -> None:
    """Measure, print, keep the results."""
    parser = parser_of(__doc__, RESULTS, runs=15)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 256], help="sizes of the deployment")
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        rows.append(asyncio.run(measured(ranks, options.runs)))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
