"""GET /v1/placement: where the copies of each expert are now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from moescope.capture.wire import PlacementTable, unpack_ids
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    LayerParam,
    ModelParam,
    PoolParam,
    ServerParam,
    check_known,
    choose,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.compact import CompactUncovered, answer, compact_absent, described
from moescope.service.api.schemas.placement import Copy, Doubled, LayerPlacement, PlacementNow, Table
from moescope.service.api.schemas.windows import partial_now, partial_over_stages
from moescope.service.live.producers import heard_last
from moescope.service.live.state import LiveState
from moescope.service.windows.placement_now import PlacedLayer, PlacedLayers, placement_now

MAX_COPIES: Final = 500_000
"""Most copies in an answer of form copies; each takes 150 bytes of memory, and 30 of the answer."""
MAX_NUMBERS: Final = 4_000_000
"""Most numbers in an answer of form tables; layers that are placed alike share a table."""
_BYTES: Final = 2  # of a number in a table of the wire

PlacementFormParam = Annotated[
    Literal["copies", "tables"],
    Query(
        description="copies: a list of copies for each logical expert. tables: as the workers tell it, by "
        "physical expert, and layers that are placed alike share a table: for large shapes."
    ),
]


def placement_now_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/placement", responses=documented(400, 404, 422, 503) | {200: described(PlacementNow)})
    def placement(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        form: PlacementFormParam = "copies",
    ) -> Response:
        """Where each logical expert's copies are now, layer by layer, and since when.

        It is what the workers told last. EPLB that commits layer by layer may have gone on since.
        """
        deployment = choose(state, server, model, pool)
        placed = placement_now(state, deployment)
        check_known("layer", layer or [], _known(placed))
        found = [item for item in placed.layers if not layer or item.shape.layer in layer]
        mine = state.producers(deployment)
        tables = _distinct(found)
        _check_size(found, tables, form)
        by_copies = form == "copies"
        result = PlacementNow(
            server=deployment[0],
            model=deployment[1],
            now=state.now(),
            ep_size=heard_last(mine).ep_size,
            layers=[_layer(item, tables, by_copies) for item in found],
            tables=None if by_copies else [_table(item) for item in tables],
            partial=partial_over_stages(partial_now(state, deployment), placed.silent_stages),
            uncovered=[CompactUncovered(number, reason) for number, reason in placed.uncovered.items()],
            absent=compact_absent(placed.absent),
        )
        return answer(result)

    return router


def _known(placed: PlacedLayers) -> list[int]:
    counted = (item.shape.layer for item in placed.layers)
    absent = (number for number in placed.absent if number is not None)
    return sorted({*counted, *placed.uncovered, *absent})


def _distinct(found: list[PlacedLayer]) -> dict[PlacementTable, int]:
    """The tables, each once, to their numbers."""
    tables = dict.fromkeys(item.table for item in found if item.table is not None)
    return {table: number for number, table in enumerate(tables)}


def _check_size(found: list[PlacedLayer], tables: Mapping[PlacementTable, int], form: str) -> None:
    """Check that the answer has not too many numbers, before any of it is made.

    Raises:
        ProblemError: it has (400).
    """
    listed = [item.table for item in found if item.table is not None] if form == "copies" else list(tables)
    copies = sum(len(table.physical_to_logical) // _BYTES for table in listed)
    most = MAX_COPIES if form == "copies" else MAX_NUMBERS // 2
    if copies > most:
        other = "form=tables, or " if form == "copies" else ""
        raise ProblemError(
            400,
            "too-many-numbers",
            "The answer would be too large",
            f"It would list {copies} copies of experts, {most} are allowed: ask for {other}fewer layers.",
        )


def _layer(item: PlacedLayer, tables: Mapping[PlacementTable, int], by_copies: bool) -> LayerPlacement:
    table = item.table
    return LayerPlacement(
        layer=item.shape.layer,
        num_experts=item.shape.num_experts,
        physical_experts=None if table is None else len(table.physical_to_logical) // _BYTES,
        version=item.version,
        since=item.since,
        everywhere_since=item.everywhere_since,
        copies=_copies(table, item.shape.num_experts) if table is not None and by_copies else None,
        doubles=_doubles(table) if table is not None and by_copies else None,
        table=None if table is None or by_copies else tables[table],
        partial=item.partial,
        reason=item.reason,
    )


def _copies(table: PlacementTable, experts: int) -> list[list[Copy]]:
    found: list[list[Copy]] = [[] for _ in range(experts)]
    logical, ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
    for physical, (expert, rank) in enumerate(zip(logical.tolist(), ranks.tolist(), strict=True)):
        found[expert].append(Copy(ep_rank=rank, physical=physical))
    return found


def _table(table: PlacementTable) -> Table:
    logical, ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
    return Table(
        physical_to_logical=logical.tolist(),
        physical_to_ep_rank=ranks.tolist(),
        doubles=_doubles(table),
    )


def _doubles(table: PlacementTable) -> list[Doubled]:
    """The EP ranks that hold several copies of one expert, by rank and expert."""
    held = Counter(
        zip(
            unpack_ids(table.physical_to_ep_rank).tolist(),
            unpack_ids(table.physical_to_logical).tolist(),
            strict=True,
        )
    )
    several = sorted((rank, expert, copies) for (rank, expert), copies in held.items() if copies > 1)
    return [Doubled(ep_rank=rank, expert=expert, copies=copies) for rank, expert, copies in several]
