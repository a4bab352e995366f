"""Row layouts, as a pure function: every layout, coinciding sizes, and everything else refused."""

import itertools
from collections.abc import Iterator

import pytest

from moescope.capture.seam.rows import Layout, Ranks, RowSpan, StepRows, locate_rows, rows_of_call


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


@pytest.mark.parametrize("ranks", [Ranks(0, 2), Ranks(0, 2, 1, 2), Ranks(0, 1, 1, 2)])
def test_without_metadata_and_without_a_size_nothing_is_guessed(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="no batch descriptor for a batch of 5 rows") as caught:
        locate_rows(5, ranks, None)
    assert str(ranks) in str(caught.value)


@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [
        (5, [RowSpan(Layout.SINGLE_DP, 0, 5, 0), RowSpan(Layout.SINGLE_DP, 0, 0, 0)]),
        (6, [RowSpan(Layout.SINGLE_DP_PADDED, 0, 5, 0), RowSpan(Layout.SINGLE_DP_PADDED, 0, 0, 0)]),
        (3, [RowSpan(Layout.TP_SHARD, 0, 3, 0), RowSpan(Layout.TP_SHARD, 0, 2, 3)]),
    ],
)
def test_without_metadata_the_steps_size_tells_the_layout(
    num_rows: int, expected: list[RowSpan], dp_size: int
) -> None:
    """N = 5 at TP = 2, as models that shard rows over TP by themselves have it."""
    assert [locate_rows(num_rows, Ranks(0, dp_size, tp, 2), None, None, 5) for tp in (0, 1)] == expected


@pytest.mark.parametrize("num_rows", [0, 1, 2, 4, 7, 10])
def test_any_other_size_without_metadata_is_refused_with_all_the_numbers(num_rows: int) -> None:
    with pytest.raises(AssertionError) as caught:
        locate_rows(num_rows, Ranks(0, 1, 1, 2), None, None, 5)
    text = str(caught.value)
    for number in (f"batch of {num_rows} rows", "5 (the step's", "6 (padded", "3 (one TP", "num_tokens=5"):
        assert number in text
    assert "dp_rank=0, dp_size=1, tp_rank=1, tp_size=2" in text


def test_with_one_tp_rank_a_known_size_must_fit_too() -> None:
    assert locate_rows(5, Ranks(), None, None, 5).count == 5
    with pytest.raises(AssertionError, match="batch of 3 rows fits no known row layout without DP metadata"):
        locate_rows(3, Ranks(), None, None, 5)


Row = tuple[int, int]
"""A row's DP rank and token; of padding, a token that no rank has."""
PADDING = (-1, -1)


def padded_to(rows: list[Row], length: int) -> list[Row]:
    return rows + [PADDING] * (length - len(rows))


def rows_in(layout: Layout, tokens: list[int], ranks: Ranks) -> list[Row]:
    """The rows that the worker with these ranks gets, built from the layout's definition."""
    batches = [[(rank, token) for token in range(count)] for rank, count in enumerate(tokens)]
    mine = batches[ranks.dp_rank]
    whole = [padded_to(rows, -(-len(rows) // ranks.tp_size) * ranks.tp_size) for rows in batches]
    if layout is Layout.ALL_DP:
        return list(itertools.chain(*batches))
    if layout is Layout.GATHERED_SHARDS:
        return list(itertools.chain(*whole))
    if layout is Layout.SINGLE_DP_PADDED:
        return whole[ranks.dp_rank]
    if layout is Layout.TP_SHARD:
        shard = len(whole[ranks.dp_rank]) // ranks.tp_size
        return whole[ranks.dp_rank][ranks.tp_rank * shard : (ranks.tp_rank + 1) * shard]
    return mine


def counted(rows: list[Row], span: RowSpan, true_tokens: int) -> Iterator[Row]:
    """What the kernels count: the span's rows before the step's true number of tokens."""
    assert span.start + span.count <= len(rows)
    for offset in range(span.count):
        if span.first_token + offset < true_tokens:
            yield rows[span.start + offset]


def assert_each_token_once(
    layout: Layout, tokens: list[int], dp_rank: int, tp_size: int, step: StepRows
) -> None:
    """For each true number of tokens of a padded step: a graph is captured once for all of them."""
    all_ranks = [Ranks(dp_rank, len(tokens), tp, tp_size) for tp in range(tp_size)]
    batches = [rows_in(layout, tokens, ranks) for ranks in all_ranks]
    spans = [
        rows_of_call(len(rows), ranks, step, None, capturing=True)
        for rows, ranks in zip(batches, all_ranks, strict=True)
    ]
    for true_tokens in range(tokens[dp_rank] + 1):
        found = [
            row for rows, span in zip(batches, spans, strict=True) for row in counted(rows, span, true_tokens)
        ]
        assert sorted(found) == [(dp_rank, token) for token in range(true_tokens)], (layout, tokens, tp_size)


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dp_size", [2, 3])
def test_every_small_batch_with_metadata_counts_each_token_once(dp_size: int, tp_size: int) -> None:
    """Each layout with each combination of sizes: where two have one size, they select the same tokens.

    Shard sizes are those of vLLM's sequence-parallel context with shards, of one without, and none outside.
    """
    anywhere = (Layout.ALL_DP, Layout.LOCAL, Layout.TP_SHARD)
    for tokens in map(list, itertools.product(range(6), repeat=dp_size)):
        for shards, layouts in (
            (sp_shards(tokens, tp_size), (*anywhere, Layout.GATHERED_SHARDS)),
            (sp_shards(tokens, 1), anywhere),
            (None, anywhere),
        ):
            for layout, dp_rank in itertools.product(layouts, range(dp_size)):
                assert_each_token_once(layout, tokens, dp_rank, tp_size, StepRows(tokens, shards))


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 8])
def test_every_small_batch_without_metadata_counts_each_token_once(tp_size: int) -> None:
    for size in range(35):
        for layout in (Layout.SINGLE_DP, Layout.SINGLE_DP_PADDED, Layout.TP_SHARD):
            assert_each_token_once(layout, [size], 0, tp_size, StepRows(None, None, size))


@pytest.mark.parametrize("tp_size", [2, 3, 4, 8])
def test_without_any_size_the_steps_tokens_stand_for_it_and_never_select_a_wrong_row(tp_size: int) -> None:
    """An eager step whose batch may be padded without a word: each token once, or refused."""
    told = 0
    for size, layout in itertools.product(
        range(1, 25), (Layout.SINGLE_DP, Layout.SINGLE_DP_PADDED, Layout.TP_SHARD)
    ):
        all_ranks = [Ranks(0, 1, tp, tp_size) for tp in range(tp_size)]
        batches = [rows_in(layout, [size], ranks) for ranks in all_ranks]
        for true_tokens in range(1, size + 1):
            try:
                found = [
                    row
                    for rows, ranks in zip(batches, all_ranks, strict=True)
                    for row in counted(
                        rows, rows_of_call(len(rows), ranks, StepRows(None, None), true_tokens), true_tokens
                    )
                ]
            except AssertionError:
                assert size != true_tokens
                continue
            told += 1
            assert sorted(found) == [(0, token) for token in range(true_tokens)]
    assert told >= 24 * 3


def test_outside_of_steps_a_batch_of_unknown_size_counts_nothing_unless_a_graph_keeps_it() -> None:
    ranks, unknown = Ranks(0, 1, 0, 2), StepRows(None, None)
    assert rows_of_call(4, ranks, unknown, None).count == 0
    with pytest.raises(AssertionError, match="can't be known"):
        rows_of_call(4, ranks, unknown, None, capturing=True)
    with pytest.raises(AssertionError, match="can't be known"):
        rows_of_call(4, ranks, unknown, 4, capturing=True)


def test_a_pass_over_a_part_of_the_step_is_refused() -> None:
    """Layers that a model runs on some of the rows, in a forward context of their own."""
    with pytest.raises(AssertionError, match="a forward pass of 4 rows in a step of 9 tokens"):
        rows_of_call(4, Ranks(), StepRows(None, None, 4), 9)
    with pytest.raises(AssertionError, match=r"4 rows in a step of 9 tokens.*tokens_across_dp=\[12, 4\]"):
        rows_of_call(4, Ranks(1, 2), StepRows([12, 4], None), 9)
    assert rows_of_call(12, Ranks(0, 2), StepRows([12, 4], None), 9).count == 12
