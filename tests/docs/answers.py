"""docs/answers.md, answers of a real service: ``python -m tests.docs.answers`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx

from tests.docs.fleet import plan_of, serving

PAGE: Final = Path(__file__).parents[2] / "docs" / "answers.md"
FLEET: Final = (
    "moescope simulate --ranks 2 --layers 2 --experts 8 --top-k 2 --skew 0.2 --drift 0 --hot 0.9 "
    "--hot-moves-s 86400 --steps 5 --trace-rate 0.05"
)
SECONDS: Final = 720
SCALARS: Final = 8
"""Numbers or words of a list that are shown; of objects and of lists in it the first."""
COLUMNS: Final = 110
QUESTIONS: Final = (
    ("Who reports", "/v1/ranks"),
    ("What is the matter", "/v1/verdict"),
    ("How balanced it is", "/v1/balance?start=-5m&layer=3"),
    ("Slots by layer and expert", "/v1/histogram?start=-5m&layer=3"),
    ("What waiting costs", "/v1/stragglers?start=-5m&layer=3"),
    ("Where the experts are", "/v1/placement?layer=3"),
    ("Whether another placement is worth it", "/v1/advice"),
    ("How far routing has moved", "/v1/drift?layer=3"),
    ("Traced requests", "/v1/traces?limit=1"),
    ("The experts of a request's tokens", "/v1/traces/{trace}?first=0&end=2"),
    ("A question that is refused", "/v1/balance?window=5m"),
)
HEAD: Final = f"""# Answers of the HTTP API

These are answers of a real service, which two simulated ranks have fed for twelve minutes:

```sh
{FLEET}
```

Of lists the first item is shown, or the first {SCALARS} numbers, then how many follow; numbers are
rounded. `/docs` of the service describes each field. `python -m tests.docs.answers` writes this page,
and a test compares it.
"""


def shortened(value: Any) -> Any:
    """An answer with its lists cut and its numbers rounded."""
    match value:
        case dict():
            return {name: shortened(item) for name, item in value.items()}
        case list():
            most = 1 if any(isinstance(item, dict | list) for item in value) else SCALARS
            more = [f"... {len(value) - most} more"] if len(value) > most else []
            return [*map(shortened, value[:most]), *more]
        case float():
            return float(f"{value:.4g}") if abs(value) < 1e6 else value
        case _:
            return value


def pretty(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON, with what fits into a line on one; `used` columns of it are taken."""
    flat = json.dumps(value, ensure_ascii=False)
    if used + len(flat) <= COLUMNS or not value or not isinstance(value, dict | list):
        return flat
    pad, inner = " " * (indent + 2), indent + 2
    if isinstance(value, list):
        lines = [f"{pad}{pretty(item, inner, inner)}" for item in value]
    else:
        lines = [
            f'{pad}"{name}": {pretty(item, inner, inner + len(name) + 4)}' for name, item in value.items()
        ]
    begin, end = "[]" if isinstance(value, list) else "{}"
    return "\n".join([begin, ",\n".join(lines), f"{' ' * indent}{end}"])


def page() -> str:
    """The document."""
    parts = [HEAD]
    with (
        serving(plan_of(FLEET), SECONDS) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        trace = client.get("/v1/traces").json()["traces"][0]["request_id"]
        for title, question in QUESTIONS:
            answer = client.get(question.format(trace=trace))
            status = "" if answer.status_code == 200 else f"{answer.status_code} {answer.reason_phrase}\n"
            asked = question.format(trace=trace)
            parts.append(
                f"## {title}\n\n`GET {asked}`\n\n```json\n{status}{pretty(shortened(answer.json()))}\n```\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
