"""dataset_prep.checks: each fault gets the finding that names it, sound data none; and RecBole really does what it says."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import recbole.data.dataset.dataset as recbole_dataset

from dataset_prep import checks
from dataset_prep.checks import atomic_lines, interactions
from dataset_prep.checks.findings import Finding
from recbole_qbert import cli
from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import digest
from tests.test_imports import damaged

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ROWS = [(f"u{user}", f"i{(user + step) % 4}", "5.0", f"{100 * user + step}") for user in range(4) for step in range(3)]
ITEMS = ("i0", "i1", "i2", "i3")
ITEM_HEADER = "item_id:token\ttitle:token_seq\tprice:float\n"


def lines(rows):
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.fixture
def toy(tmp_path):
    """A sound data set with everything; its folder."""
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.inter").write_text(HEADER + lines(ROWS))
    (folder / "toy.item").write_text(ITEM_HEADER + lines([(item, "a toy", "1.5") for item in ITEMS[:3]]) + "i3\t\t\n")
    text = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    image = np.ones((4, 2, 3), np.float16)
    image[1] = np.nan
    features.save(folder, "toy", ITEMS, {"text": text, "image": image}, {"text": {"shape": [4, 3]}})
    codes = np.array([[0, 1, 2, 3], [0, 2, -1, -1], [1, 1, 0, 0], [3, 3, 3, 3]], dtype=np.int16)
    SemanticIDs(ITEMS, codes, tuple("abAB"), 4).save(folder / "toy.sid")
    return folder


def look(folder, **options):
    return checks.check(folder.parent, folder.name, **options)


def trouble(folder, **options):
    """(level, place, what) of all findings that are not ok; all of them say what to do."""
    found = [finding for finding in look(folder, **options) if finding.level != "ok"]
    assert all(finding.what_to_do for finding in found)
    place = folder.parent.parent
    return [(finding.level, os.path.relpath(finding.where, place), finding.what) for finding in found]


def is_only(folder, level, where, *words, **options):
    """There is exactly one finding that is not ok, and it is this one."""
    found = trouble(folder, **options)
    assert [(each[0], each[1]) for each in found] == [(level, where)], found
    assert all(word in found[0][2] for word in words), found


def change_inter(folder, rows=ROWS, header=HEADER):
    (folder / "toy.inter").write_text(
        header + (rows if isinstance(rows, str) else lines(rows)), encoding="utf-8", newline=""
    )


# --------------------------------------------------------------------------------------------------- sound data
def test_sound_data_have_no_findings(toy):
    assert trouble(toy) == []
    said = checks.as_text(look(toy))
    assert "12 interactions of 4 users and 4 items" in said
    assert "one row for each of 4 items" in said
    assert "4x3 float32, 100.0% of the items" in said and "4x2x3 float16, 75.0% of the items" in said
    assert "4 different IDs of 4 levels" in said
    assert checks.worst(look(toy)) == 0


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["Amazon_Scientific", "Amazon_Instruments"])
def test_real_data_have_no_errors(shared_data, name):
    found = checks.check(shared_data, name)
    assert checks.worst(found) == 0
    assert [finding.level for finding in found if finding.level != "ok"] in ([], ["warning"])


def test_the_text_puts_errors_first_and_says_what_to_do():
    found = [Finding("ok", "a", "fine"), Finding("warning", "b:2", "odd", "look"), Finding("error", "c", "bad", "mend")]
    assert checks.as_text(found).splitlines() == [
        "error    c: bad",
        "         -> mend",
        "warning  b:2: odd",
        "         -> look",
        "ok       a: fine",
    ]
    assert (checks.worst(found), checks.worst(found[:2]), checks.worst([])) == (1, 0, 0)


# --------------------------------------------------------------------------------------------------- folder and header
def test_a_folder_or_file_that_is_not_there(toy):
    (error,) = checks.check(toy.parent, "toi")
    assert error.level == "error" and "'toy'" in error.what
    (toy / "toy.inter").rename(toy / "toys.inter")
    is_only(toy, "error", "data/toy/toy.inter", "'toys.inter'")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace("\t", " "), ["spaces"]),
        (HEADER.replace("\t", ","), ["commas"]),
        ("\n", ["the header is ''"]),
        (HEADER.replace("rating:float", "rating"), ["'rating'", "no type"]),
        (HEADER.replace("rating:float", "rating:flaot"), ["'flaot'", "'float'"]),
        (HEADER.replace("rating", "user_id"), ["'user_id'", "twice"]),
        (HEADER.replace("user_id", "userid"), ["'user_id'", "'userid'"]),
        (HEADER.replace("timestamp", "time"), ["'timestamp'"]),
        (HEADER.replace("timestamp:float", "timestamp:token"), ["'timestamp'", "token"]),
        (HEADER.replace("item_id:token", "item_id:token_seq"), ["'item_id'", "token_seq"]),
    ],
)
def test_headers_that_recbole_cannot_use(toy, header, words):
    change_inter(toy, header=header)
    is_only(toy, "error", "data/toy/toy.inter:1", *words)


def test_a_byte_order_mark_is_said_and_no_fault(toy):
    change_inter(toy, header="\ufeff" + HEADER)
    assert trouble(toy) == []
    assert "ok       " + str(toy / "toy.inter") + ":1: the file begins with a byte order mark" in checks.as_text(look(toy))


def test_a_byte_order_mark_of_another_encoding(toy):
    (toy / "toy.inter").write_text(HEADER + lines(ROWS), encoding="utf-16")
    is_only(toy, "error", "data/toy/toy.inter:1", "utf-16")
    found = trouble(toy, form=AtomicFormat(encoding="utf-16"))
    assert [(level, where, what.partition(" (")[0]) for level, where, what in found] == [
        ("error", "data/toy/toy.item:1", "the file is not in utf-16")
    ]


# --------------------------------------------------------------------------------------------------- the user's format
OWN = AtomicFormat(field_separator=",", encoding="latin-1", user_field="reader", item_field="isbn", time_field="when")


def write_own(folder, header="reader:token,isbn:token,when:float\n"):
    rows = "".join(f"{user}é,{item},{time}\n" for user, item, _, time in ROWS)
    (folder / "toy.inter").write_text(header + rows, encoding="latin-1")
    (folder / "toy.item").write_text("isbn:token,title:token_seq\n" + "".join(f'{i},"a toy, é"\n' for i in ITEMS), "latin-1")


def test_files_in_the_format_of_the_user(toy):
    write_own(toy)
    assert trouble(toy, form=OWN) == []
    assert "12 interactions of 4 users and 4 items" in checks.as_text(look(toy, form=OWN))
    found = trouble(toy)
    assert found[0][:2] == ("error", "data/toy/toy.inter:1") and "commas" in found[0][2]
    (utf8,) = trouble(toy, form=replace(OWN, encoding="utf-8"))[:1]
    assert utf8[:2] == ("error", "data/toy/toy.inter:2") and "12 lines not in UTF-8" in utf8[2]
    write_own(toy, "reader:token,isbn:token,date:float\n")
    assert [each[:2] for each in trouble(toy, form=OWN)] == [("error", "data/toy/toy.inter:1")]


def test_the_command_takes_properties_and_property_files(toy, tmp_path, capsys):
    write_own(toy)
    own = tmp_path / "own.yaml"
    own.write_text("USER_ID_FIELD: reader\nITEM_ID_FIELD: isbn\nTIME_FIELD: when\nencoding: latin-1\n")
    call = ["doctor", "--dataset=toy", f"--data_path={toy.parent}", f"--output={tmp_path / 'runs'}"]
    assert cli.main([*call, "--field_separator=,", "--config_files", str(own)]) == 0
    assert "12 interactions of 4 users" in capsys.readouterr().out
    assert cli.main(call) == 1


def test_utf8_that_is_read_as_another_encoding(toy):
    (toy / "toy.item").write_text(ITEM_HEADER + lines([(item, "a töy", "") for item in ITEMS]), encoding="utf-8")
    is_only(toy, "warning", "data/toy/toy.item:2", "4 lines in UTF-8", form=AtomicFormat(encoding="cp1252"))
    (toy / "toy.item").write_text(ITEM_HEADER + lines([(item, "a töy", "") for item in ITEMS]), encoding="cp1252")
    assert trouble(toy, form=AtomicFormat(encoding="cp1252")) == []


# --------------------------------------------------------------------------------------------------- lines
SOME = ("u1", "i0", "5.0", "101")  # an item that the user does not have


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("u1", "i2", "5.0"), ["1 line ", "too few"]),
        (("u1 i2 5.0 101",), ["too few", "'u1 i2 5.0 101'"]),
        ((*SOME, "x"), ["too many"]),
        (('"u1', *SOME[1:]), ["quote"]),
        (("u1", '"i2"x', *SOME[2:]), ["quote"]),
        (("u1\rx", *SOME[1:]), ["carriage return"]),
        (("NA", *SOME[1:]), ["user 'NA'"]),
        (("", *SOME[1:]), ["user ''"]),
        (("u1", "null", *SOME[2:]), ["item 'null'"]),
        ((*SOME[:3], ""), ["timestamp ''", "mean"]),
        ((*SOME[:3], "nan"), ["timestamp 'nan'"]),
        ((*SOME[:3], "inf"), ["'inf'"]),
        ((*SOME[:3], "2018-01-01"), ["'2018-01-01'"]),
        ((*SOME[:3], "1e39"), ["'1e39'"]),
        ((*SOME[:3], "1_01"), ["'1_01'"]),
        (("u1", "i0", "five", "101"), ["'five'"]),
        (("x" * 131_073, *SOME[1:]), ["131,072"]),
    ],
)
def test_lines_that_recbole_misreads(toy, row, words):
    rows = [*ROWS[:5], row, *ROWS[5:]]  # one more, so that nothing else is wrong
    change_inter(toy, rows)
    is_only(toy, "error", "data/toy/toy.inter:7", *words)


def test_lines_that_are_odd(toy):
    change_inter(toy, [*ROWS, ("u3", "i2", "", "900")])
    is_only(toy, "warning", "data/toy/toy.inter:14", "no number", "mean")
    change_inter(toy, [*ROWS, ("u3", "[PAD]", "1", "900")])
    assert ("warning", "data/toy/toy.inter:14") in [each[:2] for each in trouble(toy)]


def test_faults_of_a_kind_are_counted(toy):
    change_inter(toy, [*ROWS, ("a", "b"), ("c", "d"), ("NA", "i1", "1", "1"), ("e", "f")])
    found = trouble(toy)
    assert [each[:2] for each in found] == [("error", "data/toy/toy.inter:14"), ("error", "data/toy/toy.inter:16")]
    assert "3 lines" in found[0][2] and r"'a\tb'" in found[0][2]


def test_one_field_more_in_the_first_row(toy):
    change_inter(toy, [(*row, "") for row in ROWS])
    found = trouble(toy)
    assert [each[1] for each in found] == ["data/toy/toy.inter:2", "data/toy/toy.inter"]
    assert "shifts" in found[0][2] and "no usable" in found[1][2]


def test_windows_line_ends(toy):
    change_inter(toy, lines(ROWS).replace("\n", "\r\n"), HEADER.replace("\n", "\r\n"))
    is_only(toy, "warning", "data/toy/toy.inter:2", "12 lines", "CR LF")


def test_bytes_that_are_no_text(toy):
    with open(toy / "toy.inter", "ab") as handle:
        handle.write(b"u\xff\ti1\t1\t1\n")
    is_only(toy, "error", "data/toy/toy.inter:14", "UTF-8")


def test_a_line_without_end(toy, monkeypatch):
    monkeypatch.setattr(atomic_lines, "LONGEST_LINE", 100)
    change_inter(toy, [*ROWS, ("u" * 250, "i1", "1", "1"), ("u3", "i2", "1", "901")])
    is_only(toy, "error", "data/toy/toy.inter:14", "1 line of more than")
    assert "13 interactions" in checks.as_text(look(toy))


def test_quoted_cells_and_blank_lines_are_read_as_recbole_reads_them(toy):
    change_inter(toy, lines([(f'"{row[0]}"', *row[1:]) for row in ROWS[:6]]) + "\n  \n" + lines(ROWS[6:]))
    assert trouble(toy) == []


def test_texts_over_several_lines_are_cells_if_csv_reads_them_so(toy):
    change_items(toy, [*ITEM_ROWS[:3], ("i3", '"a\nlong\n""toy"""', "2")])
    assert trouble(toy) == []


def test_a_carriage_return_alone_ends_a_row(toy):
    change_inter(toy, lines(ROWS).replace("\n", "\r"), HEADER.replace("\n", "\r"))
    is_only(toy, "warning", "data/toy/toy.inter:2", "12 lines")
    assert "12 interactions of 4 users" in checks.as_text(look(toy))


@pytest.mark.parametrize("row", [("u1 ", *SOME[1:]), (" u1", *SOME[1:]), ("u1", "i0\u00a0", *SOME[2:])])
def test_ids_with_white_space_around_them(toy, row):
    change_inter(toy, [*ROWS, row])
    assert ("warning", "data/toy/toy.inter:14") in [each[:2] for each in trouble(toy)]


def test_a_stray_quote_in_the_last_lines(toy):
    """Lines that were read in search of the other quote are judged all the same."""
    change_inter(toy, [*ROWS, ('"u3', "i0", "1", "900"), ("u3", "NA", "1", "901"), ("u3", "i1")])
    assert [each[1] for each in trouble(toy)] == [f"data/toy/toy.inter:{line}" for line in (14, 15, 16)]


def test_no_rows_at_all(toy):
    change_inter(toy, "")
    is_only(toy, "error", "data/toy/toy.inter", "no usable")


# --------------------------------------------------------------------------------------------------- users and times
def test_users_that_are_never_tested(toy):
    change_inter(toy, [*ROWS, ("v", "i0", "1", "1"), ("w", "i0", "1", "1"), ("w", "i1", "1", "2")])
    is_only(toy, "warning", "data/toy/toy.inter:14", "2 of 6 users")


def test_an_item_twice_for_a_user(toy):
    change_inter(toy, [*ROWS, ("u0", "i2", "1", "900")])
    is_only(toy, "warning", "data/toy/toy.inter:14", "1 rows")


def test_the_same_row_twice(toy):
    change_inter(toy, [*ROWS, ROWS[0], ROWS[5]])
    is_only(toy, "warning", "data/toy/toy.inter:14", "2 rows of a user, item and time")


def timed(times):
    return [("u0", ITEMS[place], "1", str(time)) for place, time in enumerate(times)]


def test_times_in_milliseconds(toy):
    change_inter(toy, timed([1_500_000_000_000, 1_600_000_000_000, 1_700_000_000_000, 1_800_000_000_000]))
    is_only(toy, "warning", "data/toy/toy.inter", "1800000000000", "milliseconds")


def test_near_times_that_float32_makes_one(toy):
    """At 1.6e9 seconds float32 is 128 wide: what is nearer keeps the order of the file."""
    near = [1_600_000_000, 1_600_000_010, 1_600_000_020, 1_600_100_000]
    change_inter(toy, timed(near))
    assert trouble(toy) == []
    assert re.search(r"\b0 neighbours of equal and 2 of .* 128 at 1600100000\b", checks.as_text(look(toy)))
    change_inter(toy, timed([near[1], near[0], near[2], near[3]]))
    is_only(toy, "warning", "data/toy/toy.inter:3", "1 rows")
    change_inter(toy, timed([near[3], near[0], near[1], near[2]]))  # out of order, but only where it does not matter
    assert trouble(toy) == []


def test_rows_out_of_order_that_recbole_sorts(toy):
    change_inter(toy, timed([4, 3, 2, 1]))
    assert trouble(toy) == []
    assert "toy.inter:3: " in checks.as_text(look(toy))


def test_many_parts_find_the_same_as_one(tmp_path, monkeypatch):
    """The rows of a user are judged together wherever they stand, and however many files they are spread over."""
    random = np.random.default_rng(0)
    rows = [(f"u{random.zipf(1.5) % 900}", f"i{random.integers(40)}", "1", f"{random.integers(3e4) + 16e8:.0f}")
            for _ in range(5000)]  # fmt: skip
    path = tmp_path / "toy.inter"
    path.write_text(HEADER + lines(rows))
    one = interactions.check(path)
    monkeypatch.setattr(interactions, "PART", 2000)
    monkeypatch.setattr(interactions, "BLOCK", 77)
    assert interactions.check(path) == one
    text = checks.as_text(one[1])
    per_user = {}
    for line, (user, item, _, time) in enumerate(rows):
        per_user.setdefault(user, []).append((np.float32(time), line, float(time), item))
    wrong = again = same = few = 0
    for history in per_user.values():
        few += len(history) < 3
        again += len(history) - len({item for *_, item in history})
        same += len(history) - len({row[2:] for row in history})
        history.sort(key=lambda row: row[:2])
        wrong += sum(a[2] > b[2] for a, b in pairwise(history))
    assert min(wrong, again, same, few) > 0
    assert f"{few:,} of {len(per_user):,} users have fewer" in text
    assert f"{again:,} rows of an item" in text and f"{same:,} rows of a user, item and time" in text
    assert f"{wrong:,} rows come to RecBole after a later one" in text


# --------------------------------------------------------------------------------------------------- items
def change_items(folder, rows, header=ITEM_HEADER):
    (folder / "toy.item").write_text(header + lines(rows))


ITEM_ROWS = [(item, "a toy", "") for item in ITEMS]


@pytest.mark.parametrize(
    ("rows", "level", "line", "words"),
    [
        (ITEM_ROWS[:3], "error", "", ["1 of 4 items", "first: i3"]),
        ([*ITEM_ROWS, ("i9", "", "")], "warning", ":6", ["1 rows", "first: i9"]),
        ([*ITEM_ROWS, ("i0", "b", "")], "error", ":6", ["1 line ", "'i0'"]),
        ([*ITEM_ROWS, ("NULL", "b", "")], "error", ":6", ["item 'NULL'"]),
        ([*ITEM_ROWS[:3], ("i3", "b", "$5")], "error", ":5", ["'$5'"]),
    ],
)
def test_rows_of_items(toy, rows, level, line, words):
    change_items(toy, rows)
    is_only(toy, level, f"data/toy/toy.item{line}", *words)


def test_a_lone_quote_in_a_title(toy):
    change_items(toy, [*ITEM_ROWS[:2], ("i2", '"Best" strings', ""), ITEM_ROWS[3]])
    found = trouble(toy)
    assert [each[:2] for each in found] == [("error", "data/toy/toy.item:4"), ("error", "data/toy/toy.item")]
    assert "quote" in found[0][2] and "first: i2" in found[1][2]
    change_items(toy, [*ITEM_ROWS[:2], ("i2", 'the "best" strings', ""), ITEM_ROWS[3]])
    assert trouble(toy) == []


def test_texts_that_the_encoder_would_not_find(toy):
    change_items(toy, ITEM_ROWS, "item_id:token\tmovie_title:token_seq\tprice:float\n")
    assert trouble(toy) == []  # the data have features of their own
    for modality in ("text", "image"):
        (toy / f"toy.{modality}.npy").unlink()
    (toy / "toy.items.txt").unlink()
    assert trouble(toy) == []  # named as titles are
    change_items(toy, ITEM_ROWS, "item_id:token\tlabel_no:token\tprice:float\n")
    is_only(toy, "warning", "data/toy/toy.item:1", "label_no")
    assert trouble(toy, text_fields=["label_no"]) == []
    is_only(toy, "warning", "data/toy/toy.item:1", "title", "label_no", text_fields=["title"])


def test_an_item_file_without_items(toy):
    change_items(toy, ITEM_ROWS, "asin:token\ttitle:token_seq\tprice:float\n")
    is_only(toy, "error", "data/toy/toy.item:1", "'item_id'")


# --------------------------------------------------------------------------------------------------- features
def put(folder, matrix, modality="text"):
    np.save(folder / f"toy.{modality}.npy", matrix)


GOOD = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def with_row(value):
    matrix = GOOD.copy()
    matrix[2, :] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "level", "words"),
    [
        (GOOD[:3], "error", ["has 3 rows", "lists 4 items"]),
        (GOOD.astype(int), "error", ["holds int64"]),
        (GOOD[:, 0], "error", ["shape (4,)"]),
        (with_row([np.nan, 1, 1]), "error", ["1 rows", "first: row 2, item i2"]),
        (with_row([np.inf, 1, 1]), "error", ["1 rows", "infinite"]),
        (with_row(0), "warning", ["1 rows of zeros", "first: row 2, item i2"]),
        (GOOD * np.nan, "warning", ["no item"]),
        (with_row([1, 1.6e37, 1]), "error", ["1 rows", "row 2, item i2"]),
        (GOOD[:, :2], "warning", ["[4, 2]", "toy.features.json says [4, 3]"]),
    ],
)
def test_matrices(toy, matrix, level, words):
    put(toy, matrix)
    is_only(toy, level, "data/toy/toy.text.npy", *words)


def test_lists_of_items(toy):
    names = toy / "toy.items.txt"
    names.write_text("i0\ni1\ni2\nj3\n")
    is_only(toy, "error", "data/toy/toy.items.txt", "1 of 4 items", "first: i3")
    names.write_text("i0\ni1\ni2\ni1\n")
    is_only(toy, "error", "data/toy/toy.items.txt:4", "'i1'", "line 2")
    names.unlink()
    is_only(toy, "error", "data/toy/toy.items.txt", "is missing")
    names.write_text("i0\n")
    for modality in ("text", "image"):
        (toy / f"toy.{modality}.npy").unlink()
    is_only(toy, "error", "data/toy/toy.items.txt", "no feature files")


def test_a_manifest_of_features_that_is_damaged(toy):
    (toy / "toy.features.json").write_text("{")
    is_only(toy, "warning", "data/toy/toy.features.json", "not JSON")


# --------------------------------------------------------------------------------------------------- semantic IDs
SID = "item_id:token\tsemantic_id:token_seq\n"


@pytest.mark.parametrize(
    ("text", "level", "line", "words"),
    [
        ("item\tid\n", "error", ":1", ["header is"]),
        (SID + "i0\t<a_1>\ni1\ta2\n", "error", ":3", ["'a2'"]),
        (SID + "i0\t<a_1>\ni0\t<a_2>\n", "error", ":3", ["'i0'"]),
        (SID + "i0\t<a_1>\ni1\t<a_1>\n", "error", "", ["i0 and i1", "<a_1>"]),
        (SID + "i0\t<a_1>\ni1\t<a_2>\ni2\t<a_3>\n", "error", "", ["1 of 4 items", "first: i3", "older"]),
        (SID + "x0\t<a_1>\nx1\t<a_2>\n", "error", "", ["4 of 4 items", "another data set"]),
        (
            SID + "i0\t<a_1> <b_1>\ni1\t<a_2> <b_2>\ni2\t<b_3> <a_3>\ni3\t<a_4> <b_4>\n",
            "warning",
            ":4",
            ["order of the levels is b a", "a b"],
        ),
        (
            SID + "i0\t<a_1> <b_1>\ni1\t<a_2> <b_2>\ni2\t<a_3>\ni3\t<a_4> <b_4>\n",
            "error",
            ":4",
            ["1 items", "levels a b ", "first: i2"],
        ),
    ],
)
def test_semantic_ids(toy, text, level, line, words):
    (toy / "toy.sid").write_text(text)
    (toy / "toy.sid.json").unlink()  # which tells of the file as it was
    is_only(toy, level, f"data/toy/toy.sid{line}", *words)


def test_semantic_ids_that_are_not_those_of_the_file_beside_them(toy):
    with (toy / "toy.sid").open("a") as file:
        file.write("more\t<a_1>\n")
    is_only(toy, "error", "data/toy/toy.sid", "toy.sid.json")


def test_a_code_beyond_the_codebook(toy):
    (toy / "toy.sid.manifest.json").write_text(
        json.dumps({"inputs": {"settings": {"codes": 3}}, "outputs": {}, "report": {}})
    )
    is_only(toy, "error", "data/toy/toy.sid:2", "code 3 ", "the 3 codes")


def test_three_code_sets_are_told_apart(toy):
    codes = np.arange(48, dtype=np.int16).reshape(4, 12)
    codes[1, 8:] = -1
    prefixes = (*"abcd", *"ABCD", "aa", "ba", "ca", "da")
    SemanticIDs(ITEMS, codes, prefixes, 48).save(toy / "toy.sid")
    assert trouble(toy) == []


# --------------------------------------------------------------------------------------------------- what is left over
@pytest.fixture
def output(toy):
    """Output of the stages as the pipeline leaves it, of the data set's own features; returns the folder above."""
    folder = toy.parent.parent / "runs" / "toy"
    folder.mkdir(parents=True)
    loaded = features.load(toy, "toy", ITEMS, ("text", "image"))

    def fuse():
        np.save(folder / "toy.fused.npy", GOOD)
        return {}

    order = list(dict.fromkeys(row[1] for row in ROWS))
    inputs = {"items": digest(order), "features": loaded.inputs}
    CachedStep(folder, "toy.injection", inputs, [folder / "toy.fused.npy"]).run(fuse)

    def quantize():
        shutil.copy(toy / "toy.sid", folder / "toy.sid")
        return {}

    inputs |= {"fused": features.sha256(folder / "toy.fused.npy"), "settings": {"codes": 4}}
    CachedStep(folder, "toy.sid", inputs, [folder / "toy.sid"]).run(quantize)
    return folder.parent


def test_stages_that_match_are_sound(toy, output):
    assert trouble(toy, output=output) == []
    assert checks.as_text(look(toy, output=output)).count("matches its files and the data") == 2


def test_output_that_is_not_what_was_written(toy, output):
    with open(output / "toy" / "toy.sid", "a") as handle:
        handle.write("i9\t<a_2> <b_2> <A_1> <B_1>\n")
    is_only(toy, "warning", "runs/toy/toy.sid", "1 of 1 files", output=output)


def test_features_that_changed_since(toy, output):
    put(toy, GOOD + 1)
    found = trouble(toy, output=output)
    assert [each[:2] for each in found] == [
        ("warning", "runs/toy/toy.injection.manifest.json"),
        ("warning", "runs/toy/toy.sid.manifest.json"),
    ]
    assert all("toy.text.npy" in each[2] for each in found)


def test_items_that_changed_since(toy, output):
    change_inter(toy, ROWS[::-1])
    assert all("list of items" in each[2] for each in trouble(toy, output=output))
    assert len(trouble(toy, output=output)) == 2


def test_a_stage_before_that_changed(toy, output):
    np.save(output / "toy" / "toy.fused.npy", GOOD + 1)
    assert [each[:2] for each in trouble(toy, output=output)] == [
        ("warning", "runs/toy/toy.fused.npy"),
        ("warning", "runs/toy/toy.sid.manifest.json"),
    ]


def test_manifests_that_are_none(toy, output):
    (output / "toy" / "toy.sid.manifest.json").write_text("[]")
    is_only(toy, "warning", "runs/toy/toy.sid.manifest.json", "manifest", output=output)


def test_caches_of_recbole_older_than_the_data(toy, output):
    cache = output / "toy" / "checkpoints" / "toy-SequentialDataset.pth"
    cache.parent.mkdir()
    cache.write_bytes(b"")
    assert trouble(toy, output=output) == []
    os.utime(cache, (0, 0))
    is_only(toy, "warning", "runs/toy/checkpoints/toy-SequentialDataset.pth", "toy.inter", output=output)


def test_halves_of_files_that_a_killed_process_left(toy, output):
    (toy / ".toy.item.999999999.part").write_bytes(b"")
    is_only(toy, "warning", "data/toy/.toy.item.999999999.part", "half of a file")
    (toy / ".toy.item.999999999.part").unlink()
    (output / "toy" / f".toy.sid.{os.getpid()}.part").write_bytes(b"")  # this process still writes
    assert trouble(toy, output=output) == []
    (output / "toy" / "checkpoints").mkdir()
    (output / "toy" / "checkpoints" / ".a.pth.999999999.part").write_bytes(b"")
    is_only(toy, "warning", "runs/toy/checkpoints/.a.pth.999999999.part", "half of a file", output=output)


def test_checkpoints_that_were_cut_off(toy, output):
    whole = output / "toy" / "finetune.pth"
    with zipfile.ZipFile(whole, "w") as archive:  # as torch.save writes
        archive.writestr("finetune/data.pkl", b"x" * 100)
    assert trouble(toy, output=output) == []
    whole.write_bytes(whole.read_bytes()[:-30])
    is_only(toy, "error", "runs/toy/finetune.pth", "checkpoint", output=output)


def test_counts_of_the_preparation(toy):
    (toy / "prepare.json").write_text(json.dumps({"users": 4, "items": 4, "interactions": 12}))
    assert trouble(toy) == []
    (toy / "prepare.json").write_text(json.dumps({"users": 4, "items": 5, "interactions": 1234}))
    is_only(toy, "warning", "data/toy/prepare.json", "5 items", "have 4)", "1,234 interactions", "have 12)")
    (toy / "prepare.json").write_text("")
    is_only(toy, "warning", "data/toy/prepare.json", "not JSON")


def test_imports_that_were_interrupted_or_changed(toy):
    outputs = {path.name: features.sha256(path) for path in toy.glob("toy.*")}
    content = {"complete": True, "imports": [{"users": 4, "items": 4, "interactions": 12}], "outputs": outputs}
    (toy / "import.json").write_text(json.dumps(content))
    assert trouble(toy) == []
    (toy / "import.json").write_text(json.dumps(content | {"complete": False}))
    is_only(toy, "error", "data/toy/import.json", "interrupted")
    (toy / "import.json").write_text(json.dumps(content))
    put(toy, GOOD + 1)
    is_only(toy, "warning", "data/toy/toy.text.npy", "1 files")


def test_an_imported_folder_is_sound(tmp_path):
    from dataset_prep.importers import mql4grec

    source = tmp_path / "X"
    source.mkdir()
    (source / "X.inter.json").write_text(json.dumps({"0": [0, 1, 2], "1": [2, 1, 0]}))
    (source / "X.item2id").write_text("p\t0\nq\t1\nr\t2\n")
    (source / "X.item.json").write_text(json.dumps({"0": {"title": "a"}}))
    (source / "X.index_lemb.json").write_text(json.dumps({str(i): [f"<a_{i}>", "<b_0>"] for i in range(3)}))
    np.save(source / "X.emb-llama-td.npy", GOOD[:3])
    mql4grec(source, "X", tmp_path / "data", progress=False)
    assert [finding for finding in checks.check(tmp_path / "data", "X") if finding.level != "ok"] == []


# --------------------------------------------------------------------------------------------------- images
def image_row(item, n, status="ok", reason=None):
    return json.dumps({"item": item, "n": n, "status": status, "reason": reason}) + "\n"


def test_images_and_misses(toy):
    for item in ITEMS[:3]:
        (toy / "images" / item).mkdir(parents=True)
        (toy / "images" / item / "000.jpg").write_bytes(b"")
    (toy / "images.jsonl").write_text("".join(image_row(item, 0) for item in ITEMS))
    assert trouble(toy) == []
    assert "3 of 4 items have a picture" in checks.as_text(look(toy))
    with open(toy / "images.jsonl", "a") as handle:
        handle.write(image_row("i3", 0, "miss", "http_404") + image_row("i1", 1, "miss", "timeout") + image_row("i1", 1))
    is_only(toy, "warning", "data/toy/images.jsonl", "1 of 5 images", "http_404 1")
    (toy / "images.jsonl").write_text(image_row("i0", 0) + "torn")
    is_only(toy, "warning", "data/toy/images.jsonl:2", "row of an image")


def test_pictures_of_nobody(toy):
    (toy / "images" / "I0").mkdir(parents=True)
    (toy / "images" / "I0" / "0.png").write_bytes(b"")
    is_only(toy, "warning", "data/toy/images", "0 of 4 items", "1 folders")


# --------------------------------------------------------------------------------------------------- damaged files
@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")  # numpy takes a damaged header for one of Python 2
def test_damaged_files_are_findings(toy, output):
    """300 damaged folders: whatever is broken, the doctor says something and raises nothing."""
    (toy / "images.jsonl").write_text(image_row("i0", 0))
    (toy / "prepare.json").write_text(json.dumps({"users": 4, "items": 4, "interactions": 12}))
    (toy / "import.json").write_text(json.dumps({"complete": True, "imports": [{"users": 4}], "outputs": {}}))
    places = sorted(path for path in toy.parent.parent.rglob("*") if path.is_file())
    silent = 0
    for seed in range(300):
        random = Random(seed)
        path = random.choice(places)
        sound = path.read_bytes()
        path.write_bytes(damaged(sound, random))
        silent += not trouble(toy, output=output)
        path.write_bytes(sound)
    assert silent < 100


# --------------------------------------------------------------------------------------------------- RecBole does so
def recbole_reads(folder, **settings):
    """Rows of (user, item, time) as RecBole has them after loading, and its items, by SASRec's data set."""
    from recbole.config import Config
    from recbole.data import create_dataset

    load = {"inter": ["user_id", "item_id", "timestamp"]}
    logging.getLogger().setLevel("ERROR")
    given = {"data_path": str(folder.parent), "load_col": load, "train_neg_sample_args": None, "state": "ERROR", **settings}
    dataset = create_dataset(Config(model="SASRec", dataset=folder.name, config_dict=given))
    frame = dataset.inter_feat
    names = [dataset.id2token(field, frame[field].to_numpy()) for field in ("user_id", "item_id")]
    return dataset, list(zip(*names, frame["timestamp"].tolist(), strict=True))


def test_recbole_shifts_columns_when_rows_end_in_a_tab(toy, monkeypatch):
    """What the doctor calls an error is one: users become items' names, without a word from RecBole alone."""
    monkeypatch.setattr(recbole_dataset.pd, "read_csv", pd.read_csv)  # this package's reader takes the named columns
    change_inter(toy, "u0\ti0\t1\t\nu0\ti1\t2\t\nu0\ti2\t3\t\n", "user_id:token\titem_id:token\ttimestamp:float\n")
    assert [row[:2] for row in recbole_reads(toy)[1]] == [("i0", "1"), ("i1", "2"), ("i2", "3")]
    assert "shifts" in trouble(toy)[0][2]


def test_recbole_drops_ids_that_are_words_for_missing(toy):
    change_inter(toy, [*ROWS, ("u0", "NA", "1", "900")])
    assert len(recbole_reads(toy)[1]) == len(ROWS)
    is_only(toy, "error", "data/toy/toy.inter:14", "item 'NA'")


def test_recbole_swallows_lines_after_a_lone_quote(toy):
    change_inter(toy, [*ROWS[:3], ('"u1', "i1", "5.0", "100"), *ROWS[4:6], ('u9"', "i1", "5", "1"), *ROWS[6:]])
    assert len(recbole_reads(toy)[1]) == len(ROWS) - 2
    assert ("error", "data/toy/toy.inter:5") in [each[:2] for each in trouble(toy)]


def test_recbole_drops_interactions_of_items_without_a_row(toy):
    change_items(toy, ITEM_ROWS[:3])
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    assert len(recbole_reads(toy, load_col=load)[1]) == sum(row[1] != "i3" for row in ROWS) < len(ROWS)
    is_only(toy, "error", "data/toy/toy.item", "drops", "i3")


def test_recbole_turns_near_times_round(toy):
    near = [1_600_000_010, 1_600_000_000, 1_600_100_000, 1_600_200_000]
    change_inter(toy, timed(near))
    dataset, _ = recbole_reads(toy)
    test = dataset.build()[2].inter_feat
    history = dataset.id2token("item_id", test["item_id_list"][0].numpy()[:3])
    assert list(history) == ["i0", "i1", "i2"]  # i1 came first
    is_only(toy, "warning", "data/toy/toy.inter:3", "1 rows")


def test_the_doctor_needs_no_existing_output(toy):
    assert trouble(toy, output=Path("nowhere")) == []
