"""recbole_qbert.experiments.statistics: intervals and p against what is known of made-up effects of users and of seeds."""

import numpy as np
import pytest

from recbole_qbert.experiments.statistics import Spread, gains, paired


def made(random, seeds, users, mean=0.0, of_seed=0.0, of_user=0.0, noise=0.0):
    """Gains with normal effects; ``[S, U]``."""
    shape = (seeds, users)
    return (
        mean
        + of_seed * random.normal(size=(seeds, 1))
        + of_user * random.normal(size=(1, users))
        + noise * random.normal(size=shape)
    )


def test_gains_are_the_ndcg_of_one_target():
    assert gains([[1, 3, 10, 11]]) == pytest.approx(np.array([[1, 1 / 2, 1 / np.log2(11), 0]]))


def test_spread_of_one_value_is_not_known():
    assert Spread.of([0.5]) == Spread(0.5, None) and Spread.of([1, 2]).sd == pytest.approx(0.5**0.5)


def test_with_one_seed_it_is_the_bootstrap_over_users():
    random = np.random.default_rng(1)
    one, other = made(random, 1, 400, 0.12, noise=1.0), made(random, 1, 400, noise=1.0)
    found, difference = paired(one, other), (one - other)[0]
    half = 1.96 * difference.std() / 20
    assert found.difference == pytest.approx(difference.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx(found.difference, abs=half / 10)


def test_what_all_users_share_is_no_spread_and_what_a_seed_shares_is():
    random = np.random.default_rng(2)
    users = made(random, 1, 300, of_user=1.0)
    found = paired(users + 0.01, users)  # the same users, however they differ among themselves
    assert found.low == pytest.approx(0.01) and found.high == pytest.approx(0.01) and found.significant

    one = np.repeat([[0.5], [0.6], [0.4], [0.52], [0.58]], 300, axis=1)  # seeds differ, users do not
    other = np.full((3, 300), 0.45)
    found = paired(one, other)
    error = np.std([0.5, 0.6, 0.4, 0.52, 0.58], ddof=1) / 5**0.5
    assert (found.high - found.low) / (2 * 2.776) == pytest.approx(error, rel=0.1)  # t of four degrees of freedom
    assert found.difference == pytest.approx(0.07)


def test_users_without_any_gain_count():
    """They are left out of the sums, and must not be left out of the number."""
    random = np.random.default_rng(3)
    one, other = made(random, 2, 100, 0.5, noise=1.0), made(random, 2, 100, noise=1.0)
    empty = np.zeros((2, 900))
    found = paired(np.hstack([one, empty]), np.hstack([other, empty]))
    difference = np.concatenate([(one - other).mean(0), np.zeros(900)])
    assert found.difference == pytest.approx(difference.mean())
    assert found.high - found.low >= 2 * 1.96 * difference.std() / 1000**0.5 * 0.95
    assert paired(empty, empty).p == 1.0 and paired(empty, empty).low == 0.0


def test_the_direction_turns_with_the_models():
    random = np.random.default_rng(4)
    one, other = made(random, 3, 200, 0.3, noise=1.0), made(random, 2, 200, noise=1.0)
    there, back = paired(one, other), paired(other, one)
    assert back.difference == -there.difference
    assert back.low == pytest.approx(-there.high, abs=0.02) and back.p == pytest.approx(there.p, abs=0.01)
    assert there.low > 0 and there.p < 0.05 and back.high < 0


@pytest.mark.pipeline
@pytest.mark.parametrize(("seeds", "others", "of_seed"), [(5, 5, 0.0), (5, 5, 0.2), (3, 5, 0.3), (3, 3, 0.3)])
def test_equal_models_are_seldom_told_apart(seeds, others, of_seed):
    """300 pairs of equal models. A test over users alone finds a fifth of them significant at .2; one that takes the spread
    of three seeds for known, a seventh at .3."""
    random = np.random.default_rng(5)
    users = {"of_user": 1.0, "noise": 1.0, "of_seed": of_seed}
    found = [
        paired(made(random, seeds, 100, **users), made(random, others, 100, **users | {"of_user": 0.0}), draws=400)
        for _ in range(300)
    ]
    share = np.mean([one.significant for one in found])
    assert share < 0.09
