"""Where the property files lie (inside the installed package, or beside it in a checkout), and the reading of such files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).resolve().parents[1]


def property_file(name: str) -> Path:
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
        return parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """A value as RecBole reads it: ``1e-3`` is a number, which YAML 1.1 takes for text.

    Raises:
        yaml.YAMLError: it is not YAML.

    >>> parse_yaml("[1e-3, 5e2, 1e, e3, 0.5]")
    [0.001, 500.0, '1e', 'e3', 0.5]
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs
    """Safe, and with exponents that have neither point nor sign."""


_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
