"""Where the property files lie (inside the installed package, or beside it in a checkout), and the reading of such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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


def read_yaml(path: Path, kind: str) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        kind: what to call it in an error: ``suite``.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} file {path} is missing")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
