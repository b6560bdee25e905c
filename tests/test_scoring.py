"""recbole_qbert.sequence.scoring: scores and ranks equal to brute force, ties settled by the stated rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.sequence import scoring

SCORES = st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=6, max_size=6), min_size=1, max_size=4)


def brute_force(tables, codes):
    scores = torch.zeros(len(tables), len(codes), dtype=torch.float64)
    for user in range(len(tables)):
        for item, code in enumerate(codes.tolist()):
            scores[user, item] = sum(float(tables[user, level, c]) for level, c in enumerate(code) if c >= 0)
    return scores


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 13),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_scores_equal_brute_force_whatever_the_chunk(batch, levels, size, items, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(batch, levels, size, generator=generator)
    codes = torch.randint(-1, size, (items, levels), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "CHUNK", chunk)
        scores = scoring.code_scores(tables, codes)
    assert scores.dtype == tables.dtype
    torch.testing.assert_close(scores.double(), brute_force(tables, codes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_codes_of_any_integer_type_give_the_same_scores(dtype):
    tables = torch.randn(2, 3, 300)
    codes = torch.tensor([[299, -1, 0], [0, 255, 256], [-1, -1, -1]])
    torch.testing.assert_close(scoring.code_scores(tables, codes.to(dtype)), scoring.code_scores(tables, codes))
    assert not scoring.code_scores(tables, codes.to(dtype))[:, 2].any()


def test_no_items_give_no_scores():
    assert scoring.code_scores(torch.zeros(2, 3, 4), torch.zeros(0, 3, dtype=torch.long)).shape == (2, 0)


def test_codes_that_do_not_fit_the_tables_are_refused():
    tables = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=r"3 codes.*2 levels"):
        scoring.code_scores(tables, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[0, 4\].*4"):
        scoring.code_scores(tables, torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match=r"\[-2, 1\]"):
        scoring.code_scores(tables, torch.tensor([[1, -2]]))


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 9))
def test_top_k_is_by_score_then_by_row_number(rows, k):
    scores = torch.tensor(rows)
    values, items = scoring.top_k(scores, k)
    for row, best in enumerate(items.tolist()):
        assert best == sorted(range(6), key=lambda item: (-rows[row][item], item))[:k]
        assert values[row].tolist() == [rows[row][item] for item in best]


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(0, 5))
def test_rank_counts_ties_against_the_model(rows, target):
    ranks = scoring.rank_of(torch.tensor(rows), torch.full((len(rows),), target))
    assert ranks.tolist() == [sum(score >= row[target] for score in row) for row in rows]


def test_rank_of_a_clear_winner_is_one_and_of_an_excluded_item_the_last():
    scores = torch.tensor([[0.0, 3.0, 1.0], [0.0, -torch.inf, 1.0], [2.0, 2.0, 2.0]])
    assert scoring.rank_of(scores, torch.tensor([1, 1, 1])).tolist() == [1, 3, 3]


def test_a_score_that_is_no_number_never_ranks_well():
    nan = float("nan")
    scores = torch.tensor([[nan, 0.0, 1.0], [nan, nan, nan]])
    assert scoring.rank_of(scores, torch.tensor([0, 1])).tolist() == [3, 3]
