"""What the encoders read of a data set: the items in the order of its `.item` file, and one text an item by a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from recbole_qbert.data.item_features import check_token, read_item_list

_PIECES = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{(\w+)\}|[\[\]{}]|[^\[\]{}]+")


def read_items(folder: Path, dataset: str) -> tuple[str, ...]:
    """``N`` item tokens in the order of ``X.item``; of ``X.items.txt`` where there is no such file.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: the file cannot be used; the message names the line.
    """
    path = folder / f"{dataset}.item"
    if path.exists():
        return _tokens(_read(path, ["item_id"]), path)
    if (folder / f"{dataset}.items.txt").exists():
        return tuple(read_item_list(folder / f"{dataset}.items.txt"))
    raise FileNotFoundError(f"{path} is missing; it says which items there are (`prepare` writes it from raw files)")


def read_texts(path: Path, template: Template) -> tuple[tuple[str, ...], list[str]]:
    """Item tokens and the text of each item, '' where all its fields are empty.

    The categories, a list of tokens in which `_` stands for a space, are written `First one, Second one`.

    Args:
        path: a RecBole ``.item`` file.
        template: what to make of its columns.

    Returns:
        ``(items, texts)``, both ``N`` long, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be used, or lacks a column that the template names.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it holds the texts of the items (`prepare` writes it from raw files)")
    table = _read(path, ["item_id", *template.fields], optional=template == DEFAULT_TEMPLATE)
    fields = [field for field in template.fields if field in table]
    columns = {field: table[field].map(_categories) if field == "categories" else table[field] for field in fields}
    rows = zip(*columns.values(), strict=True)
    return _tokens(table, path), [template.render(dict(zip(fields, row, strict=True))) for row in rows]


@dataclass(frozen=True)
class Template:
    """How the fields of an item become one text.

    ``{title}`` stands for a field, the name of a column of the ``.item`` file. A part in ``[ ]`` is left out when a field in
    it is empty. Brackets and braces that are meant as such are doubled. Runs of white space become one space.

    >>> Template("{title}[ by {brand}]").render({"title": "Reed", "brand": ""})
    'Reed'

    Raises:
        ValueError: braces or brackets that do not match, one part within another, or no field at all.
    """

    text: str

    def __post_init__(self) -> None:
        _parse(self.text)
        if not self.fields:
            raise ValueError(f"template {self.text!r} names no field; name columns of the .item file in braces: {{title}}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it names, in order, each once."""
        pieces = [piece for _, part in _parse(self.text) for piece in part]
        return tuple(dict.fromkeys(name for name, is_field in pieces if is_field))

    def render(self, values: Mapping[str, str]) -> str:
        """The text of one item; '' when every field is empty or missing."""
        values = {field: " ".join(values.get(field, "").split()) for field in self.fields}
        if not any(values.values()):
            return ""
        written = []
        for optional, part in _parse(self.text):
            if not (optional and any(is_field and not values[name] for name, is_field in part)):
                written += [values[piece] if is_field else piece for piece, is_field in part]
        return " ".join("".join(written).split())


@lru_cache
def _parse(template: str) -> list[tuple[bool, list[tuple[str, bool]]]]:
    """``(optional, [(literal or field name, is a field)])`` of each part of a template."""
    parts: list[tuple[bool, list[tuple[str, bool]]]] = [(False, [])]
    for match in _PIECES.finditer(template):
        piece, inside = match[0], parts[-1][0]
        if match[1]:
            parts[-1][1].append((match[1], True))
        elif piece == "[" and not inside:
            parts.append((True, []))
        elif piece == "]" and inside:
            parts.append((False, []))
        elif piece in "[]{}":
            raise ValueError(
                f"template {template!r}: the {piece!r} at character {match.start() + 1} has no partner or stands within "
                "another; fields are {name}, parts that may be left out [ ... ], and a bracket or brace itself is doubled"
            )
        else:
            parts[-1][1].append((piece[0] if piece in ("{{", "}}", "[[", "]]") else piece, False))
    if parts[-1][0]:
        raise ValueError(f"template {template!r}: the last '[' is not closed; a bracket itself is written '[['")
    return parts


DEFAULT_TEMPLATE = Template("[Title: {title}. ][Brand: {brand}. ][Categories: {categories}. ][Description: {description}]")


def _categories(cell: str) -> str:
    return ", ".join(token.replace("_", " ") for token in cell.split())


def _tokens(table: pd.DataFrame, path: Path) -> tuple[str, ...]:
    items = tuple(table["item_id"])
    lines: dict[str, int] = {}
    for line, item in enumerate(items, 2):
        check_token(item, f"{path}:{line}")
        if item in lines:
            raise ValueError(f"{path}:{line}: item {item!r} has a row already, on line {lines[item]}; keep one an item")
        lines[item] = line
    if not items:
        raise ValueError(f"{path} lists no item")
    return items


def _read(path: Path, wanted: Sequence[str], optional: bool = False) -> pd.DataFrame:
    """Columns of an atomic file as text, named without their types."""
    try:
        header = pd.read_csv(path, sep="\t", dtype=str, nrows=0).columns
        names = {column: column.split(":")[0] for column in header}
        absent = [name for name in wanted if name not in names.values()]
        if absent and (absent[0] == "item_id" or not optional or len(absent) == len(wanted) - 1):
            raise ValueError(f"no column {', '.join(absent)}; there are {', '.join(names.values())}")
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas makes the columns too many an index
            raise ValueError(f"line 2 has more fields than the header ({', '.join(names.values())})")
    except ValueError as error:  # pandas' own errors and those of decoding are such, too
        raise ValueError(f"{path}: {error}") from error
    # A row that ends early has no text there.
    return table.rename(columns=names)[[name for name in names.values() if name in wanted]].fillna("")
