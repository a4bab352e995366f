"""Plays a story to the service and compares its answers with the oracle's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.advice import advice
from tests.oracle.balance import balance, histogram, series
from tests.oracle.compare import mismatches
from tests.oracle.delivery import Story
from tests.oracle.deployment import Deployment
from tests.oracle.drift import drift
from tests.oracle.driving import Box, Series
from tests.oracle.frames import frame_of
from tests.oracle.joins import Stage, stragglers
from tests.oracle.metrics import counters, gauges
from tests.oracle.ranks import broken_slots, ranks
from tests.oracle.traffic import TICK_NS
from tests.oracle.trend import trend
from tests.oracle.window import Phase

MIN_TOKENS = 1


@dataclass
class Check:
    """One story as it is played.

    Attributes:
        found: a line for each difference.
        compared: how many answers were compared.
        scrapes: the service's samples in the middle and at the end.
    """

    story: Story
    box: Box
    found: list[str] = field(default_factory=list)
    compared: int = 0
    scrapes: list[Series] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"check {self.story.fleet.seed}")
        self._deployment = Deployment(self.story.fleet)
        self._stages = [Stage(self._deployment, stage) for stage in range(self.story.fleet.pp)]

    def run(self) -> None:
        """Play all arrivals, and ask in the middle and at the end."""
        arrivals = self.story.arrivals
        middle = self._rng.randrange(len(arrivals))
        for place, arrival in enumerate(arrivals):
            self.box.clock.now = arrival.at
            result = self._deployment.take(arrival)
            for stage in self._stages:
                stage.take(arrival)
            got = self.box.push(frame_of(self.story.fleet, arrival.snapshot))
            self._compare({"result": result}, {"result": got}, f"frame {place}")
            if place == middle:
                self._scrape()
                self._trend()
        later = self._rng.choice([0, 7 * 64, 20 * 64]) * TICK_NS / 1e9
        self.box.clock.now = self._deployment.now = arrivals[-1].at + later
        self._ask_all()

    def _ask_all(self) -> None:
        self._scrape()
        self._trend()
        self._ranks()
        for start, end in self._windows():
            phase: Phase = self._rng.choice([None, "prefill", "decode"])
            for asked in {None, phase}:
                self._window(start, end, asked)
            self._stragglers(start, end)
        self._series()
        self._drift()
        self._advice()

    def _windows(self) -> Iterator[tuple[float | None, float | None]]:
        """Everything, and windows whose boundaries are at, beside or between arrivals, or outside of all."""
        yield None, None
        begin, end = self.story.arrivals[0].at, self._deployment.now
        for _ in range(2):
            first, last = sorted(self._instant(begin - 20, end) for _ in range(2))
            if first < last:
                yield first, self._rng.choice([last, None])

    def _instant(self, begin: float, end: float) -> float:
        arrival = self._rng.choice(self.story.arrivals).at
        tick = TICK_NS / 1e9
        between = begin + self._rng.randrange(int((end - begin) / tick)) * tick
        return self._rng.choice([arrival, arrival - tick, arrival + tick, between, between])

    def _window(self, start: float | None, end: float | None, phase: Phase) -> None:
        named = {"start": start, "end": end, "phase": phase}
        dp_rank = self._rng.choice([None, None, *self._deployment.dp_ranks])
        expected = histogram(self._deployment, start, end, phase, dp_rank)
        self._get("/v1/histogram", expected, dp_rank=dp_rank, **named)
        least = self._rng.choice([MIN_TOKENS, MIN_TOKENS, 100])
        self._get(
            "/v1/balance", balance(self._deployment, start, end, phase, least), min_tokens=least, **named
        )

    def _series(self) -> None:
        step = self._rng.choice([3, 10, 64])
        end = self._deployment.now
        start = end - step * self._rng.randint(2, 12)
        phase: Phase = self._rng.choice([None, "prefill", "decode"])
        expected = {"series": series(self._deployment, start, end, step, phase)}
        self._get("/v1/histogram", expected, start=start, step=f"{step}s", phase=phase)

    def _trend(self) -> None:
        step, points = self._rng.choice([2, 5, 30]), self._rng.randint(5, 20)
        phase: Phase = self._rng.choice([None, None, "decode"])
        expected = trend(self._deployment, step, points, phase, MIN_TOKENS)
        got = self.box.get("/v1/trend", server=self.story.fleet.server, step=step, points=points, phase=phase)
        rates = dict(zip(got["dp_ranks"], got["tokens_per_second"], strict=True))
        nothing = {
            dp
            for dp, row in expected["tokens_per_second"].items()
            if all(rate in (0, None, ...) for rate in row)
        }
        expected["tokens_per_second"] = {
            dp: row for dp, row in expected["tokens_per_second"].items() if dp in rates or dp not in nothing
        }
        self._compare(
            expected, {**got, "tokens_per_second": rates}, f"/v1/trend step={step} points={points} {phase}"
        )

    def _ranks(self) -> None:
        got = self._get("/v1/ranks", ranks(self._deployment))
        for rank in got["deployments"][0]["dp_ranks"]:
            for worker in self._deployment.workers_of(rank["dp_rank"]):
                (told,) = [p for p in rank["producers"] if (p["pp_rank"], p["tp_rank"]) == worker[1:]]
                of_slots = [broken for broken in told["mismatches"] if broken["law"] == "slots"]
                self._compare(
                    broken_slots(self._deployment, worker), of_slots, f"/v1/ranks mismatches of {worker}"
                )

    def _stragglers(self, start: float | None, end: float | None) -> None:
        fleet = self.story.fleet
        restarted = any(len(ledger.latest) > 1 for ledger in self._deployment.ledgers.values())
        lopsided = any(
            (dp, layer.index) in fleet.uncovered for dp in range(fleet.dp) for layer in fleet.layers
        )
        if not fleet.steps_told or restarted or lopsided:
            return
        until = self._deployment.now if end is None else end
        expected = stragglers(self._stages, fleet.ep, start, until)
        got = self.box.get("/v1/stragglers", server=fleet.server, start=start, end=end)
        named = {layer["layer"]: layer for layer in got["layers"]}
        expected["layers"] = {layer["layer"]: layer for layer in expected["layers"]}
        expected["stages"] = {stage["pp_rank"]: stage for stage in expected["stages"]}
        stages = {stage["pp_rank"]: stage for stage in got["stages"]}
        expected["stages"] = {pp: s for pp, s in expected["stages"].items() if pp in stages or s["joined"]}
        self._compare(expected, {**got, "layers": named, "stages": stages}, f"/v1/stragglers {start} {end}")

    def _drift(self) -> None:
        middle = self._instant(self.story.arrivals[0].at, self._deployment.now)
        phase: Phase = self._rng.choice([None, None, "decode"])
        self._get(
            "/v1/drift", drift(self._deployment, middle, None, phase, MIN_TOKENS), start=middle, phase=phase
        )

    def _advice(self) -> None:
        fleet = self.story.fleet
        if fleet.ep == 1:
            return
        start = self._instant(self.story.arrivals[0].at - 5, self._deployment.now)
        share = self._rng.choice([0.25, 0.5, 0.7])
        got = self.box.get("/v1/advice", server=fleet.server, start=start, fit_share=share)
        expected = advice(self._deployment, start, share, got)
        self._compare(expected, got, f"/v1/advice start={start} fit_share={share}")

    def _scrape(self) -> None:
        got = self.box.metrics(self.story.fleet.server)
        expected = counters(self._deployment)
        self.scrapes.append(got)
        self._compare(expected, {**dict.fromkeys(expected, 0), **got}, f"/metrics at {self._deployment.now}")
        balanced = gauges(self._deployment, MIN_TOKENS)
        shown = {
            key: value for key, value in got.items() if key in balanced or key[0] in {k[0] for k in balanced}
        }
        self._compare(balanced, shown, "/metrics")
        self._compare(
            [], sorted(map(str, shown.keys() - balanced.keys())), "/metrics, gauges without a sample"
        )

    def _get(self, path: str, expected: Any, **params: Any) -> dict[str, Any]:
        got = self.box.get(path, server=self.story.fleet.server, **params)
        asked = {name: value for name, value in params.items() if value is not None}
        self._compare(expected, got, f"{path} {asked}")
        return got

    def _compare(self, expected: Any, got: Any, what: str) -> None:
        self.compared += 1
        self.found += [f"{what}: {line}" for line in mismatches(expected, got)]
