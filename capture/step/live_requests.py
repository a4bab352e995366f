"""The requests that are not done, side by side in arrays, so that a step of hundreds is judged at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

from moescope.capture.seam.ends import NO_END, RequestEnd
from moescope.capture.seam.outcomes import Sampled, Start
from moescope.capture.wire import Int64Array

_UNKNOWN: Final = 0
"""The place of requests whose start nobody told."""
_ENDLESS: Final = 1 << 62


class Drafts(NamedTuple):
    """Draft tokens that the target model computed: those that it accepted, and those computed in vain.

    ``lost`` are those of which it isn't known.
    """

    accepted: int = 0
    rejected: int = 0
    lost: int = 0


class _Request(NamedTuple):
    """What only some of the requests need."""

    prompt: int
    end: RequestEnd
    generated: list[int]


class LiveRequests:
    """Each request's tokens so far, and whether it is complete. For one thread."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._at = [_Request(0, NO_END, [])]
        self._free: list[int] = []
        self._length = np.zeros(1, np.int64)
        self._most = np.full(1, _ENDLESS)
        self._complete, self._unsure, self._repeats = (np.zeros(1, np.bool_) for _ in range(3))
        self._batch: Sequence[str] = ()
        self._batch_places = np.zeros(0, np.int64)
        self._users: Counter[int] = Counter()
        self._stops = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def note(self, finished: Sequence[str], starts: Sequence[Start], resumed: Mapping[str, int]) -> None:
        """Take in what a step says of requests; `resumed` has their generated tokens by name."""
        if finished or starts:
            self._batch = ()
        for name in finished:
            self._end(name)
        for start in starts:
            self._end(start.request_id)
            self._begin(start)
        for name, generated in resumed.items():
            place = self._places.get(name)
            if place is not None:
                self._length[place] = self._at[place].prompt + generated
                self._unsure[place] = False

    def doubt(self) -> None:
        """What a step sampled is lost: where the requests of now end can't be told any more."""
        self._unsure[list(self._places.values())] = True

    def judge(self, sampled: Sampled, checked: Int64Array) -> Drafts:
        """The drafts of a step, by what became of them: of d drafts, s - 1 are accepted where s were sampled.

        Args:
            sampled: of the step.
            checked: int64 [n], how many drafts of each request the step verified.
        """
        places, counts = self._places_of(sampled.request_ids), sampled.counts
        complete, unsure = self._complete[places], self._unsure[places]
        active = ~complete & ~unsure & (counts > 0)
        accepted = np.where(active, np.minimum(counts - 1, checked), 0)
        lost = int(checked[unsure & ~complete].sum())
        before = self._length[places]
        self._length[places] = before + np.where(active, counts, 0)
        at_most = before + counts >= self._most[places]
        for row in np.flatnonzero(
            active & (at_most | self._repeats[places] | sampled.are_among(self._stops))
        ):
            place, tokens = int(places[row]), sampled.row(row)
            request = self._at[place]
            try:
                last = request.end.last_of(tokens, int(before[row]), request.generated)
            except LookupError:
                self._unsure[place], active[row], accepted[row] = True, False, 0
                lost += int(checked[row])
                continue
            if last is not None:
                self._complete[place] = True
                accepted[row] = min(int(accepted[row]), last)
        in_vain = int((checked[active] - accepted[active]).sum()) + int((1 + checked[complete]).sum())
        return Drafts(int(accepted.sum()), in_vain, lost)

    def _places_of(self, names: Sequence[str]) -> Int64Array:
        """Where the requests of a batch are, which is often the batch of the step before."""
        if names != self._batch:
            found = map(self._places.get, names, repeat(_UNKNOWN))
            self._batch, self._batch_places = names, np.fromiter(found, np.int64, len(names))
        return self._batch_places

    def _begin(self, start: Start) -> None:
        place = self._free.pop() if self._free else len(self._at)
        if place == len(self._length):
            self._grow()
        self._at[place : place + 1] = [_Request(start.prompt, start.end, list(start.generated))]
        self._places[start.request_id] = place
        self._length[place] = start.length
        self._most[place] = _ENDLESS if start.end.max_length is None else start.end.max_length
        self._complete[place] = self._unsure[place] = False
        self._repeats[place] = start.end.repetition is not None
        self._use(start.end.stop_tokens, 1)

    def _end(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            self._use(self._at[place].end.stop_tokens, -1)
            self._free.append(place)

    def _use(self, stops: frozenset[int], times: int) -> None:
        """Keep the stop tokens of all requests, which most requests have in common."""
        known = len(self._users)
        for stop in stops:
            self._users[stop] += times
            if self._users[stop] == 0:
                del self._users[stop]
                known = -1
        if len(self._users) != known:
            self._stops = np.fromiter(self._users, np.int64, len(self._users))

    def _grow(self) -> None:
        """Twice the room."""
        self._length = np.concatenate([self._length, np.zeros_like(self._length)])
        self._most = np.concatenate([self._most, np.full_like(self._most, _ENDLESS)])
        flags = (self._complete, self._unsure, self._repeats)
        self._complete, self._unsure, self._repeats = (
            np.concatenate([flag, np.zeros_like(flag)]) for flag in flags
        )
