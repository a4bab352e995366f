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

_OF: Final = f"server={SERVER}"
_HOUR: Final = "start=-1h"
_ALL_PARTS: Final = "parts=counts&parts=flows&parts=owners"
QUESTIONS: Final = (
    "/metrics",
    "/openapi.json",
    "/docs",
    "/",
    "/readyz",
    "/v1/ranks",
    "/v1/pools",
    f"/v1/histogram?{_OF}",
    f"/v1/histogram?{_OF}&start=-240s&step=1s",
    f"/v1/histogram?{_OF}&start=-1h&step=3.6s&layer=3",
    f"/v1/balance?{_OF}",
    f"/v1/balance?{_OF}&phase=decode&{_HOUR}",
    f"/v1/stragglers?{_OF}",
    f"/v1/stragglers?{_OF}&start=-250s&step=1s",
    f"/v1/drift?{_OF}&baseline={BASELINE}&{_HOUR}",
    f"/v1/view?{_OF}&{_ALL_PARTS}",
    f"/v1/view?{_OF}&phase=decode&{_ALL_PARTS}",
    f"/v1/trend?{_OF}&points=240&step=1s",
    f"/v1/trend?{_OF}&points=240&step=3s&phase=decode",
    f"/v1/compare?{_OF}&{_HOUR}&base_start=-2h",
    f"/v1/baselines?{_OF}",
    f"/v1/baselines/{BASELINE}?{_OF}",
    f"/v1/advice?{_OF}",
    f"/v1/advice?{_OF}&ranks=4096&redundant=8192&redundant=7936&redundant=4096&redundant=3840",
    f"/v1/advice?{_OF}&ranks=256&nodes=32&groups=8",
    f"/v1/advice/placement?{_OF}&ranks=4096&redundant=8192&strategy=eplb",
    f"/v1/advice/placement?{_OF}&ranks=256&redundant=256&form=vllm-ascend",
    f"/v1/advice/rearrangements?{_OF}",
    f"/v1/placement?{_OF}&form=tables",
    f"/v1/placement?{_OF}&form=copies",
    f"/v1/coactivation?{_OF}&layer=3&max_traces=10000&pairs=1000",
    "/v1/traces?limit=1000",
    "/v1/traces?limit=1000&layer=3&expert=7",
    "/v1/traces/soak-0.json",
    "/v1/traces/soak-0.raw",
    "/v1/traces/soak-0.npz",
    "/v1/traces/soak-0.parquet",
)
"""Paths with queries. `tests/devkit/soak/test_questions.py` says that no route is missing."""


def settle(service: Serving, folder: Path, seconds: float = 30) -> None:
    """Let a fleet of 256 ranks report for a while, then end; keep traces, and pin a baseline.

    Then all of `QUESTIONS` are answered.
    """
    command = [sys.executable, "-m", "moescope.service", "simulate", "--url", service.url]
    command += ["--ranks", str(RANKS), "--layers", str(LAYERS), "--experts", str(EXPERTS)]
    command += ["--decode-share", "0.5", "--interval", "5", "--steps", "0.4", "--duration", str(seconds)]
    with (folder / "simulate.log").open("wb") as output:
        subprocess.run(command, stdout=output, stderr=output, check=True, timeout=20 * seconds)
    with httpx.Client(base_url=service.url, timeout=120) as client:
        headers = {"content-type": TRACE_CONTENT_TYPE}
        for number in range(TRACES):
            tokens = 65_536 if number == 0 else 4096
            body = trace_of(SERVER, f"soak-{number}", number + 1, tokens, LAYERS, EXPERTS)
            client.post("/v1/traces", content=body, headers=headers).raise_for_status()
        wanted = {"name": BASELINE, "server": SERVER, "note": "x" * 500}
        client.post("/v1/baselines", json=wanted).raise_for_status()
