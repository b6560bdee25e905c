r"""Ids that RecBole can read, and text it gives back unchanged: cells without markup, tabs and quotes."""

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
# The cells pandas reads as missing; its own list is private, so it stands here and a test compares the two.
_NA = "#N/A,#N/A N/A,#NA,-1.#IND,-1.#QNAN,-NaN,-nan,1.#IND,1.#QNAN,<NA>,N/A,NA,NULL,NaN,None,n/a,nan,null"
NA_WORDS = frozenset(_NA.split(","))
MAX_CELL = 131_072  # Python's csv module, which RecBole's reader goes through, refuses longer cells

ID_TRAP = re.compile(r"[\s\"\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_URL_TRAP = re.compile(r"[^!#-~]")  # whatever is not a printing ASCII character, and the double quote
SURROGATE = re.compile(r"[\ud800-\udfff]")  # one alone cannot be written as UTF-8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")  # a letter must follow, so 'a < b' and '<3' are kept
_DOLLARS = re.compile(r"(?:from\s+)?\$\s*(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_PLAIN = re.compile(r"(?:from\s+)?(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)


class BadIdError(Exception):
    """An id RecBole would lose or tear apart. Never skipped: dropping it would change the data unseen."""


@dataclass(frozen=True)
class Metadata:
    """The metadata fields of one product, as they stand in the file."""

    title: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""
    price: str = ""
    image_urls: tuple[str, ...] = ()


def check_id(key: str, value: str) -> None:
    """Refuse a user or item id that RecBole would read as missing or take apart.

    Raises:
        BadIdError: such an id; the message has no file and line yet.
    """
    if not value or value in NA_WORDS:
        raise BadIdError(
            f"{key} {value!r} is read as a missing value by pandas, so RecBole would drop its rows. "
            "Rename the id in the input files, for example with a prefix, or remove the line."
        )
    if ID_TRAP.search(value) or value == "[PAD]":
        raise BadIdError(
            f"{key} {value!r} holds a space, tab, line break, quote or control character, or is RecBole's "
            "padding token. Rename the id in the input files, or remove the line."
        )


def check_item_id(key: str, value: str) -> None:
    """`check_id`, and the id must be able to name the folder of the item's images."""
    check_id(key, value)
    if "/" in value or "\\" in value or value in (".", ".."):
        raise BadIdError(f"{key} {value!r} cannot name an image folder. Rename it in the input files.")


def clean_text(text: str) -> str:
    r"""One line of plain text that RecBole's reader gives back unchanged.

    Entities are resolved (twice: `&amp;quot;` occurs), tags, scripts and comments become a space, white space
    of any kind becomes one space, and a double quote becomes two apostrophes: RecBole reads with csv quoting
    on, where a cell that begins with a lone quote swallows its neighbours. A text that is nothing but a word
    pandas reads as missing ('N/A') becomes empty, which is what the reader would make of it.

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
    """Category names as tokens: spaces become `_`, repeats and empty names go.

    >>> clean_categories(["Gift Cards", "Gift Cards", "For &amp; By", "</span></span>", "Ships free"])
    'Gift_Cards For_&_By'
    """
    tokens: dict[str, None] = {}
    for name in categories:
        if "</span>" in name:  # from here on the scraper ran into the product's bullet points
            break
        tokens[clean_text(name).replace(" ", "_")] = None
    return clean_text(" ".join(filter(None, tokens)))


def clean_url(url: str) -> str:
    """`url` without white space or quotes, which would break the cell; empty for anything but http(s)."""
    url = url.strip()
    return _URL_TRAP.sub(lambda m: quote(m[0], errors="replace"), url) if url.startswith(("http://", "https://")) else ""


def parse_price(price: str) -> float | None:
    """Dollars; the lower end of a range; None for anything else ('' or page fragments).

    >>> parse_price("$1,049.50 - $2,000.00"), parse_price("from 12.99"), parse_price("")
    (1049.5, 12.99, None)
    """
    found = _DOLLARS.match(price.strip()) or _PLAIN.fullmatch(price.strip())
    dollars = float(found[1].replace(",", "")) if found else math.inf
    return dollars if math.isfinite(dollars) else None


def item_cells(item: str, fields: Metadata) -> tuple[tuple[str, ...], int]:
    """The cells of one `.item` row, and how many were longer than `MAX_CELL` and were cut at a space."""
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
    long = [n for n, cell in enumerate(cells) if len(cell) > MAX_CELL]
    for n in long:
        cells[n] = cells[n][:MAX_CELL].rsplit(" ", 1)[0]
    return tuple(cells), len(long)
