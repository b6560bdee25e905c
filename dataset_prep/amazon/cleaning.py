"""Check ids that RecBole must be able to read, and clean text so that RecBole reads it back unchanged."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

ITEM_HEADER = (
    "item_id:token",
    "title:token_seq",
    "brand:token",
    "categories:token_seq",
    "description:token_seq",
    "price:float",
    "image_urls:token_seq",
)
# Cells that pandas reads as missing; its own list is private, so a test compares the two. Not imported from recbole_qbert,
# so that workers of Spark need only this package.
_NA = "#N/A,#N/A N/A,#NA,-1.#IND,-1.#QNAN,-NaN,-nan,1.#IND,1.#QNAN,<NA>,N/A,NA,NULL,NaN,None,n/a,nan,null"
NA_WORDS = frozenset(_NA.split(","))
MAX_CELL = 131_072  # characters; RecBole reads with Python's csv module, which refuses longer cells

UNSAFE_IN_ID = re.compile(r"[\s\"\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE_IN_URL = re.compile(r"[^!#-~]")  # the double quote, and everything but printable ASCII
SURROGATE = re.compile(r"[\ud800-\udfff]")  # a lone surrogate cannot be encoded as UTF-8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")  # a letter must follow, so that 'a < b' and '<3' stay
_DOLLARS = re.compile(r"(?:from\s+)?\$\s*(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"(?:from\s+)?(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)


class BadIdError(Exception):
    """An id that RecBole would lose or split. Its line is never skipped, because that would silently change the data."""


@dataclass(frozen=True)
class Metadata:
    """The metadata fields of one product, as in the raw file."""

    title: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""
    price: str = ""
    image_urls: tuple[str, ...] = ()


def check_id(key: str, value: str) -> None:
    """Refuse a user or item id that RecBole would read as missing or split.

    Raises:
        BadIdError: RecBole cannot read the id; the caller adds file and line to the message.
    """
    if not value or value in NA_WORDS:
        raise BadIdError(
            f"{key} {value!r} is read as a missing value by pandas, so RecBole would drop its rows; rename the id in the "
            "input files, for example with a prefix, or remove the line"
        )
    if UNSAFE_IN_ID.search(value) or value == "[PAD]":
        raise BadIdError(
            f"{key} {value!r} holds a space, tab, line break, quote or control character, or is RecBole's padding token; "
            "rename the id in the input files, or remove the line"
        )


def check_item_id(key: str, value: str) -> None:
    """Check an item id like `check_id`, and that it can name the folder of the item's images."""
    check_id(key, value)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise BadIdError(f"{key} {value!r} cannot name an image folder; rename it in the input files")


def clean_text(text: str) -> str:
    r"""Clean a text to one line that RecBole reads back unchanged.

    Entities are resolved (twice, because `&amp;quot;` occurs). Tags, scripts and comments become a space, and any white
    space becomes one space. A double quote becomes two apostrophes: RecBole reads with csv quoting, where a lone quote at
    the beginning of a cell would join it with the next cells. A text that pandas reads as missing ('N/A') becomes empty.

    Args:
        text: raw text of a metadata field.

    Returns:
        The cleaned text.

    >>> clean_text('<b>9&quot; pan</b>\t&amp;amp; lid')
    "9'' pan & lid"
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" in text:
        text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    text = " ".join(_CONTROL.sub(" ", text).replace('"', "''").split())
    return "" if text in NA_WORDS else text


def clean_categories(categories: Iterable[str]) -> str:
    """Write category names as tokens: spaces become `_`; repeated and empty names are dropped.

    >>> clean_categories(["Gift Cards", "Gift Cards", "For &amp; By", "</span></span>", "Ships free"])
    'Gift_Cards For_&_By'
    """
    tokens: dict[str, None] = {}
    for name in categories:
        if "</span>" in name:  # from here on the scraper read the product's bullet points
            break
        tokens[clean_text(name).replace(" ", "_")] = None
    return clean_text(" ".join(filter(None, tokens)))


def clean_url(url: str) -> str:
    """Escape white space and quotes in a URL, which would break the cell; return '' for anything but http(s)."""
    url = url.strip()
    return (
        _UNSAFE_IN_URL.sub(lambda m: quote(m[0], errors="replace"), url) if url.startswith(("http://", "https://")) else ""
    )


def parse_price(price: str) -> float | None:
    """Parse a price in dollars; of a range the lower end; None for anything else ('' or page fragments).

    >>> parse_price("$1,049.50 - $2,000.00"), parse_price("from 12.99"), parse_price("")
    (1049.5, 12.99, None)
    """
    match = _DOLLARS.match(price.strip()) or _PLAIN_NUMBER.fullmatch(price.strip())
    dollars = float(match[1].replace(",", "")) if match else math.inf
    return dollars if math.isfinite(dollars) else None


def item_cells(item: str, fields: Metadata) -> tuple[tuple[str, ...], int]:
    """Make the cells of one `.item` row; return them and how many were cut at a space, being longer than `MAX_CELL`."""
    price = parse_price(fields.price)
    cells = [
        item,
        clean_text(fields.title),
        clean_text(fields.brand),
        clean_categories(fields.categories),
        clean_text(fields.description),
        "" if price is None else repr(price),
        " ".join(fields.image_urls),
    ]
    return tuple(map(cut_cell, cells)), sum(len(cell) > MAX_CELL for cell in cells)


def cut_cell(cell: str) -> str:
    """Cut a cell that is longer than `MAX_CELL` at a space."""
    return cell if len(cell) <= MAX_CELL else cell[:MAX_CELL].rsplit(" ", 1)[0]
