"""The file that a benchmark writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_qbert.utils.environment import machine, versions
from recbole_qbert.utils.io import write_json

PLACES = ("data_path", "folder", "json", "output")


def write(path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float]) -> None:
    """One JSON file: ``machine``, ``versions``, ``settings`` (no paths), ``rows`` (one a measurement) and ``ratios``."""
    write_json(
        path,
        {
            "machine": machine(),
            "versions": versions(),
            "settings": {key: value for key, value in settings.items() if key not in PLACES and not isinstance(value, Path)},
            "rows": list(rows),
            "ratios": dict(ratios),
        },
    )
