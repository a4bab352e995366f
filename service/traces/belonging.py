"""Which of the traces that an id finds are of one request, by what is said of them, not by their rows.

One id may find many traces: of a prefill and a decode instance, of retries, of the prompts of a completion,
of several samples, and of requests that have nothing in common but that a client gave their id twice:

1. vLLM's internal id means its own requests only, of each DP rank the newest, since ids may come again.
2. Traces of other models, pools or LoRA adapters, of other prompts of a completion and of other samples are
   never joined. A trace without a sample's number, as that of a prefill instance, goes with each sample.
3. All have prompts of one length.
4. One is the *main* trace, whose generated tokens the answer has. Those that computed a generated token come
   before those that did not (a prefill instance); then those that ended by themselves before those that were
   aborted, failed or cut off; then the one that ended last, by its worker's clock.
5. The others give positions of the prompt only, and only if their rows show that it is the same prompt (see
   :mod:`moescope.service.traces.agreement`).

What can't be told: prompts of one length that route alike in all positions that both computed, and the order
of attempts that ended by themselves on machines whose clocks differ by more than the time between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from moescope.service.store.records import TracedRequest
from moescope.service.traces.names import RequestName

MAX_NAMED: Final = 10
"""How many requests an error names."""
_FAILED: Final = ("abort", "error")


class SeveralError(Exception):
    """The id finds requests that don't belong together; the message names them and says how to choose."""


class SeveralSamplesError(SeveralError):
    """They are several samples of one request, and none was asked for."""


def narrowed(found: Sequence[TracedRequest], name: str, sample: int | None) -> list[TracedRequest]:
    """Those of the requests found that may be one request, by rules 1 to 3.

    Args:
        found: at least one, newest first.
        name: the id that found them.
        sample: the wanted one of several samples; None: there is one only.

    Raises:
        SeveralError: they are of several.
        LookupError: none is of the sample.
    """
    chosen = _newest([item for item in found if item.request_id == name]) or list(found)
    _one_of(chosen, lambda item: item.model, "models", "Choose one by model")
    _one_of(chosen, lambda item: item.pool, "pools", "Choose one by server")
    _one_of(chosen, lambda item: item.lora, "LoRA adapters", "Ask by vLLM's internal id")
    _one_of(
        chosen,
        lambda item: RequestName.of(item.request_id).prompt,
        "prompts of a completion",
        "Ask by the prompt's own id, such as cmpl-<id>-0, or by vLLM's internal id",
    )
    chosen = _of_sample(chosen, sample)
    _one_of(chosen, lambda item: item.prompt_tokens, "lengths of the prompt", "Ask by vLLM's internal id")
    return chosen


def _newest(found: Sequence[TracedRequest]) -> list[TracedRequest]:
    """The newest of each DP rank."""
    newest: dict[tuple[str, str, int], TracedRequest] = {}
    for item in found:
        newest.setdefault((item.server, item.model, item.dp_rank), item)
    return list(newest.values())


def _of_sample(found: list[TracedRequest], sample: int | None) -> list[TracedRequest]:
    numbers = {number for item in found if (number := RequestName.of(item.request_id).sample) is not None}
    if sample is None:
        if len(numbers) > 1:
            listing = ", ".join(f"sample={number}" for number in sorted(numbers)[:MAX_NAMED])
            raise SeveralSamplesError(f"It has several samples. Choose one by {listing}: {_named(found)}.")
        return found
    if sample not in numbers:
        raise LookupError(f"There is no sample {sample}; known are {sorted(numbers)[:MAX_NAMED]}.")
    return [item for item in found if RequestName.of(item.request_id).sample in (None, sample)]


def main_of(found: Sequence[TracedRequest], generated: Sequence[bool]) -> int:
    """Which of the requests is the main one, by rule 4.

    Args:
        found: at least one.
        generated: of each whether it computed a generated token.
    """
    order = range(len(found))
    return max(order, key=lambda at: (generated[at], ended_well(found[at]), newest_last(found[at])))


def newest_last(item: TracedRequest) -> tuple[float, int]:
    """A key that sorts requests by their end."""
    return item.ended_at, item.number


def ended_well(item: TracedRequest) -> bool:
    """Whether it ended by itself, as far as its worker can tell."""
    return item.outcome == "ended" and item.finish_reason not in _FAILED


def _one_of(
    found: Sequence[TracedRequest], what: Callable[[TracedRequest], object], kind: str, how: str
) -> None:
    values = {what(item) for item in found}
    if len(values) > 1:
        listing = ", ".join(sorted(repr(value) for value in values)[:MAX_NAMED])
        raise SeveralError(f"They are of several {kind}: {listing}. {how}: {_named(found)}.")


def _named(found: Sequence[TracedRequest]) -> str:
    shown = [
        f"{item.request_id} (server={item.server} dp_rank={item.dp_rank}, a prompt of {item.prompt_tokens})"
        for item in found[:MAX_NAMED]
    ]
    return ", ".join(shown) + (", and more" if len(found) > MAX_NAMED else "")
