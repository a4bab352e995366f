"""What an operator should do, in words, with the figures that the words rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from moescope.service.advice.evidence import Evidence, Waiting
from moescope.service.advice.what_if import Option, WhatIf, saving
from moescope.service.measures.divergence import jensen_shannon, sampling_noise

Decision = Literal["worth_it", "not_worth_it", "ages_too_fast", "too_early", "no_sample"]

WORTH_IT: Final = "Worth it: "
CLOSE: Final = 0.01  # savings closer than this are alike: the option that asks for less is taken


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the later window's routing is from the first's: Jensen-Shannon divergence in bits, over layers.

    ``noise`` is what sampling alone would show, the median over layers.
    """

    median: float
    worst: float
    worst_layer: int
    noise: float

    @property
    def shows(self) -> bool:
        """Whether it is more than sampling."""
        return self.median > 3 * self.noise


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, the option it recommends (None: leave it), the sentence, and what it rests on."""

    decision: Decision
    choice: Option | None
    words: str
    evidence: tuple[str, ...]


def drift_of(evidence: Evidence) -> Drift:
    """The drift from the first window to the later one; at least one layer has slots in both."""
    found = jensen_shannon(evidence.fit, evidence.later)
    worst = int(np.argmax(found))
    noise = float(np.median(sampling_noise(evidence.fit, evidence.later)))
    return Drift(
        median=float(np.median(found)),
        worst=float(found[worst]),
        worst_layer=evidence.layers[worst],
        noise=noise,
    )


def no_sample(evidence: Evidence) -> Verdict:
    """The verdict where no layer can be judged."""
    reasons = sorted(set(evidence.left_out.values()))
    words = (
        "No sample: no layer has enough tokens in both windows. Give a longer window, or wait for traffic."
    )
    return Verdict(decision="no_sample", choice=None, words=words, evidence=tuple(reasons[:5]))


@dataclass(frozen=True, slots=True)
class Scale:
    """What the options are weighed with.

    Attributes:
        groups: expert groups of the model's router; without any, vLLM has no round-robin placement.
        min_gain: least saving that is worth a change.
        memory_price: saving that twice the memory for experts must bring at least; less in proportion.
    """

    groups: int
    min_gain: float
    memory_price: float

    def worth(self, option: Option, experts: int) -> float:
        """Its saving in the later window, less the price of its redundant experts."""
        return option.saving_held_out - self.memory_price * (option.redundant or 0) / experts


def decide(evidence: Evidence, found: WhatIf, drift: Drift, waiting: Waiting | None, scale: Scale) -> Verdict:
    """Weigh the options.

    The recommended one saves at least ``min_gain`` in the later window, is worth as much as the best within a
    percentage point, and is the first of these in the order of what they ask: a flag, rearranging, memory.
    """
    groups, min_gain, experts = scale.groups, scale.min_gain, evidence.experts
    usable = [item for item in found.options if item.strategy != "round_robin" or groups > 1]
    best = max(usable, key=lambda item: item.saving_held_out)
    hoped = max(usable, key=lambda item: item.saving_fitted)
    enough = [item for item in usable if item.saving_held_out >= min_gain]
    if enough:
        most = max(scale.worth(item, experts) for item in enough)
        choice = next(item for item in enough if scale.worth(item, experts) >= most - CLOSE)
        decision: Decision = "worth_it"
        words = f"{WORTH_IT}{name_of(choice)} would have saved {choice.saving_held_out:.1%} of the busiest "
        words += f"ranks' slots ({_from_to(found.base, choice)}), on loads that it was not fitted on."
    elif hoped.saving_fitted >= min_gain and saving(found.base.fitted, hoped.held_out) >= min_gain:
        # The option held what it promised. The present placement, which EPLB may have changed, caught up.
        choice, decision = None, "not_worth_it"
        words = f"Not worth it: the present placement became better meanwhile; {name_of(best)} would have "
        words += f"saved {max(best.saving_held_out, 0):.1%} of the busiest ranks' slots in the later window."
    elif hoped.saving_fitted >= min_gain:
        choice, decision = None, "ages_too_fast"
        words = f"Not worth it as it stands: {name_of(hoped)} looks {hoped.saving_fitted:.1%} better on the "
        words += f"loads it was fitted on, and saves {hoped.saving_held_out:.1%} on later ones. "
        words += (
            "The routing drifts: only rearranging more often could help."
            if drift.shows
            else "What it was fitted on is chance: fit on more tokens."
        )
    else:
        choice, decision = None, "not_worth_it"
        words = f"Not worth it: the best placement, {name_of(best)}, would have saved "
        words += f"{max(best.saving_held_out, 0):.1%} of the busiest ranks' slots, less than {min_gain:.0%}."
    shown = choice or (hoped if decision == "ages_too_fast" else best)
    return Verdict(decision, choice, words, tuple(_evidence(evidence, found.base, shown, drift, waiting)))


def name_of(option: Option) -> str:
    """What a person would call the option."""
    if option.strategy != "eplb":
        return {"linear": "linear placement", "round_robin": "round-robin placement"}.get(
            option.strategy, "the present placement"
        )
    if not option.redundant:
        return "EPLB without redundant experts"
    return f"EPLB with {option.redundant} redundant experts"


def _evidence(
    evidence: Evidence, base: Option, shown: Option, drift: Drift, waiting: Waiting | None
) -> list[str]:
    said = [
        f"Fitted on {evidence.fit_tokens:,} tokens, checked on the {evidence.later_tokens:,} that followed, "
        f"in {len(evidence.layers)} layers of {evidence.experts} experts on {evidence.ranks} EP ranks.",
        f"Predicted saving {shown.saving_fitted:.1%}, held-out saving {shown.saving_held_out:.1%}; perfect "
        f"balance would save {_perfect(base):.1%}.",
    ]
    pieces = [
        f"{1 - mine / theirs:.1%}"
        for mine, theirs in zip(shown.pieces, base.pieces, strict=True)
        if mine is not None and theirs is not None
    ]
    if len(pieces) > 1:
        said.append(f"Saving in the {len(pieces)} pieces of the later window, in order: {', '.join(pieces)}.")
    said.append(
        f"Routing moved by {drift.median:.4f} bits between the windows (median layer; sampling alone: "
        f"{drift.noise:.4f}), most in layer {drift.worst_layer}: {drift.worst:.4f}."
    )
    if base.strategy != "present":
        said.append(f"The base is linear placement, not what was observed: {evidence.unseen}.")
    if base.estimate is not None:
        said.append(f"What ranks really got, which savings are against, is an estimate: {base.estimate}.")
    said += _costs(evidence, shown)
    if evidence.left_out:
        layers = sorted(evidence.left_out)
        number = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
        first = evidence.left_out[layers[0]]
        said.append(f"{number} could not be judged, such as {layers[0]}: {first}.")
    said.append(_per_step(waiting))
    return said


def _per_step(waiting: Waiting | None) -> str:
    """What sums over windows hide."""
    if waiting is not None:
        return (
            f"In {waiting.steps:,} single steps an average rank waited {waiting.cost:.1%} of the time in "
            f"experts; {waiting.windowed:.1%} shows in the window's sums, which is what placement can mend. "
            "The rest comes from hot ranks that change."
        )
    return (
        "Loads are sums over each window: where the hot rank changes from step to step, steps are less even "
        "than this shows, and no placement mends that."
    )


def _costs(evidence: Evidence, shown: Option) -> list[str]:
    costs = []
    if shown.redundant:
        each, memory = shown.redundant / evidence.ranks, shown.redundant / evidence.experts
        costs.append(
            f"It needs room for {each:.3g} redundant copies a rank in each layer: {memory:.1%} more memory "
            "for experts than one copy of each."
        )
    if shown.in_vain and shown.own is not None:
        apart, after = _ratio(shown.own), _ratio(shown)
        costs.append(
            f"vLLM's policy would put {shown.in_vain:,} of these copies, over all judged layers, on a rank "
            f"that has that expert already: memory for nothing. Our own placement puts {shown.own.in_vain:,} "
            f"there; its ratio in the later window is {apart}, that of vLLM's {after}."
        )
    if shown.moves is not None:
        costs.append(f"Getting there moves {shown.moves:,} expert copies, over all judged layers.")
    if shown.strategy == "round_robin":
        costs.append("vLLM takes it only with --enable-expert-parallel, without EPLB, for grouped routers.")
    return costs


def _ratio(option: Option) -> str:
    ratio = option.held_out.summary.ratio_of_sums
    return "not known" if ratio is None else f"{ratio:.3f}"


def _from_to(base: Option, choice: Option) -> str:
    before, after = base.held_out.summary.ratio_of_sums, choice.held_out.summary.ratio_of_sums
    return f"imbalance {before:.3f} to {after:.3f}, ratio of sums over {base.held_out.summary.layers} layers"


def _perfect(base: Option) -> float:
    ratio = base.held_out.summary.ratio_of_sums
    return 0.0 if ratio is None else 1 - 1 / ratio
