"""Amazon 2018 reviews and metadata to RecBole atomic files.

`convert` reads the two JSON-lines files of one category as users download them and writes a dataset folder::

    <output>/<dataset>/<dataset>.inter   user_id:token item_id:token rating:float timestamp:float
    <output>/<dataset>/<dataset>.item    item_id:token title:token_seq brand:token categories:token_seq
                                         description:token_seq price:float image_urls:token_seq
    <output>/<dataset>/prepare.json      what was read, dropped and written, and from which files

The steps are small functions over plain values (`read_records`, `drop_duplicates`, `k_core`, `clean_text`,
`item_row`, `write_dataset`), so that another engine can replace pandas step by step.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import json
import math
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pandas as pd
from tqdm import tqdm

FORMAT_VERSION = 1  # of the written files; raise it when the same input gives other bytes
INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
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
MAX_SECONDS = 1e11  # the year 5138; larger times are milliseconds
T = TypeVar("T")


class AmazonFormatError(ValueError):
    """The input is not as the 2018 edition has it; the message names file, line, value and a way out."""


class _BadIdError(Exception):
    """An id RecBole would lose or tear apart. Never skipped: dropping it would change the data unseen."""


@dataclass
class LineCount:
    """What was seen in one input file."""

    file: str
    sha256: str = ""
    lines: int = 0
    blank: int = 0
    malformed: int = 0
    first_malformed_line: int | None = None


@dataclass(frozen=True)
class Metadata:
    """The metadata fields of one product, as they stand in the file."""

    title: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""
    price: str = ""
    image_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrepareReport:
    """What `convert` did; `prepare.json` holds the same.

    `sparsity` is 1 - interactions / (users * items) and `average_length` is interactions / users, as in the
    usual dataset tables.
    """

    dataset: str
    format_version: int
    options: dict[str, Any]
    versions: dict[str, str]
    reviews: LineCount
    metadata: LineCount
    interactions_read: int
    duplicates_dropped: int
    no_image_dropped: int
    k_core_rounds: list[dict[str, int]]
    metadata_duplicates: int
    items_without: dict[str, int]
    cells_cut: int
    users: int
    items: int
    interactions: int
    sparsity: float
    average_length: float


# ------------------------------------------------------------------------------------------------ reading


class _Tap(io.RawIOBase):
    """A file that hashes and counts the bytes passing through, so that one pass over the input is enough."""

    def __init__(self, raw: io.FileIO, on_bytes: Callable[[int], object]) -> None:
        self._raw, self._on_bytes, self.sha = raw, on_bytes, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._raw.readinto(buffer) or 0
        self.sha.update(memoryview(buffer)[:size])
        self._on_bytes(size)
        return size


@contextmanager
def _open_lines(path: Path, count: LineCount, progress: bool) -> Iterator[Iterable[bytes]]:
    """Open plain or gzip lines (told apart by content: downloads often carry the wrong suffix)."""
    with (
        open(path, "rb", buffering=0) as raw,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=1, desc=path.name, disable=not progress) as bar,
    ):
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        tap = _Tap(raw, bar.update)
        buffered = io.BufferedReader(tap, 1 << 18)
        with gzip.GzipFile(fileobj=buffered) if packed else buffered as lines:
            yield lines
        count.sha256 = tap.sha.hexdigest()


def read_records(
    path: Path,
    parse: Callable[[dict[str, Any]], T],
    count: LineCount,
    *,
    skip_malformed: bool,
    progress: bool,
) -> Iterator[T]:
    """Yield one parsed record a line, filling `count` on the way.

    Args:
        path: JSON lines, plain or gzip.
        parse: makes a record of one JSON object; raises ValueError where the object will not do.
        count: filled in place; complete when the iterator is exhausted.
        skip_malformed: count such lines instead of stopping at the first.
        progress: show a bar over the bytes of the file.

    Raises:
        FileNotFoundError: there is no such file.
        AmazonFormatError: a damaged gzip; a malformed line (unless skipped); an id RecBole cannot read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the .json or .json.gz file of the 2018 edition.")
    with _open_lines(path, count, progress) as lines:
        iterator = iter(lines)
        while True:
            try:
                line = next(iterator, None)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise AmazonFormatError(
                    f"{path}:{count.lines + 1}: the gzip data are damaged or cut short here ({error}). "
                    "Download the file again and compare its size."
                ) from error
            if line is None:
                return
            count.lines += 1
            if not line.strip():
                count.blank += 1
                continue
            try:
                record = parse(_json_object(line))
            except _BadIdError as error:
                raise AmazonFormatError(f"{path}:{count.lines}: {error}") from None
            except (ValueError, OverflowError) as error:
                _malformed(path, line, error, count, skip_malformed)
                continue
            yield record


def _json_object(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record


def _malformed(path: Path, line: bytes, error: Exception, count: LineCount, skip: bool) -> None:
    count.malformed += 1
    if count.first_malformed_line is None:
        count.first_malformed_line = count.lines
    if skip:
        return
    hint = "Repair or remove the line, or pass skip_malformed=True to leave such lines out and count them."
    if line.startswith(b"{'"):
        hint = "This looks like the 2014 edition (Python literals); convert reads the 2018 edition."
    elif b'"parent_asin"' in line:
        hint = "This looks like the 2023 edition; convert reads the 2018 edition."
    shown = line[:120].decode("utf-8", "replace").strip()
    raise AmazonFormatError(f"{path}:{count.lines}: {error}; the line begins {shown!r}. {hint}") from error


def parse_review(record: dict[str, Any]) -> tuple[str, str, float, float]:
    """(user, item, rating, unix seconds) of one review; ValueError where a key is missing or wrong."""
    user, item = _id(record, "reviewerID"), _id(record, "asin")
    if "/" in item or "\\" in item or item in (".", ".."):
        raise _BadIdError(f"asin {item!r} cannot name an image folder. Rename it in the input files.")
    rating, seconds = _number(record, "overall"), _number(record, "unixReviewTime")
    if seconds > MAX_SECONDS:
        raise ValueError(f"unixReviewTime {seconds:.0f} is not in seconds")
    return user, item, rating, seconds


def _id(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        raise ValueError(f"no key {key!r}" if key not in record else f"{key} is null")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, found {value!r}")
    if not value or value in NA_WORDS:
        raise _BadIdError(
            f"{key} {value!r} is read as a missing value by pandas, so RecBole would drop its rows. "
            "Rename the id in the input files, for example with a prefix, or remove the line."
        )
    if _ID_TRAP.search(value) or value == "[PAD]":
        raise _BadIdError(
            f"{key} {value!r} holds a space, tab, line break, quote or control character, or is RecBole's "
            "padding token. Rename the id in the input files, or remove the line."
        )
    return value


def _number(record: dict[str, Any], key: str) -> float:
    if key not in record:
        raise ValueError(f"no key {key!r}")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, found {value!r}")
    return float(value)


def parse_metadata(record: dict[str, Any]) -> tuple[str, Metadata]:
    """(item, fields) of one product. Only `asin` must be there: the 2018 files leave out any other field."""
    item = record.get("asin")
    if not isinstance(item, str) or not item:
        raise ValueError(f"asin must be a string, found {item!r}" if "asin" in record else "no key 'asin'")
    urls = _strings(record.get("imageURLHighRes")) or _strings(record.get("imageURL"))
    title = " ".join(_strings(record.get("title")))
    return item, Metadata(
        # Some pages were scraped unformatted; the edition's own notebook tells them by this JavaScript.
        title="" if "getTime" in title else title,
        brand=" ".join(_strings(record.get("brand"))),
        categories=_strings(record.get("category")),
        description=" ".join(_strings(record.get("description"))),
        price=" ".join(_strings(record.get("price"))),
        image_urls=tuple(filter(None, map(_clean_url, urls))),
    )


def _strings(value: object) -> tuple[str, ...]:
    """The strings in a field that may be absent, a string, a number or a list of these."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(v) for v in values if type(v) in (str, int, float) and v != "")


def _clean_url(url: str) -> str:
    """`url` without white space or quotes, which would break the cell; empty for anything but http(s)."""
    url = url.strip()
    return _URL_TRAP.sub(lambda m: quote(m[0], errors="replace"), url) if url.startswith(("http://", "https://")) else ""


def read_reviews(path: Path, count: LineCount, *, skip_malformed: bool, progress: bool) -> pd.DataFrame:
    """All reviews in file order, one row each: user, item, rating, timestamp."""
    rows = read_records(path, parse_review, count, skip_malformed=skip_malformed, progress=progress)
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def read_metadata(
    path: Path, wanted: set[str], count: LineCount, *, skip_malformed: bool, progress: bool
) -> tuple[dict[str, Metadata], int]:
    """The first record of each wanted item, and how many further records of wanted items were left out."""
    found: dict[str, Metadata] = {}
    repeated = 0
    records = read_records(path, parse_metadata, count, skip_malformed=skip_malformed, progress=progress)
    for item, fields in records:
        if item in found:
            repeated += 1
        elif item in wanted:
            found[item] = fields
    return found, repeated


# ------------------------------------------------------------------------------------------------ cleaning

_ID_TRAP = re.compile(r"[\s\"\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_URL_TRAP = re.compile(r"[^!#-~]")  # whatever is not a printing ASCII character, and the double quote
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # lone surrogates cannot be written as UTF-8
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")  # a letter must follow, so 'a < b' and '<3' are kept
_PRICE = re.compile(r"\$\s*(\d[\d,]*(?:\.\d+)?)")


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


def parse_price(price: str) -> float | None:
    """Dollars; the lower end of a range; None for anything else ('' or page fragments).

    >>> parse_price("$1,049.50 - $2,000.00"), parse_price("")
    (1049.5, None)
    """
    found = _PRICE.match(price.strip())
    return float(found[1].replace(",", "")) if found else None


def item_row(item: str, fields: Metadata | None) -> dict[str, Any]:
    """The cells of one `.item` row; an item without metadata gets empty ones."""
    fields = fields or Metadata()
    values = (
        item,
        clean_text(fields.title),
        clean_text(fields.brand),
        clean_categories(fields.categories),
        clean_text(fields.description),
        parse_price(fields.price),
        " ".join(fields.image_urls),
    )
    return dict(zip(ITEM_HEADER, values, strict=True))


def item_table(items: Iterable[str], metadata: dict[str, Metadata]) -> tuple[pd.DataFrame, int]:
    """The `.item` rows in the order of `items`, and how many cells were too long and were cut at a space."""
    table = pd.DataFrame([item_row(item, metadata.get(item)) for item in items], columns=list(ITEM_HEADER))
    cut = 0
    for column in table.columns.drop("price:float"):
        long = table[column].str.len() > MAX_CELL
        table.loc[long, column] = [cell[:MAX_CELL].rsplit(" ", 1)[0] for cell in table.loc[long, column]]
        cut += int(long.sum())
    return table, cut


# ------------------------------------------------------------------------------------------------ filtering


def drop_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Order by time (ties in file order) and keep the first review of each (user, item)."""
    ordered = frame.sort_values("timestamp", kind="stable")
    return ordered.drop_duplicates(["user", "item"], keep="first")


def k_core(frame: pd.DataFrame, min_user: int, min_item: int) -> tuple[pd.DataFrame, list[dict[str, int]]]:
    """Drop users and items with too few rows until none is left; the largest such subset is unique.

    Args:
        frame: rows with `user` and `item`, each pair at most once.
        min_user: rows a user needs.
        min_item: rows an item needs.

    Returns:
        The remaining rows in their order, and what each round left.
    """
    rounds: list[dict[str, int]] = []
    while True:
        per_user = frame.groupby("user", sort=False)["item"].transform("size")
        per_item = frame.groupby("item", sort=False)["user"].transform("size")
        keep = (per_user >= min_user) & (per_item >= min_item)
        if keep.all():
            return frame, rounds
        frame = frame[keep]
        rounds.append({"users": frame["user"].nunique(), "items": frame["item"].nunique(), "interactions": len(frame)})


def items_with_image(items: Iterable[str], metadata: dict[str, Metadata], images: Path | None) -> set[str]:
    """Items with a file in `images/<item>/`, or, where no folder is given, with an image URL."""
    if images is None:
        return {item for item in items if item in metadata and metadata[item].image_urls}
    folders = {item: images / item for item in items}
    return {item for item, f in folders.items() if f.is_dir() and any(p.is_file() for p in f.iterdir())}


# ------------------------------------------------------------------------------------------------ writing


def write_dataset(folder: Path, texts: dict[str, str]) -> None:
    """Write the files of a dataset folder, all or nothing visible.

    Each goes to a temporary name first. Then a manifest of an earlier run is removed, the files take their
    names, and the last of `texts` (the manifest) comes last: where it stands, the folder is complete.

    Args:
        folder: made if need be.
        texts: file name -> content; the last one marks the folder complete.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.tmp-{os.getpid()}" for name in texts}
    try:
        for name, path in temporary.items():
            path.write_bytes(texts[name].encode("utf-8"))
        (folder / list(texts)[-1]).unlink(missing_ok=True)
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _tsv(frame: pd.DataFrame) -> str:
    """Tab-separated text; csv quoting would only act on characters that cleaning has taken out."""
    return str(frame.to_csv(sep="\t", index=False, lineterminator="\n"))


# ------------------------------------------------------------------------------------------------ the whole


def convert(
    reviews: str | Path,
    metadata: str | Path,
    dataset: str,
    output: str | Path,
    *,
    min_user_interactions: int = 5,
    min_item_interactions: int = 5,
    require_image: bool = False,
    images: str | Path | None = None,
    skip_malformed: bool = False,
    progress: bool = True,
) -> PrepareReport:
    """Convert one category of the Amazon 2018 edition to `<output>/<dataset>/`.

    * Order: rows stand in the order of `unixReviewTime`, equal times in file order, and times are written as
      they are. RecBole narrows them to float32, which makes times within 128 s equal, but rounding never
      reverses two times and its sort is stable (`np.argsort(kind="stable")` in `Interaction.sort`), so the
      order of rows survives. Only `rm_dup_inter` would sort with an unstable sort first; it is off by default
      and there is nothing left for it to remove.
    * Of several reviews of one item by one user the first in time is kept.
    * Users and items with too few interactions go, repeatedly, until all left have enough (k-core).
    * Each item left has exactly one `.item` row, without metadata an empty one: RecBole would drop the
      interactions of items without a row, and rank items with a row that nobody can choose.
    * Text is cleaned by `clean_text`, categories by `clean_categories`. Of several metadata records of an
      item the first is kept.
    * Ids that RecBole would read as missing or take apart are refused, also with `skip_malformed`.

    Args:
        reviews: JSON lines, plain or gzip: `reviewerID`, `asin`, `overall`, `unixReviewTime`.
        metadata: JSON lines, plain or gzip: `asin`, and where present `title`, `brand`, `category`,
            `description`, `price`, `imageURLHighRes` or `imageURL`.
        dataset: name of the dataset, its folder and its files.
        output: folder of datasets (RecBole's `data_path`).
        min_user_interactions: interactions a user must have (1 keeps all).
        min_item_interactions: interactions an item must have (1 keeps all).
        require_image: drop items without an image before the k-core.
        images: folder with `<item>/<any file>`; an item then has an image if it has a file there, otherwise
            if the metadata list an image URL.
        skip_malformed: leave malformed lines out and count them instead of stopping at the first.
        progress: show a bar over the bytes read.

    Returns:
        What was read, dropped and written; also in `prepare.json`.

    Raises:
        FileNotFoundError: an input file or the `images` folder is not there.
        AmazonFormatError: a damaged gzip, a malformed line, an id RecBole cannot read, or nothing is left.
        ValueError: `dataset` is no plain name or a minimum is below 1.
    """
    reviews, metadata, output = Path(reviews), Path(metadata), Path(output)
    images = None if images is None else Path(images)
    _check_options(dataset, min_user_interactions, min_item_interactions, images)
    if not metadata.is_file():  # known before the long read of the reviews
        raise FileNotFoundError(f"{metadata}: no such file. Give the metadata file of {reviews.name}.")
    review_count, metadata_count = LineCount(reviews.name), LineCount(metadata.name)
    read = read_reviews(reviews, review_count, skip_malformed=skip_malformed, progress=progress)
    distinct = drop_duplicates(read)
    found, repeated = read_metadata(
        metadata, set(distinct["item"]), metadata_count, skip_malformed=skip_malformed, progress=progress
    )
    pictured = items_with_image(distinct["item"].unique(), found, images)
    usable = distinct[distinct["item"].isin(pictured)] if require_image else distinct
    kept, rounds = k_core(usable, min_user_interactions, min_item_interactions)
    if kept.empty:
        repeats, unpictured = len(read) - len(distinct), len(distinct) - len(usable)
        raise AmazonFormatError(
            f"{reviews}: of {len(read):,} interactions none is left ({repeats:,} duplicates, {unpictured:,} "
            f"without image, the rest below {min_user_interactions} a user or {min_item_interactions} an "
            "item). Lower min_user_interactions or min_item_interactions"
            + (", or drop require_image." if require_image else ".")
        )
    items = list(kept["item"].unique())
    table, cut = item_table(items, found)
    users = int(kept["user"].nunique())
    report = PrepareReport(
        dataset=dataset,
        format_version=FORMAT_VERSION,
        options={
            "min_user_interactions": min_user_interactions,
            "min_item_interactions": min_item_interactions,
            "require_image": require_image,
            "images": images is not None,
            "skip_malformed": skip_malformed,
        },
        versions={"python": platform.python_version(), "pandas": pd.__version__},
        reviews=review_count,
        metadata=metadata_count,
        interactions_read=len(read),
        duplicates_dropped=len(read) - len(distinct),
        no_image_dropped=len(distinct) - len(usable),
        k_core_rounds=rounds,
        metadata_duplicates=repeated,
        items_without=_items_without(table, set(found), pictured),
        cells_cut=cut,
        users=users,
        items=len(items),
        interactions=len(kept),
        sparsity=1 - len(kept) / (users * len(items)),
        average_length=len(kept) / users,
    )
    inter = kept[["user", "item", "rating", "timestamp"]].set_axis(list(INTER_HEADER), axis="columns")
    manifest = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    texts = {f"{dataset}.inter": _tsv(inter), f"{dataset}.item": _tsv(table), "prepare.json": manifest}
    write_dataset(output / dataset, texts)
    return report


def _check_options(dataset: str, min_user: int, min_item: int, images: Path | None) -> None:
    if not re.fullmatch(r"\w[\w.-]*", dataset):
        raise ValueError(f"dataset {dataset!r} names a folder: use letters, digits, '_', '-' and '.'.")
    for name, value in (("min_user_interactions", min_user), ("min_item_interactions", min_item)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1 (1 keeps all).")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder. Give the folder that holds <item>/<image file>.")


def _items_without(table: pd.DataFrame, with_metadata: set[str], with_image: set[str]) -> dict[str, int]:
    """How many items of the table lack what, for the manifest."""
    items = table["item_id:token"]
    missing = {"metadata": int((~items.isin(with_metadata)).sum())}
    for column in ITEM_HEADER[1:6]:
        cells = table[column]
        missing[column.split(":")[0]] = int((cells.isna() | (cells == "")).sum())
    return {**missing, "image": int((~items.isin(with_image)).sum())}
