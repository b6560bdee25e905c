"""Which columns of an ``.item`` file hold text about the items, and which one holds their titles."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from recbole_qbert.data.atomic_files import AtomicFormat, Header
from recbole_qbert.utils.spelling import did_you_mean

log = logging.getLogger(__name__)

AUTO = ("auto",)  # value of the property text_fields
#: What a text says of an item -> names of columns that say it, as whole words of the name. In the order of the text.
ROLES = {
    "title": r"title|titles|name|names|headline",
    "brand": r"brand|brands|store|seller|artist|artists|author|authors|publisher|developer|director|maker|manufacturer",
    "categories": r"categories|category|class|classes|genre|genres|tag|tags|topic|topics|subject|subjects|subcategory",
    "description": r"description|descriptions|desc|summary|abstract|overview|plot|synopsis|features|details|text|content",
}
#: Lists that are no text: addresses, pictures, and ids of other items.
_NO_TEXT = r"id|ids|url|urls|uri|uris|link|links|image|images|img|picture|pictures|photo|photos|poster|related|similar"
_ROLES = {role: re.compile(rf"(?:^|[\W_])(?:{words})$", re.I) for role, words in ROLES.items()}
_SKIPPED = re.compile(rf"(?:^|[\W_])(?:{_NO_TEXT})(?:$|[\W_])|^(?:also|bought|viewed)[\W_]", re.I)


def text_columns(header: Header, fields: Sequence[str], form: AtomicFormat) -> tuple[str, ...]:
    """Choose the columns whose texts describe an item.

    ``auto`` takes the columns that are named as texts are (`ROLES`: ``title``, ``movie_title``, ``genres``, ...), then every
    other ``token_seq``; never addresses and ids. The order is title, brand, categories, description, others.

    Args:
        header: columns of the ``.item`` file.
        fields: the property ``text_fields``: ``("auto",)``, or names of columns.
        form: how the file is written.

    Returns:
        Names of columns; none if there is no text.

    Raises:
        ValueError: a named column is missing.
    """
    if tuple(fields) != AUTO:
        for field in fields:
            if field not in header.names:
                hint = did_you_mean(field, header.names)
                raise ValueError(
                    f"text_fields names {field!r}{hint}, which is no column of {header.path}; it has "
                    f"{', '.join(header.names)}"
                )
        return tuple(fields)
    ranked = []
    for column in header.columns:
        if column.name == form.item_field or column.type.startswith("float"):
            continue
        role = role_of(column.name)
        if role is not None or (column.type == "token_seq" and not _SKIPPED.search(_words(column.name))):
            ranked.append((list(ROLES).index(role) if role else len(ROLES), column.name))
    return tuple(dict.fromkeys(name for _, name in sorted(ranked, key=lambda pair: pair[0])))


def say_text_columns(header: Header, chosen: Sequence[str], fields: Sequence[str]) -> None:
    """Log which columns were taken for text, if they were guessed; warn if there are none."""
    if tuple(fields) != AUTO:
        return
    if chosen:
        log.info("text of the items: %s of %s (property text_fields)", ", ".join(chosen), header.path.name)
    else:
        log.warning(
            "%s has no column of text (it has %s): the items have no text features; name columns with text_fields",
            header.path,
            ", ".join(header.names) or "no column",
        )


def title_column(header: Header, fields: Sequence[str], form: AtomicFormat) -> str | None:
    """Return the column that holds the titles of items: of the text columns the first that is named as titles are.

    Args:
        header: columns of the ``.item`` file.
        fields: the property ``text_fields``.
        form: how the file is written.
    """
    columns = text_columns(header, AUTO, form) if "title" in header.names else text_columns(header, fields, form)
    return next((name for name in columns if role_of(name) == "title"), None)


def read_titles(path: Path, items: Sequence[str], fields: Sequence[str], form: AtomicFormat) -> dict[str, str]:
    """Read the titles of items from an ``.item`` file.

    Args:
        path: the file.
        items: tokens of the items wanted.
        fields: the property ``text_fields``.
        form: how the file is written.

    Returns:
        Item token -> title on one line, for the items that have one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no column holds titles, or the file cannot be read.
    """
    header, wanted = form.header(path), set(items)
    column = title_column(header, fields, form)
    if column is None:
        raise ValueError(f"{path} has no column of titles; it has {', '.join(header.names) or 'no column'}")
    kind, titles = header.type_of(column), dict[str, str]()
    for _, (item, cell) in form.rows(path, [form.item_field, column], pad=True):
        if item in wanted and (title := " ".join(plain_text(cell, kind, form).split())):
            titles.setdefault(item, title)
    return titles


def role_of(name: str) -> str | None:
    """Return what a column of this name says of an item, a key of `ROLES`.

    >>> role_of("movie_title"), role_of("genres"), role_of("release_year")
    ('title', 'categories', None)
    """
    return next((role for role, words in _ROLES.items() if words.search(_words(name))), None)


def _words(name: str) -> str:
    """Separate the words of ``movieTitle``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def plain_text(cell: str, kind: str, form: AtomicFormat) -> str:
    """Return a cell as text: the parts of a ``token_seq`` are separated by spaces."""
    return cell.replace(form.seq_separator, " ") if kind == "token_seq" and form.seq_separator != " " else cell
