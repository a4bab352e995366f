import multiprocessing
from pathlib import Path
from typing import Any

import moescope_devkit_cpu as plugin
import pytest
import torch
import torch.distributed as dist

RANKS = 2


def _join(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{store}")


def _gather(rank: int, store: str, sizes: list[int] | None, lengths: list[int]) -> list[list[Any]]:
    _join(rank, store)
    rows = torch.arange(lengths[rank] * 2, dtype=torch.float32).reshape(-1, 2) + 100 * rank
    ids = torch.arange(lengths[rank]) + 1000 * rank
    group = dist.group.WORLD
    assert group is not None
    return [tensor.tolist() for tensor in plugin.gather_rows([rows, ids], sizes, group)]


def _reduce(rank: int, store: str, sizes: list[int] | None, lengths: list[int]) -> list[float]:
    _join(rank, store)
    group = dist.group.WORLD
    assert group is not None
    result: list[float] = plugin.reduce_rows(torch.arange(4.0) * 10**rank, sizes, group).tolist()
    return result


def on_all_ranks(function: Any, folder: Path, *arguments: Any) -> list[Any]:
    with multiprocessing.get_context("fork").Pool(RANKS) as pool:
        jobs = [(rank, str(folder / "store"), *arguments) for rank in range(RANKS)]
        return pool.starmap(function, jobs, chunksize=1)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [([3, 1], [3, 1]), ([0, 2], [0, 2]), (None, [2, 2])],
    ids=["unequal", "none", "equal"],
)
def test_gather_concatenates_unequal_rows_of_real_processes(
    tmp_path: Path, sizes: list[int] | None, lengths: list[int]
) -> None:
    rows = [
        [100.0 * rank + 2 * i, 100.0 * rank + 2 * i + 1]
        for rank in range(RANKS)
        for i in range(lengths[rank])
    ]
    ids = [1000 * rank + i for rank in range(RANKS) for i in range(lengths[rank])]
    assert on_all_ranks(_gather, tmp_path, sizes, lengths) == [[rows, ids]] * RANKS


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([3, 1], [[0.0, 11.0, 22.0], [33.0]]),
        (None, [[0.0, 11.0], [22.0, 33.0]]),
        ([0, 4], [[], [0, 11, 22, 33]]),
    ],
    ids=["unequal", "equal", "none"],
)
def test_reduce_keeps_each_rank_s_span_of_the_sum(
    tmp_path: Path, sizes: list[int] | None, expected: list[list[float]]
) -> None:
    assert on_all_ranks(_reduce, tmp_path, sizes, []) == expected


def test_experts_of_other_ranks_get_weight_zero_and_the_router_s_tensors_stay() -> None:
    expert_map = torch.tensor([-1, -1, 0, 1], dtype=torch.int32)
    ids, weights = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32), torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    local_ids, local_weights = plugin.to_local_experts(ids, weights, expert_map)
    assert local_ids.tolist() == [[1, 0], [0, 0]]
    assert local_ids.dtype == ids.dtype
    assert torch.equal(local_weights, torch.tensor([[0.7, 0.0], [0.0, 0.4]]))
    assert ids.tolist() == [[3, 0], [1, 2]]
    assert torch.equal(weights, torch.tensor([[0.7, 0.3], [0.6, 0.4]]))


class Experts:
    """Takes those arguments of vLLM's kernel that matter to the plugin."""

    def apply(
        self, topk_weights: torch.Tensor, topk_ids: torch.Tensor, expert_map: torch.Tensor | None
    ) -> Any:
        return topk_ids.tolist(), topk_weights.tolist()


def test_expert_map_is_added_once_and_only_used_when_there_is_one() -> None:
    class Mended(Experts):
        pass

    plugin.add_expert_map(Mended)
    mended = Mended.apply
    plugin.add_expert_map(Mended)
    assert Mended.apply is mended
    given = {"topk_weights": torch.ones(1, 2), "topk_ids": torch.tensor([[1, 0]])}
    assert Mended().apply(**given, expert_map=None) == ([[1, 0]], [[1.0, 1.0]])
    assert Mended().apply(**given, expert_map=torch.tensor([-1, 0])) == ([[0, 0]], [[1.0, 0.0]])


def test_a_kernel_with_other_arguments_is_an_error() -> None:
    class Other:
        def apply(self, ids: torch.Tensor) -> None: ...

    with pytest.raises(plugin.UnsupportedVllmError, match="expert_map"):
        plugin.add_expert_map(Other)


def test_collectives_fill_gaps_only() -> None:
    class Base:
        def all_gatherv(self, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> str:
            raise NotImplementedError

        def reduce_scatterv(self, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> str:
            raise NotImplementedError

    class Communicator(Base):
        def all_gatherv(self, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> str:
            return "its own"

    plugin.add_collectives(Communicator, Base)
    assert Communicator().all_gatherv(None) == "its own"
    assert Communicator.reduce_scatterv is not Base.reduce_scatterv
    with pytest.raises(NotImplementedError):
        Base().reduce_scatterv(None)
