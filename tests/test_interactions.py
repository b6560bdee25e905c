"""recbole_qbert.data.interactions: what RecBole would misread is refused by file, line and value; everything else passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.data import interactions
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.interactions import check_interactions

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
SOUND = "".join(f"u{n}\ti{n}\t\t{n}\n" for n in range(8))


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "toy.inter"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "BLOCK", 3)


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("NA\ti\t\t1", "'NA'"),
        ("\ti\t\t1", "''"),
        ("u\tnull\t\t1", "'null'"),
        ("u\ti\t3\t", "''"),
        ("u\ti\t3\tnan", "'nan'"),
        ("u\ti\t3\t-inf", "'-inf'"),
        ("u\ti\t3\t1e39", "'1e39'"),  # infinite as float32, in which RecBole keeps times
        ("u\ti\t3\tsoon", "'soon'"),
        ("u\ti\t3\t1_000", "'1_000'"),
        ("u\ti\t3\t0x10", "'0x10'"),
        ("u\ti\t3", "3 cells"),
        ("u\ti\t3\t4\t5", "5 cells"),
        ("\t\t\t", "''"),
    ],
)
@pytest.mark.parametrize("line", [2, 6, 10])
def test_a_row_that_recbole_would_misread_is_refused(tmp_path: Path, row: str, value: str, line: int) -> None:
    rows = SOUND.splitlines()
    rows.insert(line - 2, row)
    path = write(tmp_path, HEADER + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=rf"toy\.inter:{line}: .*{value}"):
        check_interactions(path, AtomicFormat())


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("user_id:token\titem_id:token\n", "no column timestamp.*TIME_FIELD"),
        ("user_id:token\titem_id:token\ttimestamp:token\n", "timestamp has type 'token'.*timestamp:float"),
        ("user_id:float\titem_id:token\ttimestamp:float\n", "user_id:token"),
        ("user_id:token\titem:token\ttimestamp:float\n", "no column item_id.*'item'"),
        ("", "no column user_id, item_id, timestamp"),
    ],
)
def test_columns_that_make_no_history_are_refused(tmp_path: Path, header: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"toy\.inter:1: .*{found}"):
        check_interactions(write(tmp_path, header), AtomicFormat())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sound_files_of_every_kind_pass(tmp_path: Path, encoding: str, end: str) -> None:
    text = 'uid:token,film:token,when:float\n00012,1e5,1.5\n\n"é",NA7,-3e2\n   \n u,i, 7\n'.replace("\n", end)
    form = AtomicFormat(",", encoding=encoding, user_field="uid", item_field="film", time_field="when")
    assert check_interactions(write(tmp_path, text, encoding), form).names == form.fields


def test_another_encoding_is_refused_with_the_property_to_set(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        path = write(tmp_path, HEADER + "é\ti\t\t1\n", encoding)
        with pytest.raises(ValueError, match=rf"toy\.inter:\d: .*encoding.*{encoding}"):
            check_interactions(path, AtomicFormat())


CELL = st.sampled_from(["u", "NA", "", "1", "1.5e3", "inf", "nan", "x", '"', '"a"', "é", "1_0", " 2 ", "\r"])


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4).map("\t".join), max_size=7))
def test_the_screen_lets_pass_what_the_reading_by_rows_does(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    path = write(tmp_path_factory.mktemp("inter"), header + "".join(f"{row}\n" for row in rows))
    form = AtomicFormat()
    try:
        for line, cells in form.rows(path, form.fields):
            interactions._check_row(f"{path}:{line}", cells, form)
        sound = True
    except ValueError:
        sound = False
    assert interactions._screen(path, form, 3, [0, 1, 2]) == sound
    try:
        plain = not interactions._has_quotes(path) and interactions._screen_plain(path, form, 3, [0, 1, 2])
    except ValueError:
        plain = False
    assert sound or not plain
