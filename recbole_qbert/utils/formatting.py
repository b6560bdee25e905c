"""Metrics, counts and properties as tables and pages print them."""

from __future__ import annotations

from collections.abc import Mapping


def format_share(value: float) -> str:
    """A metric: ``.1234``; four digits."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def format_count(value: float) -> str:
    """A count, a mean of counts or a share: ``1,585``, ``8.32``, ``99.67%``."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if value < 1 else f"{value:.2f}"


def format_properties(properties: Mapping[str, object]) -> str:
    """Properties and their values: ``epochs=3, seed=7``."""
    return ", ".join(f"{key}={value}" for key, value in properties.items())
