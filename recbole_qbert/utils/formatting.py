"""Formatting of metrics, counts and properties in tables and pages."""

from __future__ import annotations

from collections.abc import Mapping


def format_share(value: float) -> str:
    """Format a metric with four digits: ``.1234``."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def format_count(value: float) -> str:
    """Format a count, a mean of counts or a share: ``1,585``, ``8.32``, ``99.67%``."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if value < 1 else f"{value:.2f}"


def format_properties(properties: Mapping[str, object]) -> str:
    """Format properties and their values: ``epochs=3, seed=7``."""
    return ", ".join(f"{key}={value}" for key, value in properties.items())
