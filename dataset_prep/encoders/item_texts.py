"""Read the items of a data set in the order of its `.item` file, and build one text per item from a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.item_features import check_token, read_item_list
from recbole_qbert.data.text_columns import AUTO, plain_text, role_of, say_text_columns, text_columns

_PIECES = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{([\w.-]+)\}|[\[\]{}]|[^\[\]{}]+")


def read_items(folder: Path, dataset: str, form: AtomicFormat = RECBOLE_FORMAT) -> tuple[str, ...]:
    """Read ``N`` item tokens in the order of ``X.item``, or of ``X.items.txt`` if there is no such file.

    Args:
        folder: folder of the data set.
        dataset: its name, ``X``.
        form: how ``X.item`` is written.

    Raises:
        FileNotFoundError: neither file exists.
        ValueError: the file cannot be used; the message names the line.
    """
    path = folder / f"{dataset}.item"
    if path.exists():
        return _read(path, (), form)[0]
    if (folder / f"{dataset}.items.txt").exists():
        return tuple(read_item_list(folder / f"{dataset}.items.txt"))
    raise FileNotFoundError(f"{path} is missing; it lists the items. Run `prepare`, which writes it from raw files")


def template_for(path: Path, fields: Sequence[str] = AUTO, form: AtomicFormat = RECBOLE_FORMAT) -> Template:
    """Make the template of a file's text columns, each with its name: `DEFAULT_TEMPLATE` where it names them all.

    Args:
        path: a RecBole ``.item`` file.
        fields: names of columns, or ``auto`` (`text_columns`); what was guessed is logged.
        form: how the file is written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a named column is missing, or a name has other characters than a template can hold.
    """
    _require(path)
    header = form.header(path)
    columns = text_columns(header, fields, form)
    say_text_columns(header, columns, fields)
    if set(columns) <= set(DEFAULT_TEMPLATE.fields) and (tuple(fields) == AUTO or not columns):
        return DEFAULT_TEMPLATE
    labels = {column: column.replace("_", " ").capitalize() for column in columns}
    return Template("".join(f"[{label}: {{{column}}}. ]" for column, label in labels.items()))


def read_texts(path: Path, template: Template, form: AtomicFormat = RECBOLE_FORMAT) -> tuple[tuple[str, ...], list[str]]:
    """Read the item tokens and build the text of each item.

    Categories, under whatever name, are a list of tokens in which `_` stands for a space; they are written `First one,
    Second one`.

    Args:
        path: a RecBole ``.item`` file.
        template: how the columns become a text. The default template uses the columns that exist; any other template
            requires all its columns.
        form: how the file is written.

    Returns:
        ``(items, texts)``, both of length ``N``, in the order of the file; a text is '' if all its fields are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used, or lacks a column that the template names.
    """
    _require(path)
    fields = template.fields
    if template == DEFAULT_TEMPLATE:
        existing = form.header(path).names
        fields = tuple(field for field in fields if field in existing) or fields
    items, values = _read(path, fields, form)
    return items, [template.render(fields_of_item) for fields_of_item in values]


@dataclass(frozen=True)
class Template:
    """Turn the fields of an item into one text.

    ``{title}`` stands for a field: a column of the ``.item`` file. A part in ``[ ]`` is left out if one of its fields is
    empty. A literal bracket or brace is doubled. Runs of white space become one space.

    >>> Template("{title}[ by {brand}]").render({"title": "Reed", "brand": ""})
    'Reed'

    Raises:
        ValueError: braces or brackets do not match, one part stands within another, or there is no field at all.
    """

    text: str

    def __post_init__(self) -> None:
        _parse(self.text)
        if not self.fields:
            raise ValueError(f"template {self.text!r} names no field; name columns of the .item file in braces: {{title}}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that the template names, in order, each once."""
        pieces = [piece for _, part in _parse(self.text) for piece in part]
        return tuple(dict.fromkeys(name for name, is_field in pieces if is_field))

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text of one item; '' if every field is empty or missing."""
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
    """Split a template into parts: ``(optional, [(literal or field name, is a field)])``."""
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
                "another; write a field as {name}, an optional part as [ ... ], and double a literal bracket or brace"
            )
        else:
            parts[-1][1].append((piece[0] if piece in ("{{", "}}", "[[", "]]") else piece, False))
    if parts[-1][0]:
        raise ValueError(f"template {template!r}: the last '[' is not closed; a bracket itself is written '[['")
    return parts


DEFAULT_TEMPLATE = Template("[Title: {title}. ][Brand: {brand}. ][Categories: {categories}. ][Description: {description}]")


def _require(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it holds the item texts. Run `prepare`, which writes it from raw files")


def _read(path: Path, fields: tuple[str, ...], form: AtomicFormat) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Read the item tokens and the named fields; a row that ends early has no text there."""
    lines: dict[str, int] = {}
    values = []
    header = form.header(path)
    kinds = [header.type_of(field) for field in fields]
    lists = [
        field == "categories" or (role_of(field) == "categories" and header.type_of(field) != "token") for field in fields
    ]

    def text(cell: str, kind: str, is_list: bool) -> str:
        cell = plain_text(cell, kind, form)
        return ", ".join(token.replace("_", " ") for token in cell.split()) if is_list else cell

    for line, (item, *cells) in form.rows(path, [form.item_field, *fields], pad=True):
        check_token(item, f"{path}:{line}")
        if item in lines:
            raise ValueError(f"{path}:{line}: item {item!r} already has a row, on line {lines[item]}; keep one row per item")
        lines[item] = line
        values.append(dict(zip(fields, map(text, cells, kinds, lists), strict=True)))
    if not lines:
        raise ValueError(f"{path} lists no item; prepare the data again")
    return tuple(lines), values
