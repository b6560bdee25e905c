"""Property files: their location (in the installed package, or beside it in a checkout) and the reading of YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).resolve().parents[1]
LARGEST = 4_000_000  # bytes; a data file named by mistake would be parsed for hours
MOST_VALUES = 100_000  # with aliases written out: a few lines of them can stand for billions of values


def property_file(name: str) -> Path:
    """Find a property file, for example ``model/QBERT4Rec.yaml``.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    for root in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"no property file {name} in {_PACKAGE / 'properties'} or {_PACKAGE.parent / 'properties'}")


def read_yaml(path: Path, kind: str, loader: Any = None) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        kind: kind of file, for an error: ``suite``.
        loader: PyYAML's class of loader; by default that of ``parse_yaml``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is a folder, too large, not UTF-8 or not YAML, or ``parse_yaml`` refuses it.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{kind} file {path} is a folder; name a YAML file")
    try:
        with open(path, "rb") as handle:
            content = handle.read(LARGEST + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{kind} file {path} is missing") from None
    if len(content) > LARGEST:
        raise ValueError(f"{kind} file {path} is larger than {LARGEST:,} bytes; name a YAML file")
    try:
        return parse_yaml(content.decode("utf-8-sig"), loader)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line} is not UTF-8 (byte {content[error.start]:#04x}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{place} is not YAML: {_problem(error)}") from None


def read_properties(path: Path, kind: str = "property", loader: Any = None) -> dict[str, Any]:
    """Read a YAML file of ``key: value`` lines; an empty file is an empty mapping.

    Args:
        path: the file.
        kind: kind of file, for an error.
        loader: as of ``read_yaml``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: as of ``read_yaml``; or the content is no mapping, or a key is no text.
        OSError: the file cannot be read.
    """
    content = read_yaml(path, kind, loader)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is no text but a value of its own; put it in quotation marks")
    return content


def parse_yaml(text: str, loader: Any = None) -> Any:
    """Parse YAML as RecBole does: ``1e-3`` is a number, which YAML 1.1 reads as text.

    Args:
        text: one YAML document.
        loader: PyYAML's class of loader; by default a safe one.

    Raises:
        yaml.YAMLError: the text is not YAML, a mapping has a key twice, or aliases or levels are too many.

    >>> parse_yaml("[1e-3, 5e2, 1e, e3, 0.5]")
    [0.001, 500.0, '1e', 'e3', 0.5]
    """
    parser = (loader or _Loader)(text)
    try:
        node = parser.get_single_node()
        if node is None:
            return None
        _refuse_repeated_keys(node)
        _refuse_expansion(node)
        return parser.construct_document(node)
    except (yaml.YAMLError, MemoryError):
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except Exception as error:  # PyYAML's constructors, for '2020-13-45', '!!bool x' or '!!timestamp x'
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {error})") from None
    finally:
        parser.dispose()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield every node once, however often aliases name it."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        for child in _children(node):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _refuse_repeated_keys(root: yaml.Node) -> None:
    """Refuse a key that a mapping has twice: PyYAML would take the last one silently."""
    for node in _nodes(root):
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in lines:
                problem = f"the key {key.value!r} stands on line {lines[name]} already"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name:
                lines[name] = key.start_mark.line + 1


def _refuse_expansion(root: yaml.Node) -> None:
    """Refuse aliases that stand for more than ``MOST_VALUES`` values, or for what they are part of."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # what a node has that is part of itself
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
        return sizes[id(node)]

    if size(root) > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values; write fewer aliases")


def _problem(error: yaml.YAMLError) -> str:
    """Return what PyYAML says, in one line and without its excerpt of the text."""
    said = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    return ", ".join(part for part in said if part) or str(error)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs
    """A safe loader that also reads numbers whose exponent has neither point nor sign."""


_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
