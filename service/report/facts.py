"""The answers of the service's API that a report is made of."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moescope.service.client.http import ServiceUnavailableError, get_json

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_POINTS: Final = 120
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Answers of the API for one deployment and window.

    Attributes:
        since_s: length of the window, seconds.
        at: end of the window, seconds of Unix time.
        balance: answer of /v1/balance.
        trend: answer of /v1/trend.
        ranks: the deployment's entry in the answer of /v1/ranks.
        stragglers: answer of /v1/stragglers.
        advice: answer of /v1/advice; None where the experts are not spread over EP ranks.
    """

    since_s: float
    at: float
    balance: dict[str, Any]
    trend: dict[str, Any]
    ranks: dict[str, Any]
    stragglers: dict[str, Any]
    advice: dict[str, Any] | None

    @property
    def tokens(self) -> str:
        """Tokens of the window, for people."""
        found = self.balance["tokens"]
        return "unknown" if found is None else f"{found:,}"


def parse_since(text: str) -> float:
    """A length such as ``90s``, ``15m``, ``1h`` or ``7d`` in seconds.

    Raises:
        ValueError: the text is no length, or it is under 2 s or over 366 days.
    """
    found = re.fullmatch(r"-?(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 2 <= seconds <= 366 * 86400:
        raise ValueError(f"{text!r} is no length of a window: give one such as 90s, 15m, 1h or 7d")
    return seconds


def gather(
    url: str,
    since_s: float,
    server: str | None,
    model: str | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Facts:
    """Ask the service at ``url`` about the window of ``since_s`` seconds until now.

    Args:
        url: address of the service.
        since_s: length of the window, seconds.
        server: deployment; None: the only one.
        model: model; None: the only one.
        tell: is called with what is being asked for, before each question.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
        SettingsError: a setting of the client can't be used.
    """
    start = f"-{since_s:.15g}s"  # no exponent: lengths are below 366 d

    def ask(path: str, **more: str | None) -> dict[str, Any]:
        tell(f"asking for {path.removeprefix('/v1/')}")
        return get_json(url, path, {"server": server, "model": model, **more}, _TIMEOUT_S)

    balance = ask("/v1/balance", start=start)
    step = max(1.0, since_s / _POINTS)
    trend = ask("/v1/trend", step=f"{step:g}", points=str(max(2, int(since_s / step))))
    deployments = [item for item in ask("/v1/ranks")["deployments"] if item["server"] == balance["server"]]
    mine = [item for item in deployments if item["model"] == balance["model"]]
    if not mine:
        raise ServiceUnavailableError(
            f"{balance['server']} {balance['model']} left while it was asked about", 404
        )
    advice = ask("/v1/advice", start=start) if mine[0]["ep_size"] > 1 else None
    return Facts(since_s, time.time(), balance, trend, mine[0], ask("/v1/stragglers", start=start), advice)
