"""Benchmark suites, tuning, statistics and reports. Training and serving do not need them."""
