"""The same ids counted three times: by the step kernel, by the layer kernel and by the torch reference."""

from __future__ import annotations

import torch

from tests.kernels.device import DEVICE  # skips first, where there is neither a GPU nor the interpreter

# isort: split
from moescope.capture.counting.launch import launch_layer, launch_step
from moescope.capture.counting.load_ring import LoadRing, ring_by_maps
from moescope.capture.counting.pointer_tables import TableEntry, blank_table, filled_table, table_entry
from moescope.capture.counting.reference import CountBuffers, count_rows
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.step.word import Phase, pack_step
from moescope.capture.wire import MoeLayer
from tests.expert_maps import RandomMaps

SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
MODELS = {
    "qwen3-30b": [(128, 8)] * 4,
    "qwen2-moe": [(60, 4)] * 3,
    "deepseek-v2": [(160, 6)] * 3,
    "kimi-k2": [(384, 8)] * 2,
    "ragged": [(60, 4), (384, 8), (1, 1), (7, 3), (128, 1)],
    "more experts than bins": [(3000, 8), (16, 2)],
    "one layer": [(256, 9)],
}


def make_ids(rows: int, layer: MoeLayer, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Ids [rows, top_k] in and out of range; masked ones where the type has a sign."""
    generator = torch.Generator().manual_seed(seed)
    highest = min(layer.num_experts + 3, torch.iinfo(dtype).max)
    lowest = -2 if dtype in SIGNED else 0
    return torch.randint(lowest, highest, (rows, layer.top_k), generator=generator).to(DEVICE, dtype)


class Bench:
    """Counts the same ids with the step kernel, the layer kernel and the reference.

    Experts are on EP ranks at random; phases are random too, where a step has both. With a rule the EP ranks
    come from maps as vLLM has them, with `redundant` more physical experts than logical ones at least.
    """

    def __init__(
        self,
        shape: list[tuple[int, int]],
        num_valid: int,
        phase: Phase = Phase.PREFILL,
        ep_size: int = 8,
        max_tokens: int = 6000,
        rule: ReplicaRule | None = None,
        redundant: int = 20,
        microbatches: int = 1,
    ) -> None:
        self.layers = [MoeLayer(2 * index, experts, top_k) for index, (experts, top_k) in enumerate(shape)]
        self.num_valid, self.phase = num_valid, phase
        generator = torch.Generator().manual_seed(3)
        size = (len(shape), max(experts for experts, _ in shape))
        ep_ranks = torch.randint(0, ep_size, size, generator=generator).numpy() if ep_size else None
        phases = torch.randint(0, 2, (max_tokens,), generator=generator)
        self.all = []
        self.maps: RandomMaps | None = None
        if rule is not None:
            physical = -(-(size[1] + redundant) // ep_size) * ep_size
            self.maps = RandomMaps([experts for experts, _ in shape], physical, ep_size, DEVICE)
        for _ in range(3):
            ring = None
            if ep_ranks is not None:
                ring = LoadRing(ep_ranks.astype("i4"), ep_size, 0, DEVICE, microbatches=microbatches)
            if self.maps is not None and rule is not None:
                ring = ring_by_maps(self.maps.device_maps(DEVICE, rule), ep_size, DEVICE, microbatches)
            buffers = CountBuffers(self.layers, DEVICE, max_tokens, ring, microbatches)
            buffers.phases.copy_(phases)
            self.all.append(buffers)
        self.step, self.layer, self.reference = self.all

    def table(self, entries: dict[int, TableEntry]) -> torch.Tensor:
        """A pointer table of these layers, by ordinal."""
        return torch.from_numpy(filled_table(blank_table(self.layers), entries)).to(DEVICE)

    def begin(self) -> None:
        """A step begins, with the next place of each ring, which only the step kernel has emptied before."""
        for buffers in self.all:
            place = 0
            if buffers.ring is not None:
                place = buffers.ring.begin_step(0)
                if buffers is not self.step:
                    buffers.ring.zero()
            buffers.step_word.fill_(pack_step(self.num_valid, self.phase, place))

    def count(self, ids: dict[int, torch.Tensor], spans: dict[int, RowSpan]) -> None:
        """A step."""
        self.count_in_parts(ids, spans, [tuple(ids)])

    def count_in_parts(
        self, ids: dict[int, torch.Tensor], spans: dict[int, RowSpan], parts: list[tuple[int, ...]]
    ) -> None:
        """A step whose step kernel is launched for each part of the layers, by ordinal."""
        self.begin()
        for part in parts:
            slots = max(spans[i].count * ids[i].shape[1] for i in part)
            table = self.table({i: table_entry(ids[i], spans[i]) for i in part})
            launch_step(table, self.step, self.step.flat, ids[part[0]].dtype, slots)
        for i, tensor in ids.items():
            launch_layer(tensor, spans[i], self.layer, i, self.layer.flat)
            count_rows(self.reference, i, tensor, spans[i], self.reference.flat)

    def check(self) -> list[int]:
        """All three agree, on counts by phase and on the loads of each step."""
        expected = self.reference.flat.tolist()
        assert self.step.flat.tolist() == expected
        assert self.layer.flat.tolist() == expected
        if self.reference.ring is not None and self.step.ring is not None and self.layer.ring is not None:
            assert torch.equal(self.layer.ring.loads, self.reference.ring.loads)
            steps = min(self.reference.ring.computed, self.reference.ring.capacity)
            rings = (self.step.ring, self.reference.ring)
            copies = [torch.zeros_like(ring.loads) for ring in rings]
            for ring, copy in zip(rings, copies, strict=True):
                ring.copy_since(0, copy)
            assert torch.equal(copies[0][:steps], copies[1][:steps])
            size = len(self.layers) * self.reference.ep_size
            by_rank = self.reference.flat[self.reference.ep_slots_start :].view(2, size).sum(0)
            if rings[0].computed <= rings[0].capacity:
                assert copies[0].sum((0, 1)).flatten().tolist() == by_rank.tolist()  # law 4
                assert int(copies[0].sum()) == sum(expected[: 2 * self.reference.num_counts])
        return expected


def span(count: int, start: int = 0, first_token: int = 0, microbatch: int = 0) -> RowSpan:
    return RowSpan(Layout.LOCAL, start, count, first_token, microbatch)
