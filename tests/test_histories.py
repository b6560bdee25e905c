"""recbole_qbert.data.histories: the same histories from every format and order, streamed where they can be; refusals."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.histories import Histories

ROWS = [("u2", "b", 5.0), ("u2", "a", 1.0), ("u2", "c", 5.0), ("u1", "a", 2.0), ("u3", "c", 9.0), ("u3", "c", 8.5)]
WANTED = [("u2", ["a", "b", "c"]), ("u1", ["a"]), ("u3", ["c", "c"])]  # b before c: a tie, as in the file


def write(path, rows=ROWS, names=("user_id", "item_id", "timestamp")):
    table = pd.DataFrame([row[: len(names)] for row in rows], columns=list(names))
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return path


@pytest.mark.parametrize("ending", [".inter", ".tsv", ".csv", ".parquet"])
def test_interactions_of_every_format(tmp_path, ending):
    names = (
        ("user_id:token", "item_id:token", "timestamp:float") if ending == ".inter" else ("user_id", "item_id", "timestamp")
    )
    histories = Histories(write(tmp_path / f"x{ending}", names=names))
    assert histories.count == 3 and histories.grouped
    assert list(histories) == WANTED == list(histories)
    mixed = Histories(write(tmp_path / f"y{ending}", [ROWS[i] for i in (0, 3, 4, 1, 5, 2)], names))
    assert mixed.count == 3 and not mixed.grouped
    assert list(mixed) == WANTED


def test_scattered_rows_give_what_grouped_rows_give(tmp_path):
    random = np.random.default_rng(0)
    rows = [(f"u{random.integers(30)}", f"i{random.integers(50)}", int(random.integers(6))) for _ in range(400)]
    first = {user: place for place, (user, _, _) in reversed(list(enumerate(rows)))}
    scattered = Histories(write(tmp_path / "scattered.tsv", rows))
    grouped = Histories(write(tmp_path / "grouped.tsv", sorted(rows, key=lambda row: first[row[0]])))
    assert not scattered.grouped and grouped.grouped
    assert list(scattered) == list(grouped)


def test_without_times_the_order_of_the_file_counts(tmp_path):
    path = write(tmp_path / "x.csv", names=("user_id", "item_id"))
    assert list(Histories(path)) == [("u2", ["b", "a", "c"]), ("u1", ["a"]), ("u3", ["c", "c"])]


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".parquet"])
def test_a_history_a_row(tmp_path, ending):
    lists = [["a", "b"], [], ["c"]]
    cells = lists if ending == ".parquet" else [" ".join(items) for items in lists]
    path = write(
        tmp_path / f"x{ending}", [(cell, user) for cell, user in zip(cells, "pqr", strict=True)], ("history", "user_id")
    )
    assert list(Histories(path)) == [("p", ["a", "b"]), ("q", []), ("r", ["c"])]
    path = write(tmp_path / f"y{ending}", [(cell,) for cell in cells if len(cell)], ("history",))
    assert list(Histories(path)) == [("1", ["a", "b"]), ("2", ["c"])]


def test_numbers_in_parquet_are_tokens(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"user_id": [7, 7], "item_id": [12, 11], "timestamp": [2, 1]}).to_parquet(path)
    assert list(Histories(path)) == [("7", ["11", "12"])]


def test_parquet_with_recboles_column_names(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"user_id:token": ["u", "u"], "item_id:token": ["a", "b"], "timestamp:float": [2.0, 1.0]}
    pd.DataFrame(columns).to_parquet(path)
    assert list(Histories(path)) == [("u", ["b", "a"])]


def test_quotes_byte_order_marks_and_blank_lines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffuser_id,item_id\r\n"a, b",i1\r\n\r\n"a, b","i ""2"""\r\n', encoding="utf-8")
    assert list(Histories(path)) == [("a, b", ["i1", 'i "2"'])]


def test_grouped_files_are_streamed(tmp_path):
    """What stands before a bad line has been handed out when the line is read."""
    path = write(tmp_path / "x.tsv", [*ROWS[:4], ("u3", "c", "soon")])
    each = iter(Histories(path))
    assert next(each) == WANTED[0]
    with pytest.raises(ValueError, match=r"x\.tsv:6:.*timestamp.*'soon'"):
        next(each)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "a", r"'\.txt'.*\.inter"),
        ("x.tsv", "user\titem_id\nu\ti\n", r"x\.tsv:1:.*user, item_id.*user_id"),
        ("x.csv", "user_id;item_id\nu;i\n", r"x\.csv:1:.*user_id;item_id"),
        ("x.tsv", "", r"x\.tsv:1:.*user_id"),
        ("x.tsv", "user_id\titem_id\nu\ti\nu\n", r"x\.tsv:3:.*1.*2"),
        ("x.tsv", "user_id\titem_id\nu\t\n", r"x\.tsv:2:.*item_id"),
        ("x.tsv", "user_id\titem_id\n\ti\n", r"x\.tsv:2:.*user_id"),
        ("x.csv", "user_id,item_id,timestamp\nu,i,\n", r"x\.csv:2:.*timestamp.*''"),
        ("x.csv", b"user_id,item_id\n\xff,i\n", r"x\.csv.*UTF-8"),
        ("x.parquet", "PAR1", r"x\.parquet"),
    ],
)
def test_refusals(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        list(Histories(path))


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.inter"):
        Histories(tmp_path / "no.inter")
    assert list(Histories(write(tmp_path / "x.tsv", []))) == []


def test_wrong_values_in_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"history": [1.5]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"x\.parquet.*row 1.*history.*1\.5"):
        list(Histories(path))
    pd.DataFrame({"user_id": ["u", None], "item_id": ["i", "j"]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"row 2.*user_id"):
        list(Histories(path))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow.*pip install 'pyarrow<22'"):
        Histories(path)


def test_an_inter_file_of_ones_own_names_separator_and_encoding(tmp_path):
    form = AtomicFormat(",", encoding="utf-16", user_field="reader", item_field="book", time_field="when")
    path = tmp_path / "x.inter"
    path.write_bytes('when:float,book:token,reader:token\r\n2,b,é\r\n\r\n1,"a,1",é\r\n'.encode("utf-16"))
    assert list(Histories(path, form)) == [("é", ["a,1", "b"])]
    (tmp_path / "x.tsv").write_bytes("user_id\tbook\té\nu\ta\t\n".encode("utf-16"))
    assert list(Histories(tmp_path / "x.tsv", form)) == [("u", ["a"])]
    with pytest.raises(ValueError, match=r"y\.csv:1: .*user, item.*reader and book"):
        Histories(write(tmp_path / "y.csv", names=("user", "item")), AtomicFormat(user_field="reader", item_field="book"))


def test_damage_within_a_parquet_file_names_the_file(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")

    path = tmp_path / "h.parquet"
    pq.write_table(pa.table({"user_id": ["a"] * 50, "item_id": [f"i{n}" for n in range(50)]}), path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # every page lies elsewhere than the end of the file says
    with pytest.raises(ValueError, match=r"h\.parquet"):
        list(Histories(path))
