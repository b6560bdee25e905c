"""dataset_prep.amazon.convert: known answers, refusals with their messages, and RecBole reading the files back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_prep.amazon import interaction_steps, line_reader, staging, work_directory
from dataset_prep.amazon.cleaning import NA_WORDS, clean_categories, clean_text, parse_price
from dataset_prep.amazon.convert import AmazonFormatError, PrepareReport, convert
from dataset_prep.amazon.editions import review_lines
from dataset_prep.amazon.line_reader import Block
from dataset_prep.amazon.sql_engines import DuckDB


def review(user: str = "U1", item: str = "I1", time: float = 1_500_000_000, **more: Any) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": time, **more}


def json_lines(records: list[Any]) -> bytes:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()


EVERYTHING: dict[str, Any] = {"min_user_interactions": 1, "min_item_interactions": 1, "progress": False}


class Shop:
    """A pair of raw files in a temporary folder, and `convert` on them with every interaction kept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reviews, self.metadata = folder, folder / "r.json", folder / "m.json"
        self.metadata.write_bytes(b"")

    def convert(self, records: list[Any], products: list[Any] | None = None, **options: Any) -> Any:
        self.reviews.write_bytes(json_lines(records))
        if products is not None:
            self.metadata.write_bytes(json_lines(products))
        return self.run(**options)

    def run(self, **options: Any) -> Any:
        return convert(self.reviews, self.metadata, "Shop", self.folder / "out", **{**EVERYTHING, **options})

    def files(self) -> dict[str, bytes]:
        """The data files, and the list of bad lines."""
        return {p.name: p.read_bytes() for p in (self.folder / "out" / "Shop").iterdir() if p.name != "prepare.json"}

    def read(self, suffix: str) -> pd.DataFrame:
        """The file as RecBole reads it."""
        path = self.folder / "out" / "Shop" / f"Shop.{suffix}"
        header = path.read_text(encoding="utf-8").split("\n", 1)[0].split("\t")
        types = {name: np.float64 if name.endswith(":float") else str for name in header}
        frame = pd.read_csv(path, delimiter="\t", dtype=types, encoding="utf-8", engine="python")
        return frame.rename(columns=lambda name: name.split(":")[0])


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def left(report: PrepareReport) -> dict[str, int]:
    """Interactions after each step."""
    return {step.step: step.interactions for step in report.steps}


# ------------------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\tb\r\nc\u2028d\x0be\x00f", "a b c d e f"),
        ('"Best" 12" pan', "''Best'' 12'' pan"),
        ("Tom &amp;amp; Jerry&#39;s", "Tom & Jerry's"),
        ("one<br/>two<p class='x'>three</p>", "one two three"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("<style>a {b: c}</style>x<SCRIPT>var y = 1 < 2;</SCRIPT>z<!-- no -->", "x z"),
        ("5 < 6 and I <3 you", "5 < 6 and I <3 you"),
        ("half \ud83d of a pair", "half of a pair"),
        (" N/A ", ""),
        ("nan", ""),
        ("Nana", "Nana"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_na_words_are_those_of_the_installed_pandas() -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(STR_NA_VALUES) - {""} == NA_WORDS


def test_categories_are_tokens_without_spaces() -> None:
    assert clean_categories(["Strings &amp; Picks", "Picks", "Picks", " "]) == "Strings_&_Picks Picks"
    assert clean_categories(["Hats", "</span></span></span>", "Great for the pool"]) == "Hats"


@pytest.mark.parametrize(
    ("raw", "dollars"),
    [
        ("$25.00", 25.0),
        ("$1,299", 1299.0),
        ("$5.00 - $9.00", 5.0),
        ("12.5", 12.5),
        ("from 8.99", 8.99),
        ("", None),
        ("None", None),
        ("nan", None),
        ("-3", None),
        (".a-box{margin:0}", None),
    ],
)
def test_price(raw: str, dollars: float | None) -> None:
    assert parse_price(raw) == dollars


def test_awkward_text_survives_the_reader(shop: Shop) -> None:
    texts = [
        '"unbalanced',
        'ends with "',
        "tab\there",
        "line\nbreak",
        "NA",
        "back\\slash",
        "'single",
        "#hash",
        "é漢🎁",
    ]
    items = [f"I{k}" for k in range(len(texts))]
    products = [
        {"asin": i, "title": t, "brand": t, "category": [t, "x y"], "description": [t, t]}
        for i, t in zip(items, texts, strict=True)
    ]
    shop.convert([review(item=i) for i in items], products)
    read = shop.read("item").set_index("item_id")
    assert list(read.index) == items
    for item, text in zip(items, texts, strict=True):
        for column in ("title", "brand"):
            cell = read.loc[item, column]
            assert ("" if pd.isna(cell) else cell) == clean_text(text)


def test_a_cell_beyond_the_csv_limit_is_cut_at_a_word(shop: Shop) -> None:
    report = shop.convert([review()], [{"asin": "I1", "title": "t", "description": ["word " * 40_000]}])
    (cell,) = shop.read("item")["description"]
    assert report.cells_cut == 1
    assert set(cell.split()) == {"word"}
    assert 130_000 < len(cell) <= 131_072


def test_fields_may_be_missing_or_of_another_kind(shop: Shop) -> None:
    products = [
        {"asin": "I1"},
        {
            "asin": "I2",
            "title": ["A", "B"],
            "description": "text",
            "category": "Hats",
            "brand": None,
            "price": 3,
        },
        {
            "asin": "I3",
            "title": "var aPageStart = (new Date()).getTime();",
            "imageURL": ["http://x/a b.jpg", "no"],
        },
    ]
    report = shop.convert([review(item=f"I{k}") for k in (1, 2, 3)], products)
    read = shop.read("item").fillna("").set_index("item_id")
    assert list(read.loc["I2", ["title", "description", "categories", "brand"]]) == [
        "A B",
        "text",
        "Hats",
        "",
    ]
    assert read.loc["I3", "title"] == ""
    assert read.loc["I3", "image_urls"] == "http://x/a%20b.jpg"
    assert report.items_without == {
        "metadata": 0, "title": 2, "brand": 3, "categories": 2, "description": 2, "price": 2, "image": 2
    }  # fmt: skip


# -------------------------------------------------------------------------------------- order and filtering


def test_rows_are_in_time_order_with_ties_in_file_order(shop: Shop) -> None:
    shop.convert([review(item="late", time=200), review(item="tie1", time=100), review(item="tie2", time=100)])
    assert list(shop.read("inter")["item_id"]) == ["tie1", "tie2", "late"]


def test_order_survives_float32_and_a_stable_sort_by_time(shop: Shop) -> None:
    """What RecBole does to the rows: at 1.5e9 float32 is 128 s apart, so most of these times collapse."""
    draw = random.Random(1)
    times = [1_500_000_000 + draw.randrange(2000) for _ in range(300)]
    shop.convert([review(item=f"I{k}", time=t) for k, t in enumerate(times)])
    read = shop.read("inter")
    narrow = read["timestamp"].to_numpy().astype(np.float32)
    assert len(set(narrow)) < len(set(times)) / 5
    assert np.array_equal(np.argsort(narrow, kind="stable"), np.arange(300))
    assert list(read["timestamp"]) == sorted(times)


def test_of_duplicates_the_first_in_time_is_kept(shop: Shop) -> None:
    records = [
        review(time=30, overall=1),
        review(time=10, overall=2),
        review(time=10, overall=3),
        review("U2", time=20),
    ]
    report = shop.convert(records)
    assert list(shop.read("inter").itertuples(index=False, name=None)) == [
        ("U1", "I1", 2, 10),
        ("U2", "I1", 5, 20),
    ]
    assert left(report) == {"read": 4, "distinct": 2}
    assert (report.users, report.items, report.interactions) == (2, 1, 2)


def k_core(folder: Path, pairs: list[tuple[int, int]], min_user: int, min_item: int) -> tuple[set[Any], list[int]]:
    """The pairs left by `interaction_steps.k_core`, and how many each round left."""
    table = pa.table({"user_code": [u for u, _ in pairs], "item_code": [i for _, i in pairs]})
    pq.write_table(table.cast(pa.schema([("user_code", pa.int64()), ("item_code", pa.int64())])), folder / "pairs.parquet")
    engine = DuckDB(folder / "tables", threads=1)
    engine.view("given", folder / "pairs.parquet")
    name, rounds = interaction_steps.k_core(engine, "given", min_user, min_item)
    core = set(engine.rows(f"SELECT user_code, item_code FROM {name}"))
    engine.close()
    return core, [size.interactions for size in rounds]


def test_k_core_known_answer(tmp_path: Path) -> None:
    """Users 1-3 x items 1-3 are a 3-core; a chain hangs on it that comes off link by link."""
    core = {(u, i) for u in (1, 2, 3) for i in (1, 2, 3)}
    chain = [(4, 1), (4, 2), (4, 4), (5, 4), (5, 5), (6, 4)]
    assert k_core(tmp_path, [*core, *chain], 3, 3) == (core, [12, 11, 9])
    assert k_core(tmp_path, chain, 3, 3) == (set(), [1, 0])


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), unique=True, max_size=70)


@pytest.mark.pipeline
@settings(max_examples=25, deadline=None)
@given(pairs=PAIRS, min_user=st.integers(1, 4), min_item=st.integers(1, 4))
def test_k_core_is_the_brute_force_one(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], min_user: int, min_item: int
) -> None:
    expected = brute_force_core(set(pairs), min_user, min_item)
    assert k_core(tmp_path_factory.mktemp("core"), pairs, min_user, min_item)[0] == expected


def brute_force_core(pairs: set[Any], min_user: int, min_item: int) -> set[Any]:
    """By sets and Counters."""
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        smaller = {(u, i) for u, i in pairs if users[u] >= min_user and items[i] >= min_item}
        if smaller == pairs:
            return pairs
        pairs = smaller


def test_a_time_window_is_cut_before_anything_else(shop: Shop) -> None:
    """The second review of I1 by U1 counts where the first lies outside of the window."""
    day = 86_400
    records = [review(time=1 * day), review(time=3 * day, overall=2), review("U2", time=4 * day), review("U3", time=5 * day)]
    report = shop.convert(records, after="1970-01-03", before=5 * day)
    assert list(shop.read("inter").itertuples(index=False, name=None)) == [
        ("U1", "I1", 2, 3 * day),
        ("U2", "I1", 5, 4 * day),
    ]
    assert left(report) == {"read": 4, "window": 2, "distinct": 2}
    assert (report.options["after"], report.options["before"]) == (2 * day, 5 * day)
    assert left(shop.convert(records, after="1970-01-04T01:00:00+01:00"))["window"] == 3


def test_one_item_row_per_interacted_item(shop: Shop) -> None:
    products = [{"asin": "I1", "title": "first"}, {"asin": "nobody"}, {"asin": "I1", "title": "second"}]
    report = shop.convert([review(item="I2", time=1), review(item="I1", time=2)], products)
    read = shop.read("item")
    assert list(read["item_id"]) == ["I2", "I1"]
    assert list(read["title"].fillna("")) == ["", "first"]
    assert (report.items_without["metadata"], report.metadata_duplicates) == (1, 1)


def test_require_image_by_url_and_by_file(shop: Shop) -> None:
    records = [review(item=i) for i in ("url", "file", "none")]
    products = [{"asin": "url", "imageURL": ["https://x/1.jpg"]}, {"asin": "file"}, {"asin": "none"}]
    assert left(shop.convert(records, products, require_image=True)) == {"read": 3, "distinct": 3, "image": 1}
    assert list(shop.read("item")["item_id"]) == ["url"]
    (shop.folder / "images" / "file").mkdir(parents=True)
    (shop.folder / "images" / "none").mkdir()
    (shop.folder / "images" / "file" / "0.jpg").write_bytes(b"x")
    shop.convert(records, require_image=True, images=shop.folder / "images")
    assert list(shop.read("item")["item_id"]) == ["file"]


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "", "a b", "a\tb", "a\nb", 'a"b', "[PAD]"])
@pytest.mark.parametrize("key", ["reviewerID", "asin"])
def test_ids_that_recbole_would_lose_are_refused(shop: Shop, word: str, key: str) -> None:
    with pytest.raises(AmazonFormatError) as error:
        shop.convert([review(), {**review("U2", "I2"), key: word}], max_bad_lines=100)
    message = str(error.value)
    assert f"{shop.reviews}:2: {key} {word!r}" in message
    assert not (shop.folder / "out").exists()


def test_item_ids_that_cannot_name_a_folder_are_refused(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match=r"r\.json:1: asin '\.\./x'"):
        shop.convert([review(item="../x")])


BAD_LINES = [
    ('{"reviewerID": "U1", ', "Expecting property name"),
    ("[1]", "expected a JSON object, found list"),
    ({"asin": "I1", "overall": 5, "unixReviewTime": 1}, "no key 'reviewerID'"),
    ({"reviewerID": "U1", "asin": "I1", "overall": 5}, "no key 'unixReviewTime'"),
    (review(overall="five"), "overall must be a finite number, found 'five'"),
    (review(overall=float("nan")), "overall must be a finite number, found nan"),
    (review(time=1_500_000_000_000), "unixReviewTime 1500000000000 is not in seconds"),
    (review(time=10**400), "too large"),
    ({**review(), "reviewerID": 17}, "reviewerID must be a string, found 17"),
]


@pytest.mark.pipeline
@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_bad_lines_are_left_out_and_listed_or_refused(shop: Shop, bad: Any, reason: str) -> None:
    records = [review(), "", bad, review("U2"), bad]
    count = shop.convert(records).reviews
    assert (count.lines, count.blank, count.bad, [line["line"] for line in count.bad_lines]) == (5, 1, 2, [3, 5])
    listed = [json.loads(line) for line in shop.files()["prepare.rejected.jsonl"].splitlines()]
    assert [(line["file"], line["line"]) for line in listed] == [("r.json", 3), ("r.json", 5)]
    assert reason in listed[0]["reason"]
    with pytest.raises(AmazonFormatError) as error:
        shop.convert(records, max_bad_lines=1)
    assert f"{shop.reviews}:5: " in str(error.value)
    assert reason in str(error.value)
    assert "bad line 2, and max_bad_lines is 1" in str(error.value)


def test_the_list_of_an_earlier_run_goes_when_no_line_is_bad(shop: Shop) -> None:
    shop.convert([review(), "{"])
    assert "prepare.rejected.jsonl" in shop.files()
    shop.convert([review()])
    assert set(shop.files()) == {"Shop.inter", "Shop.item"}


@pytest.mark.parametrize(
    ("good", "bad", "allowed"), [(5, 10, True), (5, 11, False), (20_000, 20, True), (20_000, 21, False)]
)
def test_the_share_of_bad_lines_has_a_limit(shop: Shop, good: int, bad: int, allowed: bool) -> None:
    records = [json.dumps(review())] * good + ["no"] * bad
    if allowed:
        assert shop.convert(records).reviews.bad == bad
    else:
        with pytest.raises(AmazonFormatError, match=rf"r\.json:{good + bad}: .*max_bad_lines is 0\.001"):
            shop.convert(records)


def test_a_file_without_any_good_line_is_refused(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match=r"r\.json:1: .*'reviewerID'.* 2018 "):
        shop.convert([{"asin": "I1", "title": "x"}])
    with pytest.raises(AmazonFormatError, match=r"m\.json:1: a review"):
        shop.convert([review()], [review()])


@pytest.mark.process
def test_a_line_longer_than_the_limit_is_a_bad_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever blocks begin and end: lines of 1 to 250 bytes past the limit, at the beginning, within and at the end."""
    monkeypatch.setattr(line_reader, "MAX_LINE", 300)
    for block in (64, 256, 1024):
        monkeypatch.setattr(line_reader, "BLOCK", block)
        long = [json.dumps(review(text="x" * n)) for n in range(150, 400, 10)]
        short = [json.dumps(review(f"U{n}")) for n in range(5)]
        records = [long[-1], *short, *long, *short, long[-1]]
        count = shop.convert(records, max_bad_lines=100).reviews
        too_long = [n for n, line in enumerate(records, 1) if len(line) > 300]
        assert [line["line"] for line in count.bad_lines] == too_long[:20]
        assert (count.lines, count.bad) == (len(records), len(too_long))
        shop.reviews.write_bytes(shop.reviews.read_bytes().rstrip(b"\n"))
        assert shop.run(max_bad_lines=100).reviews.bad == len(too_long)


def test_malformed_metadata_names_its_own_file(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match=r"m\.json:2: .*'asin'"):
        shop.convert([review()], [{"asin": "I1"}, {"title": "x"}], max_bad_lines=0)


def test_bytes_that_are_not_utf8(shop: Shop) -> None:
    for bad in (b'{"reviewerID": "\xff"}\n', json.dumps(review(text="?")).replace("?", "\xff").encode("latin-1") + b"\n"):
        shop.reviews.write_bytes(json_lines([review()]) + bad)
        with pytest.raises(AmazonFormatError, match=r"r\.json:2: 'utf-8'"):
            shop.run(max_bad_lines=0)


@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_damaged_gzip(shop: Shop, damage: str) -> None:
    draw = random.Random(0)
    packed = gzip.compress(json_lines([review(f"U{draw.random()}") for _ in range(5000)]))
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:middle],
        "flip": packed[:middle] + bytes(99) + packed[middle + 99 :],
        "tail": packed + b"junk",
    }[damage]
    shop.reviews.write_bytes(damaged)
    with pytest.raises(AmazonFormatError) as error:
        shop.run()
    assert str(error.value).startswith(f"{shop.reviews}:")
    if damage != "flip":  # flipped bits may also come out as broken JSON
        assert "gzip" in str(error.value)


def test_missing_files_and_wrong_options(shop: Shop) -> None:
    with pytest.raises(FileNotFoundError, match=r"r\.json"):
        shop.run()
    shop.reviews.write_bytes(json_lines([review()]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        shop.run(images=shop.folder / "nowhere")
    with pytest.raises(ValueError, match="min_item_interactions is 0"):
        shop.run(min_item_interactions=0)
    with pytest.raises(ValueError, match=r"'\.\./up'"):
        convert(shop.reviews, shop.metadata, "../up", shop.folder)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"engine": "dask"}, "engine is 'dask'.*local or spark"),
        ({"edition": "2019"}, "edition is '2019'.*2014, 2018, 2023, recbole"),
        ({"after": "soon"}, "after is 'soon'"),
        ({"after": 5, "before": 5}, "after .*before"),
        ({"max_bad_lines": -1}, "max_bad_lines is -1"),
        ({"max_bad_lines": float("nan")}, "max_bad_lines is nan"),
        ({"threads": 0}, "threads is 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            shop.run(**options)
    with pytest.raises(ValueError, match=r"require_image.*images"):
        convert(shop.reviews, None, "Shop", shop.folder, require_image=True)
    assert not (shop.folder / "out").exists()
    shop.metadata.unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.json"):
        shop.run()


@pytest.mark.parametrize("records", [[], [review()]])
def test_nothing_left_is_an_error(shop: Shop, records: list[Any]) -> None:
    with pytest.raises(AmazonFormatError, match=rf"r\.json: .*\b{len(records)} interactions.*min_user_interactions"):
        shop.convert(records, min_user_interactions=2)


# -------------------------------------------------------------------------------------------------- writing


def test_gzip_and_plain_give_the_same_bytes_whatever_the_suffix(shop: Shop) -> None:
    records, products = [review(f"U{k}", time=k) for k in range(9)], [{"asin": "I1", "title": "x"}]
    plain = shop.convert(records, products)
    folder = shop.folder / "out" / "Shop"
    before = {p.name: p.read_bytes() for p in folder.glob("Shop.*")}
    shop.reviews.write_bytes(gzip.compress(json_lines(records)))
    packed = shop.run()
    assert {p.name: p.read_bytes() for p in folder.glob("Shop.*")} == before
    assert plain.reviews.sha256 == hashlib.sha256(json_lines(records)).hexdigest()
    assert packed.reviews.sha256 == hashlib.sha256(shop.reviews.read_bytes()).hexdigest()


def test_manifest_is_the_report_and_knows_no_paths(shop: Shop) -> None:
    report = shop.convert([review(), review("U2"), review("U2", "I2")])
    text = (shop.folder / "out" / "Shop" / "prepare.json").read_text()
    manifest = json.loads(text)
    assert str(shop.folder) not in text
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (2, 2, 3)
    assert manifest["sparsity"] == report.sparsity == 0.25
    assert manifest["average_length"] == 1.5


def test_without_metadata_items_have_an_id_only(shop: Shop) -> None:
    shop.reviews.write_bytes(json_lines([review(), review(item="I2", time=1)]))
    report = convert(shop.reviews, None, "Shop", shop.folder / "out", **EVERYTHING)
    assert (shop.folder / "out" / "Shop" / "Shop.item").read_text().splitlines()[1:] == ["I2" + 6 * "\t", "I1" + 6 * "\t"]
    assert (report.metadata, report.items_without["metadata"]) == ([], 2)


@pytest.mark.process
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_error_while_publishing_leaves_nothing_that_looks_complete(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    shop.convert([review()])
    calls = 0
    really_replace = os.replace

    def broken_replace(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError("disk full")
        really_replace(source, target)

    shop.reviews.write_bytes(json_lines([review("U2")]))
    monkeypatch.setattr(os, "replace", broken_replace)
    with pytest.raises(OSError, match="disk full"):
        shop.run()
    assert not (shop.folder / "out" / "Shop" / "prepare.json").exists()
    assert [path.name for path in (shop.folder / "out").iterdir()] == ["Shop"]


def test_an_error_before_publishing_leaves_what_was_there(shop: Shop) -> None:
    shop.convert([review()])
    before = {p: p.read_bytes() for p in (shop.folder / "out").rglob("*") if p.is_file()}
    with pytest.raises(AmazonFormatError, match="min_user_interactions"):
        shop.run(min_user_interactions=2)
    assert {p: p.read_bytes() for p in (shop.folder / "out").rglob("*") if p.is_file()} == before


def test_two_processes_do_not_write_the_same_data_set(shop: Shop) -> None:
    with (
        work_directory.work_directory(shop.folder / "out", "Shop"),
        pytest.raises(ValueError, match=r"\.Shop\.preparing"),
    ):
        shop.convert([review()])


# ------------------------------------------------------------------------------------------- quick and careful


PIECES = st.sampled_from(
    ['"U1"', '"NA"', '""', '"a b"', '"\u00e9"', '"\\ud800"', "17", "1.5", "-0.0", "1e400", "12345678901234567890123", "1e11",
     "1e12", "NaN", "true", "null", "[1]", '{"a": [{}]}', '"x\ty"', '"U_2"', '"../x"', "00", "."]
)  # fmt: skip


@pytest.mark.pipeline
@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(st.tuples(PIECES, PIECES, PIECES, PIECES, PIECES), min_size=1, max_size=3),
    edition=st.sampled_from(["2018", "2023"]),
)
def test_the_quick_way_gives_what_the_careful_one_gives_or_nothing(values: list[Any], edition: str) -> None:
    names = {
        "2018": ("reviewerID", "asin", "overall", "unixReviewTime"),
        "2023": ("user_id", "parent_asin", "rating", "timestamp"),
    }
    rows = [
        "{" + ", ".join(f'"{k}": {v}' for k, v in zip((*names[edition], "more"), row, strict=True)) + "}" for row in values
    ]
    reader = review_lines(edition, b"")
    columns = staging._quick_columns(Block(1, [row.encode() for row in rows]), reader)
    if columns is not None:
        quick = [tuple(row) for row in zip(*(column.tolist() for column in columns[1:]), strict=True)]
        assert quick == [reader.parse(row.encode()) for row in rows]


@pytest.mark.parametrize(("edition", "time"), [("2018", 1_500_000_000), ("2023", 1_500_000_000_123)])
def test_plain_lines_go_the_quick_way(edition: str, time: int) -> None:
    line = review(time=time) if edition == "2018" else {"user_id": "U", "parent_asin": "I", "rating": 5, "timestamp": time}
    assert staging._quick_columns(Block(1, json_lines([line, line]).splitlines()), review_lines(edition, b"")) is not None


def test_around_a_bad_line_few_others_are_read_with_care(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = [review(f"U{n}", time=n) for n in range(5000)]
    for n in (0, 1234, 1240, 4999):
        records[n] = "bad"
    careful: list[bytes] = []

    def noted(*args: Any) -> Any:
        reader = review_lines(*args)
        return replace(reader, parse=lambda line: careful.append(line) or reader.parse(line))  # type: ignore[func-returns-value]

    monkeypatch.setattr(staging, "review_lines", noted)
    report = shop.convert(records)
    assert [line["line"] for line in report.reviews.bad_lines] == [1, 1235, 1241, 5000]
    assert list(shop.read("inter")["user_id"]) == [f"U{n}" for n in range(5000) if records[n] != "bad"]
    assert len(careful) <= 4 * 64


def test_ids_of_odd_characters_are_written_as_they_are(shop: Shop) -> None:
    """DuckDB would put quotes around a '#'."""
    odd = ["#x", "x#", "a,b", "'q'", "\\N", "é", "漢🎁", "=1+1", "a|b;c", "%", "[x]", "1e5", "True", "N/A_", "_"]
    shop.convert([review(user, time=n) for n, user in enumerate(odd)])
    rows = (shop.folder / "out" / "Shop" / "Shop.inter").read_text(encoding="utf-8").splitlines()[1:]
    assert rows == [f"{user}\tI1\t5.0\t{float(n)}" for n, user in enumerate(odd)]
    assert list(shop.read("inter")["user_id"]) == odd


@pytest.mark.pipeline
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1e11), min_size=1, max_size=40),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=40, max_size=40),
)
def test_numbers_look_as_in_python(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], ratings: list[float]
) -> None:
    """Which is how Spark's rows are written, too."""
    shop = Shop(tmp_path_factory.mktemp("numbers"))
    records = [review(f"U{n}", time=time, overall=ratings[n]) for n, time in enumerate(sorted(times))]
    shop.convert(records)
    rows = (shop.folder / "out" / "Shop" / "Shop.inter").read_text().splitlines()[1:]
    assert rows == [f"U{n}\tI1\t{ratings[n] + 0.0}\t{time + 0.0}" for n, time in enumerate(sorted(times))]


@pytest.mark.parametrize("members", [1, 3])
def test_lines_come_whole_however_they_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    monkeypatch.setattr(line_reader, "BLOCK", 1000)
    draw = random.Random(0)
    content = b"".join(b"%d %s\n" % (n, b"x" * draw.choice([0, 5, 2500])) for n in range(300))
    cuts = [0, *sorted(draw.sample(range(len(content)), members - 1)), len(content)]
    packed = b"".join(gzip.compress(content[a:b]) for a, b in pairwise(cuts)) + b"\0" * 7
    (tmp_path / "f").write_bytes(packed)
    count = line_reader.LineCount("f", "")
    blocks = list(line_reader.read_blocks(tmp_path / "f", count))
    assert [line for block in blocks for line in block.lines] == content.splitlines()
    assert [block.first for block in blocks] == [1 + sum(len(b.lines) for b in blocks[:n]) for n in range(len(blocks))]
    assert (count.lines, count.sha256) == (300, hashlib.sha256(packed).hexdigest())


@pytest.mark.process
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_result_does_not_depend_on_threads_and_blocks(shop: Shop, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    draw = random.Random(3)
    records: list[Any] = [review(f"U{draw.randrange(40)}", f"I{draw.randrange(30)}", draw.randrange(50)) for _ in range(900)]
    records[100] = "bad"
    products = [{"asin": f"I{draw.randrange(40)}", "title": f"t{n}"} for n in range(60)]
    options: dict[str, Any] = {"min_user_interactions": 4, "min_item_interactions": 6}
    shop.convert(records, products, **options, threads=3)
    before = shop.files()
    monkeypatch.setattr(line_reader, "BLOCK", 5000)
    monkeypatch.setattr(staging, "ROWS", 100)
    shop.run(**options, threads=threads)
    assert shop.files() == before


# ----------------------------------------------------------------------------------- real files and RecBole


@pytest.fixture
def gift_cards(shared_data: Path) -> tuple[Path, Path]:
    return (
        shared_data / "raw_amazon2018" / "Gift_Cards_5.json.gz",
        shared_data / "raw_amazon2018" / "meta_Gift_Cards.json.gz",
    )


def unpack(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.pipeline
@pytest.mark.parametrize(("k", "plain"), [(1, False), (5, True)])
def test_gift_cards_agree_with_an_independent_count(
    gift_cards: tuple[Path, Path], tmp_path: Path, k: int, plain: bool
) -> None:
    pairs = brute_force_core({(r["reviewerID"], r["asin"]) for r in unpack(gift_cards[0])}, k, k)
    users, items = {u for u, _ in pairs}, {i for _, i in pairs}
    files = list(gift_cards)
    if plain:
        for n, path in enumerate(gift_cards):
            files[n] = tmp_path / path.stem
            files[n].write_bytes(gzip.decompress(path.read_bytes()))
    report = convert(files[0], files[1], "GC", tmp_path, min_user_interactions=k, min_item_interactions=k, progress=False)
    assert (report.interactions, report.users, report.items) == (len(pairs), len(users), len(items))
    assert report.interactions == {1: 2965, 5: 2941}[k]
    read = pd.read_csv(tmp_path / "GC" / "GC.inter", sep="\t", engine="python")
    assert set(zip(read["user_id:token"], read["item_id:token"], strict=True)) == pairs
    assert report.reviews.lines == report.steps[0].interactions == 2972
    assert left(report)["distinct"] == 2965
    assert report.items_without["metadata"] == 0
    text = (tmp_path / "GC" / "GC.item").read_text()
    assert "<span" not in text
    assert "&amp;" not in text
    assert '"' not in text
    assert text.count("\n") == len(items) + 1


@pytest.fixture
def recbole_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that loads and builds a dataset folder with RecBole, as SASRec would see it."""
    monkeypatch.chdir(tmp_path)  # RecBole writes log/ and saved/ where it stands
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # its Config parses the command line
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from recbole.config import Config
    from recbole.data import create_dataset

    def load(path: Path, name: str) -> Any:
        options = {
            "data_path": str(path),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": "*"},
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "show_progress": False,
        }
        return create_dataset(Config(model="SASRec", dataset=name, config_dict=options))

    return load


@pytest.mark.pipeline
def test_recbole_reads_every_row_and_keeps_the_order(
    gift_cards: tuple[Path, Path], tmp_path: Path, recbole_dataset: Any
) -> None:
    report = convert(*gift_cards, "GC", tmp_path / "data", progress=False)
    dataset = recbole_dataset(tmp_path / "data", "GC")
    assert (dataset.inter_num, dataset.user_num, dataset.item_num) == (
        report.interactions, report.users + 1, report.items + 1
    )  # fmt: skip
    assert len(dataset.item_feat) == report.items + 1
    written = pd.read_csv(tmp_path / "data" / "GC" / "GC.inter", sep="\t", engine="python")
    histories = written.groupby("user_id:token")["item_id:token"].apply(list)
    test_part = dataset.build()[2].inter_feat
    assert len(test_part) == report.users
    for row in range(len(test_part)):
        user = dataset.id2token("user_id", int(test_part["user_id"][row]))
        length = int(test_part["item_length"][row])
        items = [*test_part["item_id_list"][row][:length].tolist(), int(test_part["item_id"][row])]
        assert [str(t) for t in dataset.id2token("item_id", items)] == histories[user][-length - 1 :]


def test_recbole_reads_awkward_and_empty_cells(shop: Shop, recbole_dataset: Any) -> None:
    products = [
        {"asin": "I0", "title": '"', "description": ["word " * 40_000], "brand": "N/A"},
        {"asin": "I1"},
    ]
    shop.convert([review(f"U{u}", f"I{i}", time=i) for u in range(5) for i in range(6)], products)
    dataset = recbole_dataset(shop.folder / "out", "Shop")
    assert (dataset.inter_num, dataset.item_num) == (30, 7)
