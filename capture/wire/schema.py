"""The schema of frames, versioned: what a worker tells the service of its counts.

A frame carries *cumulative* totals since the start of the producer's epoch, identified by
``(producer, epoch, seq)``: a lost, late, doubled or reordered frame costs resolution, never counts,
and a restarted producer begins a new epoch.

Compatibility: within a major version fields are only ever added, with defaults, and readers ignore
fields they don't know. A change that breaks this rule raises ``WIRE_MAJOR``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from moescope.capture.protocol import MAX_NAME, MAX_TEXT

# Far above every model and cluster known; they bound what one frame can make the service allocate.
MAX_LAYERS: Final = 1024
MAX_EXPERTS: Final = 8192
MAX_RANKS: Final = 65536
MAX_COUNTERS: Final = 64
MAX_MICROBATCHES: Final = 256
"""Parts of a step: their numbers are of one byte."""

DROPS: Final = frozenset(
    {"drafts_lost", "snapshots_put_off", "snapshots_superseded", "sends_failed", "steps_lost"}
)
"""The reasons in `Frame.drops`. The service counts whatever else comes as `OTHER`, so that nobody makes
series without end."""
TRACE_DROPS: Final = frozenset(
    {
        "buffer_full",
        "fault",
        "layer_missing",
        "layout_unknown",
        "outcome_unknown",
        "refused",
        "staging_full",
    }
)
"""The reasons after ``dropped_`` in `Frame.traces`; ``fault`` may be followed by a colon and the error."""
OTHER: Final = "other"
"""What the service calls a reason that it doesn't know."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Rank = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Size = Annotated[int, Meta(ge=1, le=MAX_RANKS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
PoolName = Annotated[str, Meta(max_length=MAX_NAME)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
LayerId = Annotated[int, Meta(ge=0, lt=1 << 20)]


class Producer(Struct, frozen=True, kw_only=True):
    """Who counted: one vLLM worker process.

    ``server`` names the vLLM deployment (all its workers share it) and, with the model and the ranks,
    identifies the producer over restarts.

    Since wire minor 5; empty in older frames, and where it isn't known:

    - ``pool``: the operator's name for the deployments of one model that are regarded as one.
    - ``role``: ``prefill`` or ``decode`` where prefill and decode are computed by different deployments.
    - ``start``: vLLM's random id of one start of ``vllm serve``: the same in all workers that it started, so
      in those of other nodes another one.
    """

    server: Name
    model: Name
    dp_rank: Rank
    dp_size: Size
    tp_rank: Rank = 0
    tp_size: Size = 1
    pp_rank: Rank = 0
    pp_size: Size = 1
    ep_rank: Rank = 0
    ep_size: Size = 1
    host: Text = ""
    pid: Count = 0
    vllm_version: Text = ""
    moescope_version: Text = ""
    pool: PoolName = ""
    role: Literal["", "prefill", "decode"] = ""
    start: Text = ""

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What stays the same over restarts: (server, model, dp_rank, pp_rank, tp_rank)."""
        return (self.server, self.model, self.dp_rank, self.pp_rank, self.tp_rank)


class MoeLayer(Struct, frozen=True, array_like=True):
    """An MoE layer that this producer counts.

    ``layer`` is the decoder layer's index as in the model's config, not an ordinal among MoE layers.
    """

    layer: LayerId
    num_experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    top_k: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]


class UncoveredLayer(Struct, frozen=True, array_like=True):
    """An MoE layer whose routing can't be seen, and why. It has no counts, rather than zeros."""

    layer: LayerId
    reason: Text


class PlacementTable(Struct, frozen=True, array_like=True):
    """Where one layer's physical experts are, as raw little-endian uint16 arrays of one length P.

    ``physical_to_logical[p]`` is the logical expert that physical expert ``p`` is a copy of, and
    ``physical_to_ep_rank[p]`` the EP rank whose GPU holds it. Without redundant experts P is the
    number of logical experts, each of which appears once.
    """

    physical_to_logical: bytes
    physical_to_ep_rank: bytes


class Placement(Struct, frozen=True, kw_only=True):
    """Logical expert to EP ranks, for every layer of the frame.

    ``version`` rises with each rearrangement. ``table_of_layer[i]`` indexes ``tables`` for
    ``Frame.layers[i]``, so that layers placed alike share one table.
    """

    version: Count
    tables: Annotated[list[PlacementTable], Meta(max_length=MAX_LAYERS)]
    table_of_layer: Annotated[list[Count], Meta(max_length=MAX_LAYERS)]


class StepLoads(Struct, frozen=True, kw_only=True):
    """This producer's slots by destination EP rank, for each of its latest steps; not cumulative.

    Steps are numbered from 0 in the epoch, dummy steps included: all DP ranks of a deployment step together,
    so a number means the same step on each of them. Steps that are in no frame (the worker's ring was
    overwritten before a snapshot, or a frame was lost) are unknown, which is not idle.

    Attributes:
        first: the first step that is accounted for here.
        end: one past the last one; those steps of ``[first, end)`` that ``steps`` doesn't name computed no
            token.
        steps: raw little-endian uint32 [n], rising: ``step - first`` of the steps that computed tokens.
        width: bytes of one load: 1, 2 or 4, the smallest that fits.
        loads: raw little-endian unsigned integers of ``width`` bytes [n, L, R]: slots of this producer's
            tokens in the layers of ``Frame.layers`` whose expert is on EP rank 0 .. R - 1 (``ep_size``).
        placement_version: the version of the placement that the loads are by. It means nothing in a frame
            with ``ep_slots``: there each step's loads are by the placement that was in force in it.
        microbatches: raw uint8 [n], which part of its step each entry of ``steps`` is, 0, 1, ...: a step
            that vLLM splits (``--enable-dbo``, ``--ubatch-size``) has an entry for each of its microbatches,
            and the ranks wait for each other in each. Empty where no step is split, and in frames of wire
            minor 5 or below.
    """

    first: Count
    end: Count
    steps: bytes
    width: Literal[1, 2, 4]
    loads: bytes
    placement_version: Count = 0
    microbatches: bytes = b""


class Frame(Struct, kw_only=True):
    """One cumulative snapshot of a producer.

    Attributes:
        wire: (major, minor) version of this schema.
        producer: who counted.
        epoch: start of the producer's counting, nanoseconds of Unix time; a restart has a higher one.
        seq: 1, 2, ... within the epoch; every later frame carries totals that are no smaller.
        acknowledged: ``seq`` of the newest earlier frame of this epoch that a service has taken; 0: none yet.
            So a service that doesn't know that frame sees that its counts were taken elsewhere, or before it
            lost what it knew. None in frames of wire minor 4 or below.
        captured_at_ns: when the totals were true, nanoseconds of Unix time on the producer's clock.
        state: ``counting``, or ``disabled`` when capture has stopped for good or never began
            (``state_reason`` says why; the totals are then those of the moment before it stopped).
        layers: the covered MoE layers, in rising order of ``layer``.
        uncovered: the MoE layers whose routing can't be seen.
        absent: the MoE layers that the model's config has and that were not found in the model, with the
            reasons. Empty in frames of wire minor 3 or below.
        absent_unnamed: that MoE layers are absent of which it isn't known which they are, and why: the config
            has experts and doesn't say in which layers, and none was found. Else empty.
        unavailable: what this producer can't tell, and why: ``phases``, ``traces``, ``placement``, ``steps``
            ``drafts`` or ``ep_slots`` to the reason. Empty in frames of wire minor 3 or below.
        ended: this is the last frame of the epoch, as the worker shuts down in order. Never in frames of wire
            minor 4 or below; a worker that is killed says nothing either.
        counts: slots per (layer, logical expert), raw little-endian int64, the layers of ``layers``
            one after the other, ``num_experts`` values each.
        rows: tokens this producer counted in each layer, raw little-endian int64, one value a layer.
            A layer's counts sum to ``rows * top_k``, unless the router masked slots.
        tokens: tokens that this DP rank computed (the same on all its TP and PP workers).
        steps: steps in which this DP rank computed at least one token.
        idle_steps: dummy steps, run because another DP rank had work.
        placement: where the experts are, or None when it isn't known.
        strategy: how routing calls become counts, such as ``kernel-per-step``. Empty in frames of wire
            minor 0.
        drops: what this producer lost or put off, by reason, cumulative; never counts of tokens.
        traces: routing traces ``captured``, ``delivered`` and ``dropped_<reason>``, cumulative; the others
            are in flight. Empty where none are asked for, and in frames of wire minor 1 or below.
        decode_counts: the slots of decode tokens among ``counts``, laid out alike; the others are of prefill.
            A token is a decode token if its request's prompt was computed before the step. Empty where the
            phases are not known, and in frames of wire minor 2 or below.
        decode_rows: the decode tokens among ``rows``, laid out alike; empty if ``decode_counts`` is.
        decode_tokens: the decode tokens among ``tokens``; 0 where the phases are not known.
        decode_steps, mixed_steps: how many of ``steps`` had decode tokens only, and how many had tokens of
            both phases.
        step_loads: loads by EP rank of the latest steps. None with one EP rank, where it isn't known which EP
            rank a slot goes to, and in frames of wire minor 2 or below.
        uptime_ns: nanoseconds from the epoch to when this frame was made, on a clock that nobody sets, so
            that hosts whose clocks differ can be compared. 0: not told, as in wire minor 4 or below.
        ep_slots: slots by destination EP rank since the epoch began, raw little-endian int64 [L, R]
            (``ep_size``), each counted under the placement that was in force in its step and, where an expert
            has several copies, on the copy that vLLM took. Empty where that isn't counted, and in frames of
            wire minor 5 or below.
        decode_ep_slots: the slots of decode tokens among ``ep_slots``, laid out alike; empty if those are, or
            if ``decode_counts`` is.
        accepted_drafts, rejected_drafts: draft tokens of speculative decoding, by what became of them: in an
            answer, or computed in vain, which what was computed behind a request's end is too. They are as
            of when the frame is made, and may be of later steps than ``tokens``. Unknown ones are
            ``drafts_lost`` of ``drops``. 0 in frames of wire minor 5
            or below.
        weights_version: how often the model's weights were changed since the epoch began. 0 in frames of wire
            minor 5 or below.
        weights_label: the name of the weights in use, where vLLM was told one; else empty.
        decoder_layers: how many decoder layers the model has by its config, dense ones included. 0: not
            known, as in frames of wire minor 6 or below.
    """

    wire: tuple[int, int]
    producer: Producer
    epoch: Positive
    seq: Positive
    captured_at_ns: Count
    state: Literal["counting", "disabled"] = "counting"
    state_reason: Text = ""
    layers: Annotated[list[MoeLayer], Meta(max_length=MAX_LAYERS)]
    uncovered: Annotated[list[UncoveredLayer], Meta(max_length=MAX_LAYERS)] = []
    counts: bytes
    rows: bytes
    tokens: Count
    steps: Count
    idle_steps: Count = 0
    placement: Placement | None = None
    strategy: Text = ""
    drops: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}
    traces: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}
    decode_counts: bytes = b""
    decode_rows: bytes = b""
    decode_tokens: Count = 0
    decode_steps: Count = 0
    mixed_steps: Count = 0
    step_loads: StepLoads | None = None
    absent: Annotated[list[UncoveredLayer], Meta(max_length=MAX_LAYERS)] = []
    absent_unnamed: Text = ""
    acknowledged: Count | None = None
    unavailable: Annotated[dict[Name, Text], Meta(max_length=MAX_COUNTERS)] = {}
    uptime_ns: Count = 0
    ended: bool = False
    ep_slots: bytes = b""
    decode_ep_slots: bytes = b""
    accepted_drafts: Count = 0
    rejected_drafts: Count = 0
    weights_version: Count = 0
    weights_label: Text = ""
    decoder_layers: Count = 0
