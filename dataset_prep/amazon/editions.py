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
recbole    `.inter`: user_id, item_id, rating, timestamp      `.item`: item_id, title, brand, categories, description,
                                                              price, image_urls
=========  =================================================  ==========================================================

Only the values of the keys that are used are checked; the rest of a line must only be well-formed.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dataset_prep.amazon.cleaning import UNSAFE_IN_ID, Metadata, check_id, check_item_id, clean_url
from dataset_prep.amazon.field_values import details_of, image_urls, strings
from dataset_prep.amazon.record_parser import parse_record

EDITIONS = ("2014", "2018", "2023", "recbole")
MAX_SECONDS = 1e11  # the year 5138 in seconds, 1973 in milliseconds; larger times are milliseconds, smaller ones seconds
PROBED = 100  # lines from which the edition of a file is detected
Review = tuple[str, str, float, float]  # user, item, rating, seconds


@dataclass(frozen=True)
class _Keys:
    user: str
    item: str
    rating: str
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


def review_lines(edition: str, first_line: bytes) -> ReviewLines:
    """Choose the parsers of a review file of the given edition, which begins with `first_line`.

    Raises:
        ValueError: a RecBole file lacks a required column.
    """
    if edition == "recbole":
        columns = _columns(first_line, ("user_id:token", "item_id:token", "rating:float", "timestamp:float"))
        return ReviewLines(lambda line: _atomic_review(line, columns), header=True)
    keys = KEYS[edition]
    kind = _Review2023 if edition == "2023" else _Review
    quick = msgspec.json.Decoder(kind).decode
    return ReviewLines(lambda line: parse_review(parse_record(line, edition == "2014"), keys), quick, keys.per_second)


def parse_review(record: dict[str, Any], keys: _Keys = _AMAZON) -> Review:
    """Extract user, item, rating and unix seconds from one record.

    Raises:
        ValueError: a key is missing or its value is of the wrong kind.
        BadIdError: RecBole would lose an id.
    """
    user, item = _text(record, keys.user), _text(record, keys.item)
    check_id(keys.user, user)
    check_item_id(keys.item, item)
    rating, time = _number(record, keys.rating), _number(record, keys.time)
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


def _columns(header: bytes, required: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of columns in the header of an atomic file.

    `recbole_qbert.data.atomic_files` is not used here, so that workers of Spark need only this package.
    """
    names = header.decode("utf-8-sig").rstrip("\r").split("\t")
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(f"the header has no column {missing[0]!r}, only {', '.join(names)[:200]}")
    return tuple(names.index(name) for name in required)


def _atomic_review(line: bytes, columns: tuple[int, ...]) -> Review:
    cells = line.decode().rstrip("\r").split("\t")
    try:
        user, item, rating, seconds = (cells[k] for k in columns)
        record = {"user_id": user, "item_id": item, "rating": float(rating), "timestamp": float(seconds)}
    except IndexError:
        raise ValueError(f"{len(cells)} cells, but the header has more columns") from None
    return parse_review(record, _Keys("user_id", "item_id", "rating", "timestamp", 1))


# ------------------------------------------------------------------------------------------------ metadata


def metadata_lines(edition: str, first_line: bytes) -> Callable[[bytes], tuple[str, Metadata]]:
    """Choose the function that converts a line to (item, fields) and raises ValueError for a bad line."""
    if edition == "recbole":
        names = first_line.decode("utf-8-sig").rstrip("\r").split("\t")
        _columns(first_line, ("item_id:token",))
        return lambda line: _atomic_item(line, names)
    return lambda line: parse_metadata(parse_record(line, edition == "2014"), edition)


def parse_metadata(record: dict[str, Any], edition: str = "2018") -> tuple[str, Metadata]:
    """Extract (item, fields) of one product; every field but the id may be missing or of another kind.

    Raises:
        ValueError: there is no id that a review could name, the record is a review, or the URLs of its images or its brand
            would be lost.
    """
    for review in ("reviewerID", "user_id"):
        if review in record:
            raise ValueError(f"a review (it has {review!r}) where a product is expected")
    key = KEYS[edition].item
    item = _text(record, key)
    if not item or UNSAFE_IN_ID.search(item):
        raise ValueError(f"{key} {item!r} is no id")
    title = " ".join(strings(record.get("title")))
    fields = {"2014": _fields_2014, "2018": _fields_2018, "2023": _fields_2023}[edition](record)
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


def _atomic_item(line: bytes, names: Sequence[str]) -> tuple[str, Metadata]:
    cells = dict(zip((name.split(":")[0] for name in names), line.decode().rstrip("\r").split("\t"), strict=False))
    item = cells.get("item_id", "")
    if not item or UNSAFE_IN_ID.search(item):
        raise ValueError(f"item_id {item!r} is no id")
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


def detect(lines: Sequence[bytes]) -> str:
    """Detect the edition of most of the first lines of a review or metadata file; 2018 if there is no evidence.

    Args:
        lines: the file's first lines.
    """
    if lines and b":token" in lines[0] and b"{" not in lines[0]:
        return "recbole"
    votes: Counter[str] = Counter()
    for line in lines[:PROBED]:
        try:
            record = parse_record(line, python_text=True)
        except ValueError:
            continue
        if "parent_asin" in record:
            votes["2023"] += 1
        elif line.lstrip().startswith(b"{'") or record.keys() & {"helpful", "imUrl", "salesRank", "categories"}:
            votes["2014"] += 1
        elif "asin" in record:
            votes["2018"] += 1
    return votes.most_common(1)[0][0] if votes else "2018"
