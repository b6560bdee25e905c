"""IDs for new items: frozen weights, nothing that exists moves, all unique; the same item gets the ID it would have had."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recbole_qbert import cli
from recbole_qbert.data import item_features as features
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.quantization import collision_resolution, semantic_ids
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.serving import cold_start
from recbole_qbert.serving.add_items import add_items
from tests.helpers_recbole import QUICK, write_dataset

SMALL = [
    f"--{key}={json.dumps(value)}" for key, value in QUICK["QBERT4Rec"].items() if key not in ("show_progress", "state")
]


@pytest.fixture(scope="module", params=["fused", "per_modality", "both"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    data = write_dataset(folder / "data", "X")
    base = ["--dataset=X", "--data_path", str(data), "--output", str(folder / "out")]
    assert cli.main(["quantize", *base, *SMALL, f"--semantic_ids={request.param}"]) == 0
    return data / "X", folder / "out" / "X"


def renamed(folder, keep):
    """Features of existing items under new names."""
    items = list(features.read_item_list(folder / "X.items.txt"))
    loaded = features.load(folder, "X", items, ["text", "image"])
    return ItemFeatures(
        tuple(f"new{row}" for row in keep),
        {name: matrix[keep] for name, matrix in loaded.vectors.items()},
        {name: there[keep] for name, there in loaded.present.items()},
        {},
    )


def test_new_items_get_ids_of_their_own_and_nothing_else_moves(made):
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    new = renamed(data, [0, 3, 7, 7 + 1, 20])
    both = tokenizer.add(new)
    before = semantic_ids.load(folder / "X.sid")
    assert both.items == before.items + new.items
    assert np.array_equal(both.codes[: len(before.items)], before.codes)
    assert len(np.unique(both.codes, axis=0)) == len(both.items)
    assert both.vocabulary == before.vocabulary != ""


def test_a_twin_lies_next_to_its_twin(made):
    """Per modality an item has the codes of its twin, but for the last level, which tells them apart."""
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    if "fused" in tokenizer.quantizers:
        pytest.skip("the fused vector of a new item lacks the ID vector of its twin")
    both = tokenizer.add(renamed(data, list(range(10, 16))))
    old = dict(zip(both.items, both.codes.tolist(), strict=True))
    items = list(features.read_item_list(data / "X.items.txt"))
    same = [old[f"new{row}"][0] == old[items[row]][0] for row in range(10, 16)]
    assert sum(same) >= 5


def test_the_order_of_new_items_does_not_matter(made):
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    rows = [2, 2 + 9, 30, 5, 17]
    one, other = tokenizer.add(renamed(data, rows)), tokenizer.add(renamed(data, rows[::-1]))
    assert {i: tuple(c) for i, c in zip(one.items, one.codes, strict=True)} == {
        i: tuple(c) for i, c in zip(other.items, other.codes, strict=True)
    }


def test_bad_additions_are_refused(made, tmp_path):
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    new = renamed(data, [1])
    with pytest.raises(ValueError, match=tokenizer.ids.items[0]):
        tokenizer.add(ItemFeatures((tokenizer.ids.items[0],), new.vectors, new.present, {}))
    narrow = {name: matrix[:, :, :-1] for name, matrix in new.vectors.items()}
    with pytest.raises(ValueError, match=r"\w+ features.*\d+.*\d+"):
        tokenizer.add(ItemFeatures(new.items, narrow, new.present, {}))
    with pytest.raises(FileNotFoundError, match="quantizer"):
        Tokenizer.load(tmp_path)


def test_the_command_writes_an_extended_file(made, tmp_path, capsys):
    data, folder = made
    items = list(features.read_item_list(data / "X.items.txt"))
    loaded = {name: np.load(data / f"X.{name}.npy") for name in ("text", "image")}
    listed = [*items, "late1", "late2"]
    features.save(tmp_path, "X", listed, {n: np.concatenate([m, m[4:6] + np.float16(0.01)]) for n, m in loaded.items()}, {})
    options = ["--vocabulary", str(folder), "--features", str(tmp_path), "--to", str(tmp_path / "more.sid")]
    assert cli.main(["add", "--dataset=X", *options]) == 0
    ids = semantic_ids.load(tmp_path / "more.sid")
    old = semantic_ids.load(folder / "X.sid")
    assert ids.items == (*old.items, "late1", "late2")
    assert ids.size == old.size and ids.prefixes == old.prefixes
    assert "2 new IDs" in capsys.readouterr().out
    features.save(tmp_path, "X", items, loaded, {})
    assert cli.main(["add", "--dataset=X", *options]) == 2
    assert "nothing to add" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["X.quantizer.safetensors", "X.injection.safetensors", "X.sid", "X.sid.manifest.json"])
def test_a_damaged_vocabulary_is_refused(made, tmp_path, name):
    folder = Path(shutil.copytree(made[1], tmp_path / "copy"))
    if not (folder / name).exists():
        pytest.skip("stage 1 has not run")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        Tokenizer.load(folder)


def test_changed_neighbors_are_refused(made, tmp_path):
    data, folder = made
    items = list(features.read_item_list(data / "X.items.txt"))
    loaded = {name: np.load(data / f"X.{name}.npy") for name in ("text", "image")}
    described(tmp_path, items, loaded, {"late": 4})
    add_items("X", folder, tmp_path, tmp_path / "more.sid")
    near = tmp_path / "more.neighbours"
    assert cold_start.load_beside(tmp_path / "more.sid").items == ("late",)
    content = near.read_text()
    near.write_text(content.replace(content[-5:-1], "0.5"))
    with pytest.raises(ValueError, match=r"more\.neighbours"):
        cold_start.load_beside(tmp_path / "more.sid")
    near.write_text(content.rpartition("\t")[0] + "\tx\n")
    with pytest.raises(ValueError, match=r"more\.neighbours"):
        cold_start.load_beside(tmp_path / "more.sid")
    near.unlink()
    with pytest.raises(FileNotFoundError, match=r"more\.neighbours"):
        cold_start.load_beside(tmp_path / "more.sid")


def described(folder, items, loaded, late):
    """Feature files of ``X`` with late items, each a little off an existing one: name -> its row."""
    rows = list(late.values())
    matrices = {n: np.concatenate([m, m[rows] + np.float16(0.01)]) for n, m in loaded.items()}
    features.save(folder, "X", [*items, *late], matrices, {})


def test_a_second_addition_goes_on_from_the_first(made, tmp_path, capsys):
    """IDs are frozen: n1 keeps its own although its features are others now."""
    data, folder = made
    items = list(features.read_item_list(data / "X.items.txt"))
    loaded = {name: np.load(data / f"X.{name}.npy") for name in ("text", "image")}
    more = tmp_path / "more.sid"
    command = ["add", "--dataset=X", "--vocabulary", str(folder), "--features", str(tmp_path), "--to", str(more)]
    described(tmp_path, items, loaded, {"n1": 4})
    assert cli.main(command) == 0
    first = semantic_ids.load(more)
    assert cli.main(command) == 0, "the same again is the same"
    described(tmp_path, items, loaded, {"n0": 4, "n1": 9, "n2": 4})
    capsys.readouterr()
    assert cli.main(command) == 2, "n1 would get another ID than it has"
    assert f"--sid {more}" in capsys.readouterr().err
    assert cli.main([*command, "--sid", str(more)]) == 0
    second = semantic_ids.load(more)
    assert second.items == (*first.items, "n0", "n2")
    assert np.array_equal(second.codes[: len(first.items)], first.codes)
    assert set(cold_start.load(cold_start.neighbors_path(more)).items) == {"n0", "n1", "n2"}
    near = cold_start.load(cold_start.neighbors_path(more))
    described(tmp_path, items, loaded, {"n3": 5})
    assert cli.main(command) == 2, "n0 to n2 would lose their IDs"
    assert "3 items would lose the ID" in capsys.readouterr().err
    assert semantic_ids.load(more).items == second.items
    assert cli.main([*command, "--sid", str(more)]) == 0
    third = cold_start.load(cold_start.neighbors_path(more))
    assert third.items == (*near.items, "n3") and third.nearest[:3].tolist() == near.nearest.tolist()
    features.save(tmp_path, "X", ["n4"], {name: matrix[:1] for name, matrix in loaded.items()}, {})
    assert cli.main([*command, "--sid", str(more)]) == 0, "none of the old items is listed"
    assert cold_start.load(cold_start.neighbors_path(more)).items == third.items
    assert semantic_ids.load(more).items == (*second.items, "n3", "n4")
    replace(second, vocabulary="other").save(tmp_path / "other.sid")
    assert cli.main([*command, "--sid", str(tmp_path / "other.sid")]) == 2
    assert "of another vocabulary" in capsys.readouterr().err


def test_a_data_set_of_a_union_goes_on_under_its_own_names(made):
    """Its files lack the other data sets, whose IDs stay taken."""
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    items = tuple(f"{'AX'[row % 2]}/{item}" for row, item in enumerate(tokenizer.ids.items))
    tokenizer = replace(tokenizer, ids=replace(tokenizer.ids, items=items))
    new = renamed(data, [1, 2, 3])
    first = tokenizer.add(replace(new, items=("X/n1", "X/n2", "X/n3"))).of_domain("X")
    extended = tokenizer.extended(first, "more.sid", "X")
    assert extended.ids.items == (*items, "X/n1", "X/n2", "X/n3")
    second = extended.add(replace(new, items=("X/n4", "X/n5", "X/n6")))
    assert np.array_equal(second.of_domain("X").aligned(first.items, "second"), first.codes)
    with pytest.raises(ValueError, match=r"more\.sid.*20 of 20"):
        tokenizer.extended(first, "more.sid", "A")


def test_an_item_without_the_modalities_of_the_vocabulary_stands_where_the_average_item_stands(made):
    """An image is nothing to a vocabulary of texts."""
    data, folder = made
    tokenizer = Tokenizer.load(folder)
    if "fused" in tokenizer.quantizers:
        pytest.skip("every item has a fused vector")
    text = replace(tokenizer, quantizers={"text": tokenizer.quantizers["text"]})
    levels = len(text.ids.prefixes) // 2
    text = replace(text, ids=replace(text.ids, codes=text.ids.codes[:, :levels], prefixes=text.ids.prefixes[:levels]))
    new = renamed(data, [1, 2])
    blind = replace(new, present={"text": np.zeros_like(new.present["text"]), "image": new.present["image"]})
    ids = text.add(blind)
    assert (ids.codes[-2:] >= 0).all()


def test_taken_ids_stay_taken():
    """All items identical, their ID and all but three under its prefix taken: they get these three, then the next prefix."""
    random = np.random.default_rng(0)
    books = random.normal(size=(2, 4, 3))
    codes, latents = np.zeros((5, 2), dtype=np.int64), np.zeros((5, 3))
    taken = np.array([[0, 0], [1, 1]])
    result = collision_resolution.reallocate(codes, latents, books, list("abcde"), taken)
    ids = {tuple(row) for row in result.tolist()}
    assert len(ids) == 5 and not ids & {(0, 0), (1, 1)}
    assert sum(first == 0 for first, _ in ids) == 3
    full = np.array([[a, b] for a in range(4) for b in range(4)][:12])
    with pytest.raises(ValueError, match="17"):
        collision_resolution.reallocate(codes, latents, books, list("abcde"), full)


def test_a_vocabulary_of_an_earlier_version_loads(made, tmp_path):
    """Its manifests know neither methods nor principal axes nor steps, and carry no digest."""
    data, folder = made
    old = tmp_path / "X"
    shutil.copytree(folder, old)
    for manifest in old.glob("*.manifest.json"):
        content = json.loads(manifest.read_text())
        del content["manifest_sha256"]
        content["inputs"].pop("fusion", None)
        for key in ("method", "axes", "warmup_steps", "steps", "kmeans_sample"):
            content["inputs"].get("settings", {}).pop(key, None)
        manifest.write_text(json.dumps(content))
    new = renamed(data, [0, 3, 20])
    assert np.array_equal(Tokenizer.load(old).add(new).codes, Tokenizer.load(folder).add(new).codes)
