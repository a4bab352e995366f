"""Links to the proof of a number: always deployment, window and view, relative to the service's address."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True)
class Links:
    """Of one deployment and one window, seconds of Unix time; start None: since the workers' start."""

    server: str
    model: str
    start: float | None
    end: float

    def view(self, name: str, **choices: str | int) -> str:
        """A view of the page."""
        window = (
            {"window": "all"}
            if self.start is None
            else {"from": math.floor(self.start), "to": math.ceil(self.end)}
        )
        return f"#/{name}?{urlencode({'server': self.server, 'model': self.model, **window, **choices})}"

    def api(self, path: str, windowed: bool = True, **parameters: str | int) -> str:
        """An answer of the API; ``windowed``: the route takes a window."""
        window: dict[str, str] = {}
        if windowed:
            window = {} if self.start is None else {"start": f"{self.start:.3f}"}
            window["end"] = f"{self.end:.3f}"
        query = urlencode({"server": self.server, "model": self.model, **window, **parameters})
        return f"v1/{path}?{query}"
