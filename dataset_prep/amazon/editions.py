"""Interpret the lines of each edition of the Amazon data.

=========  =================================================  ==========================================================
edition    reviews                                            metadata
=========  =================================================  ==========================================================
2014       JSON or Python text: reviewerID, asin, overall,    Python text: asin, title, brand, categories (lists of
           unixReviewTime                                     lists), description, price, imUrl
2018       JSON: the same keys                                JSON: asin, title, brand, category, description, price,
                                                              imageURLHighRes or imageURL
2023       JSON: user_id, parent_asin, rating, timestamp      JSON: parent_asin, title, details.Brand or store,
           (milliseconds)                                     categories, description, features, price, images
recbole    `.inter`: user_id, item_id, timestamp, and rating  `.item`: item_id, title, brand, categories, description,
           if there is one                                    price, image_urls
=========  =================================================  ==========================================================

Files of other kinds (tables, JSON arrays) come as lines of JSON with these keys (`line_reader`). A file may lack ratings,
which the model does not use; then none are written.

Only the values of the keys that are used are checked; the rest of a line must only be well-formed.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from dataset_prep.amazon.cleaning import UNSAFE_IN_ID, Metadata, check_id, check_item_id, clean_url
from dataset_prep.amazon.field_values import details_of, image_urls, strings
from dataset_prep.amazon.record_parser import parse_record

EDITIONS = ("2014", "2018", "2023", "recbole")
MAX_SECONDS = 1e11  # the year 5138 in seconds, 1973 in milliseconds; larger times are milliseconds, smaller ones seconds
PROBED = 100  # lines from which the edition of a file is detected
Review = tuple[str, str, float | None, float]  # user, item, rating, seconds


class Fields(NamedTuple):
    """Names of the columns of RecBole's files (``USER_ID_FIELD`` and so on)."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str = "rating"
    time: str = "timestamp"


RECBOLE_FIELDS = Fields()


@dataclass(frozen=True)
class _Keys:
    user: str
    item: str
    rating: str | None
    time: str
    per_second: int


_AMAZON = _Keys("reviewerID", "asin", "overall", "unixReviewTime", 1)
_AMAZON_2023 = _Keys("user_id", "parent_asin", "rating", "timestamp", 1000)
KEYS = {"2014": _AMAZON, "2018": _AMAZON, "2023": _AMAZON_2023}


# ------------------------------------------------------------------------------------------------ reviews


class _Review(msgspec.Struct, gc=False):
    user: str = msgspec.field(name="reviewerID")
    item: str = msgspec.field(name="asin")
    rating: float = msgspec.field(name="overall")
    time: float = msgspec.field(name="unixReviewTime")


class _Review2023(msgspec.Struct, gc=False):
    user: str = msgspec.field(name="user_id")
    item: str = msgspec.field(name="parent_asin")
    rating: float
    time: float = msgspec.field(name="timestamp")


@dataclass(frozen=True)
class ReviewLines:
    """Parsers of the lines of one review file.

    Attributes:
        parse: converts a line to a review, with all checks. Raises ValueError for a bad line, `BadIdError` for an id that
            RecBole cannot read.
        quick: the same for well-formed lines, without checks on the values (`user`, `item`, `rating`, and `time` in the
            file's own unit). After a `msgspec.MsgspecError`, UnicodeDecodeError or RecursionError, `parse` must decide.
        per_second: unit of `quick`'s times.
        header: the first line is not a review.
    """

    parse: Callable[[bytes], Review]
    quick: Callable[[bytes], Any] | None = None
    per_second: int = 1
    header: bool = False


def review_lines(edition: str, first_line: bytes, fields: Fields = RECBOLE_FIELDS, rated: bool = True) -> ReviewLines:
    """Choose the parsers of a review file of the given edition, which begins with `first_line`.

    Args:
        edition: edition of the file.
        first_line: its first line.
        fields: names of the columns of a RecBole file.
        rated: whether the file has ratings (`has_ratings`).

    Raises:
        ValueError: a RecBole file lacks a required column.
    """
    keys = _keys(edition, fields)
    keys = keys if rated else replace(keys, rating=None)
    if edition == "recbole" and not _is_json(first_line):
        needed = [keys.user, keys.item, keys.time] + ([keys.rating] if keys.rating else [])
        columns = _positions(first_line, needed)
        return ReviewLines(lambda line: _atomic_review(line, columns, keys), header=True)
    quick = None
    if rated and edition in KEYS:
        quick = msgspec.json.Decoder(_Review2023 if edition == "2023" else _Review).decode
    return ReviewLines(lambda line: parse_review(parse_record(line, edition == "2014"), keys), quick, keys.per_second)


def has_ratings(edition: str, lines: Sequence[bytes], fields: Fields = RECBOLE_FIELDS) -> bool:
    """Whether a review file has ratings: a column of them, or one of the first lines with the key.

    Args:
        edition: edition of the file.
        lines: its first lines.
        fields: names of the columns of a RecBole file.
    """
    rating = _keys(edition, fields).rating
    if edition == "recbole" and not _is_json(lines[0]):
        return rating in _names(lines[0])
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(parse_record(line, edition == "2014"))
    return not records or any(rating in record for record in records)


def _keys(edition: str, fields: Fields) -> _Keys:
    return _Keys(*fields, 1) if edition == "recbole" else KEYS[edition]


def _is_json(line: bytes) -> bool:
    return line.lstrip().startswith(b"{")


def parse_review(record: dict[str, Any], keys: _Keys = _AMAZON) -> Review:
    """Extract user, item, rating and unix seconds from one record.

    Raises:
        ValueError: a key is missing or its value is of the wrong kind.
        BadIdError: RecBole would lose an id.
    """
    user, item = _text(record, keys.user), _text(record, keys.item)
    check_id(keys.user, user)
    check_item_id(keys.item, item)
    rating = None if keys.rating is None else _number(record, keys.rating)
    time = _number(record, keys.time)
    if keys.per_second == 1 and time > MAX_SECONDS:
        raise ValueError(f"{keys.time} {time:.0f} is not in seconds")
    if keys.per_second == 1000 and not MAX_SECONDS < time < MAX_SECONDS * 1000:
        raise ValueError(f"{keys.time} {time:.0f} is not in milliseconds")
    return user, item, rating, time / keys.per_second


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        raise ValueError(f"no key {key!r}" if key not in record else f"{key} is null")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, found {repr(value)[:100]}")
    return value


def _number(record: dict[str, Any], key: str) -> float:
    if key not in record:
        raise ValueError(f"no key {key!r}")
    value = record[key]
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        raise ValueError(f"{key} is too large for a number") from None
    raise ValueError(f"{key} must be a finite number, found {repr(value)[:100]}")


def _names(header: bytes) -> tuple[str, ...]:
    from recbole_qbert.data.atomic_files import parse_columns  # workers of Spark need the package for RecBole's files only

    return tuple(column.name for column in parse_columns(header.decode("utf-8-sig")))


def _positions(header: bytes, needed: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of columns in the header of an atomic file."""
    names = _names(header)
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"no column {', '.join(missing)}; the header names {', '.join(names)[:200]}. Users, items and times are needed: "
            "rename columns, or name them with USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD"
        )
    return tuple(names.index(name) for name in needed)


def _atomic_review(line: bytes, columns: tuple[int, ...], keys: _Keys) -> Review:
    cells = line.decode().rstrip("\r").split("\t")
    try:
        user, item, *numbers = (cells[k] for k in columns)
    except IndexError:
        raise ValueError(f"{len(cells)} cells, but the header has more columns") from None
    names = [keys.time] + ([keys.rating] if keys.rating else [])
    return parse_review({keys.user: user, keys.item: item, **dict(zip(names, map(float, numbers), strict=True))}, keys)


# ------------------------------------------------------------------------------------------------ metadata


def metadata_lines(
    edition: str, first_line: bytes, fields: Fields = RECBOLE_FIELDS
) -> Callable[[bytes], tuple[str, Metadata]]:
    """Choose the function that converts a line to (item, fields) and raises ValueError for a bad line."""
    item = _keys(edition, fields).item
    if edition == "recbole" and not _is_json(first_line):
        _positions(first_line, [item])
        names = _names(first_line)
        return lambda line: _atomic_item(line, names, item)
    return lambda line: parse_metadata(parse_record(line, edition == "2014"), edition, item)


def parse_metadata(record: dict[str, Any], edition: str = "2018", item_key: str | None = None) -> tuple[str, Metadata]:
    """Extract (item, fields) of one product; every field but the id may be missing or of another kind.

    Raises:
        ValueError: there is no id that a review could name, the record is a review, or the URLs of its images or its brand
            would be lost.
    """
    for review in ("reviewerID", "user_id"):
        if review in record:
            raise ValueError(f"a review (it has {review!r}) where a product is expected")
    key = item_key or KEYS[edition].item
    item = _text(record, key)
    if not item or UNSAFE_IN_ID.search(item):
        raise ValueError(f"{key} {item!r} is no id")
    title = " ".join(strings(record.get("title")))
    fields = _FIELDS[edition](record)
    return item, Metadata(
        # Some pages of 2018 were scraped unformatted; the edition's own notebook detects them by this JavaScript.
        title="" if "getTime" in title else title,
        brand=" ".join(fields["brand"]),
        categories=fields["categories"],
        description=" ".join(fields["description"]),
        price=" ".join(strings(record.get("price"))),
        image_urls=tuple(filter(None, map(clean_url, fields["image_urls"]))),
    )


def _fields_2014(record: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        "brand": strings(record.get("brand")),
        "categories": strings(record.get("categories")),
        "description": strings(record.get("description")),
        "image_urls": strings(record.get("imUrl")),
    }


def _fields_2018(record: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        "brand": strings(record.get("brand")),
        "categories": strings(record.get("category")),
        "description": strings(record.get("description")),
        "image_urls": strings(record.get("imageURLHighRes")) or strings(record.get("imageURL")),
    }


def _fields_2023(record: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Read the fields; the bullet points follow the description, because half of the products have nothing else."""
    return {
        "brand": strings(details_of(record.get("details")).get("Brand")) or strings(record.get("store")),
        "categories": strings(record.get("categories")),
        "description": strings(record.get("description")) + strings(record.get("features")),
        "image_urls": image_urls(record.get("images")),
    }


def _fields_recbole(record: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Read fields named as in an `.item` file, whose cells a table holds as text."""
    categories, urls = strings(record.get("categories")), strings(record.get("image_urls"))
    if isinstance(record.get("categories"), str) and len(categories) == 1:
        categories = _atomic_categories(categories[0])
    return {
        "brand": strings(record.get("brand")),
        "categories": categories,
        "description": strings(record.get("description")),
        "image_urls": tuple(" ".join(urls).split()),
    }


_FIELDS = {"2014": _fields_2014, "2018": _fields_2018, "2023": _fields_2023, "recbole": _fields_recbole}


def _atomic_item(line: bytes, names: Sequence[str], item_name: str) -> tuple[str, Metadata]:
    cells = dict(zip(names, line.decode().rstrip("\r").split("\t"), strict=False))
    item = cells.get(item_name, "")
    if not item or UNSAFE_IN_ID.search(item):
        raise ValueError(f"{item_name} {item!r} is no id")
    return item, Metadata(
        title=cells.get("title", ""),
        brand=cells.get("brand", ""),
        categories=_atomic_categories(cells.get("categories", "")),
        description=cells.get("description", ""),
        price=cells.get("price", ""),
        image_urls=tuple(filter(None, map(clean_url, cells.get("image_urls", "").split()))),
    )


def _atomic_categories(cell: str) -> tuple[str, ...]:
    """Split categories: our converter writes tokens, RecBole's wrote the inside of a Python set, `'Skin Care', 'Beauty'`."""
    if cell.startswith(("'", '"')):
        try:
            return tuple(map(str, ast.literal_eval(f"[{cell}]")))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return tuple(cell.split())


# ------------------------------------------------------------------------------------------------ detection


def detect(lines: Sequence[bytes], fields: Fields = RECBOLE_FIELDS) -> str:
    """Detect the edition of most of the first lines of a review or metadata file; 2018 if there is no evidence.

    Args:
        lines: the file's first lines.
        fields: names of the columns of a RecBole file.
    """
    if lines and b":token" in lines[0] and b"{" not in lines[0]:
        return "recbole"
    votes: Counter[str] = Counter()
    for line in lines[:PROBED]:
        try:
            record = parse_record(line, python_text=True)
        except ValueError:
            continue
        if fields != RECBOLE_FIELDS and fields.item in record:
            votes["recbole"] += 1
        elif "parent_asin" in record:
            votes["2023"] += 1
        elif "asin" not in record and fields.item in record:
            votes["recbole"] += 1
        elif line.lstrip().startswith(b"{'") or record.keys() & {"helpful", "imUrl", "salesRank", "categories"}:
            votes["2014"] += 1
        elif "asin" in record:
            votes["2018"] += 1
    return votes.most_common(1)[0][0] if votes else "2018"
