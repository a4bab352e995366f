"""Names that look like parts of one deployment: of one model and of the same sizes, each with other DP ranks.

Each part looks like a balanced deployment by itself, and the rank that holds up the others may be in another
part. That is so where hosts give their workers different names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from moescope.service.live.producers import Deployment, ProducerState, heard_last

MOST_PARTS: Final = 64
"""Other parts of one deployment that are named, at most: so many pods of one rank each have told alone."""
REMEDY: Final = "if they are parts of one deployment, give all its workers the same MOESCOPE_SERVER"


@dataclass(frozen=True, slots=True)
class Part:
    """The DP ranks that report under one name, rising, and the number that its workers say there are."""

    server: str
    dp_ranks: tuple[int, ...]
    dp_size: int

    @property
    def missing(self) -> frozenset[int]:
        """The DP ranks that it lacks."""
        return frozenset(range(self.dp_size)) - set(self.dp_ranks)

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.dp_ranks))
        return f"server={self.server} has DP rank{'' if len(self.dp_ranks) == 1 else 's'} {ranks}"


def other_parts(producers: Sequence[ProducerState]) -> dict[Deployment, tuple[Part, ...]]:
    """The deployments that lack DP ranks which other names of their model have, to these names.

    Args:
        producers: those of all deployments, sorted by key. Who has expired or is gone doesn't count.
    """
    members: dict[Deployment, list[ProducerState]] = {}
    for item in producers:
        if not item.expired and item.gone is None:
            members.setdefault(item.latest.producer.key[:2], []).append(item)
    parts = {deployment: _part(group) for deployment, group in members.items()}
    lacking = {deployment: part for deployment, part in parts.items() if part.missing}
    alike: dict[tuple[object, ...], list[Deployment]] = {}
    for deployment in lacking:
        alike.setdefault((deployment[1], _sizes(members[deployment])), []).append(deployment)
    found: dict[Deployment, tuple[Part, ...]] = {}
    for names in alike.values():
        if len(names) > 1:
            found.update(_fitting({name: lacking[name] for name in names}))
    return found


def _fitting(parts: Mapping[Deployment, Part]) -> dict[Deployment, tuple[Part, ...]]:
    """To each of the parts of one model and size those whose DP ranks it lacks, MOST_PARTS at most."""
    found: dict[Deployment, tuple[Part, ...]] = {}
    for mine, part in parts.items():
        missing = part.missing
        others = (other for its, other in parts.items() if its != mine and missing.issuperset(other.dp_ranks))
        some = tuple(islice(others, MOST_PARTS))
        if some:
            found[mine] = some
    return found


def told(found: Mapping[Deployment, tuple[Part, ...]], among: Sequence[Deployment]) -> str:
    """Sentences about the names among these that look like parts of one deployment; empty if none do."""
    groups = {
        tuple(sorted({deployment[0], *(part.server for part in found[deployment])})): None
        for deployment in among
        if deployment in found
    }
    said = (" and ".join(f"server={server}" for server in servers) for servers in groups)
    return "".join(f" {names} have each other's missing DP ranks: {REMEDY}." for names in said)


def _part(members: Sequence[ProducerState]) -> Part:
    who = heard_last(members)
    ranks = sorted({item.latest.producer.dp_rank for item in members})
    return Part(who.server, tuple(ranks), who.dp_size)


def _sizes(members: Sequence[ProducerState]) -> tuple[int, int, int, int]:
    who = heard_last(members)
    return who.dp_size, who.tp_size, who.pp_size, who.ep_size
