"""Stages 1 and 2 and their cache: features to semantic IDs on a tiny catalog; what is kept, what is built again."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recbole_qbert.data import item_features
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.injection import training as injection_training
from recbole_qbert.pipeline import builder
from recbole_qbert.pipeline.builder import SemanticIDBuilder
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization import rqvae, semantic_ids
from recbole_qbert.quantization.tokenizer import Tokenizer
from tests.helpers import files, stage_settings, write_features

pytestmark = pytest.mark.pipeline

ITEMS = tuple(f"i{n:02}" for n in range(30))


def matrices(seed=0, count=30):
    random = np.random.default_rng(seed)
    image = random.normal(size=(count, 2, 5)).astype(np.float32)
    image[count // 2 :, 1] = np.nan
    image[:3] = np.nan  # three items without image
    return {"text": random.normal(size=(count, 6)).astype(np.float32), "image": image}


def catalog(folder: Path, items=ITEMS, seed=0) -> Catalog:
    random = np.random.default_rng(seed)
    histories = [random.choice(len(items), 5, replace=False) for _ in range(25)]
    return Catalog("toy", folder, items, histories)


@pytest.fixture
def toy(tmp_path) -> Catalog:
    """A catalog with text and image features of its own."""
    write_features(tmp_path / "data", ITEMS, **matrices())
    return catalog(tmp_path / "data")


def settings(semantic_ids="both", **changes):
    return stage_settings(identifiers={"semantic_ids": semantic_ids, **changes.pop("identifiers", {})}, **changes)


NAMES = {injection_training: "injection", rqvae: "quantizer"}


class Counter:
    """Counts trainings of both stages."""

    def __init__(self, monkeypatch) -> None:
        self.runs: list[str] = []
        for module in (injection_training, rqvae):
            monkeypatch.setattr(module, "fit", self.counted(module.fit, NAMES[module]))

    def counted(self, function, name):
        def call(*args, **kwargs):
            self.runs.append(name)
            return function(*args, **kwargs)

        return call

    def since(self) -> list[str]:
        runs, self.runs = self.runs, []
        return runs


@pytest.fixture
def trained(monkeypatch) -> Counter:
    return Counter(monkeypatch)


# -------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize(
    ("kind", "sets", "prefixes"),
    [
        ("fused", ["fused"], ("a", "b")),
        ("per_modality", ["text", "image"], ("a", "b", "A", "B")),
        ("both", ["fused", "text", "image"], ("a", "b", "A", "B", "aa", "ba")),
    ],
)
def test_files_ids_and_figures(toy, tmp_path, kind, sets, prefixes):
    output = tmp_path / "out"
    before = files(toy.folder)
    ids, figures = SemanticIDBuilder(toy, settings(kind), output).build()
    names = {"toy.sid", "toy.sid.json", "toy.sid.manifest.json", "toy.quantizer.safetensors"}
    if "fused" in sets:
        names |= {"toy.fused.npy", "toy.depth.npy", "toy.injection.manifest.json", "toy.injection.safetensors"}
    assert set(files(output)) == names
    assert files(toy.folder) == before
    assert ids.items == ITEMS
    assert ids.prefixes == prefixes
    assert ids.size == 8
    assert len(np.unique(ids.codes, axis=0)) == 30
    assert ids.codes.max() < 8
    lacks = {prefix for prefix, gone in zip(ids.prefixes, (ids.codes[:3] < 0).all(0), strict=True) if gone}
    assert lacks == ({"A", "B"} if kind == "per_modality" else {"aa", "ba"} if kind == "both" else set())
    assert (ids.codes[3:] >= 0).all()
    on_disk = semantic_ids.load(output / "toy.sid", 8)
    assert np.array_equal(on_disk.codes, ids.codes)
    assert on_disk.items == ids.items
    assert [entry["code_set"] for entry in figures["semantic_ids"]["code_sets"]] == sets
    assert all(entry["collision_rate"] == 0 for entry in figures["semantic_ids"]["code_sets"])
    assert ("injection" in figures) == ("fused" in sets)
    assert figures["features"]["modalities"]["image"] == {"shape": [30, 2, 5], "coverage": pytest.approx(0.9)}
    assert set(figures["seconds"]) >= {"features", "quantization"}


def test_within_a_code_set_no_two_items_share_an_id(toy, tmp_path):
    ids, _ = SemanticIDBuilder(toy, settings("both"), tmp_path / "out").build()
    for start in (0, 2, 4):
        codes = ids.codes[:, start : start + 2]
        real = codes[(codes >= 0).all(1)]
        assert len(np.unique(real, axis=0)) == len(real)


def test_fused_vectors_and_depths_have_a_row_an_item(toy, tmp_path):
    SemanticIDBuilder(toy, settings("fused"), tmp_path / "out").build()
    fused, depth = (np.load(tmp_path / "out" / f"toy.{name}.npy") for name in ("fused", "depth"))
    assert fused.shape == (30, 16)
    assert fused.dtype == np.float32
    assert depth.shape == (30,)
    assert set(depth.tolist()) <= {1, 2, 3, 4, 5}


def test_several_vectors_of_an_item_count_as_the_mean_of_those_it_has(tmp_path):
    single = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    double = np.stack([single, single], 1)
    double[::2, 1] = np.nan
    codes = []
    for name, matrix in (("single", single), ("double", double)):
        write_features(tmp_path / name, ITEMS, image=matrix)
        codes.append(
            SemanticIDBuilder(catalog(tmp_path / name), settings("per_modality"), tmp_path / f"{name}.out").build()[0].codes
        )
    assert np.array_equal(*codes)


def test_the_same_settings_and_seed_give_the_same_bytes(toy, tmp_path):
    for name in "ab":
        SemanticIDBuilder(toy, settings("both"), tmp_path / name).build()
    assert files(tmp_path / "a") == files(tmp_path / "b")
    SemanticIDBuilder(toy, settings("both", seed=4), tmp_path / "c").build()
    assert files(tmp_path / "c")["toy.sid"] != files(tmp_path / "a")["toy.sid"]


def test_without_features_text_or_images_the_interactions_alone_give_ids(tmp_path, trained):
    (tmp_path / "data").mkdir()
    for _ in range(2):
        ids, figures = SemanticIDBuilder(catalog(tmp_path / "data"), settings("per_modality"), tmp_path / "out").build()
        assert ids.prefixes == ("a", "b")
        assert len(np.unique(ids.codes, axis=0)) == 30
        assert figures["features"]["modalities"] == {}
    assert trained.since() == ["injection", "quantizer"]  # the second call trains nothing


def test_id_only_by_choice_reads_no_feature(toy, tmp_path):
    for name in ("text", "image"):
        (toy.folder / f"toy.{name}.npy").write_bytes(b"never read")
    ids, _ = SemanticIDBuilder(toy, settings("fused", injection={"modalities": ()}), tmp_path / "out").build()
    assert ids.prefixes == ("a", "b")


def test_one_modality_by_choice(toy, tmp_path):
    (toy.folder / "toy.text.npy").unlink()
    ids, figures = SemanticIDBuilder(toy, settings("both", injection={"modalities": ("image",)}), tmp_path / "out").build()
    assert list(figures["features"]["modalities"]) == ["image"]
    assert ids.prefixes == ("a", "b", "A", "B")


def test_histories_matter_for_a_structural_query_only(toy, tmp_path, trained):
    other = Catalog("toy", toy.folder, toy.items, catalog(toy.folder, seed=9).histories)
    for query, again in (("structural", ["injection", "quantizer"]), ("random", [])):
        chosen = settings("fused", injection={"query": query})
        SemanticIDBuilder(toy, chosen, tmp_path / query).build()
        trained.since()
        SemanticIDBuilder(other, chosen, tmp_path / query).build()
        assert trained.since() == again


# -------------------------------------------------------------------------------- built-in features


@pytest.fixture
def shop(tmp_path) -> Catalog:
    """A catalog with titles and two images, but without features."""
    folder = tmp_path / "data"
    folder.mkdir()
    words = ["red", "blue", "small", "large", "lamp", "desk", "chair"]
    titles = [f"{words[n % 7]} {words[n * 3 % 7]} number {n}" for n in range(30)]
    pd.DataFrame({"item_id:token": ITEMS, "title:token_seq": titles}).to_csv(folder / "toy.item", sep="\t", index=False)
    for item, colour in (("i03", "red"), ("i04", "blue")):
        (folder / "images" / item).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(folder / "images" / item / "0.png")
    return catalog(folder)


@pytest.mark.parametrize("kind", ["fused", "per_modality", "both"])
def test_built_in_features_are_made_once_and_reused(shop, tmp_path, trained, kind):
    output = tmp_path / "out"
    first, figures = SemanticIDBuilder(shop, settings(kind), output).build()
    assert set(figures["features"]["modalities"]) == {"text", "image"}
    assert figures["features"]["modalities"]["image"]["coverage"] == pytest.approx(2 / 30)
    kept = files(output)
    trained.since()
    second, _ = SemanticIDBuilder(shop, settings(kind), output).build()
    assert trained.since() == []
    assert files(output) == kept
    assert np.array_equal(first.codes, second.codes)


def test_built_in_features_follow_the_titles(shop, tmp_path, trained):
    output = tmp_path / "out"
    SemanticIDBuilder(shop, settings("per_modality"), output).build()
    trained.since()
    table = shop.folder / "toy.item"
    table.write_text(table.read_text().replace("number 7", "something else"))
    SemanticIDBuilder(shop, settings("per_modality"), output).build()
    assert "quantizer" in trained.since()


@pytest.mark.parametrize("harm", ["delete", "change"])
def test_a_built_in_matrix_that_was_lost_or_changed_is_made_again(shop, tmp_path, harm):
    output = tmp_path / "out"
    first, _ = SemanticIDBuilder(shop, settings("per_modality"), output).build()
    path = output / "toy.text.npy"
    good = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        np.save(path, np.load(path) + 1)
    second, _ = SemanticIDBuilder(shop, settings("per_modality"), output).build()
    assert path.read_bytes() == good
    assert np.array_equal(first.codes, second.codes)


def test_a_changed_title_list_leaves_no_image_matrix_behind(shop, tmp_path):
    output = tmp_path / "out"
    SemanticIDBuilder(shop, settings("per_modality"), output).build()
    shutil.rmtree(shop.folder / "images")
    _, figures = SemanticIDBuilder(shop, settings("per_modality"), output).build()
    assert set(figures["features"]["modalities"]) == {"text"}
    assert not (output / "toy.image.npy").exists()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["no image", "too many pixels", "a broken part"])
def test_images_that_cannot_be_read_do_not_stop_the_build(shop, tmp_path, kind):
    """Pillow's readers fail with OSError, and with others."""
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(noise, "PNG")
    whole = noise.getvalue()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    content = {
        "no image": b"no image",
        "too many pixels": whole[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""),
        "a broken part": whole[:second] + bytes(4) + whole[second + 4 :],
    }
    for path in (shop.folder / "images").rglob("*.png"):
        path.write_bytes(content[kind])
    ids, _ = SemanticIDBuilder(shop, settings("per_modality"), tmp_path / "out").build()
    assert len(np.unique(ids.codes, axis=0)) == 30
    unreadable = json.loads((tmp_path / "out" / "toy.features.json").read_text())["image"]["unreadable"]
    assert unreadable and all(".png: " in line for line in unreadable)


def test_items_without_title_and_image_still_get_ids(shop, tmp_path):
    table = pd.read_csv(shop.folder / "toy.item", sep="\t", dtype=str)
    table[~table["item_id:token"].isin(["i10", "i11", "i12"])].to_csv(shop.folder / "toy.item", sep="\t", index=False)
    for kind in ("fused", "per_modality", "both"):
        ids, _ = SemanticIDBuilder(shop, settings(kind), tmp_path / kind).build()
        assert len(np.unique(ids.codes, axis=0)) == 30
        assert (ids.codes >= 0).any(1).all()


# -------------------------------------------------------------------------------- reuse


def test_the_second_call_trains_nothing_and_touches_no_file(toy, tmp_path, trained, caplog):
    output = tmp_path / "out"
    first, figures = SemanticIDBuilder(toy, settings(), output).build()
    stamps = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert trained.since() == ["injection"] + ["quantizer"] * 3
    caplog.set_level("INFO", logger=builder.__name__)
    second, again = SemanticIDBuilder(toy, settings(), output).build()
    assert trained.since() == []
    assert caplog.text.count("cached output used") == 2
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == stamps
    assert np.array_equal(first.codes, second.codes)
    for key in ("features", "injection", "semantic_ids"):
        assert again[key] == figures[key]


BOTH = ["injection", "quantizer"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"seed": 4}, BOTH),
        ({"injection": {"dim": 8}}, BOTH),
        ({"injection": {"depth_cost": 0.5}}, BOTH),
        ({"quantizer": {"epochs": 4}}, ["quantizer"]),
        ({"quantizer": {"codes": 16}}, ["quantizer"]),
        ({"quantizer": {"beta": 0.5}}, ["quantizer"]),
    ],
)
def test_a_changed_key_or_seed_runs_what_depends_on_it(toy, tmp_path, trained, changes, wanted):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    trained.since()
    SemanticIDBuilder(toy, settings("fused", **changes), output).build()
    assert trained.since() == wanted
    SemanticIDBuilder(toy, settings("fused", **changes), output).build()
    assert trained.since() == []


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_changed_feature_file_runs_both_stages(toy, tmp_path, trained, modality):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    trained.since()
    matrix = np.load(toy.folder / f"toy.{modality}.npy")
    np.save(toy.folder / f"toy.{modality}.npy", matrix * 1.5 + 1)
    SemanticIDBuilder(toy, settings("fused"), output).build()
    assert trained.since() == BOTH


def test_another_catalog_runs_both_stages(toy, tmp_path, trained):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    trained.since()
    ids, _ = SemanticIDBuilder(catalog(toy.folder, ITEMS[:20]), settings("fused"), output).build()
    assert trained.since() == BOTH
    assert ids.items == ITEMS[:20]


@pytest.mark.parametrize("name", ["toy.sid", "toy.quantizer.safetensors", "toy.fused.npy", "toy.depth.npy"])
def test_an_output_changed_by_hand_is_built_again(toy, tmp_path, trained, name):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    good = (output / name).read_bytes()
    trained.since()
    (output / name).write_bytes(good + b"x")
    SemanticIDBuilder(toy, settings("fused"), output).build()
    assert trained.since() == (["quantizer"] if "fused" not in name and "depth" not in name else ["injection"])
    assert (output / name).read_bytes() == good


def test_rebuild_runs_all_stages(toy, tmp_path, trained):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    before = files(output)
    trained.since()
    SemanticIDBuilder(toy, settings("fused"), output, rebuild=True).build()
    assert trained.since() == BOTH
    assert files(output) == before


def test_an_interrupted_stage_is_run_again_and_leaves_no_scraps(toy, tmp_path, trained, monkeypatch):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    wanted = files(output)
    with monkeypatch.context() as patch:
        patch.setattr(semantic_ids.SemanticIDs, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            SemanticIDBuilder(toy, settings("fused"), output, rebuild=True).build()
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    trained.since()
    SemanticIDBuilder(toy, settings("fused"), output).build()
    assert trained.since() == ["quantizer"]
    assert files(output) == wanted


def test_manifests_say_what_an_output_was_stage_inputs(toy, tmp_path):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    for name, file in (("injection", "toy.fused.npy"), ("sid", "toy.sid")):
        manifest = json.loads((output / f"toy.{name}.manifest.json").read_text())
        assert manifest["inputs"]["seed"] == 3
        assert manifest["inputs"]["settings"]["epochs"] == 3
        assert set(manifest["inputs"]["features"]) >= {"items", "text", "image"}
        assert file in manifest["outputs"]
        assert manifest["report"]


# -------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", ["fused", "per_modality"])
def test_more_items_than_ids_is_a_clear_error_that_leaves_nothing_half_written(toy, tmp_path, kind):
    output = tmp_path / "out"
    small = settings(kind, quantizer={"levels": 2, "codes": 5})
    with pytest.raises(ValueError, match=r"30.*25.*rq_levels.*rq_codes"):
        SemanticIDBuilder(toy, small, output).build()
    left = set(files(output)) if output.exists() else set()
    assert not {name for name in left if "sid" in name or "quantizer" in name or name.startswith(".")}


def test_exactly_as_many_ids_as_items_will_do(toy, tmp_path):
    ids, _ = SemanticIDBuilder(toy, settings("fused", quantizer={"levels": 1, "codes": 30}), tmp_path / "out").build()
    assert sorted(ids.codes[:, 0].tolist()) == list(range(30))


def test_an_error_after_a_good_build_does_not_pass_old_ids_off_as_new(toy, tmp_path):
    output = tmp_path / "out"
    SemanticIDBuilder(toy, settings("fused"), output).build()
    with pytest.raises(ValueError, match=r"rq_levels.*rq_codes"):
        SemanticIDBuilder(toy, settings("fused", quantizer={"levels": 1}), output).build()
    ids, _ = SemanticIDBuilder(toy, settings("fused"), output).build()
    assert ids.codes.shape == (30, 2)


def test_bad_features_stop_the_build_before_anything_is_written(toy, tmp_path):
    matrix = np.load(toy.folder / "toy.text.npy")
    matrix[4, 2] = np.inf
    np.save(toy.folder / "toy.text.npy", matrix)
    with pytest.raises(ValueError, match=r"toy\.text\.npy.*\b4\b.*\bi04\b"):
        SemanticIDBuilder(toy, settings(), tmp_path / "out").build()
    assert not list((tmp_path / "out").glob("*"))


def test_items_without_features_are_an_error_or_masked(toy, tmp_path):
    more = catalog(toy.folder, (*ITEMS, "new1", "new2", "new3"))
    with pytest.raises(ValueError, match=r"\b3\b.*\b33\b.*toy.*missing_features"):
        SemanticIDBuilder(more, settings(), tmp_path / "out").build()
    for kind in ("fused", "per_modality", "both"):
        masked = settings(kind, identifiers={"missing_features": "mask"})
        ids, figures = SemanticIDBuilder(more, masked, tmp_path / kind).build()
        assert len(np.unique(ids.codes, axis=0)) == 33
        assert figures["features"]["modalities"]["text"]["coverage"] == pytest.approx(30 / 33)


def test_a_modality_that_no_item_has_counts_as_absent(toy, tmp_path):
    np.save(toy.folder / "toy.image.npy", np.full((30, 5), np.nan, dtype=np.float32))
    for kind in ("per_modality", "fused"):
        ids, _ = SemanticIDBuilder(toy, settings(kind), tmp_path / kind).build()
        assert ids.prefixes == ("a", "b")
        assert len(np.unique(ids.codes, axis=0)) == 30


def test_a_modality_that_one_item_has_gives_it_codes(toy, tmp_path):
    image = np.full((30, 5), np.nan, dtype=np.float32)
    image[7] = 1.0
    np.save(toy.folder / "toy.image.npy", image)
    ids, _ = SemanticIDBuilder(toy, settings("per_modality"), tmp_path / "out").build()
    assert (ids.codes[:, 2:] >= 0).all(1).nonzero()[0].tolist() == [7]


def test_a_wanted_modality_without_a_file_is_an_error(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"toy\.audio\.npy"):
        SemanticIDBuilder(toy, settings(injection={"modalities": ("text", "audio")}), tmp_path / "out").build()


def test_items_alike_in_every_feature_still_get_different_ids(tmp_path):
    write_features(tmp_path / "data", ITEMS, text=np.ones((30, 4), dtype=np.float32))
    ids, _ = SemanticIDBuilder(catalog(tmp_path / "data"), settings("per_modality"), tmp_path / "out").build()
    assert len(np.unique(ids.codes, axis=0)) == 30


# -------------------------------------------------------------------------------- real data


def test_real_features_of_a_small_set(tmp_path, shared_data):
    """Amazon_Scientific: unique IDs, and items with like text share more first codes than chance."""
    name = "Amazon_Scientific"
    folder = shared_data / name
    used = pd.read_csv(folder / f"{name}.inter", sep="\t", dtype=str)["item_id:token"]
    items = tuple(sorted(set(used)))
    shape = {
        "levels": 3,
        "codes": 32,
        "dim": 16,
        "hidden": (64,),
        "batch_size": 256,
        "warmup_epochs": 5,
        "epochs": 5,
    }
    chosen = settings("per_modality", quantizer=shape)
    ids, figures = SemanticIDBuilder(Catalog(name, folder, items, []), chosen, tmp_path).build()
    assert len(ids.items) == len(items) == 1585
    for entry in figures["semantic_ids"]["code_sets"]:
        assert entry["unique"] == 1585
        assert min(entry["usage_per_level"]) > 0.5
    rows = {line: n for n, line in enumerate((folder / f"{name}.items.txt").read_text().split("\n"))}
    text = np.load(folder / f"{name}.text.npy").astype(np.float32)[[rows[item] for item in items]]
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    match = text @ text.T
    np.fill_diagonal(match, -1)
    first = ids.codes[:, 0]
    assert (first == first[match.argmax(1)]).mean() > 5 * (first[:, None] == first).mean()


def test_the_default_concatenates_and_quantizes_without_training_and_new_items_follow(toy, tmp_path, trained):
    default = settings(
        "fused", identifiers={"fusion": "concatenation"}, quantizer={"method": "residual_kmeans", "levels": 3}
    )
    ids, figures = SemanticIDBuilder(toy, default, tmp_path / "out").build()
    assert trained.since() == []
    assert figures["injection"] == {"fusion": "concatenation", "width": 11}
    (health,) = figures["semantic_ids"]["code_sets"]
    assert len(health["explained_per_level"]) == 3 and 0 <= health["neighbors_kept"] <= 1
    assert not (tmp_path / "out" / "toy.depth.npy").exists()
    again, _ = SemanticIDBuilder(toy, default, tmp_path / "out").build()
    assert np.array_equal(ids.codes, again.codes)
    new = ("n0", "n1")
    write_features(tmp_path / "new", new, **matrices(seed=9, count=2))
    loaded = item_features.load(tmp_path / "new", "toy", new, ("text", "image"))
    both = Tokenizer.load(tmp_path / "out").add(loaded)
    assert np.array_equal(both.codes[:30], ids.codes) and both.items[30:] == new
    same = ItemFeatures(("copy",), *({k: v[:1] for k, v in d.items()} for d in _aligned(toy)), {})
    copy = Tokenizer.load(tmp_path / "out").add(same).codes[-1]
    assert np.array_equal(copy[:2], ids.codes[0][:2])  # the same vector: only the collision moves the last level


def _aligned(catalog):
    loaded = item_features.load(catalog.folder, "toy", catalog.items, ("text", "image"))
    return loaded.vectors, loaded.present


# -------------------------------------------------------------------------------- several vectors, structure


@pytest.mark.parametrize("fusion", ["concatenation", "injection"])
def test_structure_is_a_modality_that_new_items_do_not_have(toy, tmp_path, fusion):
    chosen = settings(
        "both",
        identifiers={"fusion": fusion},
        injection={"modalities": ("text", "structure"), "dim": 4},
    )
    pairs = [np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([3, 4]), np.array([3, 4]), np.array([5, 6])]
    shared = Catalog("toy", toy.folder, toy.items, pairs)
    ids, figures = SemanticIDBuilder(shared, chosen, tmp_path / "out").build()
    assert figures["features"]["modalities"]["structure"] == {"shape": [30, 1, 4], "coverage": pytest.approx(5 / 30)}
    assert [entry["code_set"] for entry in figures["semantic_ids"]["code_sets"]] == ["fused", "text", "structure"]
    assert (ids.codes[5:, 4:] < 0).all() and (ids.codes[:5, 4:] >= 0).all()  # items 5 and 6 share only one history
    new = ("n0", "n1")
    write_features(tmp_path / "new", new, **matrices(seed=9, count=2))
    loaded = item_features.load(tmp_path / "new", "toy", new, ("text", "image"))
    both = Tokenizer.load(tmp_path / "out").add(loaded)
    assert np.array_equal(both.codes[:30], ids.codes)
    assert (both.codes[30:, :4] >= 0).all() and (both.codes[30:, 4:] < 0).all()
    figures_of = []
    for histories in (pairs, pairs[:-1] + [np.array([7, 8])] * 2):
        other = Catalog("toy", toy.folder, toy.items, histories)
        figures_of.append(SemanticIDBuilder(other, chosen, tmp_path / "out").features()[0].inputs["structure"])
    assert figures_of[0] != figures_of[1]  # so the stages run again


def test_a_file_may_not_be_called_structure(toy):
    np.save(toy.folder / "toy.structure.npy", np.zeros((30, 3), np.float32))
    assert item_features.available(toy.folder, "toy") == ("text", "image")


@pytest.mark.parametrize("fusion", ["concatenation", "injection"])
def test_the_built_in_encoder_gives_a_vector_a_column(tmp_path, fusion):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"i{n:02}\tred reed {n} of cane\t{'' if n % 3 else 'Rico brand'}\n" for n in range(30)]
    header = "item_id:token\ttitle:token_seq\tbrand:token_seq\n"
    (folder / "toy.item").write_text(header + "".join(rows), encoding="utf-8")
    here, shapes = catalog(folder), []
    for kind in ("joined", "by_column"):
        chosen = settings("fused", identifiers={"fusion": fusion, "text_vectors": kind, "builtin_width": 8})
        builder = SemanticIDBuilder(here, chosen, tmp_path / "out")
        features, _ = builder.features()
        shapes.append(features.vectors["text"].shape[1])
        ids, _ = builder.build()
        assert len(np.unique(ids.codes, axis=0)) == 30
    assert shapes == [1, 2]
    assert features.present["text"][:, 0].all() and features.present["text"][:, 1].tolist() == [
        n % 3 == 0 for n in range(30)
    ]
    assert np.allclose(features.vectors["text"][0, 1], features.vectors["text"][3, 1])  # the same brand, in one space
