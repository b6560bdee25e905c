"""Where the property files lie: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def properties(name: str) -> Path:
    """Path of a property file, for example ``model/QBERT4Rec.yaml``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for root in (_HERE / "properties", _HERE.parent / "properties"):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"no property file {name} in {_HERE / 'properties'} or {_HERE.parent / 'properties'}")
