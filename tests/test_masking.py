"""recbole_qbert.sequence.masking: the two promises for every row, and the shape of each strategy's mask."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.sequence import masking
from tests.helpers import runs

SEEDS = st.integers(0, 2**31)
RATIOS = st.floats(0.02, 0.98)
STRATEGY = st.sampled_from(masking.STRATEGIES)
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=20)


def draw(strategy: str, lengths: list[int], ratio: float, seed: int, width: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) if width is None else width
    return masking.draw(torch.tensor(lengths), width, {strategy: ratio}, generator)


@settings(max_examples=150, deadline=None)
@given(STRATEGY, LENGTHS, RATIOS, SEEDS, st.integers(0, 5))
def test_some_but_never_all_positions_are_hidden_and_never_padding(strategy, lengths, ratio, seed, more):
    mask = draw(strategy, lengths, ratio, seed, max(lengths) + more)
    assert mask.shape == (len(lengths), max(lengths) + more)
    assert mask.dtype == torch.bool
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any()
        hidden = int(row.sum())
        assert hidden == 0 if length < 2 else 1 <= hidden < length


@pytest.mark.parametrize("strategy", masking.STRATEGIES)
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.15, 0.3, 0.5, 0.9, 0.99])
def test_promises_hold_for_every_length(strategy, ratio):
    lengths = list(range(61)) * 5
    hidden = draw(strategy, lengths, ratio, 7).sum(1).tolist()
    for length, count in zip(lengths, hidden, strict=True):
        assert count == 0 if length < 2 else 1 <= count < length


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["span", "tail", "multi_region"]), st.integers(2, 60), RATIOS, SEEDS)
def test_the_share_is_kept_to_the_nearest_position(strategy, length, ratio, seed):
    hidden = int(draw(strategy, [length], ratio, seed).sum())
    assert abs(hidden - min(max(length * ratio, 1), length - 1)) <= 0.5 + 1e-4


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), RATIOS, SEEDS)
def test_a_span_is_one_run_and_a_tail_ends_the_row(length, ratio, seed):
    assert len(runs(draw("span", [length], ratio, seed)[0])) == 1
    tail = draw("tail", [length], ratio, seed, width=length + 3)[0]
    assert len(runs(tail)) == 1
    assert tail[length - 1]


def test_a_span_starts_anywhere_with_the_same_chance():
    mask = draw("span", [5] * 6000, 0.4, 1)
    starts = Counter(mask.int().argmax(1).tolist())
    assert set(starts) == {0, 1, 2, 3}
    assert all(abs(n / 6000 - 0.25) < 0.03 for n in starts.values())


def test_random_hides_each_position_alike_and_as_often_as_asked():
    mask = draw("random", [50] * 4000, 0.3, 2).float()
    assert abs(mask.mean() - 0.3) < 0.006
    assert (mask.mean(0) - 0.3).abs().max() < 0.04
    # Independent draws: the number hidden varies like a binomial one (sd 3.24), it is not fixed.
    assert 2.9 < mask.sum(1).std() < 3.6


def test_random_keeps_its_promises_without_preferring_a_place():
    mask = draw("random", [3] * 9000, 0.01, 3).float()  # nearly every row has to be repaired
    assert (mask.sum(1) == 1).float().mean() > 0.99
    assert (mask.mean(0) - 1 / 3).abs().max() < 0.03


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 60), RATIOS, SEEDS)
def test_multi_region_makes_several_runs_wherever_two_fit(length, ratio, seed):
    mask = draw("multi_region", [length], ratio, seed)[0]
    hidden = int(mask.sum())
    if hidden >= 2:  # one visible position is enough to part two runs
        assert len(runs(mask)) >= 2


@pytest.mark.parametrize("length", range(10, 61, 5))
def test_multi_region_at_the_papers_share_makes_short_runs(length):
    for row in draw("multi_region", [length] * 50, 0.15, length):
        assert set(runs(row)) <= {1, 2}


def test_multi_region_draws_all_its_layouts_alike():
    """Three of six hidden in runs of two and one: 6 choices of places times 2 orders of the runs."""
    seen = Counter(tuple(row.tolist()) for row in draw("multi_region", [6] * 6000, 0.5, 4))
    sizes = Counter(tuple(runs(torch.tensor(layout))) for layout in seen.elements())
    assert set(map(lambda s: tuple(sorted(s)), sizes)) == {(1, 2)}
    assert len(seen) == 12
    assert all(abs(n / 6000 - 1 / 12) < 0.02 for n in seen.values())


def test_strategies_are_mixed_row_by_row_with_the_same_chance():
    ratios = {"span": 0.3, "multi_region": 0.15, "tail": 0.1}
    mask = masking.draw(torch.full((3000,), 20), 20, ratios, torch.Generator().manual_seed(5))
    by_count = Counter(mask.sum(1).tolist())  # of 20: a span hides 6, multi-region 3, a tail 2
    assert set(by_count) == {6, 3, 2}
    assert all(abs(n / 3000 - 1 / 3) < 0.05 for n in by_count.values())
    for row in mask:
        assert {6: len(runs(row)) == 1, 3: len(runs(row)) >= 2, 2: bool(row[18:].all())}[int(row.sum())]


@pytest.mark.parametrize("strategy", ["random", "span", "multi_region"])
def test_randomness_comes_from_the_generator_alone(strategy):
    lengths = [30] * 20
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(strategy, lengths, 0.3, 9)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw(strategy, lengths, 0.3, 9))
    assert not torch.equal(first, draw(strategy, lengths, 0.3, 10))


def test_without_a_generator_the_global_seed_decides():
    lengths = torch.full((20,), 30)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(masking.draw(lengths, 30, {"random": 0.3, "span": 0.3}))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({}, "random, span, tail, multi_region"),
        ({"spam": 0.3}, "'spam'.*random, span, tail, multi_region"),
        ({"span": 0.0}, r"span.*0\.0"),
        ({"tail": 1.0}, r"tail.*1\.0"),
    ],
)
def test_bad_settings_are_refused(ratios, message):
    with pytest.raises(ValueError, match=message):
        masking.draw(torch.tensor([5]), 5, ratios)
