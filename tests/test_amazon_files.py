"""Raw files of every kind give what JSON lines give, or are refused as what they are."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc

from dataset_prep.amazon import line_reader
from dataset_prep.amazon.convert import AmazonFormatError, PrepareReport, convert
from dataset_prep.amazon.file_kinds import text_encoding
from dataset_prep.amazon.json_records import is_split_json, split_json
from dataset_prep.amazon.unpacking import DamagedFileError

Records = list[dict[str, Any]]


def reviews_2023(count: int = 40) -> Records:
    draw = random.Random(1)
    return [
        {
            "user_id": f"AEÜ{draw.randrange(5)}", "parent_asin": f"000{draw.randrange(6)}", "rating": draw.choice([1, 4.5]),
            "timestamp": 1_500_000_000_000 + draw.randrange(10**6), "text": 'two\nlines, a "quote"\tand é', "asin": "V",
        }
        for _ in range(count)
    ]  # fmt: skip


def products_2023() -> Records:
    images = {"hi_res": ["https://x/h", None], "large": ["https://x/l", "https://x/l2"], "variant": ["MAIN", "PT01"]}
    none: dict[str, list[Any]] = {key: [] for key in images}
    return [
        {
            "parent_asin": f"000{n}", "title": f'Thing, "{n}"', "store": "Störe", "price": ["$12.99", "None", None][n % 3],
            "categories": ["A b", "it's"][: n % 3], "description": [["one\ntwo", "three"], []][n % 2], "features": ["soft"],
            "details": json.dumps({"Brand": "Acme", "n": n} if n % 2 else {"n": n}), "images": none if n == 4 else images,
        }
        for n in range(5)
    ]  # fmt: skip


def json_text(records: Records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def packed_zip(content: bytes, *more: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("folder/", "__MACOSX/folder/._data.jsonl", "folder/data.jsonl", *more):
            archive.writestr(name, content if name == "folder/data.jsonl" else b"")
    return out.getvalue()


def packed_arrow(codec: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, codec) as stream:
            stream.write(content)
        return bytes(out.getvalue())

    return pack


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "bzip2 in parts": lambda content: bz2.compress(content[:99]) + bz2.compress(content[99:]),
    "xz": lzma.compress,
    "zstd": packed_arrow("zstd"),
    "zstd in parts": lambda content: packed_arrow("zstd")(content[:99]) + packed_arrow("zstd")(content[99:]),
    "lz4": packed_arrow("lz4"),
    "zip": packed_zip,
}
ENCODED: dict[str, Callable[[str], bytes]] = {
    name: (lambda text, mark=mark, name=name: mark + text.encode(name))  # type: ignore[misc]
    for name, mark in [("utf-8", codecs.BOM_UTF8), ("utf-16-le", b""), ("utf-16-be", b""), ("utf-16", b""), ("utf-32", b""),
                       ("utf-32-le", b""), ("utf-32-be", b"")]
}  # fmt: skip


def arrow_file(table: pa.Table, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=7)
    elif kind == "orc":
        orc.write_table(table, out)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return out.getvalue()


TABLES: dict[str, Callable[[Records], bytes]] = {
    "array": lambda records: json.dumps(records).encode(),
    "indented array": lambda records: json.dumps(records, indent=2, ensure_ascii=False).encode(),
    "array, an object a line": lambda records: ("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n").encode(),
    "indented objects": lambda records: "".join(json.dumps(record, indent=1) + "\n" for record in records).encode(),
    "pandas json": lambda records: pd.DataFrame(records).to_json(orient="records").encode(),
    "csv": lambda records: pd.DataFrame(records).to_csv(index=False).encode(),
    "csv with an index": lambda records: pd.DataFrame(records).to_csv().encode(),
    "csv of arrays": lambda records: arrays_of(records).to_csv(index=False).encode(),
    "all quoted": lambda records: pd.DataFrame(records).to_csv(index=False, quoting=csv.QUOTE_ALL).encode("utf-8-sig"),
    "tsv": lambda records: pd.DataFrame(records).to_csv(index=False, sep="\t").encode(),
    "semicolons": lambda records: pd.DataFrame(records).to_csv(index=False, sep=";").encode("utf-16"),
    **{
        kind: (lambda records, kind=kind: arrow_file(pa.Table.from_pylist(records), kind))  # type: ignore[misc]
        for kind in ("parquet", "arrow", "arrow stream", "orc")
    },
    "parquet by pandas": lambda records: arrow_file(pa.Table.from_pandas(pd.DataFrame(records)), "parquet"),
}


def arrays_of(records: Records) -> pd.DataFrame:
    """As `datasets` hands records to pandas: lists are arrays, also those within objects."""

    def array(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: array(inner) for key, inner in value.items()}
        return np.array(value, dtype=object) if isinstance(value, list) else value

    return pd.DataFrame([array(record) for record in records])


class Raw:
    """A folder with a review and a metadata file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def convert(self, reviews: bytes, products: bytes | None = None, **options: Any) -> PrepareReport:
        (self.folder / "r").write_bytes(reviews)
        if products is not None:
            (self.folder / "m").write_bytes(products)
        options = {"min_user_interactions": 1, "min_item_interactions": 1, "progress": False, "threads": 1, **options}
        return convert(
            self.folder / "r", self.folder / "m" if products is not None else None, "X", self.folder / "out", **options
        )

    def written(self) -> dict[str, str]:
        return {path.name: path.read_text(encoding="utf-8") for path in sorted((self.folder / "out" / "X").glob("X.*"))}

    def inter(self) -> list[str]:
        return self.written()["X.inter"].splitlines()


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the data are as JSON lines."""
    raw = Raw(tmp_path_factory.mktemp("lines"))
    raw.convert(json_text(reviews_2023()).encode(), json_text(products_2023()).encode())
    written = raw.written()
    assert len(written["X.inter"].splitlines()) > 15 and "https://x/h https://x/l2" in written["X.item"]
    assert "\tAcme\t" in written["X.item"] and "one two three soft" in written["X.item"]
    return written


# ------------------------------------------------------------------------------------------------ the same data


@pytest.mark.parametrize("kind", PACKED)
def test_packed_files(raw: Raw, expected: dict[str, str], kind: str) -> None:
    raw.convert(PACKED[kind](json_text(reviews_2023()).encode()), PACKED[kind](json_text(products_2023()).encode()))
    assert raw.written() == expected


@pytest.mark.parametrize("kind", ENCODED)
def test_encoded_files(raw: Raw, expected: dict[str, str], kind: str) -> None:
    raw.convert(ENCODED[kind](json_text(reviews_2023())), gzip.compress(ENCODED[kind](json_text(products_2023()))))
    assert raw.written() == expected


@pytest.mark.parametrize("kind", TABLES)
def test_tables_and_other_json(raw: Raw, expected: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "BLOCK", 2000)  # several blocks, read ahead
    report = raw.convert(TABLES[kind](reviews_2023()), TABLES[kind](products_2023()))
    assert raw.written() == expected
    assert (report.reviews.edition, report.metadata[0].edition, report.reviews.bad) == ("2023", "2023", 0)
    assert len(report.reviews.sha256) == 64


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_with_many_rows_come_in_batches(raw: Raw, kind: str) -> None:
    records = reviews_2023(2500)
    assert raw.convert(TABLES[kind](records)).reviews.lines == 2500 + (kind == "csv")
    table = raw.written()
    raw.convert(json_text(records).encode())
    assert raw.written() == table


TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"',{}[]\\"), max_size=10)


@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT), min_size=1), min_size=1, max_size=5),
    indent=st.sampled_from([None, 1]),
    lines=st.booleans(),
    size=st.integers(1, 30),
)
def test_json_is_split_as_json_reads_it(records: Records, indent: int | None, lines: bool, size: int) -> None:
    text = (
        " \n".join(json.dumps(record, indent=indent) for record in records) if lines else json.dumps(records, indent=indent)
    ).encode()
    assert is_split_json(text) == (not lines or indent is not None)
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    assert [json.loads(value) for value in split_json(pieces, 10**6)] == records


@pytest.mark.parametrize(
    "text",
    [
        '{\n"a": 1}\n{"a": 2}\n',  # JSON lines, of which the first was cut in two
        '[{"a": 1}\n{"a": 2}\n',
        '{"a": 1}\n[{"a": 2}]\n',
        "[1]\n[2]\n",
        "[]\n",
        "",
    ],
)
def test_damaged_lines_are_lines(text: str) -> None:
    assert not is_split_json(text.encode())


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1}] x', '[{"a": 1},', '[{"a": 1} {"a": 2}]', '{\n"a": 1'])
def test_json_that_ends_early_or_goes_on_is_damaged(text: str) -> None:
    with pytest.raises(DamagedFileError):
        list(split_json(iter([text.encode()]), 1000))


@pytest.mark.parametrize("text", ["ab,cd", '{"user_id"', "AB\t", ""])
def test_text_of_one_byte_a_character_is_not_utf16(text: str) -> None:
    assert text_encoding(text.encode()) is None


# ------------------------------------------------------------------------------------------------ CSV files as published


def test_the_5_core_files_of_2023_with_histories(raw: Raw) -> None:
    raw.convert(b"user_id,parent_asin,rating,timestamp,history\nU,001,4.0,1400000000005,\nU,002,5,1400000000006,001 003\n")
    assert raw.inter()[1:] == ["U\t001\t4.0\t1400000000.005", "U\t002\t5.0\t1400000000.006"]


USER_FIRST = "A2SUAM1J3GNN3B,0000031887,5.0,1400000000\nAO94DHGC771SJ,B00004TKVP,4.0,1400000001\n"
ITEM_FIRST = "0000031887,A2SUAM1J3GNN3B,5.0,1400000000\nB00004TKVP,AO94DHGC771SJ,4.0,1400000001\n"


@pytest.mark.parametrize(("text", "edition"), [(USER_FIRST, "2014"), (ITEM_FIRST, "2018")])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_ratings_without_header_by_their_ids(raw: Raw, text: str, edition: str, delimiter: str) -> None:
    report = raw.convert(text.replace(",", delimiter).encode())
    assert raw.inter()[1:] == [
        "A2SUAM1J3GNN3B\t0000031887\t5.0\t1400000000.0",
        "AO94DHGC771SJ\tB00004TKVP\t4.0\t1400000001.0",
    ]
    assert report.reviews.edition == edition and report.reviews.lines == 2


def test_ratings_without_header_by_the_edition(raw: Raw) -> None:
    text = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"  # MovieLens, user first
    with pytest.raises(AmazonFormatError, match=r"r:1: .*'196\\t242\\t3\\t881250949'.*2014 .*2018 "):
        raw.convert(text)
    raw.convert(text, edition="2014")
    assert raw.inter()[1] == "196\t242\t3.0\t881250949.0"
    raw.convert(text, edition="2018")
    assert raw.inter()[1] == "242\t196\t3.0\t881250949.0"
    with pytest.raises(AmazonFormatError, match=r"r:1: .*2014 .*edition is 2018"):
        raw.convert(USER_FIRST.encode(), edition="2018")


def test_a_table_with_recboles_names(raw: Raw) -> None:
    raw.convert(b"user_id,item_id,timestamp\n1,007,10\n2,007,5.5\n", b"item_id,title,categories\n007,Bond,Films Old\n")
    assert raw.inter() == ["user_id:token\titem_id:token\ttimestamp:float", "2\t007\t5.5", "1\t007\t10.0"]
    assert raw.written()["X.item"].splitlines()[1].split("\t")[:4] == ["007", "Bond", "", "Films Old"]
    raw.convert(b"user_id:token,item_id:token,rating:float,timestamp:float\n1,007,2,10\n")
    assert raw.inter()[1:] == ["1\t007\t2.0\t10.0"]


def test_bad_rows_are_left_out_and_listed(raw: Raw) -> None:
    report = raw.convert(
        b"user_id,parent_asin,rating,timestamp\nU,I,5,1400000000005\n\nU,J,five,1400000000005\nU,K,5\nU,L,,1400000000005\n"
    )
    assert [(bad["line"], bad["reason"]) for bad in report.reviews.bad_lines] == [
        (4, "rating must be a finite number, found 'five'"),
        (5, "3 cells, but there are 4 columns"),
        (6, "rating must be a finite number, found None"),
    ]
    assert (report.reviews.blank, report.interactions) == (1, 1)


def test_ids_in_tables_stay_as_they_are(raw: Raw) -> None:
    ids = ["0001234567", "1E5", "007", "1e5", "12.0", "+5", "True"]
    records = [
        {"user_id": "U", "parent_asin": i, "rating": 1.0, "timestamp": 1_500_000_000_000 + n} for n, i in enumerate(ids)
    ]
    for kind in ("csv", "parquet", "tsv"):
        raw.convert(TABLES[kind](records))
        assert [row.split("\t")[1] for row in raw.inter()[1:]] == ids


@pytest.mark.parametrize("word", ["NA", "", "None", "a b"])
def test_ids_in_tables_that_recbole_would_lose_are_refused(raw: Raw, word: str) -> None:
    with pytest.raises(AmazonFormatError, match=rf"r:2: parent_asin '{word}'"):
        raw.convert(f"user_id,parent_asin,rating,timestamp\nU,{word},5,1400000000005\n".encode())


@pytest.mark.parametrize(("unit", "kind"), [("ms", "parquet"), ("us", "parquet"), ("ns", "arrow")])
def test_times_may_be_timestamps(raw: Raw, unit: str, kind: str) -> None:
    time = pa.array([1_500_000_000_123], pa.timestamp("ms")).cast(pa.timestamp(unit))
    raw.convert(arrow_file(pa.table({"user_id": ["U"], "parent_asin": ["I"], "timestamp": time}), kind))
    assert raw.inter() == ["user_id:token\titem_id:token\ttimestamp:float", "U\tI\t1500000000.123"]
    raw.convert(arrow_file(pa.table({"user_id": ["U"], "item_id": ["I"], "timestamp": time}), kind))
    assert raw.inter()[1:] == ["U\tI\t1500000000.123"]


def test_columns_of_other_arrow_types(raw: Raw) -> None:
    ids = pa.array(["A", "B"]).dictionary_encode()
    table = pa.table({"user_id": ids, "item_id": pa.array([b"I", b"J"]), "timestamp": pa.array([1, 2], pa.int32())})
    raw.convert(arrow_file(table, "parquet"))
    assert raw.inter()[1:] == ["A\tI\t1.0", "B\tJ\t2.0"]


def test_names_of_columns_within_json_lines_make_no_table(raw: Raw) -> None:
    records = [{**record, "title": "user_id, parent_asin, rating, timestamp"} for record in reviews_2023(3)]
    assert raw.convert(json_text(records).encode()).reviews.bad == 0


# ------------------------------------------------------------------------------------------------ refusals


def refused(raw: Raw, content: bytes, *words: str, which: str = "r") -> None:
    """The error names the file and says these words, and nobody is told to raise max_bad_lines."""
    reviews = json_text(reviews_2023()).encode() if which == "m" else content
    with pytest.raises(AmazonFormatError) as error:
        raw.convert(reviews, content if which == "m" else None)
    message = str(error.value)
    assert message.startswith(f"{raw.folder / which}:") and "raise max_bad_lines" not in message, message
    assert all(word in message for word in words), message
    assert not (raw.folder / "out").exists()


TAR = b"r.jsonl".ljust(257, b"\0") + b"ustar  \0".ljust(255, b"\0")
FOREIGN = {
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(50), "RAR"),
    "tar": (TAR, "tar"),
    "tar.gz": (gzip.compress(TAR), "tar"),
    "sqlite": (b"SQLite format 3\x00" + bytes(50), "SQLite"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(50), "numpy"),
    "pickle": (pickle.dumps(reviews_2023()), "pickle"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>\n" * 20, "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "LFS"),
    "excel": (packed_zip(b"x", "[Content_Types].xml"), "Excel"),
    "two in a zip": (packed_zip(b"{}", "more.jsonl"), "2 files"),
    "gzip twice": (gzip.compress(gzip.compress(b"{}")), "gzip file inside a gzip file"),
    "packed parquet": (packed_zip(TABLES["parquet"](reviews_2023())), "Parquet file inside a zip file"),
    "pandas columns": (pd.DataFrame(reviews_2023()).to_json().encode(), "records"),
    "pandas split": (pd.DataFrame(reviews_2023()).to_json(orient="split").encode(), "records"),
    "prose": (b"How to read this data set\nIt has many lines.\n" * 20, "No line"),
    "other columns": (b"userId,movieId,rating,timestamp\n" + b"1,2,3.5,1100000000\n" * 20, "userId,movieId"),
    "ml-1m": (b"1::1193::5::978300760\n" * 20, "No line"),
}  # fmt: skip


def test_a_folder_is_named(raw: Raw) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        convert(raw.folder, None, "X", raw.folder / "out", progress=False)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("which", ["r", "m"])
def test_files_of_other_kinds_are_named(raw: Raw, kind: str, which: str) -> None:
    content, word = FOREIGN[kind]
    refused(raw, content, word, which=which)


@pytest.mark.parametrize("kind", ["bzip2", "xz", "zstd", "lz4", "zip"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_packed_files(raw: Raw, kind: str, damage: str) -> None:
    draw = random.Random(0)
    content = PACKED[kind](json_text([{**record, "text": str(draw.random())} for record in reviews_2023(3000)]).encode())
    middle = len(content) // 2
    damaged = content[:middle] if damage == "cut" else content[:middle] + bytes(99) + content[middle + 99 :]
    if kind == "lz4" and damage == "flip":
        pytest.skip("Arrow writes lz4 without checksums")
    refused(raw, damaged, kind, "damaged")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_incomplete_tables(raw: Raw, kind: str, share: float) -> None:
    content = TABLES[kind](reviews_2023(2000))
    refused(
        raw,
        content[: int(share * len(content))],
        {"parquet": "Parquet", "arrow": "Arrow IPC", "orc": "ORC"}[kind],
        "damaged",
    )


def test_a_parquet_file_that_is_damaged_within(raw: Raw) -> None:
    content = TABLES["parquet"](reviews_2023(2000))
    refused(raw, content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :], "Parquet", "damaged")


def test_incomplete_utf16(raw: Raw) -> None:
    refused(raw, json_text(reviews_2023()).encode("utf-16")[:-1], "UTF-16")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"user": ["U"], "item": ["I"]}, ["Parquet", "user, item", "user_id"]),
        ({"user_id": [17], "parent_asin": ["I"]}, ["user_id", "int64"]),
        ({"user_id": ["U"], "parent_asin": [1.0]}, ["parent_asin", "double"]),
        ({"user_id": ["U"], "parent_asin": ["I"], "rating": [1.0]}, ["'timestamp'"]),
        ({"user_id": ["U"], "rating": [1.0], "timestamp": [1]}, ["asin", "items"]),
    ],
)
def test_tables_without_what_is_needed(raw: Raw, table: dict[str, list[Any]], words: list[str]) -> None:
    refused(raw, arrow_file(pa.table(table), "parquet"), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'user_id,parent_asin,rating,timestamp\n"U,I,5,1\nV,I,5,1\n', ["line 3"]),
        (b"user_id,parent_asin,user_id,timestamp\n", ["user_id", "twice"]),
        (b"user_id,parent_asin,rating,timestamp\nU\xff,I,5,1400000000005\n", ["UTF-8"]),
        (b"title,brand\n" + b"t,b\n" * 5, ["title,brand"]),
    ],
)
def test_csv_that_cannot_be_read(raw: Raw, text: bytes, words: list[str]) -> None:
    refused(raw, text, *words)


def test_a_long_cell_is_read_and_the_limit_of_csv_stays(raw: Raw) -> None:
    before = csv.field_size_limit()
    long = "word " * 60_000
    raw.convert(b"user_id,item_id,timestamp\nU,I,1\n", f'item_id,description\nI,"{long}"\n'.encode())
    assert len(raw.written()["X.item"]) > 130_000 and csv.field_size_limit() == before


# ------------------------------------------------------------------------------------------------ without ratings


UNRATED = {
    "atomic": b"user_id:token\titem_id:token\ttimestamp:float\nu\ti\t2\nv\tj\t1\n",
    "json": b'{"user_id": "u", "item_id": "i", "timestamp": 2}\n{"user_id": "v", "item_id": "j", "timestamp": 1}\n',
    "2018": b'{"reviewerID": "u", "asin": "i", "unixReviewTime": 2}\n'
    b'{"reviewerID": "v", "asin": "j", "unixReviewTime": 1}\n',
    "csv": b"reviewerID,asin,unixReviewTime\nu,i,2\nv,j,1\n",
}


@pytest.mark.parametrize("kind", UNRATED)
def test_without_ratings(raw: Raw, kind: str) -> None:
    report = raw.convert(UNRATED[kind])
    assert raw.inter() == ["user_id:token\titem_id:token\ttimestamp:float", "v\tj\t1.0", "u\ti\t2.0"]
    assert report.reviews.rated is False and report.reviews.bad == 0


def test_one_line_without_a_rating_among_others_is_a_bad_one(raw: Raw) -> None:
    report = raw.convert(UNRATED["2018"] + b'{"reviewerID": "w", "asin": "j", "unixReviewTime": 1, "overall": 3}\n')
    assert (report.reviews.rated, report.reviews.bad, raw.inter()[1:]) == (True, 2, ["w\tj\t3.0\t1.0"])


STEAM = b"user_id:token\tplay_hours:float\tproduct_id:token\tdate:float\nu\t3\ti\t7\n"


def test_other_names_of_columns(raw: Raw) -> None:
    fields = {"ITEM_ID_FIELD": "product_id", "TIME_FIELD": "date", "RATING_FIELD": "play_hours"}
    raw.convert(STEAM, fields=fields)
    assert raw.inter() == ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "u\ti\t3.0\t7.0"]
    raw.convert(STEAM.replace(b"\t", b","), b"product_id,title\ni,Game\n", fields=fields)
    assert raw.inter()[1:] == ["u\ti\t3.0\t7.0"] and "i\tGame\t" in raw.written()["X.item"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"user": "u"}, "user"), ({"ITEM_ID_FIELD": 3}, "ITEM_ID_FIELD"), ({"ITEM_ID_FIELD": "user_id"}, "user_id")],
)
def test_wrong_names_of_columns(raw: Raw, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        raw.convert(STEAM, fields=fields)
