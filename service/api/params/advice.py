"""Parameters of questions about the placement of experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final, Literal

from fastapi import Query

from moescope.service.advice.advise import UnanswerableError
from moescope.service.api.problems import ProblemError

DEFAULT_START: Final = "-1h"
MAX_RANKS: Final = 4096
MAX_GROUPS: Final = 8192
MAX_REDUNDANT: Final = 8192

AdviceStartParam = Annotated[
    str,
    Query(description="Begin of the whole window: Unix seconds, or relative as `-6h`.", examples=["-1h"]),
]
RanksParam = Annotated[
    int | None, Query(ge=1, le=MAX_RANKS, description="EP ranks to place on; absent: as many as there are.")
]
NodesParam = Annotated[
    int | None,
    Query(ge=1, le=MAX_RANKS, description="Nodes that the ranks are on; absent: as many as report."),
]
GroupsParam = Annotated[
    int,
    Query(ge=1, le=MAX_GROUPS, description="Expert groups of the router: `n_group` of the model's config."),
]
RedundantsParam = Annotated[
    list[int] | None,
    Query(
        description=f"Redundant experts to try with EPLB (0 to {MAX_REDUNDANT}); may be repeated. "
        "Absent: a sweep.",
        max_length=16,
    ),
]
FitShareParam = Annotated[
    float, Query(ge=0.05, le=0.95, description="Share of the window to fit on; the rest checks.")
]
MinGainParam = Annotated[
    float, Query(ge=0, le=1, description="Least saving of the busiest ranks' slots that is worth a change.")
]
MemoryPriceParam = Annotated[
    float,
    Query(
        ge=0, le=10, description="Saving that twice the memory for experts must bring; less in proportion."
    ),
]
StrategyParam = Annotated[
    Literal["linear", "round_robin", "eplb"],
    Query(
        description="eplb: by load. linear, round_robin: as vLLM places experts without EPLB; ranks may hold "
        "unequal numbers of experts, and no load is needed."
    ),
]
PolicyParam = Annotated[
    Literal["moescope", "vllm"],
    Query(
        description="Whose placement by load, with strategy=eplb. moescope: our own; no EP rank has two "
        "copies of one expert while there is room elsewhere. vllm: what vLLM's default EPLB policy would "
        "make; it may put several copies of one expert on a rank."
    ),
]
PpRankParam = Annotated[
    int | None,
    Query(ge=0, le=MAX_RANKS, description="Only the layers of this pipeline stage; absent: of all stages."),
]
RedundantParam = Annotated[
    int,
    Query(ge=0, le=MAX_REDUNDANT, description="Redundant experts, with strategy=eplb; other ones have none."),
]
FormParam = Annotated[
    Literal["map", "vllm-ascend"],
    Query(description="map: as described below. vllm-ascend: the file that its expert_map_path takes."),
]


def parse_redundants(given: list[int] | None) -> tuple[int, ...]:
    """The numbers of redundant experts to try; none: the service chooses them.

    Raises:
        ProblemError: one of them is out of range (400).
    """
    wrong = [number for number in given or () if not 0 <= number <= MAX_REDUNDANT]
    if wrong:
        raise ProblemError(
            400,
            "bad-redundant",
            "Not a number of experts",
            f"redundant is {wrong[0]}: give 0 to {MAX_REDUNDANT}.",
        )
    return tuple(given or ())


@contextmanager
def answerable() -> Iterator[None]:
    """Answer a question that turns out to be unanswerable in the block with a problem document.

    Raises:
        ProblemError: the question can't be answered (400).
    """
    try:
        yield
    except UnanswerableError as error:
        raise ProblemError(400, error.kind, "This can't be answered", str(error)) from None
