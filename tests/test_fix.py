"""dataset_prep.checks.fix: each mechanical damage is undone byte for byte, the rest is left to the user, nothing is lost."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dataset_prep import checks
from recbole_qbert import cli
from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import AtomicFormat

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
ITEM_HEADER = "item_id:token\ttitle:token_seq\tprice:float"
ITEMS = tuple(f"i{number}" for number in range(6))
#: Four histories in the order of time; close times are equal as float32, so that the order of the file counts.
ROWS = [f"u{user}\ti{(user + step) % 6}\t5.0\t{1_600_000_000 + 7 * step}" for step in range(5) for user in range(4)]
TITLES = ("a toy", "", 'the 5" tool', "Spielzeug für É", "x", '"quoted, ""as"" csv does"')
INTER = "\n".join([HEADER, *ROWS]) + "\n"
ITEM = "\n".join([ITEM_HEADER, *(f"{item}\t{title}\t1.5" for item, title in zip(ITEMS, TITLES, strict=True))]) + "\n"


def put(folder, inter=INTER, item=ITEM, name="toy"):
    """Write a data set; text is written as UTF-8."""
    folder = Path(folder) / name
    folder.mkdir(parents=True)
    for ending, text in (("inter", inter), ("item", item)):
        (folder / f"{name}.{ending}").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fixed(folder, **options):
    """Fix a data set into a new folder beside it; the original stays as it is, and fixing the copy changes nothing."""
    before = contents(folder)
    target = Path(tempfile.mkdtemp(dir=folder.parents[1]))
    mended = checks.fix(folder.parent, folder.name, target, **options)
    assert contents(folder) == before
    again = Path(tempfile.mkdtemp(dir=folder.parents[1]))
    assert checks.fix(target, folder.name, again, **options) == []
    assert contents(again) == contents(target)
    return contents(target / folder.name), mended


def lines_of(text):
    return text.split("\n")[:-1]


# --------------------------------------------------------------------------------------------------- mechanical damages
def at(text, line, change):
    """Change one line below the header."""
    lines = lines_of(text)
    lines[1 + line % (len(lines) - 1)] = change(lines[1 + line % (len(lines) - 1)])
    return "\n".join(lines) + "\n"


def insert(text, line, new):
    lines = lines_of(text)
    lines.insert(1 + line % len(lines), new)
    return "\n".join(lines) + "\n"


def quote(row, cell):
    """Put a stray quote before a cell that is none to csv."""
    cells = row.split("\t")
    place = cell % len(cells)
    cells[place] = cells[place] if cells[place].startswith('"') or cells[place] == "" else '"' + cells[place]
    return "\t".join(cells)


def swap_within_user(text, line):
    """Swap a row with the next one of its user."""
    lines = lines_of(text)
    rows = lines[1:]
    first = line % len(rows)
    later = [n for n in range(first + 1, len(rows)) if rows[n].split("\t")[0] == rows[first].split("\t")[0]]
    if later:
        rows[first], rows[later[0]] = rows[later[0]], rows[first]
    return "\n".join([lines[0], *rows]) + "\n"


def repeat_row(text, line, further):
    lines = lines_of(text)
    place = 1 + line % (len(lines) - 1)
    lines.insert(place + 1 + further % (len(lines) - place), lines[place])
    return "\n".join(lines) + "\n"


BOTH = {
    "mark": lambda text, a, b: "\ufeff" + text,
    "crlf": lambda text, a, b: text.replace("\n", "\r\n"),
    "one crlf": lambda text, a, b: at(text, a, lambda row: row + "\r"),
    "cr": lambda text, a, b: text.replace("\n", "\r"),
    "blank": lambda text, a, b: insert(text, a, " " * (b % 3)),
    "blank at the end": lambda text, a, b: text + "\n" * (1 + a % 3),
    "empty cells": lambda text, a, b: insert(text, a, "\t" * (b % 5)),
    "surplus": lambda text, a, b: at(text, a, lambda row: row + "\t" * (1 + b % 3)),
    "surplus everywhere": lambda text, a, b: text.replace("\n", "\t\n"),
    "header": lambda text, a, b: text.replace(":token", ":token ", 1),
    "quote": lambda text, a, b: at(text, a, lambda row: quote(row, b)),
    "utf-16": lambda text, a, b: text.encode("utf-16"),
}
INTER_ONLY = {
    "duplicate": repeat_row,
    "order": lambda text, a, b: swap_within_user(text, a),
    "padded users": lambda text, a, b: text.replace("u1\t", "u1 \t"),
    "padded item": lambda text, a, b: at(text, a, lambda row: row.replace("\ti", "\t i")),
}
ITEM_ONLY = {
    "twice": repeat_row,
    "padded": lambda text, a, b: at(text, a, lambda row: " " + row),
    "return": lambda text, a, b: text.replace("a toy", "a\rtoy"),
}


def damages(kinds):
    """Draw up to three damages: name and two numbers that say where."""
    return st.lists(st.tuples(st.sampled_from(sorted(kinds)), st.integers(0, 99), st.integers(0, 99)), max_size=3)


@settings(max_examples=60, deadline=None)
@example([], [("padded", 25, 0), ("quote", 1, 0)])
@example([], [("quote", 1, 0), ("padded", 25, 0)])
@given(damages(BOTH | INTER_ONLY), damages(BOTH | ITEM_ONLY))
def test_any_mechanical_damages_are_undone(inter_damages, item_damages):
    # A quote that opens before a carriage return may mean a text of two lines: that is left to the user.
    assume(not {"quote", "return"} <= {kind for kind, *_ in item_damages})
    texts = []
    for sound, drawn, kinds in ((INTER, inter_damages, BOTH | INTER_ONLY), (ITEM, item_damages, BOTH | ITEM_ONLY)):
        text = sound
        last = {"crlf": 1, "cr": 1, "mark": 2, "utf-16": 3}  # of the whole file: after those of lines
        for kind, a, b in sorted(set(drawn), key=lambda damage: last.get(damage[0], 0)):
            if isinstance(text, str):
                text = kinds[kind](text, a, b)
        texts.append(text)
    with tempfile.TemporaryDirectory() as place:
        folder = put(Path(place) / "data", *texts)
        copy, mended = fixed(folder)
        assert copy == {"toy.inter": INTER.encode(), "toy.item": ITEM.encode()}
        assert [each for each in mended if each.level != "mended"] == []
        assert bool(mended) == (texts != [INTER, ITEM])


@pytest.mark.parametrize("kind", [*BOTH, *INTER_ONLY])
def test_a_damage_is_said_with_its_line_and_the_copy_is_sound(tmp_path, kind):
    folder = put(tmp_path / "data", (BOTH | INTER_ONLY)[kind](INTER, 8, 2))
    copy, mended = fixed(folder)
    assert copy["toy.inter"] == INTER.encode()
    assert {Path(each.where.rpartition(":")[0]).name for each in mended} == {"toy.inter"}
    checks.fix(folder.parent, "toy", tmp_path / "new")
    assert checks.worst(checks.check(tmp_path / "new", "toy")) == 0


def test_counts_and_first_lines(tmp_path):
    text = insert(at(at(INTER, 4, lambda row: row + "\t"), 9, lambda row: row + "\t\t"), 2, "")
    _, mended = fixed(put(tmp_path / "data", text))
    found = {each.where.rpartition(":")[2]: each.what for each in mended}
    assert sorted(found) == ["4", "7"] and "1 line " in found["4"] and "2 lines " in found["7"]


# --------------------------------------------------------------------------------------------------- encodings
@pytest.mark.parametrize(
    ("written", "told", "level"),
    [
        ("latin-1", "latin-1", "mended"),
        ("cp1252", "utf-8", "warning"),
        ("utf-16", "utf-16", "mended"),
        ("utf-16-le", "utf-16-le", "mended"),
        ("utf-32", "utf-8", "mended"),
        ("utf-8-sig", "utf-8-sig", "mended"),
    ],
)
def test_the_copy_is_in_utf8(tmp_path, written, told, level):
    folder = put(tmp_path / "data", INTER.encode(written), ITEM.encode(written))
    mended = checks.fix(folder.parent, "toy", tmp_path / "new", form=AtomicFormat(encoding=told))
    assert contents(tmp_path / "new" / "toy") == {"toy.inter": INTER.encode(), "toy.item": ITEM.encode()}
    assert level in {each.level for each in mended}


def test_utf8_is_utf8_whatever_the_user_says(tmp_path):
    copy, mended = fixed(put(tmp_path / "data"), form=AtomicFormat(encoding="latin-1"))
    assert copy["toy.item"] == ITEM.encode() and mended == []


def test_a_line_of_another_encoding_is_left_or_dropped(tmp_path):
    folder = put(tmp_path / "data", item=ITEM.encode().replace(b"a toy", b"a t\xf6y"))
    copy, mended = fixed(folder)
    assert copy["toy.item"] == (folder / "toy.item").read_bytes() and mended == []
    copy, mended = fixed(folder, drop_bad_rows=True)
    assert copy["toy.item"].count(b"\n") == ITEM.count("\n") - 1
    assert [each.where for each in mended] == [f"{folder / 'toy.item'}:2"]


def test_a_header_of_another_encoding_is_refused(tmp_path):
    folder = put(tmp_path / "data", INTER.encode().replace(b"rating", b"r\xe4ting") + "é\n".encode())
    with pytest.raises(ValueError, match=r"toy\.inter:1.*utf-8"):
        checks.fix(folder.parent, "toy", tmp_path / "new")


def test_a_mark_does_not_make_a_file_utf8(tmp_path):
    folder = put(tmp_path / "data", item="\ufeff".encode() + ITEM.encode("cp1252"))
    copy, mended = fixed(folder)
    assert copy["toy.item"] == ITEM.encode() and "warning" in {each.level for each in mended}


# --------------------------------------------------------------------------------------------------- rows among others
def test_repeats_at_other_times_stay(tmp_path):
    again = INTER + "u0\ti0\t5.0\t1700000000\n" + "u0\ti0\t1.0\t1600000000.0\n"
    copy, _ = fixed(put(tmp_path / "data", again))
    assert copy["toy.inter"].decode() == INTER + "u0\ti0\t5.0\t1700000000\n"  # the last row has the time of the first


def test_item_rows_are_joined_column_by_column(tmp_path):
    text = ITEM.replace("i4\tx\t1.5", "i4\t\t") + "i4\ta\t\n" + "i4\tb\t2\n"
    copy, mended = fixed(put(tmp_path / "data", item=text))
    assert copy["toy.item"].decode() == ITEM.replace("i4\tx\t1.5", "i4\ta\t2")
    assert [each.where.rpartition(":")[2] for each in mended] == ["8"] and "2 lines" in mended[0].what


def test_rows_are_left_where_the_order_does_not_count(tmp_path):
    far = "\n".join([HEADER, *(f"u0\t{item}\t1\t{9000 - 1000 * n}" for n, item in enumerate(ITEMS))]) + "\n"
    assert fixed(put(tmp_path / "data", far))[1] == []


def test_histories_are_in_the_order_of_time_after_any_shuffle(tmp_path):
    rows = ROWS.copy()
    Random(1).shuffle(rows)
    copy, _ = fixed(put(tmp_path / "data", "\n".join([HEADER, *rows]) + "\n"))
    found = copy["toy.inter"].decode().splitlines()[1:]
    assert sorted(found) == sorted(rows)
    for user in "0123":
        assert [row for row in found if row[1] == user] == [row for row in ROWS if row[1] == user]


# --------------------------------------------------------------------------------------------------- ids
def test_ids_that_would_become_another_one_stay(tmp_path):
    both = INTER + "u1 \ti5\t5.0\t1700000000\n"  # a user of that name is there
    copy, mended = fixed(put(tmp_path / "data", both))
    assert copy["toy.inter"].decode() == both and mended == []
    items = ITEM + "i1 \tanother\t2\n"
    both = INTER + "u1\ti1 \t5.0\t1700000000\n"
    copy, mended = fixed(put(tmp_path / "data2", both, items))
    assert (copy["toy.inter"].decode(), copy["toy.item"].decode()) == (both, items) and mended == []


def test_ids_are_trimmed_in_all_files(tmp_path):
    folder = put(tmp_path / "data", INTER.replace("i1", " i1"), ITEM.replace("i1", " i1"))
    listed = "\n".join(ITEMS).replace("i1", " i1")
    (folder / "toy.items.txt").write_text(f"\ufeff{listed}\r\n\n\n")
    (folder / "toy.sid").write_text("item_id:token\tsemantic_id:token_seq\n i1\t<a_0>\n")
    (folder / "images" / " i1").mkdir(parents=True)
    (folder / "images" / " i1" / "0.jpg").write_bytes(b"x")
    copy, _ = fixed(folder)
    assert copy["toy.inter"] == INTER.encode() and copy["toy.item"] == ITEM.encode()
    assert copy["toy.items.txt"].decode() == "\n".join(ITEMS) + "\n"
    assert copy["toy.sid"].endswith(b"\ni1\t<a_0>\n") and copy["images/i1/0.jpg"] == b"x"


def test_ids_that_are_white_space_around_a_word_for_missing_stay(tmp_path):
    text = INTER + " NA \ti1\t5.0\t1700000000\n"
    assert fixed(put(tmp_path / "data", text))[0]["toy.inter"].decode() == text


# --------------------------------------------------------------------------------------------------- not mechanical
BAD = {
    "no time": "u1\ti5\t5.0\t",
    "no finite time": "u1\ti5\t5.0\tinf",
    "no number": "u1\ti5\tfive\t1600000000",
    "lost user": "NA\ti5\t5.0\t1600000000",
    "lost item": "u1\t\t5.0\t1600000000",
    "few": "u1\ti5\t1600000000",
    "many": "u1\ti5\t5.0\t1600000000\tx",
    "quote": '"u1\ti5\t5.0',
    "return in an id": "u\r1\ti5\t5.0\t1600000000",
}


@pytest.mark.parametrize("kind", BAD)
def test_other_faults_are_left_to_the_user(tmp_path, kind, capsys):
    text = insert(INTER, 3, BAD[kind])
    folder = put(tmp_path / "data", text)
    copy, mended = fixed(folder)
    assert copy["toy.inter"].decode() == text and mended == []
    copy, mended = fixed(folder, drop_bad_rows=True)
    assert copy["toy.inter"].decode() == INTER and [each.where for each in mended] == [f"{folder / 'toy.inter'}:5"]
    call = ["doctor", "--dataset=toy", f"--data_path={folder.parent}", "--fix"]
    assert cli.main(call) == 1
    assert f"{tmp_path / 'data-fixed' / 'toy' / 'toy.inter'}:5" in capsys.readouterr().out
    assert cli.main([*call, "--fix_to", str(tmp_path / "new"), "--drop_bad_rows"]) == 0


def test_what_cannot_be_fixed_leaves_no_copy(tmp_path):
    folder = put(tmp_path / "data", INTER.replace("timestamp", "when"))
    with pytest.raises(ValueError, match="timestamp:float"):
        checks.fix(folder.parent, "toy", tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())
    with pytest.raises(FileNotFoundError, match=r"toys\.inter"):
        checks.fix(folder.parent, "toys", tmp_path / "new")
    checks.fix(folder.parent, "toy", tmp_path / "new", form=AtomicFormat(time_field="when"))
    with pytest.raises(ValueError, match=str(tmp_path / "new" / "toy")):
        checks.fix(folder.parent, "toy", tmp_path / "new", form=AtomicFormat(time_field="when"))


# --------------------------------------------------------------------------------------------------- the whole folder
def test_the_format_of_the_user(tmp_path):
    form = AtomicFormat(field_separator=",", encoding="cp1252", item_field="isbn")
    inter = "user_id:token,isbn:token,timestamp:float\n" + "".join(f"u,{item},{n}\n" for n, item in enumerate(ITEMS))
    item = "isbn:token,title:token_seq\n" + "".join(f'{item},"so, ""é"""\n' for item in ITEMS)
    damaged = item.encode("cp1252").replace(b"\n", b",\r\n")
    folder = put(tmp_path / "data", "\ufeff" + inter.replace("u,i2", '"u,i2'), damaged)
    checks.fix(folder.parent, "toy", tmp_path / "new", form=form)
    assert contents(tmp_path / "new" / "toy") == {"toy.inter": inter.encode(), "toy.item": item.encode()}
    assert checks.worst(checks.check(tmp_path / "new", "toy", form=replace(form, encoding="utf-8"))) == 0


def test_other_files_come_along(tmp_path):
    folder = put(tmp_path / "data", INTER.replace("\n", "\r\n"))
    features.save(folder, "toy", ITEMS, {"text": np.ones((6, 3), np.float32)}, {})
    (folder / "prepare.json").write_text("{}")
    (folder / ".toy.inter.99999.part").write_text("")
    (folder / "notes").write_text("")
    copy, _ = fixed(folder)
    names = {"toy.inter", "toy.item", "toy.items.txt", "toy.text.npy", "toy.features.json"}
    assert set(copy) == names  # prepare.json describes the file as it was
    for name in names - {"toy.inter"}:
        assert copy[name] == (folder / name).read_bytes()


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """Many spooled parts give what one gives."""
    from dataset_prep.checks import mending

    text = repeat_row(swap_within_user(INTER, 3), 5, 7)
    folder = put(tmp_path / "data", text)
    monkeypatch.setattr(mending, "PART", 100)
    monkeypatch.setattr(mending, "BLOCK", 3)
    assert fixed(folder)[0]["toy.inter"] == INTER.encode()


def test_the_command_fixes_and_checks_the_copy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put("data", INTER.replace("\n", "\r\n"))
    figures = tmp_path / "figures.json"
    call = ["doctor", "--dataset=toy", "--data_path=data", "--json", str(figures)]
    assert cli.main([*call, "--fix"]) == 0
    out = capsys.readouterr().out
    assert "mended   data/toy/toy.inter:2: 20 lines" in out and "--data_path=data-fixed" in out
    assert (tmp_path / "data-fixed" / "toy" / "toy.inter").read_text() == INTER
    assert '"copy": "data-fixed/toy"' in figures.read_text()
    assert cli.main([*call, "--fix"]) == 2 and "data-fixed/toy" in capsys.readouterr().err
    assert cli.main([*call, "--fix_to=elsewhere"]) == 2 and not os.path.exists("elsewhere")
