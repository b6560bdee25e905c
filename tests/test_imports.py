"""dataset_prep.importers: published folders become data set folders that say the same; what does not fit is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_prep import importers
from dataset_prep.importers import shared_ids
from recbole_qbert.data import item_features as features
from recbole_qbert.quantization import semantic_ids
from tests.helpers import files

HISTORIES = {0: [0, 1, 2], 1: [2, 1, 0, 3], 2: [3, 0, 1]}
ITEMS = ("B1", "B2", "B3", "B4", "B5")  # nobody interacts with the last
USERS = ("ann", "bob", "cyd")
TEXT = np.arange(15, dtype=np.float32).reshape(5, 3) + 1
IMAGE = np.arange(20, dtype=np.float16).reshape(5, 4) + 1
INTER = (
    "user_id:token\titem_id:token\ttimestamp:float\n"
    "ann\tB1\t0\nann\tB2\t1\nann\tB3\t2\n"
    "bob\tB3\t0\nbob\tB2\t1\nbob\tB1\t2\nbob\tB4\t3\n"
    "cyd\tB4\t0\ncyd\tB1\t1\ncyd\tB2\t2\n"
)


def index_lines(tokens):
    return "".join(f"{token}\t{index}\n" for index, token in enumerate(tokens))


def ids_json(letters, codes):
    return json.dumps({str(i): [f"<{p}_{c}>" for p, c in zip(letters, row, strict=True)] for i, row in enumerate(codes)})


@pytest.fixture
def mql(tmp_path):
    """A folder as MQL4GRec publishes it."""
    folder = tmp_path / "source" / "Toys"
    folder.mkdir(parents=True)
    texts = {
        "title": 'A "big" &amp; red\ttoy.',
        "description": ".",
        "brand": "Ernie Ball",
        "categories": "Toys,Red &amp; big,Toys",
    }
    write = {
        "inter.json": json.dumps({str(user): history for user, history in HISTORIES.items()}, indent=4),
        "item2id": index_lines(ITEMS),
        "user2id": index_lines(USERS),
        "item.json": json.dumps({"0": texts, "1": {**texts, "title": "N/A", "description": "soft"}, "4": texts}),
        "index_lemb.json": ids_json("abcd", [(1, 2, 3, 4), (1, 2, 3, 5), (9, 2, 3, 4), (255, 0, 0, 0), (1, 2, 3, 4)]),
        "index_vitemb.json": ids_json("ABCD", [(7, 7, 7, 7), (7, 7, 7, 8), (0, 2, 3, 4), (5, 0, 0, 0), (7, 7, 7, 7)]),
        "train.inter": "left aside",
    }
    for ending, text in write.items():
        (folder / f"Toys.{ending}").write_text(text, encoding="utf-8")
    np.save(folder / "Toys.emb-llama-td.npy", TEXT)
    np.save(folder / "Toys.emb-ViT-L-14.npy", IMAGE)
    return folder


def bring_mql(mql, tmp_path, **options):
    return importers.mql4grec(mql, "Toys", tmp_path / "data", progress=False, **options)


HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def prefix_files(folder, name, histories, cap=50):
    """The three files of prefix rows, as UniSRec's preprocessing writes them."""
    rows = {"train": [], "valid": [], "test": []}
    for user, history in histories.items():
        train = history[:-2]
        for place in range(len(train) - 1, 0, -1):
            rows["train"].append(f"{user}\t{' '.join(map(str, train[:place][-cap:]))}\t{train[place]}\n")
        rows["valid"].append(f"{user}\t{' '.join(map(str, train[-cap:]))}\t{history[-2]}\n")
        rows["test"].append(f"{user}\t{' '.join(map(str, history[:-1][-cap:]))}\t{history[-1]}\n")
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        (folder / f"{name}.{part}.inter").write_text(HEADER + "".join(lines))


@pytest.fixture
def uni(tmp_path):
    """A folder as UniSRec and MISSRec publish theirs."""
    folder = tmp_path / "source" / "Toys"
    prefix_files(folder, "Toys", HISTORIES)
    (folder / "Toys.item2index").write_text(index_lines(ITEMS))
    (folder / "Toys.user2index").write_text(index_lines(USERS))
    (folder / "Toys.text").write_text("item_id:token\ttext:token_seq\nB2\tA red toy. \nB1\nB9\tunknown\n")
    TEXT.tofile(folder / "Toys.feat1CLS")
    (TEXT + 1).tofile(folder / "Toys.feat2CLS")
    image = TEXT.copy()
    image[1] = 0
    image.tofile(folder / "Toys.feat3CLS")
    return folder


def bring_uni(uni, tmp_path, **options):
    return importers.unisrec(uni, "Toys", tmp_path / "data", **{"width": 3, "progress": False, **options})


def refused(folder, ending, text, call, *words):
    """The call raises a ValueError that names the file, and leaves nothing behind."""
    (folder / f"Toys.{ending}").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"Toys.{ending}")) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
    assert not (folder.parent.parent / "data" / "Toys").exists()


# --------------------------------------------------------------------------------------------------- MQL4GRec
def test_mql4grec_becomes_a_data_set_folder(mql, tmp_path):
    report = bring_mql(mql, tmp_path, name="X")
    folder = tmp_path / "data" / "X"
    assert (folder / "X.inter").read_text() == INTER
    assert (folder / "X.item").read_text() == (
        "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq\n"
        "B1\tA ''big'' & red toy.\tErnie Ball\tToys Red_&_big\t\n"
        "B2\t\tErnie Ball\tToys Red_&_big\tsoft\n"
        "B3\t\t\t\t\nB4\t\t\t\t\n"
    )
    loaded = features.load(folder, "X", ITEMS, ("text", "image"))
    assert np.array_equal(loaded.vectors["text"][:, 0], TEXT)
    assert np.array_equal(loaded.vectors["image"][:, 0], IMAGE.astype(np.float32))
    assert np.load(folder / "X.image.npy").dtype == np.float16
    ids = semantic_ids.load(folder / "X.sid")
    assert ids.items == ITEMS[:4]
    assert ids.prefixes == tuple("abcdABCD")
    assert ids.text(2) == "<a_9><b_2><c_3><d_4><A_0><B_2><C_3><D_4>"
    assert (report.users, report.items, report.interactions, report.items_unused, report.texts) == (3, 4, 10, 1, 2)
    assert report.features["text"].coverage == 1.0
    assert report.semantic_ids == {"items": 4, "unique": 4, "levels": list("abcdABCD"), "codes": 256}
    assert report.missing == () and report.warnings == ()
    assert list(report.ignored) == ["Toys.train.inter"]


def test_the_manifest_holds_sources_outputs_and_what_the_times_are(mql, tmp_path):
    bring_mql(mql, tmp_path)
    folder = tmp_path / "data" / "Toys"
    manifest = json.loads((folder / "import.json").read_text())
    [entry] = manifest["imports"]
    assert manifest["complete"] is True
    assert entry["kind"] == "mql4grec" and "position" in entry["timestamps"]
    assert entry["sources"]["Toys.item2id"] == features.sha256(mql / "Toys.item2id")
    assert len(entry["sources"]) == 8
    assert manifest["outputs"] == {p.name: features.sha256(p) for p in folder.glob("Toys.*")}


@pytest.mark.pipeline
def test_published_instruments_come_back_as_they_were(shared_data, tmp_path):
    """The real set, put into MQL4GRec's form and imported, gives its .inter file back byte by byte."""
    real = shared_data / "Amazon_Instruments"
    histories = {}
    for line in (real / "Amazon_Instruments.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    items = (real / "Amazon_Instruments.items.txt").read_text().split()
    number = {item: index for index, item in enumerate(items)}
    source = tmp_path / "Instruments"
    source.mkdir()
    inter = {str(index): [number[item] for item in history] for index, history in enumerate(histories.values())}
    (source / "Instruments.inter.json").write_text(json.dumps(inter))
    (source / "Instruments.item2id").write_text(index_lines(items))
    (source / "Instruments.user2id").write_text(index_lines(histories))
    shutil.copy(real / "Amazon_Instruments.text.npy", source / "Instruments.emb-llama-td.npy")
    for kind, letters in (("text", "abcd"), ("image", "ABCD")):
        rows = [line.split("\t") for line in (real / f"Amazon_Instruments.{kind}_codes.tsv").read_text().splitlines()]
        codes = {row[0]: row[1:] for row in rows}
        (source / f"Instruments.index_{kind}.json").write_text(ids_json(letters, [codes[item] for item in items]))
    report = importers.mql4grec(source, "Instruments", tmp_path / "data", name="Amazon_Instruments", progress=False)
    written = tmp_path / "data" / "Amazon_Instruments"
    assert (report.users, report.items, report.interactions) == (17112, 6250, 136226)
    assert report.semantic_ids is not None and report.semantic_ids["unique"] == 6250
    for ending in ("inter", "items.txt", "text.npy"):
        name = f"Amazon_Instruments.{ending}"
        assert (written / name).read_bytes() == (real / name).read_bytes(), ending


def test_ids_that_items_share_are_reported_and_not_written(mql, tmp_path):
    (mql / "Toys.index_vitemb.json").unlink()
    text = ids_json("abcd", [(1, 2, 3, 4), (1, 2, 3, 4), (9, 2, 3, 4), (255, 0, 0, 0), (0, 0, 0, 0)])
    (mql / "Toys.index_lemb.json").write_text(text)
    report = bring_mql(mql, tmp_path)
    assert report.semantic_ids is None
    assert "3 different IDs for 4 items" in report.warnings[0] and "B1 and B2 share" in report.warnings[0]
    assert not (tmp_path / "data" / "Toys" / "Toys.sid").exists()
    assert "Toys.index*.json (image)" in report.missing


SHARED = [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4), (0, 0, 0, 0)]


def sid_of(tmp_path):
    ids = semantic_ids.load(tmp_path / "data" / "Toys" / "Toys.sid")
    return dict(zip(ids.items, map(tuple, ids.codes.tolist()), strict=True))


def test_items_that_share_an_id_take_the_nearest_free_numbers(mql, tmp_path):
    """Without vectors: B1 keeps its ID, B2 takes 3, one off 4, and B4 takes 2; 5 is B3's, and codes end at 5."""
    for ending in ("index_vitemb.json", "emb-llama-td.npy", "emb-ViT-L-14.npy"):
        (mql / f"Toys.{ending}").unlink()
    (mql / "Toys.index_lemb.json").write_text(ids_json("abcd", SHARED))
    warning = bring_mql(mql, tmp_path).warnings[0]
    assert all(words in warning for words in ("--reallocate", "3 of them", "B1 and B2", "<a_1><b_2><c_3><d_4>"))
    report = bring_mql(mql, tmp_path, reallocate=True)
    assert sid_of(tmp_path) == {"B1": (1, 2, 3, 4), "B2": (1, 2, 3, 3), "B3": (1, 2, 3, 5), "B4": (1, 2, 3, 2)}
    assert (report.semantic_ids["unique"], report.semantic_ids["moved"], report.warnings) == (4, 2, ())


def test_items_that_share_an_id_take_the_nearest_free_code_of_their_vectors(mql, tmp_path):
    """First level: 3 and -3; second: 2, 0 and -2. B1 (5) and B2 (1) share the middle code; B2 takes -2, B1 stays."""
    (mql / "Toys.index_vitemb.json").unlink()
    (mql / "Toys.emb-ViT-L-14.npy").unlink()
    np.save(mql / "Toys.emb-llama-td.npy", np.array([[5.0], [1.0], [-5.0], [-1.0], [7.0]], dtype=np.float32))
    (mql / "Toys.index_lemb.json").write_text(ids_json("ab", [(0, 1), (0, 1), (1, 2), (1, 0), (0, 0)]))
    bring_mql(mql, tmp_path, reallocate=True)
    assert sid_of(tmp_path) == {"B1": (0, 1), "B2": (0, 2), "B3": (1, 2), "B4": (1, 0)}


@pytest.mark.parametrize("vectors", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reallocated_ids_are_unique_and_change_only_where_they_must(vectors, data):
    count, size = data.draw(st.integers(1, 9)), 3
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sets = []
    for _ in range(data.draw(st.integers(1, 2))):
        codes = draw.integers(0, size, (count, 2)).astype(np.int16)
        matrix = draw.normal(size=(count + 2, 4)).astype(np.float16) if vectors else None
        sets.append(shared_ids.CodeSet(codes, matrix, np.arange(count) + 2))
    if len(sets) == 2:
        sets[1].codes[draw.random(count) < 0.3] = -1
    items = [f"I{n}" for n in range(count)]
    before = np.concatenate([one.codes for one in sets], axis=1)
    after = shared_ids.separate(sets, items, size)
    assert len({tuple(row) for row in after.tolist()}) == count
    assert np.array_equal(after < 0, before < 0) and after.max() < size
    changed = (after != before).any(1)
    assert changed.sum() == count - len(np.unique(before, axis=0)) and not (changed & ~shared_ids.sharing(before)).any()
    assert np.array_equal(after, shared_ids.separate(sets, items, size))


def test_the_codebooks_of_a_quantizer_come_back_from_its_vectors(monkeypatch):
    monkeypatch.setattr(shared_ids, "BLOCK", 3)
    books = np.array([[[10.0, 0], [0, 10]], [[1, 1], [-1, -1]]])
    codes = np.array([(a, b) for a in (0, 1) for b in (0, 1)], dtype=np.int16)
    vectors = books[0, codes[:, 0]] + books[1, codes[:, 1]]
    assert np.allclose(shared_ids._codebooks(codes, vectors, np.arange(4), 2), books)


def test_both_code_sets_together_are_made_unique(mql, tmp_path):
    (mql / "Toys.index_lemb.json").write_text(ids_json("ab", [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)]))
    (mql / "Toys.index_vitemb.json").write_text(ids_json("AB", [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)]))
    report = bring_mql(mql, tmp_path, reallocate=True)
    assert (report.semantic_ids["unique"], report.semantic_ids["moved"]) == (4, 1)
    codes = sid_of(tmp_path)
    assert codes["B3"] == (0, 0, 0, 1) and codes["B4"] == (1, 1, 1, 1)


def test_ids_that_end_early_are_named_or_filled(mql, tmp_path):
    """The extra token of items that shared an ID: 0 says that there is none, and n becomes n + 1."""
    (mql / "Toys.index_vitemb.json").unlink()
    ids = {"0": "<a_1> <b_2>", "1": "<a_1> <b_2> <c_0>", "2": "<a_1> <b_2> <c_1>", "3": "<a_3> <b_3>"}
    text = json.dumps({item: tokens.split() for item, tokens in ids.items()})
    refused(mql, "index_lemb.json", text, lambda: bring_mql(mql, tmp_path), "item 1", "--reallocate")
    report = bring_mql(mql, tmp_path, reallocate=True)
    assert sid_of(tmp_path) == {"B1": (1, 2, 0), "B2": (1, 2, 1), "B3": (1, 2, 2), "B4": (3, 3, 0)}
    assert report.semantic_ids["moved"] == 0


def test_reallocation_needs_ids(mql, tmp_path):
    (mql / "Toys.index_vitemb.json").unlink()
    text = json.dumps({"0": ["<a_1>"]})
    refused(mql, "index_lemb.json", text, lambda: bring_mql(mql, tmp_path, reallocate=True), "3 items", "B2")


@pytest.mark.parametrize(
    ("texts", "cells"),
    [
        ({"description": ["one", "two"], "categories": ["A", "C, x"]}, ("A C,_x", "one two")),
        ({"description": "['one', 'two']", "categories": "['A', 'C, x']"}, ("A C,_x", "one two")),
        ({"description": '["one", "<b>two</b>"]', "categories": [["A", "B"], ["A", "C"]]}, ("A B C", "one two")),
        ({"description": str(np.array(["one", "two"])), "categories": "A, B"}, ("A B", "one two")),
        ({"description": None, "categories": []}, ("", "")),
        ({"description": 5, "categories": [1, None, "B"]}, ("1 B", "5")),
        ({"description": ["."], "categories": ""}, ("", "")),
        ({"description": "[2 Pack] Socks"}, ("", "[2 Pack] Socks")),
    ],
)
def test_texts_may_be_lists(mql, tmp_path, texts, cells):
    (mql / "Toys.item.json").write_text(json.dumps({"0": {"title": ["A", "B"], **texts}}))
    bring_mql(mql, tmp_path)
    row = (tmp_path / "data" / "Toys" / "Toys.item").read_text().splitlines()[1].split("\t")
    assert (row[1], *row[3:]) == ("A B", *cells)


@pytest.mark.parametrize("value", [{"a": "b"}, ["x", {"a": "b"}]])
def test_texts_that_would_be_lost_are_refused(mql, tmp_path, value):
    text = json.dumps({"1": {"description": value}})
    refused(mql, "item.json", text, lambda: bring_mql(mql, tmp_path), "item 1", "description")


@pytest.mark.parametrize("known", ["item.json", "index_lemb.json", "emb-llama-td.npy"])
@pytest.mark.parametrize("first", [0, 1])
def test_items_that_nobody_chose_are_known_from_other_files(mql, tmp_path, known, first):
    """Without item2id, item `first` + 2 occurs in one other file only."""
    for path in mql.iterdir():
        if path.name not in ("Toys.inter.json", f"Toys.{known}"):
            path.unlink()
    histories = {str(user): [first, first + 1, first + 3] for user in range(2)}
    (mql / "Toys.inter.json").write_text(json.dumps(histories))
    indexes = range(first, first + 4)
    if known == "item.json":
        (mql / "Toys.item.json").write_text(json.dumps({str(n): {"title": f"t{n}"} for n in indexes}))
    elif known == "index_lemb.json":
        (mql / "Toys.index_lemb.json").write_text(json.dumps({str(n): [f"<a_{n}>"] for n in indexes}))
    report = bring_mql(mql, tmp_path)
    assert (report.items, report.interactions) == (3, 6)
    rows = (tmp_path / "data" / "Toys" / "Toys.inter").read_text().splitlines()[1:4]
    assert [row.split("\t")[1] for row in rows] == [str(first), str(first + 1), str(first + 3)]
    assert (tmp_path / "data" / "Toys" / "Toys.sid").exists() == (known == "index_lemb.json")


def test_one_code_set_takes_the_first_letters(mql, tmp_path):
    (mql / "Toys.index_lemb.json").unlink()
    bring_mql(mql, tmp_path)
    assert semantic_ids.load(tmp_path / "data" / "Toys" / "Toys.sid").prefixes == tuple("abcd")


def test_without_tokens_the_indexes_are_the_tokens(mql, tmp_path):
    for ending in ("item2id", "user2id"):
        (mql / f"Toys.{ending}").unlink()
    report = bring_mql(mql.parent, tmp_path)  # the folder above will do, too
    assert report.missing == ("Toys.item2id", "Toys.user2id")
    assert (tmp_path / "data" / "Toys" / "Toys.inter").read_text().splitlines()[4] == "1\t2\t0"
    assert (tmp_path / "data" / "Toys" / "Toys.items.txt").read_text() == "0\n1\n2\n3\n4\n"


def test_without_anything_else_indexes_must_have_no_gaps(mql, tmp_path):
    for path in mql.iterdir():
        if path.name != "Toys.inter.json":
            path.unlink()
    assert bring_mql(mql, tmp_path).items == 4
    shutil.rmtree(tmp_path / "data")
    refused(mql, "inter.json", '{"0": [0, 1, 900000000000]}', lambda: bring_mql(mql, tmp_path), "gaps")


def test_rows_of_zeros_become_missing_and_repeated_images_are_told(mql, tmp_path):
    image = IMAGE.copy()
    image[1] = 0
    image[3] = image[2]
    np.save(mql / "Toys.emb-ViT-L-14.npy", image)
    report = bring_mql(mql, tmp_path)
    written = np.load(tmp_path / "data" / "Toys" / "Toys.image.npy")
    assert np.isnan(written[1]).all() and np.array_equal(written[2:], image[2:])
    found = report.features["image"]
    assert (found.missing, found.zeros, found.repeats, found.coverage) == (1, 1, 1, 0.75)
    assert "1 rows of zeros" in report.warnings[0] and "1 rows equal the row before" in report.warnings[1]


@pytest.mark.parametrize(
    ("ending", "text", "words"),
    [
        ("inter.json", '{"0": [0, 1', ["JSON"]),
        ("inter.json", "[]", ["list"]),
        ("inter.json", "{}", ["no interactions"]),
        ("inter.json", '{"u": [0]}', ["'u'"]),
        ("inter.json", '{"0": [0], "0": [1]}', ["twice"]),
        ("inter.json", '{"0": [0, "1"]}', ["user 0"]),
        ("inter.json", '{"0": [0, -1]}', ["user 0"]),
        ("inter.json", '{"0": [0, 5]}', ["user 0", "item 5", "end at 4"]),
        ("inter.json", '{"3": [0]}', ["user 3", "user2id"]),
        ("item2id", "B1\t0\nB2 1\n", [":2", "'B2 1'"]),
        ("item2id", "B1\t0\nB1\t1\n", [":2", "earlier line"]),
        ("item2id", "B1\t0\nB2\t0\n", [":2", "earlier line"]),
        ("item2id", "B1\t0\nB2\t2\n", ["index 1 "]),
        ("item2id", "B1\t0\nNA\t1\n", [":2", "'NA'", "missing value"]),
        ("item2id", "B1\t0\nB 2\t1\n", [":2", "'B 2'", "space"]),
        ("user2id", 'ann\t0\n"b\t1\n', [":2", "quote"]),
        ("item.json", '{"0": "title"}', ["item 0", "title"]),
        ("item.json", '{"7": {}}', ["item 7", "beyond"]),
        ("index_lemb.json", '{"0": ["<a_1>"], "1": ["<a_1>", "<b_1>"]}', ["item 1"]),
        ("index_lemb.json", '{"0": ["<a_1>"], "1": ["<b_1>"]}', ["item 1", "levels"]),
        ("index_lemb.json", '{"0": "<a_1>"}', ["<a_1>"]),
        ("index_lemb.json", '{"0": ["<a_40000>"]}', ["40000"]),
        ("index_lemb.json", '{"9": ["<a_1>"]}', ["item 9", "beyond"]),
        ("index_2.json", '{"0": ["<A_1>"]}', ["both of image"]),
    ],
)
def test_mql4grec_refuses_what_does_not_fit(mql, tmp_path, ending, text, words):
    refused(mql, ending, text, lambda: bring_mql(mql, tmp_path), *words)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (TEXT[:4], "has 4 rows for 5 items"),
        (TEXT.astype(int), "int64"),
        (TEXT[0], "shape"),
        (np.where(TEXT == 5, np.inf, TEXT), r"row 1 \(item B2\)"),
        (np.where(TEXT == 5, np.nan, TEXT), r"row 1 \(item B2\)"),
        (TEXT.astype(np.float64) * 1e300, r"row 0 \(item B1\)"),
        (np.array([{}], dtype=object), "plain .npy"),
    ],
)
def test_a_matrix_that_features_cannot_have_is_refused(mql, tmp_path, matrix, words):
    np.save(mql / "Toys.emb-llama-td.npy", matrix)
    with pytest.raises(ValueError, match=words):
        bring_mql(mql, tmp_path)
    assert not (tmp_path / "data" / "Toys").exists()


def test_float64_becomes_float32(mql, tmp_path):
    np.save(mql / "Toys.emb-llama-td.npy", TEXT.astype(">f8"))
    bring_mql(mql, tmp_path)
    assert np.load(tmp_path / "data" / "Toys" / "Toys.text.npy").dtype == np.dtype("float32")


def test_a_folder_that_is_not_there_says_what_is(mql, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Games.*\bToys\b"):
        importers.mql4grec(mql, "Games", tmp_path / "data", progress=False)


# --------------------------------------------------------------------------------------------------- UniSRec
def test_unisrec_becomes_a_data_set_folder(uni, tmp_path):
    report = bring_uni(uni, tmp_path)
    folder = tmp_path / "data" / "Toys"
    assert (folder / "Toys.inter").read_text() == INTER
    assert (folder / "Toys.item").read_text() == "item_id:token\ttitle:token_seq\nB1\t\nB2\tA red toy.\nB3\t\nB4\t\n"
    loaded = features.load(folder, "Toys", ITEMS, ("text", "image"))
    assert np.array_equal(loaded.vectors["text"][:, 0], TEXT)
    assert loaded.present["image"][:, 0].tolist() == [True, False, True, True, True]
    assert (report.users, report.items, report.interactions, report.items_unused, report.texts) == (3, 4, 10, 1, 1)
    assert list(report.ignored) == ["Toys.feat2CLS"]
    assert report.missing == ()
    assert [warning.split(":")[0] for warning in report.warnings] == ["Toys.feat3CLS", "Toys.text"]


@pytest.mark.parametrize("backwards", [False, True])
def test_long_histories_come_back_from_prefixes_cut_to_the_newest(uni, tmp_path, backwards):
    random = np.random.default_rng(0)
    histories = {user: random.integers(0, 5, length).tolist() for user, length in enumerate((9, 3, 30))}
    prefix_files(uni, "Toys", histories, cap=4)
    if backwards:  # shortest prefix first
        path = uni / "Toys.train.inter"
        path.write_text(HEADER + "".join(path.read_text().splitlines(keepends=True)[:0:-1]))
    bring_uni(uni, tmp_path)
    found = {}
    for line in (tmp_path / "data" / "Toys" / "Toys.inter").read_text().splitlines()[1:]:
        user, item, place = line.split("\t")
        assert int(place) == len(found.setdefault(user, []))
        found[user].append(ITEMS.index(item))
    assert found == {USERS[user]: history for user, history in histories.items()}


def test_without_index_files_rows_are_numbered(uni, tmp_path):
    for ending in ("item2index", "user2index"):
        (uni / f"Toys.{ending}").unlink()
    report = bring_uni(uni, tmp_path)
    assert report.missing == ("Toys.item2index", "Toys.user2index")
    assert report.texts == 0 and "Toys.text" in report.ignored
    assert (tmp_path / "data" / "Toys" / "Toys.items.txt").read_text() == "0\n1\n2\n3\n4\n"


def test_users_without_a_test_row_are_told(uni, tmp_path):
    path = uni / "Toys.test.inter"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "1 users have no row in Toys.test.inter" in " ".join(bring_uni(uni, tmp_path).warnings)


@pytest.mark.parametrize(
    ("ending", "text", "words"),
    [
        ("train.inter", "user_id:token\titem_id:token\n", [":1", "header"]),
        ("train.inter", f"{HEADER}0\t1\n", [":2", "'0\\t1'"]),
        ("train.inter", f"{HEADER}0\t\t1\n", [":2"]),
        ("train.inter", f"{HEADER}0\tB1\t1\n", [":2", "B1"]),
        ("train.inter", f"{HEADER}1\t2\t3\n", []),  # the validation file says 2, 1
        ("valid.inter", f"{HEADER}1\t2 1\t0\n0\t0\t1\n1\t2 1\t3\n", [":4", "user 1"]),
        ("test.inter", f"{HEADER}0\t0 2\t1\n", [":2", "user 0"]),
        ("test.inter", f"{HEADER}0\t0 1\t77\n", []),
        ("item2index", "B1\t0\n", []),
        ("pt_datasets", "Food,Home\n", []),
        ("text", "B7\tx\n", ["Toys.text"]),
        ("text", "B1\tx\nB1\ty\n", [":2", "B1"]),
    ],
)
def test_unisrec_refuses_what_does_not_fit(uni, tmp_path, ending, text, words):
    (uni / f"Toys.{ending}").write_text(text)
    with pytest.raises(ValueError, match="Toys") as error:
        bring_uni(uni, tmp_path)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "data" / "Toys").exists()


def test_a_line_that_is_not_utf8_is_named(uni, tmp_path):
    (uni / "Toys.user2index").write_bytes(b"ann\t0\n\xff\t1\n")
    with pytest.raises(ValueError, match=r"Toys\.user2index:2: .*UTF-8"):
        bring_uni(uni, tmp_path)


def test_a_wrong_width_names_the_one_that_fits(uni, tmp_path):
    with pytest.raises(ValueError, match=r"Toys\.feat1CLS.* 768 .*width of 3\b"):
        bring_uni(uni, tmp_path, width=768)
    with pytest.raises(ValueError, match="width is 0"):
        bring_uni(uni, tmp_path, width=0)
    np.ones(7, dtype=np.float32).tofile(uni / "Toys.feat3CLS")
    with pytest.raises(ValueError, match=r"Toys\.feat3CLS has 28 bytes"):
        bring_uni(uni, tmp_path)
    np.ones(10, dtype=np.float32).tofile(uni / "Toys.feat3CLS")
    assert bring_uni(uni, tmp_path, image_width=2).features["image"].shape == (5, 2)


def test_a_missing_part_is_named(uni, tmp_path):
    (uni / "Toys.valid.inter").unlink()
    with pytest.raises(FileNotFoundError, match=r"Toys\.valid\.inter"):
        bring_uni(uni, tmp_path)


# --------------------------------------------------------------------------------------------------- whole or absent
def test_the_same_import_again_gives_the_same_bytes(mql, tmp_path):
    bring_mql(mql, tmp_path)
    before = files(tmp_path / "data")
    bring_mql(mql, tmp_path)
    assert files(tmp_path / "data") == before


def test_files_of_an_earlier_import_that_are_no_longer_made_go(mql, tmp_path):
    bring_mql(mql, tmp_path)
    (mql / "Toys.emb-ViT-L-14.npy").unlink()
    bring_mql(mql, tmp_path)
    assert features.available(tmp_path / "data" / "Toys", "Toys") == ("text",)


def test_files_that_no_import_wrote_are_not_touched(mql, tmp_path):
    folder = tmp_path / "data" / "Toys"
    folder.mkdir(parents=True)
    (folder / "Toys.inter").write_text("precious")
    with pytest.raises(ValueError, match=r"Toys\.inter"):
        bring_mql(mql, tmp_path)
    assert files(folder) == {"Toys.inter": b"precious"}


def test_a_failed_import_leaves_the_earlier_one_as_it_was(mql, tmp_path):
    bring_mql(mql, tmp_path)
    before = files(tmp_path / "data")
    np.save(mql / "Toys.emb-ViT-L-14.npy", np.full((5, 2), np.inf, np.float32))  # found when the text is written already
    with pytest.raises(ValueError, match="infinite"):
        bring_mql(mql, tmp_path)
    assert files(tmp_path / "data") == before


@pytest.mark.parametrize("name", ["../Toys", "a b", ".hidden", "a/b"])
def test_a_name_is_no_path(mql, tmp_path, name):
    with pytest.raises(ValueError, match=r"data set '"):
        bring_mql(mql, tmp_path, name=name)


@pytest.mark.process
@pytest.mark.parametrize("moment", range(8))
def test_killed_between_two_renames_and_run_again(mql, tmp_path, monkeypatch, moment):
    """kill -9 while the files take their names: the folder says so, and the same import completes it."""
    bring_mql(mql, tmp_path)
    folder, expected = tmp_path / "data" / "Toys", files(tmp_path / "data")
    (mql / "Toys.item2id").write_text(index_lines(f"new{item}" for item in ITEMS))
    real, renamed = os.replace, []

    def replace(source, target):
        if Path(source).parent.name == ".import.part" and Path(target).parent == folder:
            if len(renamed) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            renamed.append(target)
        real(source, target)

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "replace", replace)
        try:
            bring_mql(mql, tmp_path)
        finally:
            os._exit(1)
    killed = os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert killed == (moment < 7)  # files of the folder but its manifest
    assert json.loads((folder / "import.json").read_text())["complete"] is not killed
    (mql / "Toys.item2id").write_text(index_lines(ITEMS))
    bring_mql(mql, tmp_path)
    assert files(tmp_path / "data") == expected


# --------------------------------------------------------------------------------------------------- arrays
@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data" / "Toys"
    folder.mkdir(parents=True)
    (folder / "Toys.inter").write_text(INTER)
    np.save(tmp_path / "text.npy", TEXT[::-1])
    (tmp_path / "ids.txt").write_text("".join(f"{item}\n" for item in ITEMS[::-1]))
    return folder


def bring(folder, ids="ids.txt", matrix="text.npy", modality="text", **options):
    here = folder.parent.parent
    pair = (here / matrix, here / ids)
    return importers.arrays(folder, "Toys", {modality: pair}, **{"progress": False, **options})


def test_arrays_are_aligned_by_token(dataset):
    report = bring(dataset)
    assert features.read_item_list(dataset / "Toys.items.txt") == {"B1": 0, "B2": 1, "B3": 2, "B4": 3}
    assert np.array_equal(np.load(dataset / "Toys.text.npy"), TEXT[:4])
    assert report.features["text"].extra == 1 and "1 rows are of items" in report.warnings[0]
    assert (report.users, report.items, report.interactions) == (3, 4, 10)
    assert json.loads((dataset / "Toys.features.json").read_text())["text"]["shape"] == [4, 3]
    assert (dataset / "Toys.inter").read_text() == INTER


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.csv", 'row,item_id\n0,B5\n1,B4\n2,"B3"\n3,B2\n4,B1\n'),
        ("ids.tsv", "asin\tbrand\nB5\tx\nB4\ty\nB3\tz\nB2\t\nB1\t\n"),
        ("ids.txt", "B5\r\nB4\r\nB3\r\nB2\r\nB1"),
    ],
)
def test_ids_come_as_a_list_or_as_a_table(dataset, name, text):
    (dataset.parent.parent / name).write_bytes(text.encode())
    bring(dataset, name)
    assert np.array_equal(np.load(dataset / "Toys.text.npy"), TEXT[:4])


def test_items_without_a_row_need_a_policy(dataset):
    np.save(dataset.parent.parent / "text.npy", TEXT[:3])
    (dataset.parent.parent / "ids.txt").write_text("B1\nB2\nB3\n")
    with pytest.raises(ValueError, match=r"1 of 4 items .*B4"):
        bring(dataset)
    assert set(files(dataset)) == {"Toys.inter"}
    report = bring(dataset, missing="mask")
    assert np.isnan(np.load(dataset / "Toys.text.npy")[3]).all()
    assert report.features["text"].coverage == 0.75
    with pytest.raises(ValueError, match=r"error.*mask"):
        bring(dataset, missing="zero")


def test_a_second_modality_follows_the_first(dataset):
    (dataset / "Toys.items.txt").write_text("B4\nB3\nB2\nB1\n")
    np.save(dataset / "Toys.text.npy", TEXT[3::-1])
    before = (dataset / "Toys.text.npy").read_bytes()
    bring(dataset, modality="image")
    assert np.array_equal(np.load(dataset / "Toys.image.npy"), TEXT[3::-1])
    assert (dataset / "Toys.text.npy").read_bytes() == before
    with pytest.raises(ValueError, match=r"Toys\.text\.npy"):
        bring(dataset, modality="text")
    (dataset / "Toys.items.txt").write_text("B4\nB3\nB2\n")
    np.save(dataset / "Toys.text.npy", TEXT[3:0:-1])
    with pytest.raises(ValueError, match=r" 1 items of Toys .*B1"):
        bring(dataset, modality="image")


def test_several_modalities_of_several_vectors_at_once(dataset):
    here = dataset.parent.parent
    image = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    image[0, 1] = np.nan
    np.save(here / "image.npy", image)
    (here / "more.txt").write_text("".join(f"{item}\n" for item in ITEMS))
    pairs = {"text": (here / "text.npy", here / "ids.txt"), "image": (here / "image.npy", here / "more.txt")}
    importers.arrays(dataset, "Toys", pairs, progress=False)
    loaded = features.load(dataset, "Toys", ITEMS[:4], ("text", "image"))
    assert np.array_equal(loaded.vectors["text"][:, 0], TEXT[:4])
    assert loaded.present["image"].tolist() == [[True, False], [True, True], [True, True], [True, True]]


def test_arrays_join_an_imported_folder_and_its_manifest(mql, tmp_path):
    (mql / "Toys.emb-ViT-L-14.npy").unlink()
    bring_mql(mql, tmp_path)
    np.save(tmp_path / "text.npy", IMAGE)
    (tmp_path / "ids.txt").write_text("".join(f"{item}\n" for item in ITEMS))
    folder = tmp_path / "data" / "Toys"
    for _ in range(2):  # the second time replaces the first
        bring(folder, modality="image")
        manifest = json.loads((folder / "import.json").read_text())
        assert [entry["kind"] for entry in manifest["imports"]] == ["mql4grec", "arrays"]
        assert manifest["outputs"] == {p.name: features.sha256(p) for p in folder.glob("Toys.*")}
    assert set(json.loads((folder / "Toys.features.json").read_text())) == {"text", "image"}


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ("B1\nB2\n", r"text\.npy has 5 rows.* 2 items"),
        ("B1\nB2\nB1\nB4\nB5\n", "txt:3: item 'B1'"),
        ("B1\nB2\n\nB4\nB5\n", "txt:3: item token ''"),
        ("C1\nC2\nC3\nC4\nC5\n", r"ids\.txt .*Toys"),
    ],
)
def test_ids_that_do_not_fit_are_refused(dataset, ids, words):
    (dataset.parent.parent / "ids.txt").write_text(ids)
    with pytest.raises(ValueError, match=words):
        bring(dataset)
    assert set(files(dataset)) == {"Toys.inter"}


def test_a_table_without_an_id_column_is_refused(dataset):
    (dataset.parent.parent / "ids.csv").write_text("name,brand\nB1,x\n")
    with pytest.raises(ValueError, match=r"ids\.csv:1: no column item_id.*'name, brand'"):
        bring(dataset, "ids.csv")


def test_interactions_that_cannot_be_read_are_refused(dataset):
    for text, words in (("user_id:token\titem_id:token\n", "interactions"), ("a\tb\nc\td\n", "1: no column user_id")):
        (dataset / "Toys.inter").write_text(text)
        with pytest.raises(ValueError, match=rf"Toys\.inter.*{words}"):
            bring(dataset)


def test_nothing_comes_on_top_of_an_unfinished_import(mql, tmp_path):
    bring_mql(mql, tmp_path)
    manifest = tmp_path / "data" / "Toys" / "import.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    np.save(tmp_path / "text.npy", TEXT)
    (tmp_path / "ids.txt").write_text("".join(f"{item}\n" for item in ITEMS))
    with pytest.raises(ValueError, match=r"import\.json"):
        bring(manifest.parent, modality="sound")
    bring_mql(mql, tmp_path)
    bring(manifest.parent, modality="sound")


@pytest.mark.parametrize("modality", ["fused", "depth", "Text", "a.b", "../x", ""])
def test_a_modality_is_a_plain_word(dataset, modality):
    with pytest.raises(ValueError, match="modality"):
        bring(dataset, modality=modality)


def test_arrays_need_a_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Toys\.inter"):
        importers.arrays(tmp_path, "Toys", {"text": (tmp_path / "a.npy", tmp_path / "b")})
    with pytest.raises(ValueError, match="files is empty"):
        importers.arrays(tmp_path, "Toys", {})


# --------------------------------------------------------------------------------------------------- damaged files
def damaged(data, random):
    """Bytes with something changed, put in, doubled or cut off."""
    place = random.randrange(len(data) + 1)
    odd = [
        b"\t",
        b"\n",
        b'"',
        b"\r",
        b"\0",
        b"NA",
        b"-1",
        b"9999999999",
        b"{}",
        b"[]",
        b"null",
        b"1e999",
        b"\xff",
        b"\xed\xa0\x80",
    ]
    middle = random.choice([*odd, data[place // 2 : place // 2 + 9], b""])
    return data[:place] + middle + data[place + random.choice([0, 0, 1, 5, len(data)]) :]


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")  # numpy takes a damaged header for one of Python 2
@pytest.mark.parametrize("kind", ["mql", "uni"])
def test_damaged_files_are_imported_or_refused_by_name(kind, request, tmp_path):
    """200 damaged folders: a whole data set, or an error that names a file and nothing left behind."""
    source, data = request.getfixturevalue(kind), tmp_path / "data" / "Toys"
    outcomes = []
    for seed in range(200):
        random = Random(seed)
        path = random.choice(sorted(source.iterdir()))
        sound = path.read_bytes()
        path.write_bytes(damaged(sound, random))
        refusal = None
        try:
            bring_mql(source, tmp_path) if kind == "mql" else bring_uni(source, tmp_path)
            outcomes.append(json.loads((data / "import.json").read_text())["complete"])
            shutil.rmtree(data)
        except (ValueError, FileNotFoundError) as error:
            refusal = str(error)
            outcomes.append(False)
        assert refusal is None or "Toys." in refusal, (seed, refusal)
        assert not data.exists(), seed
        path.write_bytes(sound)
    assert 20 < sum(outcomes) < 180


# --------------------------------------------------------------------------------------------------- detect
def test_detect_tells_folders_apart(mql, tmp_path):
    assert importers.detect(mql) == importers.detect(mql.parent) == "mql4grec"
    prefix_files(tmp_path / "uni", "Toys", HISTORIES)
    assert importers.detect(tmp_path / "uni") == "unisrec"
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match=r"mql4grec|MQL4GRec"):
        importers.detect(tmp_path / "plain")
    np.save(tmp_path / "plain" / "x.npy", TEXT)
    assert importers.detect(tmp_path / "plain") == "arrays"
    with pytest.raises(FileNotFoundError):
        importers.detect(Path("nowhere"))
