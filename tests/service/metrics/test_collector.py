"""The exposition: every family, read back by Prometheus' own parsers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from moescope.capture import wire
from moescope.service.api.limits.shared_runs import SharedRuns
from moescope.service.live.state import LiveState
from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.parts.ranks import Group
from moescope.service.metrics.samples import Sample, Table
from moescope.service.settings import MetricsLevel, Settings
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.metrics.families import FAMILY_OF, series_names
from tests.waiting import wait_until

LOADS = np.array([[[200, 100], [150, 50]]])
"""Slots of one step's tokens, by layer and EP rank."""

PART_SUCCESS = "moescope_scrape_part_success"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _rank(dp_rank: int) -> wire.Producer:
    return producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)


def _push_both(service: Service, scale: int = 1, seq: int = 1) -> None:
    for dp_rank in (0, 1):
        counts = {0: [100 * scale, 100 * scale, 60 * scale, 40 * scale], 3: [150 * scale, 0, 50 * scale, 0]}
        made = frame(
            counts,
            who=_rank(dp_rank),
            seq=seq,
            rows=[150 * scale, 150 * scale],  # layer 3 masks slots
            placement=halves(4, 2, version=4),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
            idle_steps=7,
            accepted_drafts=11 * scale,
            rejected_drafts=5 * scale,
            drops={"steps_lost": 2},
            traces={"captured": 5, "delivered": 3, "dropped_buffer_full": 1},
            step_loads=wire.pack_step_loads(seq - 1, seq, np.array([seq - 1]), LOADS, 4),
        )
        assert service.push(made).status_code == 200


def _series(service: Service, accept: str = "text/plain") -> Series:
    response = service.client.get("/metrics", headers={"accept": accept})
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    samples = [sample for family in parse(response.text) for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a series occurs twice"
    failed = [labels for (name, labels), value in found.items() if name == PART_SUCCESS and not value]
    assert not failed, "these parts raised, or break the catalogue: the log says why"
    return found


def _value(series: Series, name: str, **labels: str) -> float | None:
    deployment = {} if "server" in labels else {"server": "prod", "model": "tiny"}
    return series.get((name, tuple(sorted({**deployment, **labels}.items()))))


def _names(series: Series) -> set[str]:
    return {name for name, _ in series}


def test_counters_and_gauges_have_the_right_values(service: Service) -> None:
    _push_both(service)
    series = _series(service)
    assert _value(series, "moescope_tokens_total", dp_rank="1") == 150
    assert _value(series, "moescope_idle_steps_total", dp_rank="0") == 7
    assert _value(series, "moescope_draft_tokens_total", dp_rank="0", outcome="accepted") == 11
    assert _value(series, "moescope_draft_tokens_total", dp_rank="1", outcome="rejected") == 5
    assert _value(series, "moescope_layer_dp_rank_slots_total", layer="0", dp_rank="0") == 300
    assert _value(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="0") == 400
    assert _value(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="1") == 200
    assert _value(series, "moescope_ep_rank_slots_total", ep_rank="0") == 700
    assert _value(series, "moescope_layer_ep_imbalance_ratio", layer="0") == pytest.approx(4 / 3)
    assert _value(series, "moescope_ep_imbalance_ratio") == pytest.approx(700 / 500)
    assert _value(series, "moescope_ep_worst_layer_imbalance_ratio") == 1.5
    assert _value(series, "moescope_dp_imbalance_ratio") == 1
    assert _value(series, "moescope_layer_dead_experts", layer="3") == 2
    assert _value(series, "moescope_layer_max_vio_ratio", layer="3") == 2
    assert _value(series, "moescope_layer_max_vio_limit_ratio", layer="0") == 1  # 4 experts, top-2
    assert _value(series, "moescope_producers", state="counting") == 2
    assert _value(series, "moescope_uncovered_layers", dp_rank="0") == 1
    assert _value(series, "moescope_conservation_mismatched_layers", dp_rank="0") == 1
    assert _value(series, "moescope_placement_version", dp_rank="0") == 4
    assert _value(series, "moescope_producer_drops_total", dp_rank="0", reason="steps_lost") == 2
    worker = {"dp_rank": "1", "pp_rank": "0", "tp_rank": "0"}
    assert _value(series, "moescope_traces_captured_total", **worker) == 5
    assert _value(series, "moescope_traces_delivered_total", **worker) == 3
    assert _value(series, "moescope_traces_dropped_total", reason="buffer_full", **worker) == 1


def test_absent_layers_are_counted_and_those_without_a_number_are_one(service: Service) -> None:
    absent = [wire.UncoveredLayer(layer, "not found") for layer in (5, 6)]
    service.push(frame({0: [1, 1]}, who=_rank(0), absent=absent))
    service.push(frame({0: [1, 1]}, who=_rank(1), absent_unnamed="not known which"))
    service.push(frame({0: [1, 1]}, who=producer(server="whole")))
    series = _series(service)
    assert _value(series, "moescope_absent_layers", dp_rank="0") == 2
    assert _value(series, "moescope_absent_layers", dp_rank="1") == 1
    assert _value(series, "moescope_absent_layers", server="whole", model="tiny", dp_rank="0") == 0


def test_no_steps_are_lost_between_two_scrapes(service: Service) -> None:
    # Peers set a gauge at each step and lose all steps but the last before a scrape.
    _push_both(service)
    before = _series(service)
    for seq in (2, 3, 4):
        service.clock.now += 1
        _push_both(service, scale=seq, seq=seq)
    after = _series(service)
    for name, labels in (
        ("moescope_tokens_total", {"dp_rank": "0"}),
        ("moescope_layer_ep_rank_slots_total", {"layer": "0", "ep_rank": "0"}),
    ):
        first, last = _value(before, name, **labels), _value(after, name, **labels)
        assert first is not None
        assert last == 4 * first


def test_idle_has_no_series_while_counters_stay(service: Service) -> None:
    _push_both(service)
    service.clock.now += 120
    for dp_rank in (0, 1):  # still alive, and idle
        service.push(
            frame(
                {0: [100, 100, 60, 40], 3: [150, 0, 50, 0]},
                who=_rank(dp_rank),
                seq=2,
                rows=[150, 150],
                placement=halves(4, 2),
                idle_steps=99,
                accepted_drafts=11,
                rejected_drafts=5,
                drops={"steps_lost": 2},
            )
        )
    series = _series(service)
    ratios = {name for name in _names(series) if name.endswith(("_ratio", "_dead_experts"))}
    assert ratios == set()
    assert _value(series, "moescope_tokens_total", dp_rank="0") == 150
    assert _value(series, "moescope_idle_steps_total", dp_rank="0") == 99


def test_an_unseen_layer_has_no_zeros(service: Service) -> None:
    service.push(frame({0: [4, 4], 1: [0, 0]}, tokens=4, who=_rank(0), placement=halves(2, 2)))
    series = _series(service)
    assert not [labels for _, labels in series if ("layer", "1") in labels]
    assert _value(series, "moescope_unseen_layers", dp_rank="0") == 1


def test_without_expert_parallelism_there_is_no_ep_series(service: Service) -> None:
    service.push(frame({0: [4, 4]}))
    assert not [name for name, labels in _series(service) if "_ep_" in name or "ep_rank" in dict(labels)]


def test_unplaced_slots_are_told_instead_of_zero_load(service: Service) -> None:
    service.push(frame({0: [4, 4]}, who=_rank(0)))
    series = _series(service)
    assert _value(series, "moescope_layer_unplaced_slots_total", layer="0") == 8
    assert "moescope_layer_ep_rank_slots_total" not in _names(series)


def test_a_vanished_rank_expires_and_sums_never_shrink(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, expire_after_s=100)
    _push_both(service)
    service.clock.now += 200
    service.push(
        frame(
            {0: [100, 100, 60, 40], 3: [150, 0, 50, 0]},
            who=_rank(0),
            seq=2,
            rows=[150, 150],
            placement=halves(4, 2),
            idle_steps=8,
            accepted_drafts=11,
            rejected_drafts=5,
            drops={"steps_lost": 2},
        )
    )
    series = _series(service)
    assert _value(series, "moescope_tokens_total", dp_rank="0") == 150
    assert _value(series, "moescope_tokens_total", dp_rank="1") is None
    assert _value(series, "moescope_snapshot_age_seconds", dp_rank="1") is None
    # The sum over sources keeps the vanished one's slots: a drop would look like a restart to a rate.
    assert _value(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="0") == 400
    service.clock.now += 200
    assert not {name for name in _names(_series(service)) if name.endswith(("_tokens_total", "_slots_total"))}


@pytest.mark.parametrize("level", list(MetricsLevel))
def test_each_level_shows_its_families_and_no_others(
    start_service: Callable[..., Service], level: MetricsLevel
) -> None:
    service = start_service(min_tokens=1, metrics_level=level)
    _push_both(service)
    assert service.client.post("/v1/baselines", json={}).status_code == 201
    for server in ("b", "c"):
        service.push(frame({0: [1, 1]}, who=producer(server=server, pool="p"), epoch=EPOCH + 1))
    families = [family for family in CATALOGUE.values() if family.shown(level)]
    assert _names(_series(service)) == {name for family in families for name in series_names(family)}


def test_labels_and_types_are_those_of_the_catalogue(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    _push_both(service)
    assert service.client.post("/v1/baselines", json={}).status_code == 201
    for server in ("b", "c"):
        service.push(frame({0: [1, 1]}, who=producer(server=server, pool="p")))
    text = service.client.get("/metrics").text
    for name, labels in _series(service):
        family = FAMILY_OF[name]
        found = {label for label, _ in labels} - {"le"}
        assert set(family.labels) <= found <= set(family.possible_labels), name
    for family in CATALOGUE.values():
        assert f"# TYPE {family.name} {family.kind}\n" in text
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert family.unit == "" or family.name.removesuffix("_total").endswith(f"_{family.unit}")


def test_openmetrics_says_the_same(service: Service) -> None:
    _push_both(service)
    accept = "application/openmetrics-text; version=1.0.0"
    response = service.client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    plain, open_metrics = _series(service), _series(service, accept)
    assert {key: value for key, value in plain.items() if "duration" not in key[0]} == {
        key: value
        for key, value in open_metrics.items()
        if "duration" not in key[0] and not key[0].endswith("_created")
    }


def test_promtool_has_nothing_to_say(start_service: Callable[..., Service]) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: install the package prometheus"
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    _push_both(service)
    text = service.client.get("/metrics").content
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def _text_of(state: LiveState, settings: Settings) -> str:
    registry = CollectorRegistry()
    registry.register(RoutingCollector(state, settings, Instruments()))
    return generate_latest(registry).decode()


def test_a_failing_part_never_fails_the_scrape(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_group: Group) -> list[Sample]:
        raise RuntimeError("broken")

    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", fail)
    settings = Settings()
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    text = _text_of(state, settings)
    assert 'moescope_scrape_part_success{part="capture"} 0.0' in text
    assert 'moescope_scrape_part_success{part="ranks"} 1.0' in text
    assert 'moescope_tokens_total{dp_rank="0",model="tiny",server="prod"} 1.0' in text
    assert "moescope_snapshot_age_seconds{" not in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Sample("moescope_no_such_thing", (), 1), "there is no family moescope_no_such_thing"),
        (Sample("moescope_steps_total", ("a", "b"), 1), "moescope_steps_total has 3 labels, not 2"),
        (
            Table("moescope_steps_total", ("a", "b"), (("c", ("d",)),), np.ones(1)),
            "moescope_steps_total has 3 labels, not 4",
        ),
    ],
)
def test_a_sample_that_breaks_the_catalogue_is_told(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Sample | Table,
    words: str,
) -> None:
    right = Sample("moescope_steps_total", ("a", "b", "c"), 7)
    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", lambda _: [wrong, right])
    settings = Settings()
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    registry = CollectorRegistry()
    registry.register(RoutingCollector(state, settings, Instruments()))
    for _ in range(2):
        text = generate_latest(registry).decode()
        assert 'moescope_scrape_part_success{part="capture"} 0.0' in text
        assert 'moescope_scrape_part_success{part="ranks"} 1.0' in text
        assert 'moescope_steps_total{dp_rank="c",model="b",server="a"} 7.0' in text
        assert "moescope_no_such_thing" not in text
    [line] = [record.getMessage() for record in caplog.records]  # not one for each scrape
    assert line.endswith(words)


def test_a_sample_that_the_level_hides_is_no_fault(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = Sample("moescope_layer_expert_slots_total", ("a", "b", "0", "0"), 1)
    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", lambda _: [hidden])
    settings = Settings(metrics_level=MetricsLevel.RANK)
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    text = _text_of(state, settings)
    assert 'moescope_scrape_part_success{part="capture"} 1.0' in text
    assert "moescope_layer_expert_slots_total" not in text


def test_phases_add_up_and_steps_of_unknown_phase_are_told_apart(service: Service) -> None:
    told = {"decode": {0: [1, 1]}, "decode_steps": 2, "mixed_steps": 1}
    service.push(frame({0: [4, 4]}, steps=2))
    service.push(frame({0: [3, 3]}, steps=4, epoch=EPOCH + 9, **told))
    series = _series(service)
    phases = ("prefill", "decode", "mixed", "unknown")
    tokens, steps = (
        [_value(series, f"moescope_phase_{unit}_total", dp_rank="0", phase=phase) for phase in phases]
        for unit in ("tokens", "steps")
    )
    assert tokens == [2, 1, None, 4]
    assert steps == [1, 2, 1, 2]
    assert _value(series, "moescope_tokens_total", dp_rank="0") == 7
    assert _value(series, "moescope_steps_total", dp_rank="0") == 6


def test_straggler_sums_give_the_cost_and_other_services_can_be_added(service: Service) -> None:
    _push_both(service)
    _push_both(service, scale=2, seq=2)
    series = _series(service)
    most = _value(series, "moescope_straggler_max_slots_total")
    mean = _value(series, "moescope_straggler_mean_slots_total")
    assert (most, mean) == (2 * 2 * (200 + 150), 2 * 2 * (150 + 100))
    assert _value(series, "moescope_straggler_cost_ratio") == pytest.approx(1 - 250 / 350)
    assert _value(series, "moescope_layer_straggler_max_slots_total", layer="3") == 600
    assert _value(series, "moescope_straggler_hottest_layer_steps_total", ep_rank="0") == 4
    assert _value(series, "moescope_straggler_joined_steps_total", pp_rank="0") == 2


def test_rearrangements_are_counted_once_and_restarts_are_none(service: Service) -> None:
    def push(dp_rank: int, seq: int, version: int, epoch: int = EPOCH) -> None:
        placed = halves(2, 1, version=version)
        made = frame({0: [seq, seq]}, who=_rank(dp_rank), seq=seq, epoch=epoch, placement=placed)
        assert service.push(made).status_code == 200

    for seq, version in ((1, 3), (2, 4), (3, 6)):
        push(0, seq, version)
        push(1, seq, version)
    push(0, 1, 0, epoch=EPOCH + 200 * 10**9)
    assert _value(_series(service), "moescope_rearrangements_total") == 2


def test_a_restart_of_a_dp_rank_is_one_whatever_its_workers(service: Service) -> None:
    for start in range(2):
        for tp_rank in range(4):
            who = producer(tp_rank=tp_rank, tp_size=4)
            made = frame({0: [1, 1]}, who=who, epoch=EPOCH + start * 10**9)
            assert service.push(made).status_code == 200
    assert _value(_series(service), "moescope_producer_restarts_total", dp_rank="0") == 1


def test_scrapes_at_once_share_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a scraper that gives up and comes again, runs would pile up."""
    _push_both(service)
    gather, call, asked = RoutingCollector._gather, SharedRuns.__call__, []

    async def asking(runs: SharedRuns[Any, Any], form: Any) -> Any:
        asked.append(form)
        return await call(runs, form)

    def slow(collector: RoutingCollector, *places: Any) -> Any:
        wait_until(lambda: len(asked) >= 20, "not all have come")
        return gather(collector, *places)

    monkeypatch.setattr(SharedRuns, "__call__", asking)
    monkeypatch.setattr(RoutingCollector, "_gather", slow)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.client.get("/metrics"), range(20)))
    assert all(answer.text.count("moescope_tokens_total{") == 2 for answer in answers)
    made = _series(service)["moescope_scrape_duration_seconds_count", ()]
    assert made == 2, "the first one's, and that of all who came during it"


def test_the_place_of_a_deployment_is_on_all_its_series_and_nowhere_else(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    _push_both(service)
    service.push(
        frame(
            {0: [4, 0, 2, 0]},
            who=producer(server="b", pool='c"hat', role="decode", dp_size=2, ep_size=2),
            placement=halves(4, 1),
        )
    )
    of_b = 0
    for name, labels in _series(service):
        known = dict(labels)
        expected = {}
        if known.get("server") == "b":
            expected, of_b = {"pool": 'c"hat', "role": "decode"}, of_b + 1
        assert {key: known[key] for key in ("pool", "role") if key in known} == expected, name
    assert of_b > 20


def test_replicas_of_a_pool_tell_how_far_their_routing_is_apart(service: Service) -> None:
    for server, counts in (("a", [100, 0, 0, 0]), ("b", [0, 50, 0, 50]), ("c", [0, 50, 0, 50])):
        service.push(frame({0: counts}, who=producer(server=server, pool="chat")))
    service.push(frame({0: [0, 0, 9, 0]}, who=producer(server="d", pool="chat", role="decode")))
    service.push(frame({0: [0, 0, 9, 0]}, who=producer(server="e")))
    series = _series(service)
    found = {
        dict(labels)["server"]: value
        for (name, labels), value in series.items()
        if name == "moescope_replica_divergence_bits"
    }
    assert found == {"a": 1.0, "b": pytest.approx(0.3112781), "c": pytest.approx(0.3112781)}
    answer = service.get("/v1/pools/chat")["deployments"]
    medians = {item["server"]: item["divergence"]["median"] for item in answer}
    assert medians == {**found, "d": None}


def test_a_deployment_that_moves_to_another_pool_has_one_place(service: Service) -> None:
    service.push(frame({0: [4, 2]}, who=producer(pool="old")))
    service.clock.now += 1
    service.push(frame({0: [4, 2]}, who=producer(pool="new"), epoch=EPOCH + 100 * 10**9))
    pools = {value for _, labels in _series(service) for key, value in labels if key == "pool"}
    assert pools == {"new"}


def test_how_far_back_windows_reach_and_what_would_help(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    settings = Settings(port=0, history_mib=1, window_s=60)
    state = LiveState(settings, clock)
    large = {layer: [2 * layer + 2] * 1000 for layer in range(60)}
    for second in range(1, 8):
        clock.now += 10
        state.ingest(
            frame(large, epoch=int(clock.now - 10 * second) * 10**9, after_s=10 * second, seq=second)
        )
    text = _text_of(state, settings)
    [line] = [item for item in text.splitlines() if item.startswith("moescope_history_span_seconds{")]
    assert float(line.rpartition(" ")[2]) < 20
    assert "reach back" in caplog.text
    assert "Set history_mib to" in caplog.text
