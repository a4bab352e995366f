"""The sentences of verdicts, each written once: page, command line and API show them as they are.

Alerts may use them too, with their own expressions in the places: ``SENTENCES["dp_uneven"].format(rank="{{
$labels.dp_rank }}", ratio="{{ $value | humanize }}x")``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from moescope.service.windows.silence import Silence

SENTENCES: Final = {
    "silent": "No worker of this deployment has sent anything for {age}: nothing is known of the time since.",
    "ended": "All workers of this deployment shut down in order, {age} ago.",
    "no_traffic": "No traffic: no token was computed in {seconds}, though workers of {ranks} report.",
    "capture_incomplete": "Capture is incomplete: {gap}.{more}",
    "part_only": "The numbers are of a part of the deployment only: {partial}.",
    "too_little_data": "Too little data to judge balance: {reasons}.",
    "one_expert_hot": (
        "One expert alone makes its EP rank the busiest in {hot} of {layers} layers, such as expert {expert} "
        "of layer {layer} on EP rank {rank}, which gets {over_fair} a fair share. "
        "An average EP rank waits {waiting}."
    ),
    "one_rank_hot": (
        "EP rank {rank} is the busiest in {hot} of {layers} layers and causes {caused} of the waiting. "
        "An average EP rank waits {waiting}."
    ),
    "ranks_hot_by_layer": (
        "Another EP rank is hot from layer to layer: {busiest} of {ranks} ranks are the busiest of some "
        "layer, and none causes more than {caused} of the waiting. Over all layers together every rank has "
        "{least} to {most} a fair share, but each layer waits for its own busiest rank, and that adds up: an "
        "average EP rank waits {waiting}."
    ),
    "dp_uneven": (
        "DP rank {rank} computes {ratio} its fair share of the tokens: requests are shared out unevenly over "
        "{ranks} DP ranks."
    ),
    "steps_only": (
        "EP ranks are hot in single steps only: an average EP rank waits {waiting} of the time in experts, "
        "another one is hot from step to step, and over the window all are even ({ratio}). "
        "That comes from batches, not from the placement."
    ),
    "drifted": (
        "Routing has drifted: {moved} of the slots go to other experts than in {base} (median layer); "
        "{new_hot} experts are newly hot, {new_dead} newly dead."
    ),
    "balanced": ("Balanced: an average EP rank waits {waiting}."),
    "waiting": "{share} of the time in experts by the window's sums ({ratio} over {layers})",
    "in_steps": "{waiting}, and {share} in single steps",
    "one_ep_rank": "Balanced: there is one EP rank, so no rank waits for another.",
}

ACTIONS: Final = {
    "silent": (
        "Check that vLLM runs, and that its hosts reach this service: vLLM's log has lines that begin with "
        "moescope."
    ),
    "ended": "Nothing is to be done.",
    "no_traffic": "Nothing is to be done, unless traffic should come: then look at what sends it.",
    "capture_incomplete": "See capture health, which names ranks, layers and reasons (/v1/ranks).",
    "part_only": "Find out why the other workers don't report: capture health names them (/v1/ranks).",
    "too_little_data": "Wait for more traffic, or ask about a longer window.",
    "dp_uneven": (
        "Look at the router or load balancer in front of the DP ranks. EPLB moves experts, not requests: it "
        "doesn't mend this."
    ),
    "steps_only": "Larger or better mixed batches help. EPLB doesn't: there is nothing to be moved.",
    "drifted": (
        "Find out what changed: traffic, or weights. A placement made from older loads may no longer fit; if "
        "the change is wanted, pin a new baseline."
    ),
    "balanced": "Nothing is to be done.",
    "worth_it": (
        "{name} would bring the waiting from {before} to {after}, on loads that it was not fitted on: it "
        "saves {saved} of the waiting and costs {memory} more memory for experts."
    ),
    "no_placement_helps": "No other placement is recommended: {reason}",
    "not_known_yet": "What another placement (EPLB) would save is not known: {reason}.",
}


def silence_words(silence: Silence) -> str:
    """What is said of a silent deployment."""
    return SENTENCES["ended" if silence.ended else "silent"].format(age=duration(silence.age))


def percent(share: float) -> str:
    """A share as 38 %; below ten percent with a decimal."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def times(ratio: float) -> str:
    """A ratio as 2.50x."""
    return f"{ratio:.2f}x"


def duration(seconds: float) -> str:
    """A length of time as 42 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h".replace(".0 h", " h")


def plural(number: int, one: str) -> str:
    """1 rank, 2 ranks."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """1, 2 and 5 to 7 as "1-2, 5-7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
