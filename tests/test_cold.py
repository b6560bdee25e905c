"""benchmarks/cold.py: its test over choices of held-out items."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import cold


def test_choices_that_overlap_are_corrected_for():
    by = np.random.default_rng(1).normal(0.5, 1.0, 10)
    assert cold.two_sided(by, 0, 1) == pytest.approx(stats.ttest_1samp(by, 0.0).pvalue)
    assert cold.two_sided(-by, 0, 1) == pytest.approx(cold.two_sided(by, 0, 1))
    assert np.isnan(cold.two_sided(by[:1], 1, 2))


def test_means_of_random_splits_of_one_sample_are_seldom_significant():
    """200 samples without an effect, ten random fifths of each: the plain t test finds a fifth of them significant."""
    random, plain, found = np.random.default_rng(2), [], []
    for _ in range(200):
        sample = random.normal(size=100)
        by = np.array([sample[random.permutation(100)[:20]].mean() for _ in range(10)])
        plain.append(stats.ttest_1samp(by, 0.0).pvalue < 0.05)
        found.append(cold.two_sided(by, 20, 80) < 0.05)
    assert np.mean(found) < 0.09 and np.mean(plain) > 0.15
