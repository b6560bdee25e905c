"""The synthetic demo: same bytes every time, honest about itself, neither trivial nor hopeless to learn."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from dataset_prep.demo import shops as demo
from dataset_prep.demo.catalog import CATEGORIES, COLOURS, ROLES, STYLES, Bools, Floats, Ints
from dataset_prep.demo.shops import DemoPaths, make_world, next_category, next_item, prepare_demo, write_demo

SMALL: dict[str, Any] = {"seed": 7, "users": 150, "items": 40}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def records(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())


def atomic(paths: DemoPaths, domain: str, suffix: str) -> pd.DataFrame:
    frame = pd.read_csv(paths.dataset(domain) / f"{domain}.{suffix}", sep="\t", engine="python", dtype=str)
    return frame.rename(columns=lambda name: name.split(":")[0])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    """The demo at its default size, made once."""
    return prepare_demo(tmp_path_factory.mktemp("demo"))


# ------------------------------------------------------------------------------------------------ raw files


@pytest.mark.pipeline
def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    write_demo(tmp_path / "a", **SMALL)
    write_demo(tmp_path / "b", **SMALL)
    write_demo(tmp_path / "c", **{**SMALL, "seed": 8})
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[f"raw/{d}.json.gz"] != c[f"raw/{d}.json.gz"] for d in DemoPaths(tmp_path).domains)


@pytest.mark.pipeline
def test_it_says_that_it_is_made_up(full: DemoPaths) -> None:
    assert "Synthetic" in full.readme.read_text()
    assert json.loads(full.manifest.read_text())["synthetic"] is True
    for domain in full.domains:
        for path in (full.reviews(domain), full.metadata(domain)):
            assert all(record["synthetic"] is True for record in records(path))


@pytest.mark.pipeline
def test_raw_files_have_the_shape_of_the_2018_edition(full: DemoPaths) -> None:
    for domain, prefix in zip(full.domains, ("DK", "DG", "DS"), strict=True):
        reviews = list(records(full.reviews(domain)))
        products = list(records(full.metadata(domain)))
        asins = {p["asin"] for p in products}
        assert all(len(a) == 10 and a.startswith(prefix) for a in asins)
        assert 580 <= len(asins) < 600, "a few items have no metadata"
        assert 0.05 < np.mean([p["description"] == [] for p in products]) < 0.2
        assert any("<br" in text for p in products for text in p["description"])
        assert all(r["unixReviewTime"] % 86_400 == 0 for r in reviews)
        assert len({(r["reviewerID"], r["asin"]) for r in reviews}) < len(reviews), "some reviews come twice"
        days = Counter((r["reviewerID"], r["unixReviewTime"]) for r in reviews)
        assert 0.02 < np.mean([n > 1 for n in days.values()]) < 0.15, "ties now and then"
        bought = Counter(r["asin"] for r in reviews)
        assert sum(1 for n in bought.values() if n < 5) > 10, "some items are below the core"


def test_pictures_are_small_and_follow_the_metadata(full: DemoPaths) -> None:
    for domain in full.domains:
        products = list(records(full.metadata(domain)))
        drawn = {p.name for p in full.images(domain).iterdir()}
        assert drawn == {p["asin"] for p in products if p["imageURL"]}
        assert 0.02 < 1 - len(drawn) / len(products) < 0.12
        for asin in sorted(drawn)[:20]:
            content = (full.images(domain) / asin / "0.jpg").read_bytes()
            image = Image.open(io.BytesIO(content))
            assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "JPEG")
            assert len(content) < 8_000


def test_pictures_show_the_colour(full: DemoPaths) -> None:
    """Of the eight colours the one nearest to the middle of the picture is nearly always the right one."""
    catalog = make_world(full.target).catalog
    palette = np.array([rgb for rgb, _ in COLOURS.values()], dtype=np.float64)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)  # hue only: patterns change brightness
    right = []
    for item, asin in enumerate(catalog.asins):
        path = full.images(full.target) / asin / "0.jpg"
        if path.exists():
            centre = np.asarray(Image.open(path), dtype=float)[28:36, 28:36].mean(axis=(0, 1))
            right.append(int((palette @ centre).argmax()) == catalog.colour[item])
    assert np.mean(right) > 0.8


def test_text_shows_the_attributes_but_not_all_of_them(full: DemoPaths) -> None:
    catalog = make_world(full.target).catalog
    style_of = dict(zip(catalog.asins, catalog.style, strict=True))
    words = list(STYLES.values())
    said, wrong = [], []
    for product in records(full.metadata(full.target)):
        title = product["title"]
        mentioned = [s for s in range(len(words)) if any(f" {w} " in f" {title} " for w in words[s])]
        said.append(bool(mentioned))
        wrong.append(bool(mentioned) and style_of[product["asin"]] not in mentioned)
    assert 0.6 < np.mean(said) < 0.9
    assert not any(wrong)


# ------------------------------------------------------------------------------------------------ behaviour


def test_transition_probabilities_by_hand() -> None:
    world = make_world("Demo_Studio", seed=1, users=3, items=60)
    first_of = np.searchsorted(world.catalog.category, np.arange(CATEGORIES))
    base, last = 4, 7  # role 0 and role 3 of project 1
    p = next_category(world, np.array([0, 1, 2]), np.array([-1, first_of[base], first_of[last]]))
    assert np.allclose(p.sum(axis=1), 1)
    assert np.allclose(p[0, ::ROLES], world.project[0])
    assert p[1, base + 1] == pytest.approx(0.65)
    assert p[1, base] == pytest.approx(0.10 + 0.25 * world.project[1, 1])
    assert p[2, last] == pytest.approx(0.10)
    assert p[2, ::ROLES].sum() == pytest.approx(0.90)


def test_next_item_is_a_distribution_that_keeps_the_categories() -> None:
    world = make_world("Demo_Garden", seed=1, users=20, items=60)
    users, previous = np.arange(20), np.arange(20) - 1
    seen = np.zeros((20, 60), dtype=bool)
    seen[:, 5] = True
    p = next_item(world, users, previous, seen)
    by_category = np.stack([p[:, world.catalog.category == c].sum(axis=1) for c in range(CATEGORIES)], axis=1)
    assert np.allclose(by_category, next_category(world, users, previous))


def test_worlds_share_no_user_and_no_item() -> None:
    worlds = [make_world(d, **SMALL) for d in DemoPaths(Path()).domains]
    names = [name for w in worlds for name in (*w.users, *w.catalog.asins)]
    assert len(set(names)) == len(names) == 3 * (150 + 40)


# ---------------------------------------------------------------------------------------------- calibration


def hit_rate(scores: Floats, bought: Bools, target: Ints) -> float:
    """HR@10 over the catalog; items already bought are left out, ties count against us."""
    scores = np.where(bought, -np.inf, scores)
    hit = scores >= scores[np.arange(len(target)), target][:, None]
    return float((hit.sum(axis=1) <= 10).mean())


@pytest.mark.pipeline
@pytest.mark.parametrize("domain", DemoPaths(Path()).domains)
def test_there_is_something_to_learn_and_it_is_not_trivial(full: DemoPaths, domain: str) -> None:
    """Leave-one-out HR@10: popularity < co-occurrence kNN (both of the training part) << the true process."""
    inter = atomic(full, domain, "inter")
    assert 9_000 < len(inter) < 16_000
    assert 1_200 < inter["user_id"].nunique() <= 1_500
    assert 450 < inter["item_id"].nunique() <= 600
    assert 8 < len(inter) / inter["user_id"].nunique() < 9.6

    world = make_world(domain)
    row = {asin: n for n, asin in enumerate(world.catalog.asins)}
    user_row = {name: n for n, name in enumerate(world.users)}
    histories = {u: [row[i] for i in items] for u, items in inter.groupby("user_id")["item_id"]}
    users = np.array([user_row[u] for u in histories])
    lengths = np.array([len(h) for h in histories.values()])
    assert np.median(lengths) < lengths.mean() < np.percentile(lengths, 75), "a long tail"

    shape = (len(users), len(row))
    train = sparse.lil_matrix(shape)
    bought = np.zeros(shape, dtype=bool)
    for n, history in enumerate(histories.values()):
        train[n, history[:-2]] = 1
        bought[n, history[:-1]] = True
    train = train.tocsr()
    target = np.array([h[-1] for h in histories.values()])
    previous = np.array([h[-2] for h in histories.values()])

    count = np.asarray(train.sum(axis=0)).ravel()
    together = (train.T @ train).toarray()
    np.fill_diagonal(together, 0)
    cosine = together / np.maximum(np.sqrt(np.outer(count, count)), 1)
    in_core = np.isin(np.arange(len(row)), [i for h in histories.values() for i in h])
    true = np.where(in_core, next_item(world, users, previous, bought), -1)

    popularity = hit_rate(np.tile(count, (len(users), 1)), bought, target)
    knn = hit_rate(bought.astype(float) @ cosine, bought, target)
    oracle = hit_rate(true, bought, target)
    print(f"{domain}: HR@10 popularity {popularity:.3f}, kNN {knn:.3f}, true process {oracle:.3f}")
    assert 0.04 < popularity < 0.12
    assert 0.15 < knn < 0.32
    assert 0.45 < oracle < 0.8


# ----------------------------------------------------------------------------------------------- prepare_demo


def test_prepared_folders_have_data_and_the_pictures_of_their_items(full: DemoPaths) -> None:
    for domain in full.domains:
        report = json.loads((full.dataset(domain) / "prepare.json").read_text())
        inter, item = atomic(full, domain, "inter"), atomic(full, domain, "item")
        assert (len(inter), len(item)) == (report["interactions"], report["items"])
        assert set(inter["item_id"]) == set(item["item_id"])
        pictured = {p.parent.name: p for p in full.dataset(domain).glob("images/*/0.jpg")}
        assert len(pictured) == report["items"] - report["items_without"]["image"]
        assert set(pictured) <= set(item["item_id"])
        for asin, path in list(pictured.items())[:5]:
            assert path.read_bytes() == (full.images(domain) / asin / "0.jpg").read_bytes()


def prepare_small(folder: Path, **options: Any) -> DemoPaths:
    return prepare_demo(folder, **{**SMALL, "min_user_interactions": 3, "min_item_interactions": 2, **options})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo, made once; tests that change it take a copy."""
    return prepare_small(tmp_path_factory.mktemp("small")).root


@pytest.fixture
def small(prepared: Path, tmp_path: Path) -> DemoPaths:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return DemoPaths(tmp_path)


@pytest.mark.pipeline
def test_a_complete_demo_is_not_made_again(small: DemoPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(small.root)
    monkeypatch.setattr(demo, "write_demo", lambda *_: pytest.fail("made again"))
    assert prepare_small(small.root) == small
    assert contents(small.root) == before


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("Demo_Studio/Demo_Studio.item", "changed"),
        ("raw/meta_Demo_Garden.json.gz", "gone"),
        ("picture", "gone"),
    ],
)
def test_a_damaged_demo_is_made_again_and_comes_out_the_same(small: DemoPaths, name: str, damage: str) -> None:
    before = contents(small.root)
    path = next(small.images(small.target).glob("*/0.jpg")) if name == "picture" else small.root / name
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"changed")
    prepare_small(small.root)
    assert contents(small.root) == before


@pytest.mark.pipeline
def test_another_seed_replaces_the_demo_and_spares_other_files(small: DemoPaths) -> None:
    tmp_path = small.root
    (tmp_path / "raw" / "mine.json.gz").write_bytes(b"mine")
    features = small.dataset(small.target) / "Demo_Studio.text.npy"
    features.write_bytes(b"mine")
    prepare_small(tmp_path, seed=8)
    prepare_small(tmp_path / "fresh", seed=8)
    fresh = contents(tmp_path / "fresh")
    replaced = {k: v for k, v in contents(tmp_path).items() if not k.startswith("fresh")}
    assert replaced.pop("raw/mine.json.gz") == replaced.pop("Demo_Studio/Demo_Studio.text.npy") == b"mine"
    assert replaced == fresh


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "fails_at",
    [
        "building",
        "images/Demo_Kitchen",
        "Demo_Garden/Demo_Garden.item",
        "Demo_Studio/prepare.json",
        "demo.json",
    ],
)
def test_an_interrupted_run_leaves_nothing_that_looks_complete(
    small: DemoPaths, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    tmp_path = small.root
    before = contents(tmp_path)
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        building = fails_at == "building" and Path(target).name == "Demo_Garden.inter"
        if building or Path(target) == tmp_path / fails_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_small(tmp_path, seed=8)
    assert not list(tmp_path.glob(".demo-building-*"))
    if fails_at == "building":
        assert contents(tmp_path) == before, "nothing was touched yet"
    else:
        assert not (tmp_path / "demo.json").exists()
    for domain in DemoPaths(tmp_path).domains:  # a dataset with a manifest is one whole dataset
        folder = tmp_path / domain
        if (folder / "prepare.json").exists():
            rows = (folder / f"{domain}.inter").read_text().count("\n") - 1
            assert json.loads((folder / "prepare.json").read_text())["interactions"] == rows
    prepare_small(tmp_path)
    assert contents(tmp_path) == before


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"items is 19\b.* 20\b"):
        write_demo(tmp_path, items=19)
    with pytest.raises(ValueError, match="users is 0"):
        write_demo(tmp_path, users=0)
    (tmp_path / "README.txt").write_text("my notes")
    with pytest.raises(FileExistsError, match=r"README\.txt"):
        prepare_demo(tmp_path, **SMALL)
    assert (tmp_path / "README.txt").read_text() == "my notes"
