"""What capture doesn't see of a window, in words, the gravest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from moescope.service.live.producers import ProducerState
from moescope.service.verdict.facts import Gap
from moescope.service.verdict.model import SEVERITIES, Severity
from moescope.service.verdict.sentences import ranges
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow


def gaps_of(window: ModelWindow, producers: Sequence[ProducerState], now: bool) -> tuple[Gap, ...]:
    """All gaps of a window.

    Args:
        window: of a deployment.
        producers: its producers as of now.
        now: whether the window ends now, so that states of now belong to it.
    """
    found = [*_of_window(window), *(_of_now(producers) if now else ())]
    return tuple(sorted(found, key=lambda gap: -SEVERITIES.index(gap.severity)))


def _of_window(window: ModelWindow) -> Iterator[Gap]:
    if window.conflict is not None:
        yield Gap("critical", window.conflict)
        return
    broken, reason = _layers(window.layers, lambda layer: layer.not_conserved)
    if broken:
        yield Gap("critical", f"counts don't add up in {_named(broken)} ({reason})")
    if window.absent:
        named = [layer for layer in window.absent if layer is not None]
        which = _named(named) if len(named) == len(window.absent) else "some MoE layers"
        reason = next(iter(window.absent.values()))
        yield Gap("critical", f"{which} of the model's config not found ({reason})")
    unseen = [layer.shape.layer for layer in window.layers if layer.unseen]
    if unseen:
        yield Gap("critical", f"{_named(unseen)} should be seen, and not all of the tokens were")
    partly = {
        layer.shape.layer: _first(layer.uncovered.values()) for layer in window.layers if layer.uncovered
    }
    uncovered = {**window.uncovered, **partly}
    if uncovered:
        yield Gap("warning", f"{_named(uncovered)} can't be seen ({_first(uncovered.values())})")
    unplaced, reason = _layers(window.layers, lambda layer: layer.ep_reason)
    if unplaced and window.ep_size > 1:
        yield Gap("warning", f"loads of EP ranks are not known in {_named(unplaced)} ({reason})")


def _of_now(producers: Sequence[ProducerState]) -> Iterator[Gap]:
    waited = [item for item in producers if item.gone is None]
    off = [item for item in waited if item.state == "disabled"]
    if off:
        severity: Severity = "critical" if len(off) == len(waited) else "warning"
        reason = off[0].latest.state_reason or "it was turned off"
        yield Gap(severity, f"capture is off on {_ranks(off)} ({reason})")
    stale = [item for item in waited if item.state == "stale"]
    if stale:
        yield Gap(
            "warning", f"{_ranks(stale)} fell silent, up to {max(item.age for item in stale):.0f} s ago"
        )


def _layers(
    layers: Iterable[LayerWindow], why: Callable[[LayerWindow], str | None]
) -> tuple[list[int], str | None]:
    """The layers that there is a reason for, and the first reason."""
    found = {layer.shape.layer: reason for layer in layers if (reason := why(layer)) is not None}
    return list(found), next(iter(found.values()), None)


def _named(layers: Iterable[int]) -> str:
    numbers = sorted(layers)
    return f"layer{'' if len(numbers) == 1 else 's'} {ranges(numbers)}"


def _ranks(producers: Sequence[ProducerState]) -> str:
    ranks = sorted({item.latest.producer.dp_rank for item in producers})
    return f"DP rank{'' if len(ranks) == 1 else 's'} {ranges(ranks)}"


def _first(reasons: Iterable[str]) -> str:
    return next(iter(reasons))
