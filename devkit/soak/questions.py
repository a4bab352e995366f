"""The most expensive questions that the limits accept, of every route, over a fleet of 256 ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx

from devkit.soak.costly import trace_of
from devkit.soak.serving import Serving
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE

RANKS: Final = 256
LAYERS: Final = 58
EXPERTS: Final = 256
SERVER: Final = "simulated"
BASELINE: Final = "soak"
TRACES: Final = 30

_QUESTIONS: Final = (
    "/metrics",
    "/openapi.json",
    "/docs",
    "/",
    "/readyz",
    "/v1/ranks",
    "/v1/pools",
    "/v1/histogram?server={server}",
    "/v1/histogram?server={server}&start=-240s&step=1s",
    "/v1/histogram?server={server}&start=-1h&step=3.6s&layer=3",
    "/v1/balance?server={server}",
    "/v1/balance?server={server}&phase=decode&start=-1h",
    "/v1/stragglers?server={server}",
    "/v1/stragglers?server={server}&start=-250s&step=1s",
    "/v1/drift?server={server}&baseline=soak&start=-1h",
    "/v1/view?server={server}&parts=counts&parts=flows&parts=owners",
    "/v1/view?server={server}&parts=ep_ranks&parts=hot",
    "/v1/view?server={server}&phase=decode&parts=counts&parts=flows&parts=owners",
    "/v1/trend?server={server}&points=240&step=1s",
    "/v1/trend?server={server}&points=240&step=3s&phase=decode",
    "/v1/compare?server={server}&start=-1h&base_start=-2h",
    "/v1/baselines?server={server}",
    "/v1/baselines/soak?server={server}",
    "/v1/advice?server={server}",
    "/v1/advice?server={server}&ranks=4096&redundant=3840&redundant=7936",
    "/v1/advice?server={server}&ranks=256&nodes=32&groups=8",
    "/v1/advice/placement?server={server}&ranks=4096&redundant=3840&strategy=eplb",
    "/v1/advice/placement?server={server}&ranks=256&redundant=256&form=vllm-ascend",
    "/v1/advice/rearrangements?server={server}",
    "/v1/placement?server={server}&form=tables",
    "/v1/placement?server={server}&form=copies",
    "/v1/coactivation?server={server}&layer=3&max_traces=10000&pairs=1000",
    "/v1/traces?limit=1000",
    "/v1/traces?limit=1000&layer=3&expert=7",
    "/v1/traces/soak-0.json",
    "/v1/traces/soak-0.raw",
    "/v1/traces/soak-0.npz",
    "/v1/traces/soak-0.parquet",
    "/v1/traces/export?server={server}&format=ndjson",
    "/v1/traces/export?server={server}&format=ndjson&joined=true",
    "/v1/requests/unusual?server={server}&limit=1000",
    "/v1/requests/concentrated?server={server}&limit=1000",
    "/v1/requests/similar?like=soak-0&limit=1000",
    "/v1/requests/histogram?server={server}",
    "/v1/requests/soak-0/routing",
    "/v1/requests/soak-0/routing.npz",
    "/v1/verdict?server={server}",
)


def questions_about(server: str = SERVER) -> list[str]:
    """Paths with queries; `tests/devkit/soak/test_questions.py` says that no route is missing."""
    return [text.format(server=server) for text in _QUESTIONS]


def settle(service: Serving, folder: Path, seconds: float = 30) -> None:
    """Let a fleet of 256 ranks report for a while, then end; keep traces, and pin a baseline.

    Then all of `questions_about` are answered.
    """
    command = [sys.executable, "-m", "moescope.service", "simulate", "--url", service.url]
    command += ["--ranks", str(RANKS), "--layers", str(LAYERS), "--experts", str(EXPERTS)]
    command += ["--decode-share", "0.5", "--interval", "5", "--steps", "0.4", "--duration", str(seconds)]
    with (folder / "simulate.log").open("wb") as output:
        subprocess.run(command, stdout=output, stderr=output, check=True, timeout=20 * seconds)
    with httpx.Client(base_url=service.url, timeout=120) as client:
        keep(client, SERVER, 65_536, TRACES)


def keep(client: httpx.Client, server: str, tokens: int, traces: int) -> None:
    """Keep traces of a deployment, the first of so many tokens and others of less, and pin a baseline."""
    headers = {"content-type": TRACE_CONTENT_TYPE}
    [model] = [
        item["model"] for item in client.get("/v1/ranks").json()["deployments"] if item["server"] == server
    ]
    for number in range(traces):
        size = tokens if number == 0 else tokens // 16 + number
        body = trace_of(server, model, f"soak-{number}", size, LAYERS, EXPERTS)
        client.post("/v1/traces", content=body, headers=headers).raise_for_status()
    wanted = {"name": BASELINE, "server": server, "note": "x" * 500}
    client.post("/v1/baselines", json=wanted).raise_for_status()
