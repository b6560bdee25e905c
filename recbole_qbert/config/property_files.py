"""Property files: their location (in the installed package, or beside it in a checkout) and the reading of YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).resolve().parents[1]


def property_file(name: str) -> Path:
    """Find a property file, for example ``model/QBERT4Rec.yaml``.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    for root in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"no property file {name} in {_PACKAGE / 'properties'} or {_PACKAGE.parent / 'properties'}")


def read_yaml(path: Path, kind: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        kind: kind of file, for an error: ``suite``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} file {path} is missing")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML as RecBole does: ``1e-3`` is a number, which YAML 1.1 reads as text.

    Raises:
        yaml.YAMLError: the text is not YAML.

    >>> parse_yaml("[1e-3, 5e2, 1e, e3, 0.5]")
    [0.001, 500.0, '1e', 'e3', 0.5]
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs
    """A safe loader that also reads numbers whose exponent has neither point nor sign."""


_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
