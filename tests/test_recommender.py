"""Export and recommend: RecBole's scores without RecBole, histories of tokens, new items, files, refusals."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_qbert import cli
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from recbole_qbert.sequence import scoring
from recbole_qbert.serving import cold_start, export
from recbole_qbert.serving.recommender import Recommender
from tests.helpers_recbole import QUICK, write_dataset

NAME = "Tiny"
KINDS = {
    "prior": {"structural_prior": "cooccurrence"},
    "paper": {
        "views": ["masked"],
        "loss": "code",
        "repeat_penalty": "none",
        "use_item_embedding": False,
        "semantic_ids": "fused",
    },
    "exclude": {"views": ["causal"], "repeat_penalty": "exclude"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("data"), NAME)
    lines = [f"i{row}\tA  thing\u2028called {row}\n" for row in range(0, 40, 2)]
    (folder / NAME / f"{NAME}.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def train(data, tmp_path_factory):
    """Runs by kind, each trained once; the prior counts for something."""
    kept = {}

    def trained(kind):
        if kind not in kept:
            folder = tmp_path_factory.mktemp(kind)
            base = {"checkpoint_dir": str(folder / "saved"), "semantic_id_dir": str(folder / "ids")}
            with experiment.working_directory(folder):
                kept[kind] = experiment.train(
                    experiment.configure("QBERT4Rec", NAME, data, {**QUICK["QBERT4Rec"], **base, **KINDS[kind]})
                )
            if kept[kind].model.prior is not None:
                kept[kind].model.prior.weight.fill_(0.7)
                checkpoint = checkpoint_io.load_checkpoint(kept[kind].trainer.saved_model_file)
                checkpoint["state_dict"] = kept[kind].model.state_dict()
                checkpoint_io.write_checkpoint(checkpoint, kept[kind].trainer.saved_model_file)
        return kept[kind]

    return trained


@pytest.fixture(scope="module")
def run(train):
    return train("prior")


@pytest.fixture(scope="module")
def checkpoint(run):
    return Path(run.trainer.saved_model_file)


@pytest.fixture(scope="module")
def kept(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.write(export.from_checkpoint(checkpoint), folder)
    return folder


def test_a_checkpoint_of_plain_values_does_not_make_an_export_unpickle_a_file(checkpoint, tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_executed"),)

    planted = tmp_path / "innocent.bin"
    planted.write_bytes(pickle.dumps(Planted()))
    state = checkpoint_io.load_checkpoint(checkpoint)
    state["config"]["external"] |= {"dataset_save_path": str(planted), "dataloaders_save_path": str(planted)}
    checkpoint_io.write_checkpoint(state, tmp_path / "changed.pth")
    model = export.from_checkpoint(tmp_path / "changed.pth")
    assert len(model.ids.items) and not (tmp_path / "was_executed").exists()


@pytest.fixture
def folder(kept, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(kept, tmp_path / "model"))


@pytest.fixture(scope="module")
def model(kept):
    return Recommender.load(kept)


def whole_histories(data):
    found = {}
    for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        found.setdefault(user, []).append(item)
    return found


# ------------------------------------------------------------------------------------------------ the scores of RecBole
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["folder", "checkpoint"])
def test_scores_are_those_of_full_sort_predict(train, tmp_path, kind, source):
    run = train(kind)
    path = Path(run.trainer.saved_model_file)
    if source == "folder":
        export.write(export.from_checkpoint(path), tmp_path / "model")
        path = tmp_path / "model"
    loaded = Recommender.load(path)
    assert loaded.items == run.valid_data._dataset.item_tokens()
    for interaction, _, _, _ in run.test_data:
        lengths = interaction["item_length"]
        with torch.no_grad():  # as RecBole evaluates; with gradients torch computes attention in another way
            wanted = run.model.full_sort_predict(interaction)
        assert torch.equal(loaded.scores(interaction["item_id_list"][:, : int(lengths.max())], lengths), wanted)


def test_the_best_items_are_recboles(run, model):
    """With the history left out, best first, by token."""
    token = run.valid_data._dataset.field2id_token["item_id"]
    for interaction, _, _, _ in run.test_data:
        lengths, rows = interaction["item_length"], interaction["item_id_list"]
        scores = run.model.full_sort_predict(interaction).scatter(1, rows, -torch.inf)
        wanted, order = scoring.top_k(scores, 5)
        histories = [[token[row] for row in items[:n]] for items, n in zip(rows.tolist(), lengths.tolist(), strict=True)]
        for mine, theirs, score in zip(model.recommend(histories, k=5), order.tolist(), wanted.tolist(), strict=True):
            assert [answer.item for answer in mine] == [token[row] for row in theirs]
            assert [answer.score for answer in mine] == pytest.approx(score, abs=1e-5)


def test_titles_and_ids_come_along(model, run):
    for answer in model.recommend([["i1", "i2"]], k=40)[0]:
        number = int(answer.item[1:])
        assert answer.title == (f"A thing called {number}" if number % 2 == 0 else None)
        assert answer.semantic_id == run.model.ids.text(run.model.ids.items.index(answer.item))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_answers(kept, model, data):
    histories = list(whole_histories(data).values())
    there = Recommender.load(kept, device="cuda").recommend_arrays(histories, k=5)
    here = model.recommend_arrays(histories, k=5)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-4)
    assert (there.rows == here.rows).mean() > 0.95


# ------------------------------------------------------------------------------------------------------------ histories
def test_what_was_seen_is_left_out_even_where_it_is_too_old_to_count(model):
    history = [f"i{row}" for row in range(20)]  # max_length is 8
    newest = {answer.item for answer in model.recommend([history[-8:]], k=40)[0]}
    without = model.recommend([history], k=40)[0]
    kept = model.recommend([history], k=40, exclude_seen=False)[0]
    assert {answer.item for answer in without} == set(model.items) - set(history)
    assert {answer.item for answer in kept} == set(model.items) and newest == set(model.items) - set(history[-8:])
    score = {answer.item: answer.score for answer in kept}
    assert all(answer.score == pytest.approx(score[answer.item], abs=1e-6) for answer in without)


def test_unknown_items_are_reported_and_skipped(model, caplog):
    caplog.set_level("WARNING", logger="recbole_qbert")
    answers = model.recommend([["i3", "new", "i5", "odd", "new"], ["i3", "i5"], ["odd", "x", "y", "z", "w"], []], k=4)
    assert [a.item for a in answers[0]] == [a.item for a in answers[1]]
    assert answers[2:] == [[], []]
    items, histories = (record.getMessage() for record in caplog.records)
    assert items.startswith("8 items") and "(first: new, odd, x, y, z)" in items
    assert histories.startswith("2 histories")
    ranked = model.recommend_arrays([[], ["i1"]], k=2)
    assert (ranked.rows[0] == -1).all() and np.isneginf(ranked.scores[0]).all() and (ranked.rows[1] >= 0).all()


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_batches_and_their_order_do_not_matter(model, data, batch_size):
    histories = [*whole_histories(data).values(), []]
    together = model.recommend_arrays(histories, k=6)
    again = model.recommend_arrays(histories[::-1], k=6, batch_size=batch_size)
    assert np.array_equal(again.rows[::-1], together.rows)
    np.testing.assert_allclose(again.scores[::-1], together.scores, atol=1e-5)


def test_more_asked_for_than_there_is(model):
    answers = model.recommend([["i1", "i2"]], k=1000)[0]
    assert {answer.item for answer in answers} == set(model.items) - {"i1", "i2"}
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert model.recommend_arrays([["i1"]], k=1000).rows.shape == (1, len(model.items))


def test_equal_scores_come_by_row(kept):
    level = export.load(kept)
    with torch.no_grad():
        for parameter in (level.network.codebook, level.network.item_embedding, level.network.repeat_penalty):
            parameter.zero_()
    answers = Recommender(replace(level, prior=None)).recommend([["i1"]], k=7)[0]
    assert [answer.item for answer in answers] == [item for item in level.ids.items if item != "i1"][:7]


@pytest.mark.parametrize(
    ("histories", "options", "message"),
    [
        (["i1"], {}, "'i1'"),
        ([["i1"]], {"k": 0}, "k.*0"),
        ([["i1"]], {"batch_size": 0}, "batch_size.*0"),
    ],
)
def test_calls_that_cannot_be_meant(model, histories, options, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(histories, **options)


# ------------------------------------------------------------------------------------------------------- without RecBole
@pytest.mark.process
def test_an_export_needs_no_recbole(kept, checkpoint, model, tmp_path):
    code = f"""
import sys
sys.modules["recbole"] = None  # importing it raises ImportError
import numpy, recbole_qbert
model = recbole_qbert.Recommender.load({str(kept)!r})
ranked = model.recommend_arrays([["i1", "i2"], ["i5"]], k=5)
numpy.savez("answers.npz", rows=ranked.rows, scores=ranked.scores)
for attempt in (lambda: recbole_qbert.QBERT4Rec, lambda: recbole_qbert.Recommender.load({str(checkpoint)!r})):
    try:
        attempt()
    except ImportError as error:
        print(error)
assert not hasattr(recbole_qbert, "nonsense")
assert not [name for name in sys.modules if name.startswith("recbole.")]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2 and all("RecBole" in line for line in said)
    wanted = model.recommend_arrays([["i1", "i2"], ["i5"]], k=5)
    found = np.load(tmp_path / "answers.npz")
    assert np.array_equal(found["rows"], wanted.rows) and np.array_equal(found["scores"], wanted.scores)


def test_exports_are_the_same_bytes_and_hold_no_pickle(kept, checkpoint, tmp_path):
    for _ in range(2):  # the second replaces the first
        export.write(export.from_checkpoint(checkpoint), tmp_path / "again")
    names = sorted(path.name for path in kept.iterdir())
    assert names == ["config.json", "items.sid", "items.sid.json", "model.safetensors", "titles.tsv"]
    for name in names:
        assert (kept / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "RecBole leaves nothing behind"


def test_scores_without_normalisation_differ_by_one_number_a_history(model, data):
    some = list(whole_histories(data).values())[:20]
    whole, raw = model.recommend_arrays(some, 5), model.recommend_arrays(some, 5, normalised=False)
    assert (whole.rows == raw.rows).all()
    apart = raw.scores - whole.scores
    assert np.allclose(apart, apart[:, :1], atol=1e-4) and (apart > 1).all()


def test_an_onnx_file_lies_in_the_folder_until_the_next_export(checkpoint, tmp_path, model):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: onnx)")
    export.export_model(checkpoint, tmp_path / "model", format="onnx")
    session = runtime.InferenceSession(tmp_path / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    histories = torch.zeros(2, session.get_inputs()[0].shape[1], dtype=torch.int64)
    histories[0, :2], histories[1, 0] = torch.tensor([3, 1]), 2
    (scores,) = session.run(None, {"histories": histories.numpy()})
    wanted = model.scores(histories[:, :2], torch.tensor([2, 1]))
    torch.testing.assert_close(torch.from_numpy(scores), wanted, atol=2e-5, rtol=1e-5)
    export.export_model(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model" / "model.onnx").exists()
    with pytest.raises(ValueError, match=r"pickle.*onnx"):
        export.export_model(checkpoint, tmp_path / "model", format="pickle")


def test_a_prior_of_weight_0_stays_behind(train, tmp_path):
    assert export.from_checkpoint(Path(train("paper").trainer.saved_model_file)).prior is None
    run = train("prior")
    state = checkpoint_io.load_checkpoint(run.trainer.saved_model_file)
    state["state_dict"]["prior.weight"].zero_()
    checkpoint_io.write_checkpoint(state, tmp_path / "zero.pth")
    assert export.from_checkpoint(tmp_path / "zero.pth").prior is None


def edit(path, **changes):
    """Change a ``config.json`` as a version would have written it that knew no digest of it."""
    content = json.loads(path.read_text()) | changes
    content.pop(export.CONFIG_DIGEST)
    path.write_text(json.dumps(content))


def test_a_folder_without_the_digests_of_today_is_read(folder, caplog):
    content = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", sha256={name: value for name, value in content["sha256"].items() if name != "titles.tsv"})
    with caplog.at_level("INFO"):
        assert Recommender.load(folder).titles
    assert str(folder / "config.json") in caplog.text


@pytest.mark.parametrize("name", ["config.json", "items.sid", "items.sid.json", "model.safetensors", "titles.tsv"])
def test_any_changed_byte_of_a_folder_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    for place in {0, len(content) // 3, len(content) // 2, len(content) - 2}:
        (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            Recommender.load(folder)
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=re.escape(str(folder / name))):
        Recommender.load(folder)


def test_other_values_in_the_settings_are_refused(folder):
    content = json.loads((folder / "config.json").read_text())
    content["sequence"]["views"] = ["causal"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json"):
        Recommender.load(folder)


def test_a_damaged_export_is_replaced(folder, checkpoint):
    (folder / "config.json").write_text("{")
    export.write(export.from_checkpoint(checkpoint), folder)
    assert Recommender.load(folder).items


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), r"model.*run_recbole_qbert\.py export"),
        (lambda f: (f / "config.json").unlink(), r"config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json.*JSON"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json"),
        (lambda f: edit(f / "config.json", format=3), r"config\.json.*format 3.*format 2"),
        (
            lambda f: (f / "config.json").write_text('{"recbole_qbert": "1", "format": 2}'),
            "dataset, sequence",
        ),
        (lambda f: edit(f / "config.json", sequence={}), "'hidden_size'"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors.*export"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), r"model\.safetensors.*export"),
        (lambda f: (f / "items.sid").write_text("x"), r"items\.sid.*export"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Recommender.load(folder)


def test_settings_of_another_network_are_refused(folder):
    sequence = json.loads((folder / "config.json").read_text())["sequence"]
    edit(folder / "config.json", sequence=sequence | {"n_layers": 3})
    with pytest.raises(ValueError, match=r"config\.json.*model\.safetensors"):
        Recommender.load(folder)


def test_nothing_of_others_is_overwritten(checkpoint, tmp_path):
    model = export.from_checkpoint(checkpoint)
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(ValueError, match=r"config\.json"):
        export.write(model, tmp_path)
    with pytest.raises(ValueError, match=r"config\.json.*folder"):
        export.write(model, tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def changed(checkpoint, path, **changes):
    state = checkpoint_io.load_checkpoint(checkpoint)
    state["config"] |= changes
    checkpoint_io.write_checkpoint(state, path)
    return path


def test_checkpoints_that_cannot_be_exported(checkpoint, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        export.from_checkpoint(tmp_path / "no.pth")
    with pytest.raises(ValueError, match=r"other\.pth.*QBERT4Rec.*SASRec"):
        export.from_checkpoint(changed(checkpoint, tmp_path / "other.pth", model="SASRec"))
    union = changed(checkpoint, tmp_path / "union.pth", external={"domains": ["A", "B"]})
    with pytest.raises(ValueError, match=r"union\.pth.*A, B"):
        export.from_checkpoint(union)
    (tmp_path / "text.bin").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.bin"):
        Recommender.load(tmp_path / "text.bin")
    external = {k: v for k, v in checkpoint_io.load_checkpoint(checkpoint)["config"]["external"].items() if k != "data_path"}
    with pytest.raises(FileNotFoundError, match=r"dataset/Tiny/Tiny\.inter.*data_path"):
        export.from_checkpoint(changed(checkpoint, tmp_path / "default.pth", external=external))
    assert export.from_checkpoint(tmp_path / "default.pth", data).ids.items
    elsewhere = write_dataset(tmp_path / "elsewhere", NAME, items=39)
    with pytest.raises(ValueError, match=r"40.*39.*data_path"):
        export.from_checkpoint(checkpoint, elsewhere)


def test_the_semantic_ids_must_be_those_of_the_training(checkpoint, run, tmp_path):
    ids = run.model.ids
    replace(ids, codes=ids.codes[::-1]).save(tmp_path / "other.sid")
    with pytest.raises(ValueError, match=r"other\.sid.*--sid"):
        export.from_checkpoint(checkpoint, sid=tmp_path / "other.sid")
    external = checkpoint_io.load_checkpoint(checkpoint)["config"]["external"] | {"semantic_id_dir": str(tmp_path / "gone")}
    moved = changed(checkpoint, tmp_path / "moved.pth", external=external)
    with pytest.raises(FileNotFoundError, match=r"gone/Tiny\.sid.*--sid"):
        export.from_checkpoint(moved)
    # In any order of the rows, with others behind them.
    ids.save(tmp_path / "same.sid")
    assert export.from_checkpoint(moved, sid=tmp_path / "same.sid").ids.items == run.valid_data._dataset.item_tokens()


# ------------------------------------------------------------------------------------------------------------ new items
@pytest.fixture(scope="module")
def extended(run, data, tmp_path_factory):
    """The vocabulary with two new items, which look like i4 and i20, and their neighbours."""
    from recbole_qbert.data import item_features as features

    tokenizer = Tokenizer.load(Path(run.config["semantic_id_dir"]))
    old = features.load(data / NAME, NAME, tokenizer.ids.items, ("text", "image"))
    rows = [old.items.index("i4"), old.items.index("i20")]
    new = replace(
        old,
        items=("n4", "n20"),
        vectors={name: value[rows] for name, value in old.vectors.items()},
        present={name: value[rows] for name, value in old.present.items()},
    )
    path = tmp_path_factory.mktemp("extended") / "more.sid"
    tokenizer.add(new).save(path)
    cold_start.nearest_neighbors(new, old, count=3).save(cold_start.neighbors_path(path))
    return path


@pytest.mark.parametrize("near", [True, False], ids=["neighbours", "codes"])
def test_new_items_are_ranked_and_may_be_history(kept, model, extended, tmp_path, near):
    path = tmp_path / "more.sid"
    for name in ("more.sid", "more.sid.json", *(["more.neighbours"] if near else [])):
        shutil.copy(extended.with_name(name), path.with_name(name))
    larger = Recommender.load(kept, semantic_ids=path)
    assert larger.items == (*model.items, "n4", "n20")
    answers = larger.recommend([["i1", "i2"]], k=100)[0]
    assert {"n4", "n20"} < {answer.item for answer in answers}
    assert all(np.isfinite(answer.score) and answer.semantic_id for answer in answers)
    # Old items keep their order: a larger catalog shifts all log-probabilities alike.
    old = [answer.item for answer in answers if answer.item in model.items]
    assert old == [answer.item for answer in model.recommend([["i1", "i2"]], k=100)[0]]
    assert larger.recommend([["n4"]], k=3)[0] and model.recommend([["n4"]], k=3) == [[]]
    assert [answer.item for answer in model.recommend([["i1", "i2"]], k=100)[0]] == old, "the smaller model is as it was"


def test_new_items_stand_where_their_neighbours_stand(kept, extended):
    table = Recommender.load(kept, semantic_ids=extended).network.item_table()
    near = cold_start.load(cold_start.neighbors_path(extended))
    items = semantic_ids.load(extended).items
    rows = torch.tensor([[items.index(item) + 1 for item in some] for some in near.nearest.tolist()])
    # The order of items.sid is that of the training data, so rows are looked up by token.
    loaded = Recommender.load(kept, semantic_ids=extended)
    rows = torch.tensor([[loaded.items.index(items[row - 1]) + 1 for row in some] for some in rows.tolist()])
    mean = (torch.from_numpy(near.weights)[:, :, None] * table[rows]).sum(1)
    cosine = torch.nn.functional.cosine_similarity(table[-2:], mean, dim=1)
    assert (cosine > 0.9999).all()


def test_neighbours_that_the_model_lacks_count_for_nothing(kept, extended, tmp_path):
    path = Path(shutil.copy(extended, tmp_path / "more.sid"))
    near = cold_start.load(cold_start.neighbors_path(extended))
    strange = near.nearest.astype(object)
    strange[:, 1:] = "gone"
    replace(near, nearest=strange).save(cold_start.neighbors_path(path))
    loaded = Recommender.load(kept, semantic_ids=path)
    table, first = loaded.network.item_table(), [loaded.items.index(item) + 1 for item in near.nearest[:, 0]]
    torch.testing.assert_close(table[-2:], table[first])
    strange[1] = "gone"
    replace(near, nearest=strange).save(cold_start.neighbors_path(path))
    with pytest.raises(ValueError, match=r"\.neighbours.* n20"):
        Recommender.load(kept, semantic_ids=path)


def test_new_items_without_neighbours_stand_where_their_codes_place_them(kept, extended, tmp_path):
    near = cold_start.load(cold_start.neighbors_path(extended))
    tables = []
    for name, count in (("all", 2), ("one", 1), ("none", 0), ("no file", None)):
        (tmp_path / name).mkdir()
        path = Path(shutil.copy(extended, tmp_path / name / "more.sid"))
        if count is not None:
            replace(near, items=near.items[:count], nearest=near.nearest[:count], weights=near.weights[:count]).save(
                cold_start.neighbors_path(path)
            )
        tables.append(Recommender.load(kept, semantic_ids=path).network.item_table())
    every, one, none, without = tables
    assert torch.equal(none, without)
    torch.testing.assert_close(one[-2], every[-2])
    torch.testing.assert_close(one[-1], without[-1])
    assert not torch.allclose(every[-1], without[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: replace(ids, vocabulary="other"), "vocabulary"),
        (lambda ids: replace(ids, prefixes=tuple(p * 3 for p in ids.prefixes)), "vocabulary.*aaa"),
        (lambda ids: replace(ids, codes=np.roll(ids.codes, 1, 0)), r"item i\d+ .*\d+ items differ"),
        (lambda ids: replace(ids, items=ids.items[1:], codes=ids.codes[1:]), "1 of 40 items"),
        (lambda ids: replace(ids, codes=np.where(np.arange(42)[:, None] > 40, 99, ids.codes)), "99.*15"),
    ],
)
def test_semantic_ids_that_do_not_extend_the_model(kept, extended, tmp_path, change, message):
    changed_ids = change(semantic_ids.load(extended))
    replace(changed_ids, size=200).save(tmp_path / "bad.sid")
    with pytest.raises(ValueError, match=message):
        Recommender.load(kept, semantic_ids=tmp_path / "bad.sid")


# ------------------------------------------------------------------------------------------------------ the command line
@pytest.fixture
def call(tmp_path, capsys):
    """Run a command; returns exit status, figures (or None), stdout and stderr."""

    def run_command(*options):
        capsys.readouterr()
        file = tmp_path / "figures.json"
        file.unlink(missing_ok=True)
        status = cli.main([*map(str, options), "--json", str(file)])
        said = capsys.readouterr()
        return status, json.loads(file.read_text()) if file.exists() else None, said.out, said.err

    return run_command


def read_answers(path):
    """``{user: [(item, score, title)]}`` of a file of any format."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [(x["user_id"], a["rank"], a["item_id"], a["score"], a["title"]) for x in lines for a in x["recommendations"]]
    elif path.suffix == ".parquet":
        rows = pd.read_parquet(path)[["user_id", "rank", "item_id", "score", "title"]].itertuples(index=False, name=None)
    else:
        with open(path, encoding="utf-8", newline="") as handle:
            table = list(csv.DictReader(handle, delimiter="," if path.suffix == ".csv" else "\t"))
        rows = [(r["user_id"], int(r["rank"]), r["item_id"], float(r["score"]), r["title"] or None) for r in table]
    found = {}
    for user, rank, item, score, title in rows:
        found.setdefault(user, []).append((item, score, title))
        assert rank == len(found[user])
    return found


def test_export_then_recommend(call, checkpoint, data, tmp_path):
    status, figures, out, _ = call("export", "--checkpoint", checkpoint, "--data_path", data, "--to", tmp_path / "model")
    assert status == 0 and figures["items"] == 40 and figures["titles"] == 20 and "weight 0.7" in out
    status, figures, out, _ = call("recommend", "--model", tmp_path / "model", "--items", "i1", "what", "i2", "--k", 3)
    assert status == 0 and "1 items of histories are unknown to the model: skipped (first: what)" in out
    assert figures["skipped_items"] == 1 and figures["first_unknown_items"] == ["what"] and figures["histories"] == 1
    answers = Recommender.load(tmp_path / "model").recommend([["i1", "i2"]], k=3)[0]
    for line, answer in zip(out.splitlines()[1:4], answers, strict=True):
        assert line.split()[2:4] == [answer.item, answer.semantic_id] and line.endswith(answer.title or answer.semantic_id)


@pytest.mark.pipeline
@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_a_file_of_histories_gives_a_file_of_answers(call, kept, model, data, tmp_path, monkeypatch, ending):
    """The same as in memory, and no more than a block of histories is held at a time."""
    blocks = []
    arrays = Recommender.recommend_arrays
    monkeypatch.setattr(Recommender, "recommend_arrays", lambda *a, **k: blocks.append(len(a[1])) or arrays(*a, **k))
    source = data / NAME / f"{NAME}.inter"
    target = tmp_path / "out" / f"answers{ending}"
    options = ("--model", kept, "--histories", source, "--k", 4, "--batch_size", 2, "--output", target)
    status, figures, out, _ = call("recommend", *options)
    assert status == 0 and figures["histories"] == 60 and f"{target}: 60 histories in" in out
    assert blocks == [16, 16, 16, 12]
    histories = whole_histories(data)
    found = read_answers(target)
    assert list(found) == list(histories)
    for mine, answers in zip(found.values(), model.recommend(list(histories.values()), k=4), strict=True):
        assert [(item, title) for item, _, title in mine] == [(a.item, a.title) for a in answers]
        assert [score for _, score, _ in mine] == pytest.approx([a.score for a in answers], abs=1e-5)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_seen_items_are_kept_when_asked_for(call, kept, tmp_path):
    call("recommend", "--model", kept, "--items", "i1", "--k", 100, "--output", tmp_path / "a.tsv")
    call("recommend", "--model", kept, "--items", "i1", "--k", 100, "--output", tmp_path / "b.tsv", "--keep_seen")
    with_it, without = (len(read_answers(tmp_path / name)["history"]) for name in ("b.tsv", "a.tsv"))
    assert (with_it, without) == (40, 39)


def test_the_terminal_shows_the_first_few(call, kept, data):
    status, figures, out, _ = call("recommend", "--model", kept, "--histories", data / NAME / f"{NAME}.inter", "--k", 1)
    assert status == 0 and figures["histories"] == 10 and "the first 10 of 60 histories" in out


def test_a_history_without_a_known_item_has_a_line_in_jsonl_only(call, kept, tmp_path):
    (tmp_path / "h.csv").write_text("user_id,history\np,i1\nq,odd\nr,\n")
    for name, wanted in (("a.jsonl", ["p", "q", "r"]), ("a.tsv", ["p"])):
        status, figures, out, _ = call("recommend", "--model", kept, "--histories", "h.csv", "--output", tmp_path / name)
        assert status == 0 and figures["histories_without_answer"] == 2 and "2 histories hold no item" in out
        users = [json.loads(x)["user_id"] for x in (tmp_path / name).read_text().splitlines()] if name == "a.jsonl" else None
        assert (users or list(read_answers(tmp_path / name))) == wanted


def test_new_items_on_the_command_line(call, kept, extended):
    status, _, out, _ = call("recommend", "--model", kept, "--sid", extended, "--items", "i3", "--k", 100)
    assert status == 0 and " n20 " in out
    status, _, _, err = call("recommend", "--model", kept, "--items", "n20")
    assert status == 2 and "knows no item of 1 histories (first: n20)" in err and "--sid" in err


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("user_id\titem_id\nu\tx\nv\ty\n", [], "(first: x, y)"),
        ("user_id\titem_id\n", [], "0 histories"),
        ("user_id\titem_id\ttimestamp\nu\ti1\t0\nv\ti2\tsoon\n", ["--batch_size", 1], "h.tsv:3: timestamp"),
        ("user_id\titem_id\nu\ti1\n", ["--k", 0], "k is 0"),
        ("user_id\titem_id\nu\ti1\n", ["--seed=3"], "seed"),
        ("user_id\titem_id\nu\ti1\n", ["--output", "a.xlsx"], "a.xlsx"),
    ],
)
def test_refusals_leave_no_file(call, kept, tmp_path, text, options, message):
    (tmp_path / "h.tsv").write_text(text)
    before = sorted(tmp_path.iterdir())
    status, figures, _, err = call("recommend", "--model", kept, "--histories", "h.tsv", "--output", "a.tsv", *options)
    assert status == 2 and figures is None and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_parquet_needs_pyarrow(call, kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, _, err = call("recommend", "--model", kept, "--items", "i1", "--output", "a.parquet")
    assert status == 2 and "pip install 'pyarrow<22'" in err


# --------------------------------------------------------------------------------------------------- files of one's own
def test_an_export_reads_histories_as_the_training_did_or_as_one_says(call, kept, model, tmp_path):
    """Names, separator and encoding come from the export, from property files, from the command line."""
    (tmp_path / "h.inter").write_bytes("book:token;user_id:token\ni1;é\ni2;é\n".encode("latin-1"))
    (tmp_path / "own.yaml").write_text("field_separator: ';'\nencoding: latin-1\nhidden_size: 7\n")
    given = ("--histories", "h.inter", "--k", 1, "--config_files", "own.yaml", "--ITEM_ID_FIELD=book")
    status, figures, _, _ = call("recommend", "--model", kept, *given, "--output", tmp_path / "a.tsv")
    assert status == 0 and figures["skipped_items"] == 0
    assert list(read_answers(tmp_path / "a.tsv")) == ["é"]
    exported = replace(export.load(kept), form=AtomicFormat(";", encoding="latin-1", item_field="book"))
    export.write(exported, tmp_path / "own")
    assert export.load(tmp_path / "own").form == exported.form
    status, *_ = call(
        "recommend", "--model", tmp_path / "own", "--histories", "h.inter", "--k", 1, "--output", tmp_path / "b.tsv"
    )
    assert status == 0 and read_answers(tmp_path / "b.tsv") == read_answers(tmp_path / "a.tsv")
    edit(tmp_path / "own" / "config.json", atomic_files=None)  # as earlier versions wrote it
    assert export.load(tmp_path / "own", {"ITEM_ID_FIELD": "x"}).form == AtomicFormat(item_field="x")
    status, _, _, err = call("recommend", "--model", kept, "--items", "i1", "--hidden_size=3")
    assert status == 2 and "hidden_size" in err and "ITEM_ID_FIELD" in err


def test_a_checkpoint_is_exported_from_data_that_were_written_anew(call, checkpoint, data, tmp_path):
    """The interactions got other names, separator and encoding after the training."""
    folder = tmp_path / "moved" / NAME
    shutil.copytree(data / NAME, folder)
    for path in (folder / f"{NAME}.inter", folder / f"{NAME}.item"):
        text = (
            path.read_text(encoding="utf-8").replace("item_id:", "book:").replace("title:", "book_title:").replace("\t", ";")
        )
        path.write_text(text, encoding="utf-16")
    given = ["--data_path", tmp_path / "moved", "--output", tmp_path / "model", "--field_separator=;", "--encoding=utf-16"]
    status, figures, _, err = call("export", "--checkpoint", checkpoint, *given, "--ITEM_ID_FIELD=book")
    assert status == 0 and figures["titles"] == 20, err
    assert export.load(tmp_path / "model").form.item_field == "book"
    status, _, _, err = call("export", "--checkpoint", checkpoint, *given, "--ITEM_ID_FIELT=book")
    assert status == 2 and "'ITEM_ID_FIELD'" in err


@pytest.mark.parametrize("command", ["export", "recommend"])
def test_a_property_file_that_is_a_list_is_refused_by_name_and_an_empty_one_says_nothing(
    call, checkpoint, kept, tmp_path, command
):
    """The same reader as in training, for a checkpoint and for an exported model."""
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "empty.yaml").write_text("")
    out = tmp_path / ("folder" if command == "export" else "out.tsv")
    given = ["--checkpoint", checkpoint] if command == "export" else ["--model", kept, "--items", "i1"]
    status, _, _, err = call(command, *given, "--output", out, "--config_files", tmp_path / "list.yaml")
    assert status == 2 and "list.yaml" in err and not out.exists()
    status, *_ = call(command, *given, "--output", out, "--config_files", tmp_path / "empty.yaml")
    assert status == 0 and out.exists()
