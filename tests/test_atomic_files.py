"""recbole_qbert.data.atomic_files: columns and rows are those that RecBole's own reader gives."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.data.atomic_files import AtomicFormat, Column, parse_columns, read_header, read_rows

HEADER = "item_id:token\ttitle:token_seq\tprice:float\n"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "toy.item"
    path.write_bytes(text.encode(encoding, "surrogateescape"))
    return path


def test_header_and_rows(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a\tA 'title'\t1.5\n\nNA\t\t\nb\tté漢\tx")
    header = read_header(path)
    assert header.columns == (Column("item_id", "token"), Column("title", "token_seq"), Column("price", "float"))
    assert header.names == ("item_id", "title", "price") and header.positions(["price", "item_id"]) == [2, 0]
    assert list(read_rows(path, ["price", "item_id"])) == [(2, ["1.5", "a"]), (4, ["", "NA"]), (5, ["x", "b"])]
    assert [cells for _, cells in read_rows(path, ["title"])] == [["A 'title'"], [""], ["té漢"]]


def test_separator_and_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token,item_id:token\nu1,é\n", "latin-1")
    assert list(read_rows(path, ["item_id"], separator=",", encoding="latin-1")) == [(2, ["é"])]
    with pytest.raises(ValueError, match=r"toy\.item:\d: .*utf-8"):
        list(read_rows(path, ["item_id"], separator=","))
    with pytest.raises(ValueError, match=r"toy\.item:1: no column item_id"):
        list(read_rows(path, ["item_id"], encoding="latin-1"))


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("", ()),
        ("\r\n", ()),
        ("\ufeffa:token\r\n", (Column("a", "token"),)),
        ("a\tb:float:x", (Column("a"), Column("b", "float:x"))),
        ("a:token\t", (Column("a", "token"), Column(""))),
    ],
)
def test_columns_of_odd_headers(line: str, columns: tuple[Column, ...]) -> None:
    assert parse_columns(line) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"toy\.item:1: no column item_id, price.*nothing"),
        ("itemid:token\tprice:float\n", r"toy\.item:1: no column item_id .*'itemid'.*itemid, price"),
        (HEADER + "a\tb\tc\na\tb\n", r"toy\.item:3: 2 cells.* 3 "),
        (HEADER + "a\tb\tc\td\n", r"toy\.item:2: 4 cells.* 3 "),
        (HEADER + "a\tb\tc\n" + "a" * 140_000 + "\t\t\n", r"toy\.item:3: field larger"),
        (HEADER + "a\tb\tc\n\udcff\t\t\n", r"toy\.item:3: .*utf-8"),
        (HEADER + 'a\tb\t"c\nd\te\tf\n', r"toy\.item:3: unexpected end"),
        (HEADER + 'a\t"b" c\td\n', r"toy\.item:2: .*expected after '\"'"),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_rows(write(tmp_path, text), ["item_id", "price"]))


def test_a_row_that_ends_early_is_filled_where_that_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a\tb\nc\td\te\n")
    assert list(read_rows(path, ["price", "title"], pad=True)) == [(2, ["", "b"]), (3, ["e", "d"])]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"toy\.item"):
        list(read_rows(tmp_path / "toy.item", ["item_id"]))


CELL = st.text(st.sampled_from("ab\"' ,:é\r\n"), max_size=4)


@pytest.mark.pipeline
@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=5))
def test_rows_are_those_of_recboles_reader(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """RecBole calls ``pd.read_csv(engine="python")``; pandas' ``to_csv`` quotes what has to be quoted."""
    path = tmp_path_factory.mktemp("atomic") / "toy.item"
    header = ["item_id:token", "a:token", "b:token"]
    table = pd.DataFrame([(f"i{number}", *row) for number, row in enumerate(rows)], columns=header)
    table.to_csv(path, sep="\t", index=False)
    theirs = pd.read_csv(path, sep="\t", engine="python", dtype=str, keep_default_na=False, header=0)
    ours = [cells for _, cells in read_rows(path, ["item_id", "a", "b"], pad=True)]  # a bare carriage return ends a row
    assert ours == theirs.fillna("").to_numpy().tolist()


def test_the_format_is_read_from_recboles_properties_and_defaults_to_recboles():
    assert AtomicFormat.from_config({}) == AtomicFormat()
    config = {"field_separator": ",", "ITEM_ID_FIELD": "product_id", "encoding": None}
    assert AtomicFormat.from_config(config) == AtomicFormat(field_separator=",", item_field="product_id")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "UTF8"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "\ufeffitem_id:token\ttitle:token_seq\r\na\té\r\n", encoding)
    form = AtomicFormat(encoding=encoding)
    assert form.header(path).names == ("item_id", "title")
    assert [cells for _, cells in form.rows(path, ["item_id", "title"])] == [["a", "é"]]


def test_a_format_reads_by_its_own_separator_and_names(tmp_path: Path) -> None:
    form = AtomicFormat.from_config({"field_separator": ",", "encoding": "latin-1", "USER_ID_FIELD": "reader"})
    assert form.fields == ("reader", "item_id", "timestamp")
    assert AtomicFormat.from_config(form.properties) == form
    path = write(tmp_path, "reader:token,book:token\né,NA\n", "latin-1")
    assert list(form.rows(path, ["book", "reader"])) == [(2, ["NA", "é"])]
    assert form.header(path).type_of("book") == "token" and form.header(path).type_of("author") == ""


@pytest.mark.parametrize(
    ("key", "value"), [("field_separator", "::"), ("field_separator", ""), ("seq_separator", ""), ("encoding", "utf-99")]
)
def test_a_format_that_cannot_be_read_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is (.*{value}|empty)"):
        AtomicFormat.from_config({key: value})
