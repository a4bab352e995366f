"""What a trace says of its cached prefix is what vLLM's scheduler did: the true writer, or why not."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ModelConfig
from vllm.v1.kv_cache_interface import MambaSpec

from moescope.capture.seam.block_tables import BlockLayout, BlockReader, BlocksHandedOn, StepBlocks, Table
from moescope.capture.seam.requests import changes_requests
from moescope.capture.tracing.buffer import Trace
from moescope.capture.tracing.origins import BlockOrigins, BlocksOfStep
from moescope.capture.wire.traces import MAX_TAKEN_OVER, TakenOver
from tests.capture.scheduler import Scheduling, full_attention, mamba, model_config, sliding_window

LAYOUT = BlockLayout(group=0, block_size=4, blocks=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return model_config(Path(tmp_path_factory.mktemp("model")))


@dataclass
class Follower:
    """Follows a scheduler as a worker does, and checks each thing that it says of a request's prefix.

    What is handed on is read as late as may be: vLLM must not have changed it until then.
    """

    scheduling: Scheduling
    origins: BlockOrigins = field(default_factory=BlockOrigins)
    traces: dict[str, Trace] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    handed_on: int = 0

    def __post_init__(self) -> None:
        self._reader = BlockReader(self.scheduling.config)
        self._unread: list[BlocksHandedOn] = []

    def step(self) -> None:
        output = self.scheduling.schedule()
        quiet = not changes_requests(output)
        handed_on = self._reader.hand_on(output, self.scheduling) if quiet else None
        blocks = None
        if handed_on is not None:
            self.handed_on += 1
            self._unread.append(handed_on)
        else:
            while self._unread:
                self.origins.take(self._unread.pop(0))
            blocks = self._reader.read(output, self.scheduling)
        if blocks is not None:
            for table in blocks.tables:
                if is_traced(table.request_id):
                    self.traces.setdefault(table.request_id, Trace(table.request_id, [], 1, 0))
            known = {table.request_id: table for table in blocks.tables}
            before = {name: self.traces[name].reached for name in known if name in self.traces}
            self.origins.follow(BlocksOfStep(blocks, {name: self.traces[name] for name in before}))
            for name, reached in before.items():
                self._check(known[name], reached)
        for name, count in output.num_scheduled_tokens.items():
            if name in self.traces:
                end = self.scheduling.scheduler.requests[name].num_computed_tokens
                assert self.traces[name].reached >= end - count, "a position that nobody speaks of"
                self.traces[name].reached = max(self.traces[name].reached, end)
        received = self.scheduling.received()
        if received is not None:
            self.origins.received()
        self.scheduling.finish(output, received=received)

    def _check(self, table: Table, reached: int) -> None:
        said = {
            position: entry
            for entry in self.traces[table.request_id].taken_over
            for position in range(entry.first, entry.first + entry.count)
        }
        size = self._reader._layout.block_size
        for position in range(reached, table.computed):
            place = table.blocks[position // size], position % size
            writer, at, step = self.scheduling.held[place]
            entry = said[position]
            assert at == position, "vLLM has another position in this block"
            if entry.request_id:
                assert entry.request_id == writer
                assert self.scheduling.latest[writer, position] == step, "computed elsewhere since"
            elif entry.why == "computed_again":
                assert writer in self.scheduling.resumed
            elif entry.why == "not_seen":  # a copy of a copy
                assert self.scheduling.copies
            elif entry.why == "kv_transfer":
                assert self.scheduling.loaded
            else:
                assert (entry.why, is_traced(writer)) == ("not_traced", False)
            self.said[entry.why or "named"] += 1


def is_traced(name: str) -> bool:
    return not name.endswith("x")


GROUPS: dict[str, list[Any]] = {
    "one group": [full_attention(4)],
    "sliding window too": [full_attention(8), sliding_window(8, 16)],
    "two sizes": [full_attention(16), sliding_window(4, 8)],
    "Mamba too": [full_attention(16), mamba(16)],
}


@pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_every_named_request_computed_just_this(model: ModelConfig, groups: list[Any], v2: bool) -> None:
    """Common prefixes in a small cache: hits, eviction, chunks, preemption, aborts, resets."""
    said: Counter[str] = Counter()
    resumed = copies = 0
    for seed in range(12):
        follower = played(model, groups, seed, v2)
        said += follower.said
        resumed += len(follower.scheduling.resumed)
        copies += follower.scheduling.copies
    assert said["named"] > 1000, said
    assert said["not_traced"] > 100, said
    assert said["not_seen"] <= said["named"] / 50, said
    assert resumed > 50
    assert (copies > 0) is has_states(groups)


def played(model: ModelConfig, groups: list[Any], seed: int, v2: bool = False, **options: Any) -> Follower:
    """120 steps, each of them checked."""
    rng = random.Random(seed)
    blocks = rng.choice([30, 60] if has_states(groups) else [24, 40, 60, 100])
    finer = 4 if has_states(groups) else 1
    follower = Follower(Scheduling(model, groups, blocks, v2=v2, finer=finer, **options))
    stems = [[rng.randrange(1, 200) for _ in range(rng.randint(20, 90))] for _ in range(3)]
    for number in range(120):
        disturb(follower.scheduling, rng, number, rng.choice(stems))
        follower.step()
    return follower


def has_states(groups: list[Any]) -> bool:
    """Whether a prefix may end within a block, which is copied then."""
    return any(isinstance(spec, MambaSpec) for spec in groups)


@pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
def test_no_block_that_a_connector_filled_names_anybody(model: ModelConfig, v2: bool) -> None:
    """Also those of requests that wait for them, of which a worker is told after others have hit them."""
    said: Counter[str] = Counter()
    loaded: Counter[bool] = Counter()
    resets = 0
    for seed in range(24):
        follower = played(model, GROUPS["one group"], seed, v2, loading=True)
        resets += follower.scheduling.resets
        said += follower.said
        loaded += follower.scheduling.loaded
    assert said["named"] > 100, said
    assert said["kv_transfer"] > 1000, said
    assert min(loaded[waits] for waits in (False, True)) > 20
    assert resets > 10


def disturb(scheduling: Scheduling, rng: random.Random, number: int, stem: list[int]) -> None:
    """Perhaps a new request, an abort, a preemption, a reset of the prefix cache."""
    running = scheduling.scheduler.running
    if rng.random() < 0.5:
        prompt = stem[: rng.choice([len(stem), rng.randint(1, len(stem))])] + [7] * rng.randint(0, 40)
        name, salt = f"{number}{rng.choice(['', '', 'x'])}", rng.choice([None, None, "salt"])
        scheduling.add(name, prompt, rng.randint(1, 60), salt)
    if running and rng.random() < 0.05:
        scheduling.abort(rng.choice(running).request_id)
    if running and rng.random() < 0.1:
        scheduling.preempt(rng.choice(running).request_id)
    if rng.random() < 0.03 and scheduling.may_reset:
        scheduling.reset()


def test_what_a_preempted_request_computed_again_is_not_taken_for_its_trace(model: ModelConfig) -> None:
    """It goes on in new blocks from an earlier position, and others still find its first ones."""
    follower = played(model, GROUPS["two sizes"], seed=17)
    assert follower.said["computed_again"] > 0
    assert follower.handed_on > 0


class Drive:
    """Tables of blocks as a scheduler might make them."""

    def __init__(self, layout: BlockLayout = LAYOUT) -> None:
        self.layout = layout
        self.origins = BlockOrigins()
        self.behind = False

    def step(self, *tables: Table, traced: str = "abcde", **changes: Any) -> dict[str, list[TakenOver]]:
        """Each new request's prefix; those with a name in `traced` are traced."""
        traces = {t.request_id: Trace(t.request_id, [], 1, 0) for t in tables if t.request_id in traced}
        blocks = StepBlocks(self.layout, changes.pop("finished", ()), tables, **changes)
        self.origins.follow(BlocksOfStep(blocks, traces, self.behind))
        return {name: trace.taken_over for name, trace in traces.items()}


def test_hits_while_the_writer_runs_and_after_its_end_and_none_after_reuse() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    drive.step(appended=[("a", [3, 4])])
    assert drive.step(Table("b", 12, [1, 2, 3, 5]))["b"] == [TakenOver(0, 12, "a")]
    drive.step(finished=["a", "b"])
    # Flat: c's block 5 is b's, all before it a's, though b was the last to use it.
    assert drive.step(Table("c", 16, [1, 2, 3, 5, 6]))["c"] == [TakenOver(0, 12, "a"), TakenOver(12, 4, "b")]
    drive.step(Table("x", 0, [2]), traced="")
    expected = [TakenOver(0, 4, "a"), TakenOver(4, 4, "", "not_traced"), TakenOver(8, 2, "a")]
    assert drive.step(Table("d", 10, [1, 2, 3]))["d"] == expected


def test_a_block_at_another_place_or_never_seen_names_nobody() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2, 3]))
    assert drive.step(Table("b", 8, [2, 9, 10]))["b"] == [TakenOver(0, 8, "", "not_seen")]
    drive.step(appended=[("unheard of", [1])])
    assert drive.step(Table("c", 4, [1, 10]))["c"] == [TakenOver(0, 4, "", "not_seen")]


def test_an_id_that_comes_again_stands_for_the_later_request_only() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    drive.step(finished=["a"])
    drive.step(Table("a", 0, [3, 4]))
    assert drive.step(Table("b", 8, [1, 2, 5]))["b"] == [TakenOver(0, 8, "", "computed_again")]
    assert drive.step(Table("c", 8, [3, 4, 6]))["c"] == [TakenOver(0, 8, "a")]


def test_a_resumed_request_takes_over_only_what_it_has_not_computed() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2, 3, 4]))
    trace = Trace("b", [], 1, 0, reached=6)
    blocks = StepBlocks(LAYOUT, (), [Table("b", 12, [1, 2, 3, 5])])
    drive.origins.follow(BlocksOfStep(blocks, {"b": trace}))
    assert trace.taken_over == [TakenOver(6, 6, "a")]


def test_a_kv_connector_s_blocks_name_nobody() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2, 3]))
    # Within the step: block 2 was a's, and may have been loaded anew for b.
    loaded = drive.step(Table("b", 10, [1, 2, 4]), loads=True)
    assert loaded["b"] == [TakenOver(0, 10, "", "kv_transfer")]
    assert drive.step(Table("c", 16, [1, 2, 4, 5, 6]))["c"] == [
        TakenOver(0, 10, "", "kv_transfer"),
        TakenOver(10, 2, "b"),
        TakenOver(12, 4, "", "not_seen"),
    ]
    # Before the step, for a request that waits: any block may be another's now. Later ones are known again.
    drive.origins.received()
    drive.step(appended=[("a", [7])])
    found = drive.step(Table("d", 16, [1, 2, 3, 7]))["d"]
    assert found == [TakenOver(0, 12, "", "kv_transfer"), TakenOver(12, 4, "a")]


def test_a_copied_beginning_of_a_block_is_its_writer_s_and_the_rest_is_not() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    copied = drive.step(Table("b", 6, [1, 3, 4]), copies={3: 2})
    assert copied["b"] == [TakenOver(0, 6, "a")]
    assert drive.step(Table("c", 8, [1, 3, 5]))["c"] == [TakenOver(0, 6, "a"), TakenOver(6, 2, "b")]
    again = drive.step(Table("d", 7, [1, 6]), copies={6: 3})  # nobody keeps more than two writers of a block
    assert again["d"] == [TakenOver(0, 4, "a"), TakenOver(4, 3, "", "not_seen")]


def test_steps_that_were_left_out_and_another_cache_begin_anew() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    drive.behind = True
    assert drive.step(Table("b", 8, [1, 2, 3]))["b"] == [TakenOver(0, 8, "", "not_seen")]
    drive.behind = False
    drive.step(appended=[("a", [4])])  # the length of a's table isn't known any more
    assert drive.step(Table("c", 12, [1, 3, 4]))["c"] == [TakenOver(0, 12, "", "not_seen")]
    drive.step(Table("d", 0, [5]))
    drive.layout = LAYOUT._replace()
    assert drive.step(Table("e", 4, [5, 6]))["e"] == [TakenOver(0, 4, "", "not_seen")]


def test_a_cache_that_can_t_be_followed_says_why() -> None:
    drive = Drive(BlockLayout(why="no_full_attention"))
    assert drive.step(Table("a", 9, []))["a"] == [TakenOver(0, 9, "", "no_full_attention")]
    assert drive.step(Table("b", 0, []))["b"] == []
    drive.origins.received()


def test_after_a_fault_nothing_is_named_until_the_cache_is_another() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    with pytest.raises(IndexError):
        drive.step(Table("b", 0, [64]))
    drive.origins.give_up()
    drive.behind = True
    assert drive.step(Table("c", 8, [1, 2, 3]))["c"] == [TakenOver(0, 8, "", "fault")]


def test_lists_that_are_not_a_step_s_say_so() -> None:
    drive = Drive()
    drive.step(Table("a", 0, [1, 2]))
    drive.origins.take(BlocksHandedOn(drive.layout, ["a", "b"], [([3],), None]))
    assert drive.step(Table("c", 12, [1, 2, 3]))["c"] == [TakenOver(0, 12, "a")]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        drive.origins.take(BlocksHandedOn(drive.layout, ["a", "b"], [None]))


def test_memory_is_bounded_by_the_blocks_not_by_the_requests() -> None:
    drive = Drive()
    names = [f"request {number}" for number in range(5000)]
    drive.step(Table("a", 0, [60]))
    drive.step(Table("b", 6, [60, 61]), copies={61: 60})
    for number, name in enumerate(names):
        drive.step(Table(name, 0, [1 + number % 50]), traced=name)
        drive.step(finished=[name])
    assert len(drive.origins._writers) <= 1024 + 64
    assert len(drive.origins._of_request) <= 1024 + 64
    last = drive.step(Table("c", 4, [50, 62]), Table("d", 8, [60, 61, 63]), Table("e", 4, [41, 59]))
    assert last["c"] == [TakenOver(0, 4, names[4999])]
    assert last["d"] == [TakenOver(0, 4, "a"), TakenOver(4, 2, "", "not_seen"), TakenOver(6, 2, "b")]
    assert last["e"] == [TakenOver(0, 4, names[4990])]


def test_no_more_entries_than_the_wire_has_room_for() -> None:
    count = MAX_TAKEN_OVER + 20
    drive = Drive(BlockLayout(0, 1, 2 * count + 1))
    whole = list(range(1, count + 1))
    drive.step(Table("a", 0, whole))
    mixed = [block + count if block % 2 else block for block in whole]
    for place in range(0, count, 2):
        drive.step(Table("x", place, mixed[: place + 1]), traced="")
    found = drive.step(Table("c", count, mixed))["c"]
    assert len(found) == MAX_TAKEN_OVER
    assert found[:2] == [TakenOver(0, 1, "", "not_traced"), TakenOver(1, 1, "a")]
