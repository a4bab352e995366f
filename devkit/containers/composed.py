"""docker-compose.yml by podman-compose: the service, a simulated fleet, and Prometheus, which is asked."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from devkit.board_pictures.data import BOARDS, View, ask
from devkit.containers.engine import Engine
from devkit.containers.service import Result
from devkit.processes import port_is_free

ROOT: Final = Path(__file__).resolve().parents[2]
PORTS: Final = (9890, 9090)
"""What the file publishes of these services, on loopback."""
_PATIENCE_S: Final = 180.0
_Found = TypeVar("_Found")


def composed(engine: Engine, tool: Path) -> Iterator[Result]:
    """Start the file's services, unchanged, and ask Prometheus."""
    busy = [port for port in PORTS if not port_is_free(port)]
    if busy:
        yield "ports of docker-compose.yml", False, f"{busy} are taken: end what listens there"
        return
    engine.environment |= {"MOESCOPE_TOKEN": secrets.token_hex(16), "GRAFANA_PASSWORD": "not-started"}
    compose = (str(tool), "--file", str(ROOT / "docker-compose.yml"), "--profile", "simulate")
    with _health_checks(engine):
        try:
            for name in ("moescope", "prometheus", "simulate"):
                done = engine.call(*compose, "up", "--detach", "--no-build", name, timeout_s=300)
                if done.returncode:
                    yield f"compose up {name}", False, done.stderr[-1500:]
                    return
            names = engine.podman("ps", "--format", "{{.Names}}").split()
            yield "compose: moescope, simulate, prometheus run", len(names) == 3, f"{len(names)} containers"
            yield from _asked()
        finally:
            engine.call(*compose, "down", "--volumes", timeout_s=300)


@contextmanager
def _health_checks(engine: Engine) -> Iterator[None]:
    """Run the containers' health checks, as systemd's timers do where there is systemd."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(2):
            for name in engine.call("podman", "ps", "--format", "{{.Names}}").stdout.split():
                engine.call("podman", "healthcheck", "run", name)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(30)


def _asked() -> Iterator[Result]:
    """Targets, rules and the boards' queries."""
    with httpx.Client(base_url="http://127.0.0.1:9090", timeout=60) as client:
        up = _until(lambda: _series(client, 'up{job="moescope"} == 1'))
        yield "Prometheus scrapes the service by its name in the network", bool(up), f"{len(up)} target"
        # Rates over five minutes, and what is recorded from them, need some scrapes.
        found = _until(lambda: _series(client, "model:moescope_ep_imbalance:ratio_rate5m"))
        yield (
            "recording rules have data",
            bool(found),
            f"imbalance ratio {found[0]['value'][1] if found else None}",
        )
        _until(lambda: not _rules(client, "unknown"))
        rules, wrong = _rules(client, "ok"), _rules(client, "err")
        yield "rules are evaluated", len(rules) > 50 and not wrong, f"{len(rules)} rules, wrong: {wrong}"
        end = time.time()
        view = View(end - 120, end, 15, {"server": "simulated"})
        for path in sorted(BOARDS.glob("*.json")):
            yield _board(client, path, view)


def _board(client: httpx.Client, path: Path, view: View) -> Result:
    """A board whose queries Prometheus takes; how many have data depends on what the fleet does."""
    targets = [
        target for panel in json.loads(path.read_text())["panels"] for target in panel.get("targets", ())
    ]
    answers = [len(ask(client, target, view)) for target in targets]
    with_data = sum(map(bool, answers))
    return f"board {path.stem}", with_data > 0, f"{with_data} of {len(answers)} queries have data"


def _series(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    found: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return found


def _rules(client: httpx.Client, health: str) -> list[str]:
    """The rules of this health, by name; ``unknown`` are those that were not evaluated yet."""
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == health]


def _until(look: Callable[[], _Found]) -> _Found:
    """What is found at last, or what there is when time is up."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def install_compose(folder: Path, uv: str) -> Path:
    """podman-compose in an environment of its own."""
    subprocess.run([uv, "venv", "--quiet", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "podman-compose"], check=True)
    return folder / "bin" / "podman-compose"
