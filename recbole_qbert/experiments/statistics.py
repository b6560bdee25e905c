"""Describe the spread over seeds, and test whether one model is better than another for the same users.

The test is a bootstrap over users and over the seeds of both models.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_qbert.utils.metrics import ndcg

LEVEL = 0.05
DRAWS = 10_000


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and standard deviation (of a sample, ddof 1); ``None`` for one seed."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Compute both from at least one value."""
        numbers = list(map(float, values))
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


@dataclass(frozen=True)
class Paired:
    """Difference of two models on the same users, by NDCG@10.

    Attributes:
        difference: the first model minus the second, mean over users and seeds.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p: two-sided; at least ``2 / (DRAWS + 1)``.
        significant: ``p`` is below 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    significant: bool


def gains(ranks_of_seeds: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Return NDCG@10 of each user with each seed; ``[S, U]``.

    Args:
        ranks_of_seeds: rank of each user's target, counted from 1: one list per seed, users in the same order.
    """
    return ndcg(np.array(ranks_of_seeds), 10)


def paired(one: np.ndarray, other: np.ndarray, draws: int = DRAWS) -> Paired:
    """Compare two models, each trained with some seeds, on the same users.

    The test asks what other users and other seeds would give. Each draw of the bootstrap takes as many users as there are,
    the same for both models, and adds the effects of as many seeds of each model. The effect of a seed is what all users
    share: the variance of the seeds' means beyond what users contribute that differ by chance from seed to seed (two crossed
    random effects). A model with one seed adds no effect: its spread is unknown. The spread of few seeds is poorly known, so
    draws are scaled as Student's t scales normal ones, with Satterthwaite's degrees of freedom for the variances of users
    and seeds together.

    Args:
        one: gains of the first model, ``[S, U]``.
        other: gains of the second model, ``[T, U]``.
        draws: how many draws the bootstrap takes.
    """
    random = np.random.default_rng(0)
    difference = one.mean(0) - other.mean(0)
    users, some = len(difference), difference[difference != 0]  # most users are alike in both, and add nothing to a sum
    counts = random.binomial(users, len(some) / users, draws)
    means = np.array([some[random.integers(0, max(len(some), 1), count)].sum() for count in counts]) / users
    variance, squares = difference.var() / users, 0.0
    for sign, effects in ((1, _effects_of_seeds(one)), (-1, _effects_of_seeds(other))):
        means += sign * random.choice(effects, (draws, len(effects))).mean(1)
        own = (effects**2).mean() / len(effects)  # variance of what was just added
        variance, squares = variance + own, squares + own**2 / max(len(effects) - 1, 1)
    if squares:
        freedom = variance**2 / squares
        means = difference.mean() + (means - difference.mean()) * np.sqrt(freedom / random.chisquare(freedom, draws))
    low, high = np.quantile(means, [0.025, 0.975])
    p = min(1.0, 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (draws + 1))
    return Paired(float(difference.mean()), float(low), float(high), float(p), bool(p < LEVEL))


def _effects_of_seeds(gain: np.ndarray) -> np.ndarray:
    """Return the deviations of the seeds' means, scaled to the variance of what all users share; ``[S]``."""
    seeds, users = gain.shape
    effects = gain.mean(1) - gain.mean()
    if seeds == 1 or users == 1 or not effects.any():
        return np.zeros(seeds)
    chance = ((gain - gain.mean(0) - effects[:, None]) ** 2).sum() / ((seeds - 1) * (users - 1))
    variance = (effects**2).sum() / (seeds - 1)
    shared = max(0.0, variance - chance / users)
    # A mean of S draws out of S has (S - 1) / S of the variance that a mean of S new seeds would have.
    return effects * np.sqrt(shared / variance * seeds / (seeds - 1))
