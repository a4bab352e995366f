"""What an alert is made of, and the pieces of its text.

One cause is one alert. So no alert has a label for a layer, an expert, a rank, a phase or a reason: an alert
whose worst layer changed would end and begin again. What is worst is asked for in the text, which may change
while the alert fires; Alertmanager sends no second notification for that.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["critical", "warning", "info"]
"""``critical`` pages somebody; ``warning`` is work for the day; ``info`` informs."""
Kind = Literal["symptom", "cause", "capture", "service"]
"""``symptom``: ranks wait, or work is dealt unevenly. ``cause``: why that may be so. ``capture``: what is not
counted, or can't be trusted. ``service``: moescope's own process."""
Minutes = Literal[0, 2, 3, 5, 10, 15, 30]
_TOKENS_MINUTES: Final[dict[Kind, int]] = {"symptom": 5, "cause": 3}
"""These kinds of alerts are about tokens, and end so long after the last one: causes before symptoms."""

DEPLOYMENT: Final = "cluster, server, model"
"""The labels of an alert about a deployment; a replica of a pool is one."""
POOL: Final = "cluster, pool, role, model"
SERVICE: Final = "cluster, job, instance"
NAME: Final = "{{ $labels.server }} ({{ $labels.model }})"
_MATCHERS: Final = ("cluster", "pool", "role", "server", "model", "job", "instance")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: as in the runbook.
        by: the labels that it has, besides ``severity`` and ``kind``.
        expr: PromQL; has samples while something is wrong.
        minutes: how long it must have samples before the alert fires.
        keep_minutes: how long the alert goes on when ``expr`` has no samples any more, so that a value near
            its threshold is one alert, and so that what tells more outlasts what it inhibits. Only of
            symptoms and causes.
        summary: a template, one line.
        description: a template; :func:`ask` asks for what is worst.
        board: uid of the board that shows it.
    """

    name: str
    by: str
    expr: str
    severity: Severity
    kind: Kind
    minutes: Minutes
    summary: str
    description: str
    board: str
    keep_minutes: Minutes = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The names in ``by``."""
        return tuple(self.by.split(", "))

    @property
    def query(self) -> str:
        """PromQL of the rule: ``expr``, kept, and over with the tokens.

        Prometheus has ``keep_firing_for``; it would keep an alert for as long after the last token too.
        """
        if self.kind not in _TOKENS_MINUTES:
            return self.expr
        query = self.expr
        if self.keep_minutes:
            lately_so = f"max_over_time((\n{_indented(query)}\n)[{self.keep_minutes}m:1m])"
            fires = f'ALERTS{{alertname="{self.name}",alertstate="firing"}}'
            query = f"{query}\nor\n{lately_so}\nand on ({self.by}) {fires}"
        flows = f"sum by ({self.by}) (increase(moescope_tokens_total[{_TOKENS_MINUTES[self.kind]}m])) > 0"
        return f"(\n{_indented(query)}\n)\nand on ({self.by}) {flows}"


@dataclass(frozen=True, slots=True)
class Group:
    """A group of Prometheus' rules; ``note`` is a comment above it."""

    name: str
    note: str
    alerts: tuple[Alert, ...]


def _indented(text: str, by: int = 2) -> str:
    return textwrap.indent(text, " " * by)


def selecting(labels: tuple[str, ...]) -> str:
    """The begin of a text that asks: sets ``$of`` to the matchers of the alert's own series.

    A label that the alert has not, such as ``cluster`` without clusters, is matched as empty: absent.
    """
    names = [name for name in _MATCHERS if name in labels]
    matchers = ",".join(f"{name}=%q" for name in names)
    return f'{{{{ $of := printf "{matchers}" {" ".join(f"$labels.{name}" for name in names)} }}}}'


def ask(query: str, then: str, *arguments: str) -> str:
    """A text for the first sample of a query; nothing if the query finds nothing.

    Args:
        query: PromQL; a first ``%s`` is for the alert's matchers, further ones for the arguments in order.
        then: a template, in which ``.Labels`` and ``.Value`` are the sample's.
        arguments: further variables of the template.
    """
    found = f"{{{{ with query {_filled(query, arguments)} }}}}{{{{ with first . }}}}"
    return f"{found}{then}{{{{ end }}}}{{{{ end }}}}"


def each(query: str, then: str, *arguments: str) -> str:
    """A text for each sample of a query, as :func:`ask`."""
    return f"{{{{ range query {_filled(query, arguments)} }}}}{then}{{{{ end }}}}"


def _filled(query: str, arguments: tuple[str, ...]) -> str:
    if "%s" not in query:
        return f"`{query}`"
    return f"(printf `{query}` {' '.join(('$of', *arguments))})"


def lately(gauge: str, matchers: str = "") -> str:
    """A gauge of the last two minutes: a scrape that failed is no end of an alert."""
    return f"last_over_time({gauge}{matchers}[2m])"


def most(gauge: str, by: str = DEPLOYMENT, matchers: str = "") -> str:
    """The largest of a gauge's series, because several services may report one deployment."""
    return f"max by ({by}) ({lately(gauge, matchers)})"


NUMBER: Final = '{{ .Value | printf "%.0f" }}'
RATIO: Final = '{{ .Value | printf "%.2f" }}'
SHARE: Final = "{{ .Value | humanizePercentage }}"
VALUE: Final = '{{ $value | printf "%.0f" }}'
VALUE_RATIO: Final = '{{ $value | printf "%.2f" }}'
VALUE_SHARE: Final = "{{ $value | humanizePercentage }}"
