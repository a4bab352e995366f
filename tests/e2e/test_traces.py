"""Routing traces of a real vLLM: at rate 1 their sum is the histogram of the run, expert by expert."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
import zstandard

from devkit.vllm_server import MODEL_NAME
from moescope.capture.seam.requests import client_ids
from moescope.capture.wire import Int64Array, unpack_ids
from moescope.capture.wire.traces import decode_part
from moescope.service.store.sqlite.store import FILE
from tests.e2e.cluster import DP2_EP2, Cluster, Request, prompts
from tests.e2e.reading import forward_passes, last_frames
from tests.e2e.stragglers import assert_rise, settled_stragglers, sums_of
from tests.e2e.traces import all_traces, assert_sums, joined, npz, parts_of, settled
from tests.step_loads import step_loads

pytestmark = pytest.mark.e2e

SECRET = "the secret word is xylophone"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@pytest.fixture(scope="module")
def tracing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 with prefix caching and chunked prefill; every request is traced."""
    folder: Path = tmp_path_factory.mktemp("tracing")
    steps = folder / "steps"
    steps.mkdir()
    options = {
        **DP2_EP2,
        "worker_class": "tests.e2e.layout_worker.LayoutWorker",
        "env": {"MOESCOPE_TRACE_RATE": "1", "LAYOUT_FOLDER": str(steps), "PYTHONPATH": str(Path.cwd())},
    }
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


def test_sum_of_traces_is_the_histogram(tracing: Cluster) -> None:
    """Concurrent, chunked, and prefix-cached requests on both ranks."""
    tracing.complete_all(prompts(20))
    tracing.complete(Request("x" * 700, 3))
    for ending in range(4):
        tracing.complete(Request("the same beginning " * 20 + str(ending), 2))
    tracing.assert_exact()
    assert_sums(tracing)
    traces = all_traces(tracing)
    assert len({trace["request_id"] for trace in traces}) == len(traces) == 25
    assert {trace["dp_rank"] for trace in traces} == {0, 1}


def test_straggler_cost_is_that_of_full_traces(tracing: Cluster) -> None:
    """Every request is traced, and each of its tokens with its step: that gives all loads a second time."""
    answer = settled_stragglers(tracing)
    placement = last_frames(tracing)[0].placement
    assert placement is not None
    loads: dict[int, Int64Array] = {}
    for body in tracing.relay.trace_bodies:
        part = decode_part(body)
        for i, table in enumerate(placement.table_of_layer):
            owners = unpack_ids(placement.tables[table].physical_to_ep_rank)
            for step, ids in zip(np.frombuffer(part.steps, "<i8").tolist(), part.ids_of(i), strict=True):
                load = loads.setdefault(step, np.zeros((4, 2), dtype=np.int64))
                load[i] += np.bincount(owners[ids], minlength=2)
    [stage] = answer["stages"]
    assert stage["joined"] == forward_passes(last_frames(tracing)[0])
    assert stage["incomplete"] == 0
    nothing = [{"max_slots": 0, "mean_slots": 0.0, "hottest": [0.0, 0.0]}] * 4
    assert_rise(answer, {"layers": nothing}, loads)
    most, mean, _ = sums_of(loads)
    assert answer["straggler_cost"] == pytest.approx(1 - sum(mean) / sum(most), abs=1e-12)


def test_computed_positions_once_each_and_both_ids_find_it(tracing: Cluster) -> None:
    shared = "a common prefix of many tokens " * 12
    answers = [
        httpx.post(
            f"{tracing.vllm.url}/v1/completions",
            json={"model": MODEL_NAME, "prompt": f"{shared}{number}", "max_tokens": 5, "temperature": 0},
            headers={"X-Request-Id": f"mine-{number}"},
            timeout=300,
        ).json()
        for number in range(6)
    ]
    settled(tracing)
    hits = 0
    for number, answer in enumerate(answers):
        trace = npz(tracing, f"mine-{number}")
        by_completion = npz(tracing, answer["id"])
        np.testing.assert_array_equal(trace["routed_experts"], by_completion["routed_experts"])
        [entry] = tracing.service.get("/v1/traces", request_id=f"mine-{number}")["traces"]
        prompt = answer["usage"]["prompt_tokens"]
        assert entry["prompt_tokens"] == prompt
        cached = entry["cached_tokens"]
        hits += cached
        # The last token that was sampled is never fed back.
        expected = [0] * cached + [1] * (prompt - cached + answer["usage"]["completion_tokens"] - 1)
        assert trace["times_computed"].tolist() == expected
        missing = (trace["routed_experts"] == -1).all(axis=(1, 2))
        assert missing.tolist() == [times == 0 for times in expected]
        rows = trace["routed_experts"][~missing]
        assert rows.shape[1:] == (4, 4)
        assert rows.min() >= 0
        assert all(len(set(experts)) == 4 for experts in rows.reshape(-1, 4).tolist())
    assert hits > 0, "no prefix-cache hit was met"


def test_a_trace_names_who_computed_its_cached_prefix(tracing: Cluster) -> None:
    """With the rows of those it names, a trace is that of the same tokens of which nothing is cached."""
    begin = list(range(1, 101))
    prompts = {"origin": [*begin, *[3] * 30], "second": [*begin, *[5] * 60], "third": [*begin, *[5] * 90]}
    for name, prompt in prompts.items():
        complete(tracing, name, prompt, salt="common")
    for name, prompt in prompts.items():
        complete(tracing, f"{name}-alone", prompt, salt=name)
    settled(tracing)
    said = {name: whose(tracing, name) for name in prompts}
    assert said == {
        "origin": [],
        "second": [(0, 96, "origin")],
        "third": [(0, 96, "origin"), (96, 64, "second")],  # by who computed them, not by who had them last
    }
    rows = {name: npz(tracing, name)["routed_experts"] for name in prompts}
    for name, prompt in prompts.items():
        filled = rows[name].copy()
        for first, count, of in said[name]:
            assert (filled[first : first + count] == -1).all()
            filled[first : first + count] = rows[of][first : first + count]
        expected = npz(tracing, f"{name}-alone")
        assert whose(tracing, f"{name}-alone") == []
        assert expected["times_computed"].min() == 1
        np.testing.assert_array_equal(
            np.sort(filled[: len(prompt)]), np.sort(expected["routed_experts"][: len(prompt)])
        )
        whole = joined(tracing, name)
        np.testing.assert_array_equal(whole["routed_experts"], filled)
        assert whole["missing"] == []
        assert [
            (
                item["positions"][0][0],
                item["positions"][0][1] - item["positions"][0][0],
                client_ids(item["request_id"])[-1],
            )
            for item in whole["parts"][1:]
        ] == said[name]


def complete(cluster: Cluster, name: str, prompt: list[int], salt: str) -> None:
    """On one DP rank, beside nobody, with the prefix cache of those with the same salt."""
    response = httpx.post(
        f"{cluster.vllm.url}/v1/completions",
        json={"model": MODEL_NAME, "prompt": prompt, "max_tokens": 2, "temperature": 0, "cache_salt": salt},
        headers={"X-Request-Id": name, "X-data-parallel-rank": "1"},
        timeout=300,
    )
    assert response.status_code == 200, response.text


def whose(cluster: Cluster, name: str) -> list[tuple[int, int, str]]:
    """What a trace says that it took over: first position, positions, and the name of who computed them."""
    [part] = parts_of(cluster, name)
    return [
        (entry.first, entry.count, client_ids(entry.request_id)[-1] if entry.request_id else entry.why)
        for entry in part.taken_over
    ]


def test_rows_are_laid_out_as_capture_is_told_before_the_forward_pass(tracing: Cluster) -> None:
    """In every step so far: positions and token ids of all rows are those of the requests told."""
    tracing.complete_all(prompts(12))
    ranks = [path.read_text().splitlines() for path in (tracing._folder / "steps").glob("[0-9]*")]
    assert len(ranks) == 2
    steps = [json.loads(line) for rank in ranks for line in rank]
    assert {step["wrong"] for step in steps} == {None}
    assert all(told == scheduled for told, scheduled in (step["tokens"] for step in steps))
    assert any(0 < step["prompt_rows"] < step["tokens"][0] for step in steps), "no mixed batch was met"
    assert not all(step["as_scheduled"] for step in steps), "vLLM never reordered its batch"


def test_an_aborted_request_closes_its_trace(tracing: Cluster) -> None:
    with httpx.stream(
        "POST",
        f"{tracing.vllm.url}/v1/completions",
        json={"model": MODEL_NAME, "prompt": "abort", "max_tokens": 1500, "temperature": 0, "stream": True},
        headers={"X-Request-Id": "gone"},
        timeout=300,
    ) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number > 20:
                break
    assert_sums(tracing)
    trace = npz(tracing, "gone")
    assert 10 <= len(trace["times_computed"]) < 1500
    assert set(trace["times_computed"].tolist()) == {1}


def test_the_service_was_down(tracing: Cluster) -> None:
    """Traces wait in the worker, arrive once although sent twice, and survive the service."""
    settled(tracing)
    tracing.rebase()
    before = len(all_traces(tracing))
    tracing.relay.down = True
    tracing.complete_all(prompts(6))
    time.sleep(1)
    tracing.relay.down = False
    tracing.relay.disorder = True
    tracing.assert_exact()  # until then accounts of traces are from before: frames wait after a failure, too
    settled(tracing)
    tracing.relay.disorder = False
    tracing.restart_service()
    tracing.complete(Request("after the restart", 2))
    tracing.assert_exact()
    assert_sums(tracing)
    assert len(all_traces(tracing)) == before + 7


def test_no_text_anywhere(tracing: Cluster) -> None:
    """A prompt is nowhere as text, nor as token ids of whatever width; not in what is compressed, either."""
    tokens = tracing.complete(Request(SECRET, 3))
    settled(tracing)
    folder = tracing._folder
    texts = {
        "traces on the wire": b"".join(tracing.relay.trace_bodies),
        "frames on the wire": b"".join(tracing.relay.frame_bodies),
        "log of vLLM and its workers": (folder / "vllm.log").read_bytes(),
        "log of the service": (folder / "service.log").read_bytes(),
        "metrics": httpx.get(f"{tracing.service.url}/metrics", timeout=60).content,
        "values in the store": b"\n".join(stored_values(folder / "store" / FILE)),
        **{f"store {path.name}": path.read_bytes() for path in (folder / "store").iterdir()},
    }
    # The tokenizer makes each byte a token.
    prompt = list(SECRET.encode())
    traces = [decode_part(body) for body in tracing.relay.trace_bodies]
    assert any(
        part.prompt_tokens == len(prompt) and part.tokens == len(prompt) + len(tokens) - 1 for part in traces
    )
    wanted = {dtype: np.array(prompt[:12], dtype).tobytes() for dtype in ("u1", "<u2", "<i4", "<i8")}
    assert all(b"cmpl-" in texts[place] for place in ("traces on the wire", "values in the store"))
    for place, content in texts.items():
        for dtype, ids in wanted.items():
            assert ids not in content, (place, dtype)


def stored_values(path: Path) -> Iterator[bytes]:
    """Every value of every table of a store, with what its zstd frames hold."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        rows = [row for (table,) in tables for row in connection.execute(f'SELECT * FROM "{table}"')]
    unpacked = 0
    for value in (value for row in rows for value in row):
        yield value if isinstance(value, bytes) else str(value).encode()
        if isinstance(value, bytes):
            for frame in value.split(ZSTD_MAGIC)[1:]:
                yield zstandard.ZstdDecompressor().decompress(ZSTD_MAGIC + frame)
                unpacked += 1
    assert unpacked > 0


def test_a_steps_number_is_the_same_on_all_dp_ranks(tracing: Cluster) -> None:
    """vLLM's ranks agree on their sizes in each forward pass, which has one number on all of them."""
    tracing.complete_all(prompts(16, stride=3))
    tracing.assert_exact()
    folder = tracing._folder / "steps"
    noted = [json.loads(line) for path in folder.glob("passes-*") for line in path.read_text().splitlines()]
    across = [{n["step"]: n["across"] for n in noted if n["rank"] == rank} for rank in (0, 1)]
    both = across[0].keys() & across[1].keys()
    assert len(both) > 50
    assert [across[0][step] for step in sorted(both)] == [across[1][step] for step in sorted(both)]
    top_k = tracing.relay.frames[0].layers[0].top_k
    for rank in (0, 1):
        loads = step_loads(tracing.relay.frames, rank)
        for step in both:  # a dummy step is of one token and has no load
            tokens = int(loads[step][0].sum()) // top_k if step in loads else 1
            assert tokens == across[rank][step][rank]
