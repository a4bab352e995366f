"""Row layouts, as a pure function: every layout, coinciding sizes, and everything else refused."""

import pytest

from moescope.capture.seam.rows import Layout, Ranks, RowSpan, locate_rows


def sp_shards(tokens: list[int], tp_size: int) -> list[int]:
    return [-(-n // tp_size) for n in tokens for _ in range(tp_size)]


def test_single_dp_takes_all_rows() -> None:
    assert locate_rows(7, Ranks(), None) == RowSpan(Layout.SINGLE_DP, 0, 7, 0)


@pytest.mark.parametrize(("dp_rank", "start", "count"), [(0, 0, 11), (1, 11, 1), (2, 12, 5)])
def test_naive_dispatch_takes_this_ranks_span_only(dp_rank: int, start: int, count: int) -> None:
    span = locate_rows(17, Ranks(dp_rank=dp_rank, dp_size=3), [11, 1, 5])
    assert span == RowSpan(Layout.ALL_DP, start, count, 0)


def test_modular_kernel_takes_all_of_its_own_rows() -> None:
    # vLLM #37857: asserting that all ranks' tokens are concatenated crashed here.
    assert locate_rows(11, Ranks(dp_rank=0, dp_size=2), [11, 4]) == RowSpan(Layout.LOCAL, 0, 11, 0)
    assert locate_rows(4, Ranks(dp_rank=1, dp_size=2), [11, 4]) == RowSpan(Layout.LOCAL, 0, 4, 0)


def test_gathered_shards_skip_the_padding_of_earlier_ranks() -> None:
    # 11 tokens pad to 6 + 6 rows, 4 to 2 + 2 (vLLM #50874).
    shards = sp_shards([11, 4], 2)
    assert shards == [6, 6, 2, 2]
    assert locate_rows(16, Ranks(0, 2, 0, 2), [11, 4], shards) == RowSpan(Layout.GATHERED_SHARDS, 0, 11, 0)
    assert locate_rows(16, Ranks(1, 2, 0, 2), [11, 4], shards) == RowSpan(Layout.GATHERED_SHARDS, 12, 4, 0)


@pytest.mark.parametrize(("tp_rank", "count", "first_token"), [(0, 3, 0), (1, 3, 3), (2, 3, 6), (3, 1, 9)])
def test_tp_shard_counts_its_part_of_the_tokens(tp_rank: int, count: int, first_token: int) -> None:
    span = locate_rows(3, Ranks(0, 2, tp_rank, 4), [10, 40], sp_shards([10, 40], 4))
    assert span == RowSpan(Layout.TP_SHARD, 0, count, first_token)


@pytest.mark.parametrize(("num_rows", "shards"), [(5, None), (14, None), (20, [2, 2, 2, 2, 3, 3, 3, 3])])
def test_replicated_rows_are_counted_by_tp_rank_0_alone(num_rows: int, shards: list[int] | None) -> None:
    counts = [locate_rows(num_rows, Ranks(0, 2, tp, 4), [5, 9], shards).count for tp in range(4)]
    assert counts == [5, 0, 0, 0]


def test_an_idle_rank_has_no_rows() -> None:
    assert locate_rows(0, Ranks(1, 2), [6, 0]).count == 0
    assert locate_rows(6, Ranks(1, 2), [6, 0]) == RowSpan(Layout.ALL_DP, 6, 0, 0)


@pytest.mark.parametrize(
    ("num_rows", "dp_rank", "tokens", "tp_size"),
    [
        (6, 0, [6, 0], 1),  # the sum over all ranks is this rank's tokens
        (1, 0, [1, 1], 2),  # one token: the shard is the whole
        (1, 1, [1, 1], 2),
        (8, 0, [4, 4], 2),  # shards without padding: gathered or concatenated
        (0, 0, [0, 3], 2),
    ],
)
def test_where_sizes_coincide_each_token_is_still_counted_once(
    num_rows: int, dp_rank: int, tokens: list[int], tp_size: int
) -> None:
    shards = sp_shards(tokens, tp_size)
    spans = [locate_rows(num_rows, Ranks(dp_rank, 2, tp, tp_size), tokens, shards) for tp in range(tp_size)]
    assert sum(span.count for span in spans) == tokens[dp_rank]
    assert all(span.start + span.count <= num_rows for span in spans)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 5, 7, 9, 10, 13, 15, 17, 100])
def test_any_other_size_is_refused_with_all_the_numbers(num_rows: int) -> None:
    with pytest.raises(AssertionError) as caught:
        locate_rows(num_rows, Ranks(1, 2, 1, 3), [3, 11], sp_shards([3, 11], 2))
    text = str(caught.value)
    for number in (
        f"batch of {num_rows} rows",
        "14 (all DP",
        "11 (this DP",
        "16 (gathered",
        "[2, 2, 6, 6]",
        "4 (one TP",
    ):
        assert number in text
    assert "tokens_across_dp=[3, 11]" in text
    assert "dp_rank=1, dp_size=2, tp_rank=1, tp_size=3" in text


def test_without_tp_there_is_no_shard_layout() -> None:
    with pytest.raises(AssertionError, match="fits no known row layout"):
        locate_rows(6, Ranks(0, 2), [11, 4])


def test_data_parallelism_without_metadata_is_refused() -> None:
    with pytest.raises(AssertionError, match="no DP metadata for a batch of 5 rows"):
        locate_rows(5, Ranks(0, 2), None)
