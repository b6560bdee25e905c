"""Benchmark suites, tuning, statistics and reports. Training and serving do not need them."""

from recbole_qbert.experiments.commands import benchmark, tune

__all__ = ["benchmark", "tune"]
