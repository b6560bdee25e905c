"""The editions of the Amazon data: small hand-written files with known answers."""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_prep.amazon.cleaning import Metadata, clean_text
from dataset_prep.amazon.convert import AmazonFormatError, PrepareReport, convert
from dataset_prep.amazon.editions import detect, parse_metadata
from dataset_prep.amazon.field_values import strings
from dataset_prep.amazon.record_parser import parse_record

REVIEWS_2014 = """\
{"reviewerID": "A1", "asin": "0001", "reviewerName": "\\"Q\\" Mü", "helpful": [2, 3], "overall": 5.0, "unixReviewTime": 30}
{'reviewerID': 'A2', 'asin': '0001', 'helpful': [0, 0], 'reviewText': "it's fine", 'overall': 4.0, 'unixReviewTime': 20}
{"reviewerID": "A1", "asin": "B2", "helpful": [0, 0], "overall": 3, "unixReviewTime": 10}
"""
METADATA_2014 = """\
{'asin': '0001', 'title': "Bob's \\"big\\" caf\\xe9 \\u2019n co", 'brand': 'Bob\\'s', 'price': 12.5, \
'imUrl': 'http://x/a.jpg', 'categories': [['Sports & Outdoors', 'Hats'], ['Sports & Outdoors', "Men's Caps"]], \
'description': 'warm &amp; dry', 'salesRank': {'Sports': 3}, 'related': {'also_bought': ['B2']}}
{'asin': 'B2', 'categories': [['Sports & Outdoors']], 'title': None, 'price': 3, 'imUrl': u'https://x/b.jpg'}
"""
REVIEWS_2023 = """\
{"rating": 5.0, "title": "t", "text": "x", "images": [], "asin": "V1", "parent_asin": "P1", "user_id": "AEX_1", "timestamp": 1588687728923, "verified_purchase": true}
{"rating": 2.0, "title": "t", "text": "x", "images": [], "asin": "V2", "parent_asin": "P1", "user_id": "AEY", "timestamp": 1588687728922, "verified_purchase": true}
{"rating": 1, "title": "t", "text": "x", "images": [], "asin": "V3", "parent_asin": "P2", "user_id": "AEY", "timestamp": 1000000000000}
"""  # noqa: E501
METADATA_2023: list[dict[str, Any]] = [
    {
        "main_category": "Tools",
        "title": "Drill",
        "features": ["18 V", "two speeds"],
        "description": ["A drill."],
        "price": 49.99,
        "images": [
            {"thumb": "https://x/t.jpg", "large": "https://x/l.jpg", "variant": "MAIN", "hi_res": "https://x/h.jpg"},
            {"thumb": "https://x/t2.jpg", "large": "https://x/l2.jpg", "variant": "PT01", "hi_res": None},
            {"variant": "PT02"},
        ],
        "store": "ACME Store",
        "categories": ["Tools", "Power Tools"],
        "details": {"Brand": "ACME", "Voltage": "18"},
        "parent_asin": "P1",
    },
    {
        "parent_asin": "P2",
        "title": "Bits",
        "price": "from 8.99",
        "images": [],
        "store": "Bits & Co",
        "details": {},
        "description": [],
        "features": ["steel"],
        "categories": [],
    },
]
REVIEWS_RECBOLE = (
    "item_id:token\tuser_id:token\trating:float\ttimestamp:float\nI1\tU1\t5.0\t20\nI2\tU2\t4\t10.0\nI1\tU2\t3.0\t30\n"
)
ITEMS_RECBOLE = (
    "item_id:token\ttitle:token\tsales_type:token\tsales_rank:float\tcategories:token_seq\tprice:float\tbrand:token\n"
    'I1\tOld "one"\tToys\t7.0\t\'Skin Care\', "Men\'s"\t12.5\tB\nI2\tTwo\t\t\t\t\t\n'
)


HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


class Files:
    """A review and a metadata file with what `convert` makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return path

    def convert(self, reviews: Path, metadata: Path | None, **options: Any) -> PrepareReport:
        options = {"min_user_interactions": 1, "min_item_interactions": 1, "progress": False, **options}
        return convert(reviews, metadata, "X", self.folder / "out", **options)

    def inter(self) -> list[tuple[Any, ...]]:
        frame = pd.read_csv(self.folder / "out/X/X.inter", sep="\t", dtype={"user_id:token": str, "item_id:token": str})
        return list(frame.itertuples(index=False, name=None))

    def item(self) -> dict[str, list[str]]:
        rows = (self.folder / "out/X/X.item").read_text(encoding="utf-8").splitlines()[1:]
        return {row.split("\t")[0]: row.split("\t")[1:] for row in rows}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_2014_json_reviews_and_python_text(files: Files) -> None:
    reviews, metadata = files.write("reviews_X.json.gz", REVIEWS_2014), files.write("meta_X.json.gz", METADATA_2014)
    report = files.convert(reviews, metadata)
    assert (report.reviews.edition, report.metadata[0].edition, report.reviews.bad) == ("2014", "2014", 0)
    assert files.inter() == [("A1", "B2", 3.0, 10.0), ("A2", "0001", 4.0, 20.0), ("A1", "0001", 5.0, 30.0)]
    assert files.item() == {
        "B2": ["", "", "Sports_&_Outdoors", "", "3.0", "https://x/b.jpg"],
        "0001": ["Bob's ''big'' café \u2019n co", "Bob's", "Sports_&_Outdoors Hats Men's_Caps", "warm & dry", "12.5", "http://x/a.jpg"],
    }  # fmt: skip


def test_2023_parent_items_and_milliseconds(files: Files) -> None:
    metadata = files.write("meta_X.jsonl.gz", "".join(json.dumps(record) + "\n" for record in METADATA_2023))
    report = files.convert(files.write("X.jsonl.gz", REVIEWS_2023), metadata)
    assert (report.reviews.edition, report.metadata[0].edition) == ("2023", "2023")
    assert files.inter() == [
        ("AEY", "P2", 1.0, 1_000_000_000.0),
        ("AEY", "P1", 2.0, 1588687728.922),
        ("AEX_1", "P1", 5.0, 1588687728.923),
    ]
    assert files.item() == {
        "P2": ["Bits", "Bits & Co", "", "steel", "8.99", ""],
        "P1": [
            "Drill",
            "ACME",
            "Tools Power_Tools",
            "A drill. 18 V two speeds",
            "49.99",
            "https://x/h.jpg https://x/l2.jpg",
        ],
    }


def test_2023_times_in_seconds_are_bad_lines(files: Files) -> None:
    line = '{"user_id": "U", "parent_asin": "P", "rating": 5, "timestamp": 1588687728}\n'
    report = files.convert(files.write("r.jsonl", REVIEWS_2023 + line), None)
    assert report.reviews.bad_lines[0]["reason"] == "timestamp 1588687728 is not in milliseconds"


def test_recbole_files_with_and_without_raw_metadata(files: Files) -> None:
    reviews = files.write("A.inter", REVIEWS_RECBOLE)
    assert files.convert(reviews, None).metadata == []
    assert files.inter() == [("U2", "I2", 4.0, 10.0), ("U1", "I1", 5.0, 20.0), ("U2", "I1", 3.0, 30.0)]
    files.write("A.item", ITEMS_RECBOLE)
    report = files.convert(reviews, None)
    assert [count.edition for count in (report.reviews, *report.metadata)] == ["recbole", "recbole"]
    one = ["Old ''one''", "B", "Skin_Care Men's", "", "12.5", ""]
    assert files.item() == {"I2": ["Two", "", "", "", "", ""], "I1": one}
    raw = {"asin": "I2", "title": "New two", "category": ["C"], "imageURL": ["http://x/2.jpg"]}
    report = files.convert(reviews, files.write("meta.json", json.dumps(raw)))
    assert files.item() == {"I2": ["New two", "", "C", "", "", "http://x/2.jpg"], "I1": one}
    assert [count.file for count in report.metadata] == ["meta.json", "A.item"]
    assert report.metadata_duplicates == 1
    assert files.convert(reviews, files.folder / "meta.json", require_image=True).interactions == 1


def test_what_this_project_writes_can_be_read_again(files: Files) -> None:
    metadata = files.write("meta_X.jsonl.gz", "".join(json.dumps(record) + "\n" for record in METADATA_2023))
    files.convert(files.write("X.jsonl.gz", REVIEWS_2023), metadata)
    first = files.inter(), files.item()
    convert(
        files.folder / "out/X/X.inter", None, "Y", files.folder / "out", min_user_interactions=1, min_item_interactions=1
    )
    for suffix in ("inter", "item"):
        old, new = (files.folder / "out" / name / f"{name}.{suffix}" for name in "XY")
        assert old.read_bytes() == new.read_bytes(), first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id:token\titem_id:token\trating:float\nU\tI\t1\n", "r:1: no column timestamp"),
        ("user_id:token\tproduct_id:token\ttimestamp:float\nU\tI\t1\n", "r:1: no column item_id.*product_id.*ITEM_ID_FIELD"),
        (f"{HEADER}U\tI\n", "r:2: 2 cells"),
        (f"{HEADER}U\tI\tx\t1\n", "r:2: .*'x'"),
        (f"{HEADER}U\tnull\t1\t1\n", "r:2: item_id 'null'"),
    ],
)
def test_atomic_files_that_do_not_fit(files: Files, content: str, message: str) -> None:
    with pytest.raises(AmazonFormatError, match=message):
        files.convert(files.write("r", content), None)


def test_the_edition_can_be_given(files: Files) -> None:
    """A 2014 file without anything that tells it from 2018, in which one line is Python text."""
    lines = ['{"reviewerID": "A1", "asin": "I", "overall": 5, "unixReviewTime": 1}\n'] * 3
    reviews = files.write(
        "r.json", "".join(lines) + "{'reviewerID': 'A2', 'asin': 'I', 'overall': 5, 'unixReviewTime': 2}\n"
    )
    assert files.convert(reviews, None).reviews.bad == 1
    assert files.convert(reviews, None, edition="2014").users == 2
    with pytest.raises(AmazonFormatError, match=r"r\.json:1: .*'user_id'.* 2023 "):
        files.convert(reviews, None, edition="2023")


def test_most_of_the_first_lines_decide() -> None:
    new, old = b'{"asin": "I", "category": ["x"]}', b'{"asin": "I", "imUrl": "x"}'
    assert detect([b"junk", old, new, new]) == "2018"
    assert detect([b"junk", old, new, old]) == "2014"
    assert detect([b"{'asin': 'I'}"]) == "2014"
    assert detect([]) == detect([b"junk"]) == "2018"


TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.pipeline
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_python_text_is_read_as_python_reads_it(record: dict[str, Any]) -> None:
    text = repr(record)
    assert parse_record(text.encode(), python_text=True) == ast.literal_eval(text) == record


@pytest.mark.parametrize(
    "text", ["{'a': 1, 'b': 'x' 'y'}", "{'a': (1, 2)}", "{'a': 'nul\\x00'}", "{'a': u'x', 'b': 0x10}", "{'a': 'null'}"]
)
def test_less_usual_python_text(text: str) -> None:
    assert parse_record(text.encode(), python_text=True) == ast.literal_eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "{'a': true}",
        "{'a': null, 'b': 'x\"'}",
        "{'a': f()}",
        "{'a': __import__('os')}",
        "{'a': x.y}",
        "{'a': 1}; 2",
        "{'a' 1}",
        "{'a': [1}",
        "{'a': '" + "\\'" * 3,
        "{'a': " + "[" * 5000 + "]" * 5000 + "}",
        "{'a': " + "-" * 5000 + "1}",
        "{'a': (" + "1, " * 400_000 + ")}",  # a Python literal, but too long for the exact parser
    ],
)
def test_what_is_no_python_literal_is_refused_and_never_run(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|nested"):
        parse_record(text.encode(), python_text=True)


def test_plain_python_text_goes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only odd text needs the slow, exact parser."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("the slow parser was called")

    monkeypatch.setattr(ast, "literal_eval", refuse)
    record = {"asin": "I", "title": "it's", "price": 1.5, "brand": None, "x": [True, 'a "b" \'c'[:5]]}
    assert parse_record(repr(record).encode(), python_text=True) == record
    assert parse_record(b"{'asin': 'I', 'categories': [['a', 'b']], 'n': -3e5}", python_text=True)["n"] == -3e5


FIELDS = "title brand price category categories description features images details store imUrl imageURL".split()


@pytest.mark.pipeline
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from(["2014", "2018", "2023"]))
def test_fields_of_any_kind_make_a_clean_row(fields: dict[str, Any], edition: str) -> None:
    item, metadata = parse_metadata({**fields, "asin": "I", "parent_asin": "I"}, edition)
    assert item == "I"
    assert msgspec.json.decode(msgspec.json.encode(metadata), type=type(metadata)) == metadata
    assert clean_text(clean_text(metadata.description)) == clean_text(metadata.description)


def test_half_a_character_becomes_a_space(files: Files) -> None:
    record = '{"asin": "I", "title": "half \\ud83d pair", "description": ["\\udc00"]}\n'
    review = '{"reviewerID": "A", "asin": "I", "overall": 5, "unixReviewTime": 1, "reviewText": "\\ud83d"}\n'
    report = files.convert(files.write("r", review), files.write("m", record))
    assert (report.reviews.bad, report.metadata[0].bad) == (0, 0)
    assert files.item()["I"][:1] == ["half pair"]


# ------------------------------------------------------------------------------------------------ other tools' forms


IMAGES: list[dict[str, Any]] = [
    {"hi_res": "https://x/h.jpg", "large": "https://x/l.jpg", "thumb": "https://x/t.jpg", "variant": "MAIN"},
    {"hi_res": None, "large": "https://x/l2.jpg", "thumb": "https://x/t2.jpg", "variant": 'it\'s "PT"'},
]
COLUMNS = {key: [image[key] for image in IMAGES] for key in IMAGES[0]}


def as_numpy(columns: dict[str, list[Any]]) -> str:
    """What pandas writes of a cell that holds an object of arrays."""
    return str({key: np.array(values, dtype=object) for key, values in columns.items()})


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
@pytest.mark.parametrize("images", [IMAGES, COLUMNS], ids=["objects", "columns"])
def test_images_and_details_of_2023_may_be_text(write: Callable[[Any], str], images: Any) -> None:
    plain = {"parent_asin": "P", "images": images, "details": {"Brand": "Acme's", "n": 1}, "store": "S"}
    text = {**plain, "images": write(images), "details": write(plain["details"])}
    expected = Metadata(brand="Acme's", image_urls=("https://x/h.jpg", "https://x/l2.jpg"))
    assert [parse_metadata(record, "2023")[1] for record in (plain, text)] == [expected, expected]


def test_images_as_pandas_writes_arrays() -> None:
    text = as_numpy(COLUMNS)
    assert "array([" in text
    assert parse_metadata({"parent_asin": "P", "images": text}, "2023")[1].image_urls == (
        "https://x/h.jpg",
        "https://x/l2.jpg",
    )


@pytest.mark.parametrize(
    ("images", "urls"),
    [
        ({"hi_res": [None, None], "large": ["https://x/1", "https://x/2"]}, ("https://x/1", "https://x/2")),
        ({"hi_res": [], "large": [], "thumb": [], "variant": []}, ()),
        ({"hi_res": "https://x/1", "variant": "MAIN"}, ("https://x/1",)),
        (["https://x/1", "https://x/2"], ("https://x/1", "https://x/2")),
        ("https://x/1", ("https://x/1",)),
        ("[]", ()),
        (None, ()),
        ("None", ()),
    ],
)
def test_more_forms_of_images(images: Any, urls: tuple[str, ...]) -> None:
    assert parse_metadata({"parent_asin": "P", "images": images}, "2023")[1].image_urls == urls


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("images", {"hi_res": ["https://x/1"], "large": ["https://x/1", "https://x/2"]}, "1 hi_res, 2 large"),
        ("images", {"urls": ["https://x/1"]}, "images"),
        ("images", [{"small_image_url": "https://x/1"}], "images"),
        ("images", str({"large": np.array(["https://x/1"] * 2000)}), "'...'"),
        ("details", "{'Brand': Acme}", "details"),
        ("description", str(np.array(["a"] * 2000)), "'...'"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(field: str, value: Any, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)):
        parse_metadata({"parent_asin": "P", field: value}, "2023")


WORDS = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8), max_size=4)


@pytest.mark.parametrize(
    "write", [json.dumps, repr, lambda words: str(np.array(words, dtype=object))], ids=["json", "python", "numpy"]
)
@settings(max_examples=100, deadline=None)
@given(words=WORDS)
def test_the_text_of_a_list_is_read_as_the_list(write: Callable[[Any], str], words: list[str]) -> None:
    assert strings(write(words)) == strings(words)


@pytest.mark.parametrize("text", ["[2 Pack] Socks", "[2020]", "(new)", "{x}", "[ok", "a ['b']", "[a, b]", "['a'"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert strings(text) == (text,)


@pytest.mark.parametrize(
    ("price", "cell"), [("None", ""), ("", ""), (None, ""), (float("nan"), ""), ("$12.99", "12.99"), ("12.99", "12.99")]
)
def test_prices_that_are_text(files: Files, price: Any, cell: str) -> None:
    products = {"parent_asin": "P1", "price": price, "title": "t"}, {"parent_asin": "P2", "title": "t"}
    metadata = files.write("m.jsonl", "".join(json.dumps(record) + "\n" for record in products))
    files.convert(files.write("r.jsonl", REVIEWS_2023), metadata)
    assert files.item()["P1"][4] == cell


@pytest.mark.parametrize("brand", [None, "None", "", float("nan")])
def test_without_a_brand_the_store_is_taken(brand: Any) -> None:
    assert parse_metadata({"parent_asin": "P", "details": {"Brand": brand}, "store": "S"}, "2023")[1].brand == "S"
