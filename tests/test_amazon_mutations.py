"""1,000 damaged inputs: each ends in what a tiny reference makes of the good lines, or in an error naming file and line.

The reference below shares no code with `dataset_prep`: `json`, `ast`, dictionaries and loops.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import random
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_prep.amazon import line_reader
from dataset_prep.amazon.convert import convert

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # as Python says of '\\q'
BATCHES, BATCH = 20, 50
LONG = 60_000  # bytes of a line that is too long, here
BAD_ALLOWED = 3
MISSING = set(
    "#N/A,#N/A N/A,#NA,-1.#IND,-1.#QNAN,-NaN,-nan,1.#IND,1.#QNAN,<NA>,N/A,NA,NULL,NaN,None,n/a,nan,null,".split(",")
)
KEYS = {
    "2014": ("reviewerID", "asin", "overall", "unixReviewTime", 1),
    "2018": ("reviewerID", "asin", "overall", "unixReviewTime", 1),
    "2023": ("user_id", "parent_asin", "rating", "timestamp", 1000),
}


# ------------------------------------------------------------------------------------------------ the reference


class Refused(Exception):
    """The reference refuses the input."""


def unpacked(raw: bytes) -> bytes:
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused("gzip") from error


def record_on(line: bytes, edition: str) -> dict[str, Any]:
    text = line.decode("utf-8-sig")
    try:
        record = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 500 else math.inf)
    except ValueError:
        if edition != "2014":
            raise
        try:
            record = ast.literal_eval(text.strip())
        except (SyntaxError, TypeError):
            raise ValueError from None
    if not isinstance(record, dict):
        raise ValueError
    return record


def good_lines(raw: bytes, use: Callable[[bytes], Any]) -> tuple[list[tuple[int, Any]], list[int]]:
    """(number, value) of every good line, and the numbers of the bad ones."""
    good, bad = [], []
    split = unpacked(raw).split(b"\n")
    for number, line in enumerate(split[:-1] if not split[-1] else split, 1):
        if len(line) > LONG:
            bad.append(number)
        elif line.strip():
            try:
                good.append((number, use(line)))
            except (ValueError, OverflowError, RecursionError, MemoryError):
                bad.append(number)
        if len(bad) > BAD_ALLOWED:
            raise Refused("too many bad lines")
    if bad and not good:
        raise Refused("no good line")
    return good, bad


def review_on(line: bytes, edition: str) -> tuple[str, str, float, float]:
    user, item, rating, time, unit = KEYS[edition]
    record = record_on(line, edition)
    names = [name for name in (record.get(user), record.get(item)) if isinstance(name, str)]
    numbers = []
    if len(names) < 2:
        raise ValueError
    for name in names:
        if name in MISSING or name == "[PAD]" or re.search(r'[\s"\x00-\x1f\x7f-\x9f\ud800-\udfff]', name):
            raise Refused("id")
    if "/" in names[1] or "\\" in names[1] or names[1] in (".", ".."):
        raise Refused("item id")
    for key in (rating, time):
        if key not in record or type(record[key]) not in (int, float) or not math.isfinite(record[key]):
            raise ValueError
        numbers.append(float(record[key]))
    if not (numbers[1] <= 1e11 if unit == 1 else 1e11 < numbers[1] < 1e14):
        raise ValueError
    return names[0], names[1], numbers[0], numbers[1] / unit


def product_on(line: bytes, edition: str) -> tuple[str, str]:
    record = record_on(line, edition)
    item = record.get(KEYS[edition][1])
    if "reviewerID" in record or "user_id" in record or not isinstance(item, str) or not item:
        raise ValueError
    if re.search(r'[\s"\x00-\x1f\x7f-\x9f\ud800-\udfff]', item):
        raise ValueError
    title = record.get("title")
    parts = title if isinstance(title, list) else [title]
    joined = " ".join(str(part) for part in parts if type(part) in (str, int, float) and part != "")
    return item, joined


def expected(reviews: bytes, metadata: bytes, edition: str) -> dict[str, Any]:
    """What `convert` has to make of the files with a 2-core; `Refused` for an error."""
    rows, bad_reviews = good_lines(reviews, lambda line: review_on(line, edition))
    products, bad_products = good_lines(metadata, lambda line: product_on(line, edition))
    kept: dict[tuple[str, str], Any] = {}
    for number, (user, item, rating, time) in sorted(rows, key=lambda row: (row[1][3], row[0])):
        kept.setdefault((user, item), (number, user, item, rating, time))
    while True:
        users, items = Counter(u for u, _ in kept), Counter(i for _, i in kept)
        smaller = {(u, i): row for (u, i), row in kept.items() if users[u] >= 2 and items[i] >= 2}
        if smaller == kept:
            break
        kept = smaller
    if not kept:
        raise Refused("nothing left")
    titles: dict[str, str] = {}
    for _, (item, title) in products:
        titles.setdefault(item, title)
    order = dict.fromkeys(item for _, item in kept)
    return {
        "inter": [f"{user}\t{item}\t{rating + 0.0}\t{time + 0.0}" for _, user, item, rating, time in kept.values()],
        "items": [(item, "getTime" not in (title := titles.get(item, "")) and bool(title.split())) for item in order],
        "bad": [bad_reviews, bad_products],
    }


# ------------------------------------------------------------------------------------------------ the mutations


VALUES = [
    *"null true [] {} 5 -1 01 1. .5 +1 -0.0 0x10 1e-400 1.5e9 3e12 1e999 NaN Infinity -Infinity None 'single'".split(),
    *['"x"', '""', '"NA"', '"1"', '"a b"', '"../up"', '"tab\there"', '"\\q"', '"\\"', '"\\\\"'],
    *['"é漢🎁"', '"\u2028\x85"', '"\\u0000"', '"\\ud83d"'],
    *["1" + 30 * "0", "1" + 5000 * "0", 40 * "[" + 40 * "]", 3000 * "[" + 3000 * "]"],
    *['"' + 50_000 * "y" + '"', '"' + 70_000 * "y" + '"'],
]


def base(edition: str, draw: random.Random) -> tuple[list[str], list[str]]:
    """Lines of a small good pair of files."""
    user, item, rating, time, unit = KEYS[edition]
    reviews = []
    for _ in range(16):
        record = {user: f"U{draw.randrange(4)}", item: f"I{draw.randrange(4)}", rating: float(draw.randrange(1, 6))}
        record |= {
            time: draw.choice([10**9, 1_400_000_000, 1_500_000_000]) * unit,
            "text": draw.choice(["it's", 'a "b"', "é"]),
        }
        record |= {"helpful": [0, 0]} if edition == "2014" else {"verified": True}
        reviews.append(json.dumps(record, ensure_ascii=draw.random() < 0.5))
    products: list[dict[str, Any]] = [{item: f"I{n}", "title": f"title of '{n}'", "imUrl": "http://x"} for n in range(4)]
    if edition != "2014":
        products = [{key: value for key, value in product.items() if key != "imUrl"} for product in products]
    write = repr if edition == "2014" else json.dumps
    return reviews, [write(product) for product in products]


def change_value(line: str, draw: random.Random) -> str:
    """One value replaced by an odd one, or its key doubled or left out."""
    found = list(re.finditer(r"""(["'])(\w+)\1: ("[^"]*"|'[^']*'|[\w.]+)""", line))
    if not found:
        return line
    hit = draw.choice(found)
    way = draw.randrange(3)
    new = hit[0][: hit.start(3) - hit.start()] + draw.choice(VALUES)
    return line[: hit.start()] + {0: new, 1: f"{hit[0]}, {new}", 2: '"gone": 1'}[way] + line[hit.end() :]


def mutate_lines(content: list[bytes], draw: random.Random) -> bytes:
    """Damage to one to five places of the text."""
    content = list(content)
    ends = b"\n"
    for _ in range(draw.choice([1, 1, 2, 5])):
        n = draw.randrange(len(content))
        line = content[n]
        at = draw.randrange(len(line) + 1)
        way = draw.randrange(13)
        if way < 5:
            content[n] = change_value(line.decode("utf-8", "surrogateescape"), draw).encode("utf-8", "surrogateescape")
        elif way == 5:
            content[n] = line[:at]
        elif way == 6:
            content[n] = line[:at] + bytes([draw.randrange(256)]) + line[at + draw.randrange(2) :]
        elif way == 7:
            content.insert(at % len(content), line)
        elif way == 8:
            content[n : n + 1] = [line[:at], line[at:]]
        elif way == 9:
            content[n] = line + draw.choice([b"", b" ", b"\r", b","]) + content[draw.randrange(len(content))]
        elif way == 10:
            content[n] = draw.choice(
                [b"", b" \t", b"\xef\xbb\xbf" + line, b"\0" + line, b"[]", b"17", b"nothing", b'"x"', b"{}"]
            )
        elif way == 11:
            ends = b"\r\n"
        else:
            content[n] = bytes(draw.randrange(256) for _ in range(40)).replace(b"\n", b"")
    return ends.join(content) + draw.choice([ends, b""])


def mutate_file(raw: bytes, draw: random.Random) -> bytes:
    """Damage to a whole file."""
    packed = gzip.compress(raw, mtime=0)
    at = draw.randrange(10, len(packed))  # behind the header, whose damage may go unnoticed
    way = draw.randrange(9)
    if way < 3:
        return packed[:at]
    if way < 5:
        return packed[:at] + bytes([packed[at] ^ (1 << draw.randrange(8))]) + packed[at + 1 :]
    return [b"", packed + b"junk", packed + packed + b"\0\0", bytes(draw.randrange(256) for _ in range(300))][way - 5]


def mutated(draw: random.Random) -> tuple[str, bytes, bytes]:
    """Edition, review file and metadata file."""
    edition = draw.choice(list(KEYS))
    files = [[line.encode() for line in content] for content in base(edition, draw)]
    raw = [b"\n".join(content) + b"\n" for content in files]
    hit = 0 if draw.random() < 0.7 else 1
    kind = draw.random()
    if kind < 0.75:
        raw[hit] = mutate_lines(files[hit], draw)
    elif kind < 0.97:
        raw[hit] = mutate_file(raw[hit], draw)
    else:
        raw.reverse()
    raw = [gzip.compress(one, 1) if draw.random() < 0.5 and one[:2] != b"\x1f\x8b" else one for one in raw]
    return edition, raw[0], raw[1]


# ------------------------------------------------------------------------------------------------ the test


@pytest.mark.pipeline
@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_files_give_the_right_result_or_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(line_reader, "MAX_LINE", LONG)
    outcomes: Counter[str] = Counter()
    for n in range(BATCH):
        edition, reviews, metadata = mutated(random.Random(f"{batch} {n}"))
        outcomes[check(tmp_path, edition, reviews, metadata, f"batch {batch}, input {n}, edition {edition}")] += 1
    assert outcomes["result"] >= 10 and outcomes["refused"] >= 10


def check(folder: Path, edition: str, reviews: bytes, metadata: bytes, which: str) -> str:
    paths = folder / "reviews", folder / "metadata"
    for path, content in zip(paths, (reviews, metadata), strict=True):
        path.write_bytes(content)
    try:
        wanted: dict[str, Any] | str = expected(reviews, metadata, edition)
    except Refused as error:
        wanted = str(error)
    try:
        report = convert(
            *paths, "X", folder / "out", edition=edition, min_user_interactions=2, min_item_interactions=2,
            max_bad_lines=BAD_ALLOWED, threads=1, progress=False,
        )  # fmt: skip
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if isinstance(wanted, str):
        where = f"({paths[0]}|{paths[1]}):" + ("" if wanted == "nothing left" else r"\d+:")
        assert re.match(where, refused), (which, wanted, refused)
        assert not (folder / "out").exists(), which
        return "refused"
    assert not refused, (which, refused)
    out = folder / "out" / "X"
    assert (out / "X.inter").read_text().splitlines()[1:] == wanted["inter"], which
    cells = [row.split("\t") for row in (out / "X.item").read_text(encoding="utf-8").split("\n")[1:-1]]
    assert [len(row) for row in cells] == [7] * len(cells), which
    titled = [(row[0], bool(row[1])) for row in cells]
    assert [item for item, _ in titled] == [item for item, _ in wanted["items"]], which
    assert sum(has for _, has in titled) <= sum(has for _, has in wanted["items"]), which
    listed = [[line["line"] for line in count.bad_lines] for count in (report.reviews, *report.metadata)]
    assert listed == wanted["bad"], which
    assert [path.name for path in (folder / "out").iterdir()] == ["X"], which
    shutil.rmtree(folder / "out")
    return "result"
