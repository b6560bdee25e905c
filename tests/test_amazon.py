"""dataset_prep.amazon: known answers, refusals with their messages, and RecBole reading the files back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataset_prep import amazon
from dataset_prep.amazon import AmazonFormatError, clean_categories, clean_text, convert, k_core, parse_price

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "raw_amazon2018"


def review(user: str = "U1", item: str = "I1", time: float = 1_500_000_000, **more: Any) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": time, **more}


def lines(records: list[Any]) -> bytes:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()


class Shop:
    """A pair of raw files in a temporary folder, and `convert` on them with every interaction kept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reviews, self.metadata = folder, folder / "r.json", folder / "m.json"
        self.metadata.write_bytes(b"")

    def convert(self, records: list[Any], products: list[Any] | None = None, **options: Any) -> Any:
        self.reviews.write_bytes(lines(records))
        if products is not None:
            self.metadata.write_bytes(lines(products))
        return self.run(**options)

    def run(self, **options: Any) -> Any:
        options = {"min_user_interactions": 1, "min_item_interactions": 1, "progress": False, **options}
        return convert(self.reviews, self.metadata, "Shop", self.folder / "out", **options)

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

    assert set(STR_NA_VALUES) - {""} == amazon.NA_WORDS


def test_categories_are_tokens_without_spaces() -> None:
    assert clean_categories(["Strings &amp; Picks", "Picks", "Picks", " "]) == "Strings_&_Picks Picks"
    assert clean_categories(["Hats", "</span></span></span>", "Great for the pool"]) == "Hats"


@pytest.mark.parametrize(
    ("raw", "dollars"),
    [("$25.00", 25.0), ("$1,299", 1299.0), ("$5.00 - $9.00", 5.0), ("", None), (".a-box{margin:0}", None)],
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
        "metadata": 0, "title": 2, "brand": 3, "categories": 2, "description": 2, "price": 3, "image": 2
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
    assert (report.interactions_read, report.duplicates_dropped, report.interactions) == (4, 2, 2)


def test_k_core_known_answer() -> None:
    """Users 1-3 x items a-c are a 3-core; a chain hangs on it that comes off link by link."""
    core = [(u, i) for u in "123" for i in "abc"]
    chain = [("4", "a"), ("4", "b"), ("4", "d"), ("5", "d"), ("5", "e"), ("6", "d")]
    left, rounds = k_core(pd.DataFrame(core + chain, columns=["user", "item"]), 3, 3)
    assert list(left.itertuples(index=False, name=None)) == core
    assert [r["interactions"] for r in rounds] == [12, 11, 9]
    assert rounds[-1] == {"users": 3, "items": 3, "interactions": 9}


@pytest.mark.parametrize("seed", range(3))
def test_k_core_is_the_brute_force_one(seed: int) -> None:
    draw = random.Random(seed)
    pairs = sorted({(draw.randrange(30), int(draw.triangular(0, 20, 0))) for _ in range(250)})
    expected = pairs
    while True:
        users, items = Counter(u for u, _ in expected), Counter(i for _, i in expected)
        bad_users = {u for u in users if users[u] < 5}
        if not bad_users and min(items.values(), default=4) >= 4:
            break
        expected = [(u, i) for u, i in expected if u not in bad_users and items[i] >= 4]
        if not expected:
            break
    left, _ = k_core(pd.DataFrame(pairs, columns=["user", "item"]), 5, 4)
    assert list(left.itertuples(index=False, name=None)) == expected


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
    assert shop.convert(records, products, require_image=True).no_image_dropped == 2
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
        shop.convert([review(), {**review("U2", "I2"), key: word}], skip_malformed=True)
    message = str(error.value)
    assert f"{shop.reviews}:2: {key} {word!r}" in message
    assert "Rename the id" in message
    assert not (shop.folder / "out").exists()


def test_item_ids_that_cannot_name_a_folder_are_refused(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match=r"r\.json:1: asin '\.\./x' cannot name an image folder"):
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


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_malformed_lines_stop_or_are_counted(shop: Shop, bad: Any, reason: str) -> None:
    records = [review(), "", bad, review("U2"), bad]
    with pytest.raises(AmazonFormatError) as error:
        shop.convert(records)
    assert f"{shop.reviews}:3: " in str(error.value)
    assert reason in str(error.value)
    assert "skip_malformed=True" in str(error.value)
    count = shop.convert(records, skip_malformed=True).reviews
    assert (count.lines, count.blank, count.malformed, count.first_malformed_line) == (5, 1, 2, 3)


def test_other_editions_are_recognised(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match="2014 edition"):
        shop.convert(["{'reviewerID': 'U1', 'asin': 'I1'}"])
    with pytest.raises(AmazonFormatError, match="2023 edition"):
        shop.convert([{"user_id": "U1", "parent_asin": "I1", "rating": 5.0, "timestamp": 1_500_000_000_000}])


def test_malformed_metadata_names_its_own_file(shop: Shop) -> None:
    with pytest.raises(AmazonFormatError, match=r"m\.json:2: no key 'asin'; the line begins"):
        shop.convert([review()], [{"asin": "I1"}, {"title": "x"}])


def test_bytes_that_are_not_utf8(shop: Shop) -> None:
    shop.reviews.write_bytes(lines([review()]) + b'{"reviewerID": "\xff"}\n')
    with pytest.raises(AmazonFormatError, match=r"r\.json:2: 'utf-8' codec"):
        shop.run()


@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_damaged_gzip(shop: Shop, damage: str) -> None:
    draw = random.Random(0)
    packed = gzip.compress(lines([review(f"U{draw.random()}") for _ in range(5000)]))
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
        assert "Download the file again" in str(error.value)


def test_missing_files_and_wrong_options(shop: Shop) -> None:
    with pytest.raises(FileNotFoundError, match=r"r\.json: no such file"):
        shop.run()
    shop.reviews.write_bytes(lines([review()]))
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        shop.run(images=shop.folder / "nowhere")
    with pytest.raises(ValueError, match="min_item_interactions is 0; it must be at least 1"):
        shop.run(min_item_interactions=0)
    with pytest.raises(ValueError, match="names a folder"):
        convert(shop.reviews, shop.metadata, "../up", shop.folder)
    shop.metadata.unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.json: no such file"):
        shop.run()


@pytest.mark.parametrize("records", [[], [review()]])
def test_nothing_left_is_an_error(shop: Shop, records: list[Any]) -> None:
    with pytest.raises(AmazonFormatError, match=rf"of {len(records)} interactions none is left.*Lower"):
        shop.convert(records, min_user_interactions=2)


# -------------------------------------------------------------------------------------------------- writing


def test_gzip_and_plain_give_the_same_bytes_whatever_the_suffix(shop: Shop) -> None:
    records, products = [review(f"U{k}", time=k) for k in range(9)], [{"asin": "I1", "title": "x"}]
    plain = shop.convert(records, products)
    folder = shop.folder / "out" / "Shop"
    before = {p.name: p.read_bytes() for p in folder.glob("Shop.*")}
    shop.reviews.write_bytes(gzip.compress(lines(records)))
    packed = shop.run()
    assert {p.name: p.read_bytes() for p in folder.glob("Shop.*")} == before
    assert plain.reviews.sha256 == hashlib.sha256(lines(records)).hexdigest()
    assert packed.reviews.sha256 == hashlib.sha256(shop.reviews.read_bytes()).hexdigest()


def test_manifest_is_the_report_and_knows_no_paths(shop: Shop) -> None:
    report = shop.convert([review(), review("U2"), review("U2", "I2")])
    text = (shop.folder / "out" / "Shop" / "prepare.json").read_text()
    manifest = json.loads(text)
    assert str(shop.folder) not in text
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (2, 2, 3)
    assert manifest["sparsity"] == report.sparsity == 0.25
    assert manifest["average_length"] == 1.5


@pytest.mark.parametrize("fails_at", ["write", 1, 2, 3])
def test_an_error_while_writing_leaves_nothing_that_looks_complete(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, fails_at: str | int
) -> None:
    shop.convert([review()])
    folder = shop.folder / "out" / "Shop"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    calls = {"replace": 0}
    replace, write = os.replace, Path.write_bytes

    def broken_replace(source: Any, target: Any) -> None:
        calls["replace"] += 1
        if calls["replace"] == fails_at:
            raise OSError("disk full")
        replace(source, target)

    def broken_write(self: Path, content: Any) -> int:
        if fails_at == "write" and self.name.startswith(".Shop.item"):
            raise OSError("disk full")
        return write(self, content)

    shop.reviews.write_bytes(lines([review("U2")]))
    monkeypatch.setattr(os, "replace", broken_replace)
    monkeypatch.setattr(Path, "write_bytes", broken_write)
    with pytest.raises(OSError, match="disk full"):
        shop.run()
    after = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert not [name for name in after if "tmp" in name]
    if fails_at == "write":
        assert after == before
    else:
        assert "prepare.json" not in after


# ----------------------------------------------------------------------------------- real files and RecBole


@pytest.fixture(scope="module")
def gift_cards() -> tuple[Path, Path]:
    found = (REAL / "Gift_Cards_5.json.gz", REAL / "meta_Gift_Cards.json.gz")
    if not all(path.is_file() for path in found):
        message = "the real Amazon-2018 files are not there: ../shared/data/raw_amazon2018"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


def unpack(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize(("k", "plain"), [(1, False), (5, True)])
def test_gift_cards_agree_with_an_independent_count(
    gift_cards: tuple[Path, Path], tmp_path: Path, k: int, plain: bool
) -> None:
    pairs = {(r["reviewerID"], r["asin"]) for r in unpack(gift_cards[0])}
    while True:  # the k-core by sets and Counters
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        smaller = {(u, i) for u, i in pairs if users[u] >= k and items[i] >= k}
        if smaller == pairs:
            break
        pairs = smaller
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
    assert report.reviews.lines == report.interactions_read == 2972
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
