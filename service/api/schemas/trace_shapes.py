"""The shape that a trace is wanted in: ours, or that of vLLM's own ``routed_experts``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from fastapi import Query

from moescope.capture.wire import MoeLayer
from moescope.service.api.problems import ProblemError
from moescope.service.live.producers import Deployment, ProducerState
from moescope.service.store.records import TracedRequest
from moescope.service.traces.forms import Shaped, VllmRouting, VllmShape, missing_runs

MAX_DECODER_LAYERS: Final = 1024
"""Most decoder layers of a model."""
MAX_RUNS_TOLD: Final = 20
"""How many runs of missing positions an answer names."""


class Form(StrEnum):
    """Shapes of an array of experts."""

    MOESCOPE = "moescope"
    VLLM = "vllm"


class Missing(StrEnum):
    """What becomes of positions that vLLM's shape can't say."""

    REFUSE = "refuse"
    ZERO = "zero"


FormParam = Annotated[
    Form,
    Query(
        description="`moescope`: the MoE layers, int16, -1 where a position was not computed. `vllm`: as "
        "vLLM's own `routed_experts`: all decoder layers, uint8 (uint16 above 256 experts), 0 in layers "
        "without experts."
    ),
]
MissingParam = Annotated[
    Missing,
    Query(
        description="With form=vllm, which has no number for a position that was not computed: `refuse` it "
        "(409), or take `zero`; X-Moescope-Missing then names such positions."
    ),
]
DecoderLayersParam = Annotated[
    int | None,
    Query(
        ge=1,
        le=MAX_DECODER_LAYERS,
        description="With form=vllm: how many decoder layers the model has, where its workers don't tell.",
    ),
]


@dataclass(frozen=True, slots=True)
class Wish:
    """The shape that is wanted; see the parameters.

    Raises:
        ProblemError: parameters of one form with the other (400).
    """

    form: Form = Form.MOESCOPE
    missing: Missing = Missing.REFUSE
    decoder_layers: int | None = None

    def __post_init__(self) -> None:
        if self.form is not Form.VLLM and (self.missing is not Missing.REFUSE or self.decoder_layers):
            raise ProblemError(
                400,
                "wrong-form",
                "Parameters of another form",
                "missing and decoder_layers belong to form=vllm: add it, or leave them out. form=moescope "
                "has -1 where a position is missing.",
            )


class Depths:
    """What the workers that report, or did, say of the decoder layers of their models.

    Args:
        producers: all that are known.
    """

    def __init__(self, producers: Sequence[ProducerState]) -> None:
        self._depths: dict[Deployment, set[int]] = {}
        self._unseen: dict[Deployment, dict[int | None, str]] = {}
        self._covered: dict[Deployment, set[int]] = {}
        self._stages: dict[Deployment, set[int]] = {}
        self._pp_size: dict[Deployment, int] = {}
        for producer in producers:
            who, latest = producer.latest.producer, producer.latest
            deployment = who.server, who.model
            self._depths.setdefault(deployment, set()).add(latest.decoder_layers)
            self._stages.setdefault(deployment, set()).add(who.pp_rank)
            self._pp_size[deployment] = max(who.pp_size, self._pp_size.get(deployment, 1))
            counted = self._covered.setdefault(deployment, set())
            counted |= {layer.layer for layer in latest.counted.layout.layers}
            unseen = self._unseen.setdefault(deployment, {})
            unseen |= {entry.layer: f"uncovered: {entry.reason}" for entry in latest.uncovered}
            unseen |= {layer: f"absent: {reason}" for layer, reason in latest.absences}

    def tell_all(
        self, deployment: Deployment, layers: Collection[MoeLayer], wanted: Collection[int] | None
    ) -> bool:
        """Whether it is known of all layers ``wanted`` whether they have experts.

        They were traced, or :meth:`shape_of` refuses them, since a worker of each stage told its own.
        """
        if wanted is None:
            return False
        stages = len(self._stages.get(deployment, set()))
        all_told = stages >= self._pp_size.get(deployment, 1)
        return all_told or set(wanted) <= {layer.layer for layer in layers}

    def shape_of(
        self,
        deployment: Deployment,
        layers: Collection[MoeLayer],
        wish: Wish,
        name: str,
        wanted: Collection[int] | None = None,
    ) -> VllmShape:
        """vLLM's shape of a traced model.

        Args:
            deployment: whose request it is.
            layers: all MoE layers that were traced.
            wish: ``decoder_layers`` and ``missing`` of it count.
            name: the request's, for messages.
            wanted: the decoder layers that are asked for; None: all.

        Raises:
            ProblemError: the number of decoder layers isn't known or can't be right, or a layer has experts
                that nobody saw, or that the trace lacks (409).
        """
        told_depths = sorted(self._depths.get(deployment, set()) - {0})
        depth = wish.decoder_layers or (told_depths[0] if len(told_depths) == 1 else None)
        least = 1 + max(layer.layer for layer in layers)
        if depth is None or depth < least:
            numbers = told_depths if depth is None else [depth]
            said = f"tell {', '.join(map(str, numbers))}" if numbers else "don't tell"
            raise ProblemError(
                409,
                "unknown-depth",
                "How many decoder layers?",
                f"vLLM's shape of {name} has all decoder layers of {deployment[1]}; its workers or the "
                f"question {said} how many, and layer {least - 1} was traced. Give decoder_layers "
                "(num_hidden_layers of the model's config), or take form=moescope.",
            )
        unseen = self._unseen.get(deployment, {}) | dict.fromkeys(
            sorted(self._covered.get(deployment, set()) - {layer.layer for layer in layers}),
            "not in this trace: a worker's part of it is missing",
        )
        unseen = {
            layer: why for layer, why in unseen.items() if wanted is None or layer is None or layer in wanted
        }
        if unseen and wish.missing is Missing.REFUSE:
            listed = "; ".join(
                f"{'some layers' if layer is None else f'layer {layer}'} {reason}"
                for layer, reason in list(unseen.items())[:MAX_RUNS_TOLD]
            )
            raise ProblemError(
                409,
                "layers-missing",
                "Layers are missing",
                f"Layers of {deployment[1]} have experts that are not known, and vLLM's shape has no number "
                f"for that: {listed}. Take form=moescope, other layers with layer=, or missing=zero.",
            )
        return VllmShape(
            depth, max(layer.top_k for layer in layers), max(layer.num_experts for layer in layers)
        )


def refuse_parts(found: TracedRequest, wish: Wish, known: bool) -> None:
    """A trace of which workers have not brought their part has no rows for it, perhaps none at its end.

    Args:
        found: the request.
        wish: what is wanted.
        known: of all wanted layers it is known whether they are there, see :meth:`Depths.tell_all`.

    Raises:
        ProblemError: such a trace, where missing positions are to be refused (409).
    """
    stages = 0 if known else found.missing_stages
    if wish.missing is Missing.REFUSE and (stages or found.missing_tokens):
        raise incomplete(found, stages, found.missing_tokens, "ask again")


def incomplete(found: TracedRequest, stages: int, tokens: int, how: str) -> ProblemError:
    """What refuses a trace of which so much has not come; ``how`` is what may help."""
    return ProblemError(
        409,
        "trace-incomplete",
        "Parts of the trace are missing",
        f"Workers have not brought their parts of {found.request_id} (yet): {stages} pipeline stages and "
        f"{tokens} tokens are missing. vLLM's shape can't say so: {how}, or take form=moescope, or "
        "missing=zero.",
    )


def in_form(
    routing: Shaped, wish: Wish, shape: VllmShape | None, wanted: Collection[int] | None, name: str
) -> Shaped:
    """The routing in the form that is wanted.

    Args:
        routing: what there is.
        wish: what is wanted.
        shape: with form=vllm; else None.
        wanted: the layers; None: all.
        name: the request's, for messages.

    Raises:
        ProblemError: a position is missing that the form can't say (409), with the runs of positions.
    """
    if shape is None:
        return routing
    if wish.missing is Missing.REFUSE:
        runs, more = missing_runs(routing, MAX_RUNS_TOLD)
        if runs:
            raise ProblemError(
                409,
                "positions-missing",
                "Positions are missing",
                f"{name} has no experts at positions {told(runs, more)}: they were not computed for it (a "
                "prefix cache or another deployment had them), or their trace is gone. vLLM's shape has no "
                "number for that: take other positions with first and end, or form=moescope, which has -1 "
                "there, or missing=zero.",
            )
    return VllmRouting(routing, shape, wanted)


def told(runs: Sequence[tuple[int, int]], more: bool) -> str:
    """Runs (first, one past the last) as ``0-7,12``."""
    listed = ",".join(str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in runs)
    return f"{listed},..." if more else listed


def headers_of_form(routing: Shaped) -> dict[str, str]:
    """Which numbers of vLLM's shape stand for nothing: layers without experts, and missing positions."""
    if not isinstance(routing, VllmRouting):
        return {}
    return {
        "X-Moescope-Zero-Layers": ",".join(map(str, routing.zero_layers)),
        "X-Moescope-Missing": told(*missing_runs(routing, MAX_RUNS_TOLD)),
    }
