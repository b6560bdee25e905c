"""Figures as every table and page prints them."""

from __future__ import annotations


def share(value: float) -> str:
    """A metric or a difference of two: ``.1234``, ``-.0012``; four digits."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def count(value: float) -> str:
    """A count, a mean of counts or a density: ``1,585``, ``8.32``, ``0.33%``."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if value < 1 else f"{value:.2f}"
