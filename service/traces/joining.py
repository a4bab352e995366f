"""The whole routing of a request, joined from the traces of all who computed some of it.

The order in which traces are asked for a position: the main trace (see
:mod:`moescope.service.traces.belonging`), the traces of those whose computation its KV cache had, then the
other traces that the id found, newest first, and those of whom they took over. All but the main one give
positions of the prompt only, and only up to the last position at which their rows were compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from moescope.capture.wire import Int64Array
from moescope.service.store.interface import Absence
from moescope.service.store.records import StoreError, TracedRequest
from moescope.service.traces import missing
from moescope.service.traces.agreement import MOST_POSITIONS, compare
from moescope.service.traces.belonging import SeveralError, main_of, newest_last
from moescope.service.traces.finding import Found
from moescope.service.traces.joined import Given, JoinedRouting
from moescope.service.traces.missing import Missing, Reason
from moescope.service.traces.plan import MAX_RUNS, Offer, Plan, TooManyRunsError, plan
from moescope.service.traces.references import TakenOverBy
from moescope.service.traces.routing import MAX_POSITIONS, TooManyPositionsError, put_together
from moescope.service.traces.sources import Source, contradicts
from moescope.service.traces.spans import common, nothing, span, together
from moescope.service.traces.weights import Computed, computed_by

_FAR: Final = 1 << 41  # behind every position

Kind = Literal["main", "same_id", "taken_over"]
Unused = Literal["", "not_needed", "nothing_shared", "unreadable"]


class Part(NamedTuple):
    """A trace that was looked at.

    Attributes:
        request: whose it is.
        kind: ``main``; ``same_id``: another one that the id found; ``taken_over``: of a request whose
            computation the KV cache of another one had.
        positions: what the answer has of it, as spans.
        weights: see :func:`computed_by`.
        unused: why the answer has nothing of it, or empty. ``not_needed``: others have all its positions;
            ``nothing_shared``: no position of the prompt tells that it is the same; ``unreadable``.
    """

    request: TracedRequest
    kind: Kind
    positions: Int64Array
    weights: tuple[Computed, ...] = ()
    unused: Unused = ""


class Joined(NamedTuple):
    """An answer: its rows, where they come from, and which ones nobody gives.

    ``absent`` is why further traces of the id are not here; None: the store knows of none.
    """

    routing: JoinedRouting
    parts: tuple[Part, ...]
    missing: tuple[Missing, ...]
    absent: Absence | None = None

    @property
    def main(self) -> TracedRequest:
        """The request whose generated tokens it has."""
        return self.parts[0].request


def join(found: Found, first: int, end: int | None, most: int = MAX_POSITIONS) -> Joined:
    """Join what was found.

    Args:
        found: see there.
        first, end: positions wanted, ``end`` not included; None: to the last that there is.
        most: how many there may be, at most.

    Raises:
        SeveralError: two traces have different rows at the same positions of the prompt, so they don't belong
            together.
        TooManyPositionsError, TooManyRunsError: an answer can't have so many.
        StoreError: the main trace can't be read.
    """
    return _Join(found).answer(first, end, most)


class _Join:
    def __init__(self, found: Found) -> None:
        self._found = found
        self._known = found.layers
        self._layers = frozenset(self._known)
        self._unused: dict[int, Unused] = {}
        self._main = self._choose_main()
        if self._main is not found.parts[0] and contradicts(self._main, self._known):
            raise SeveralError(f"They are of models with other experts: {_both(found.parts[0], self._main)}.")
        self._offers = [Offer(self._main, span(0, _FAR))]
        self._kinds: list[Kind] = ["main"]
        self._reasons: list[Reason] = []
        late: list[Reason] = []
        self._add_references(self._main, _FAR, late)
        others = [
            part for part in found.parts if part is not self._main and part.request.number not in self._unused
        ]
        for part in sorted(others, key=lambda part: newest_last(part.request), reverse=True):
            self._add_part(part, late)
        self._reasons += [*late, missing.cached(self._main.request.cached_tokens)]

    def _choose_main(self) -> Source:
        """By the rows that each generated.

        Raises:
            StoreError: the one that most likely is the main one can't be read: others would be taken for it.
        """
        readable = [self._found.parts[0]]
        for part in self._found.parts[1:]:
            if _readable(part):
                readable.append(part)
            else:
                self._unused[part.request.number] = "unreadable"
        generated = [_end_of(part.anywhere) > part.request.prompt_tokens for part in readable]
        return readable[main_of([part.request for part in readable], generated)]

    def _add_part(self, part: Source, late: list[Reason]) -> None:
        if contradicts(part, self._known):
            raise SeveralError(f"They are of models with other experts: {_both(self._main, part)}.")
        reach = self._reach(part)
        if not reach:
            self._unused[part.request.number] = "nothing_shared"
            return
        self._offers.append(Offer(part, span(0, reach)))
        self._kinds.append("same_id")
        self._add_references(part, reach, late)

    def _reach(self, part: Source) -> int:
        """One past the last position of the prompt at which a part was compared with what others give.

        The experts of a position depend on all tokens before it, so up to there it is the same prompt.
        """
        layers = self._layers & set(part.computed_in) & set(self._main.computed_in)
        prompt = span(0, self._main.request.prompt_tokens)
        planned = plan(prompt, self._offers, self._layers)
        of_others = [
            (offer, common(positions, offer.source.whole(layers)))
            for offer, positions in zip(self._offers, planned.taken, strict=True)
            if offer.source is not part
        ]
        shared = common(together(*(positions for _, positions in of_others)), part.whole(layers))
        if not len(shared):
            return 0
        last = int(shared[-1, 1])
        start = max(int(shared[0, 0]), last - MOST_POSITIONS)
        shared = common(shared, span(start, last))
        there = self._routing([item for item, _ in of_others], [at for _, at in of_others], start, last)
        result = compare(there, put_together(part.workers, start, last), shared)
        if result.differs_at is not None:
            raise SeveralError(
                f"Their prompts differ: at the {result.positions} positions up to {last - 1} that both "
                f"computed {result.equal} of {result.slots} experts are equal, and from position "
                f"{result.differs_at} on less than half. Choose one by server or sample, or ask by vLLM's "
                f"internal id: {_both(self._main, part)}."
            )
        return last

    def _add_references(self, source: Source, reach: int, late: list[Reason]) -> None:
        """Those whose computation a request took over, and what is to say where they are of no help."""
        taken_over = TakenOverBy.of(source.request, span(0, reach))
        for request_id, positions in taken_over.computed_by.items():
            # Positions outside of those wanted were not looked for.
            reference = self._found.references.get((source.request.number, request_id), missing.NOT_KEPT)
            why = missing.NOT_IN_TRACE
            if isinstance(reference, str):
                why = reference
            elif contradicts(reference, self._known):
                why = missing.OTHER_SHAPE
            elif not _readable(reference):
                why = missing.UNREADABLE
            elif reference is not source:
                self._offers.append(Offer(reference, positions))
                self._kinds.append("taken_over")
            self._reasons.append(Reason(positions, why, request_id))
        for why, positions in taken_over.unknown.items():
            # What came from another instance may be in a later part, which may know better why it isn't.
            (late if why == missing.KV_TRANSFER else self._reasons).append(Reason(positions, why))

    def _routing(
        self, offers: Sequence[Offer], taken: Sequence[Int64Array], first: int, end: int, wanted: bool = False
    ) -> JoinedRouting:
        given = []
        for (source, _), positions in zip(offers, taken, strict=True):
            workers = source.wanted if wanted else source.workers
            if len(positions) and workers:
                given.append(Given(put_together(workers, first, end), positions))
        numbers = self._found.wanted if wanted else sorted(self._known)
        layers = [self._known[number] for number in numbers]
        return JoinedRouting(first, end, layers, given, computed_by(self._main.workers))

    def answer(self, first: int, end: int | None, most: int) -> Joined:
        offered = together(*(common(source.anywhere, allowed) for source, allowed in self._offers))
        last = _end_of(offered)
        end = last if end is None else min(end, last)
        first = min(first, end)
        if end - first > most:
            raise TooManyPositionsError(first, end, most)
        planned = plan(span(first, end), self._offers, self._layers)
        routing = self._routing(self._offers, planned.taken, first, end, wanted=True)
        shown = [layer.layer for layer in routing.layers]
        lacking = [
            *missing.explained(planned.left, self._reasons),
            *missing.partial(self._offers, planned.taken, shown),
        ]
        if self._found.may_lack_layers:
            lacking += missing.of_stages(
                self._offers, planned.taken, (self._found.asked or frozenset()) - self._layers
            )
        if len(lacking) > MAX_RUNS:
            raise TooManyRunsError
        return Joined(routing, tuple(self._parts(planned)), tuple(sorted(lacking)), self._found.absent)

    def _parts(self, planned: Plan) -> Iterator[Part]:
        """The main one first, then others that the id found, then those that were taken over."""
        given: dict[tuple[Kind, int], Int64Array] = {}
        sources = {part.request.number: part for part in self._found.parts}
        for (source, _), kind, positions in zip(self._offers, self._kinds, planned.taken, strict=True):
            key = kind, source.request.number
            given[key] = together(given.get(key, nothing()), positions)
            sources[source.request.number] = source
        for kind in ("main", "same_id", "taken_over"):
            for (of_kind, number), positions in given.items():
                source = sources[number]
                if of_kind == kind and (len(positions) or kind == "main"):
                    yield Part(source.request, kind, positions, tuple(computed_by(source.workers)))
            if kind == "same_id":
                yield from self._not_used(given)

    def _not_used(self, given: dict[tuple[Kind, int], Int64Array]) -> Iterator[Part]:
        used = {number for (_, number), positions in given.items() if len(positions)}
        for part in self._found.parts:
            number = part.request.number
            if part is not self._main and number not in used:
                yield Part(part.request, "same_id", nothing(), (), self._unused.get(number, "not_needed"))


def _readable(source: Source) -> bool:
    """Whether the runs of a trace can be read; they are then."""
    try:
        return source.anywhere is not None
    except StoreError:
        return False


def _end_of(spans: Int64Array) -> int:
    return int(spans[-1, 1]) if len(spans) else 0


def _both(one: Source, other: Source) -> str:
    return " and ".join(
        f"{item.request.request_id} (server={item.request.server} dp_rank={item.request.dp_rank})"
        for item in (one, other)
    )
