"""CooccurrenceKNN against its formula; RecBole's models as our property files set them; the paper's figures."""

import math

import numpy as np
import pytest
import torch
import yaml
from recbole.quick_start import run_recbole

from recbole_qbert.config.property_files import property_file
from recbole_qbert.recbole_integration import checkpoint_io, experiment, registry
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_recbole import write_dataset

pytestmark = pytest.mark.pipeline

NAME = "Tiny"
QUIET = {"show_progress": False, "state": "ERROR"}
PROTOCOL = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Hit", "NDCG"], "topk": [1, 5, 10], "valid_metric": "NDCG@10", "epochs": 1, "eval_batch_size": 32,
    "MAX_ITEM_LIST_LENGTH": 8, "train_batch_size": 64, "hidden_size": 16, "inner_size": 16, **QUIET,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with item attributes: few categories, and titles of a word that many items share and one that none does."""
    folder = write_dataset(tmp_path_factory.mktemp("data"), NAME)
    items = (folder / NAME / f"{NAME}.items.txt").read_text().split()
    rows = "".join(f"{item}\tc{n % 5} d{n % 3}\tword{n % 4} only{n}\n" for n, item in enumerate(items))
    (folder / NAME / f"{NAME}.item").write_text("item_id:token\tcategories:token_seq\ttitle:token_seq\n" + rows)
    return folder


def knn(data, dataset=NAME, **settings):
    return experiment.train(experiment.configure("CooccurrenceKNN", dataset, data, {**QUIET, "seed": 1, **settings}))


def scores_of(run, rows):
    return run.model.full_sort_predict(rows._dataset.inter_feat)


# ------------------------------------------------------------------------------------------------------ item-kNN
def test_content_adds_what_like_items_have_in_common(data, tmp_path):
    plain, with_content = (knn(data, content_weight=weight, semantic_id_dir=str(tmp_path)) for weight in (0, 0.5))
    dataset = plain.valid_data._dataset
    likeness = dataset.content_likeness()
    matrices = [np.load(data / NAME / f"{NAME}.{kind}.npy").astype(np.float64) for kind in ("text", "image")]
    listed = (data / NAME / f"{NAME}.items.txt").read_text().split()
    columns = []
    for matrix in matrices:
        there = ~np.isnan(matrix).any(1)
        centered = np.where(there[:, None], matrix - matrix[there].mean(0), 0.0)
        columns.append(centered / np.sqrt((centered[there] ** 2).sum(1).mean()))
    unit = np.concatenate(columns, 1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    row = {token: number for number, token in enumerate(dataset.field2id_token["item_id"])}
    of_features = [row[item] for item in listed]
    dense = likeness.toarray()
    assert not dense[0].any() and not dense[:, 0].any() and not np.diag(dense).any()
    found = dense[np.ix_(of_features, of_features)]
    cosine = np.maximum(unit @ unit.T, 0) ** 3
    assert found[found > 0] == pytest.approx(cosine[found > 0], abs=1e-3) and (found > 0).sum(1).max() <= 20
    more = scores_of(with_content, with_content.test_data) - scores_of(plain, plain.test_data)
    assert (more[:, 1:] >= -1e-6).all() and (more[:, 1:] > 0).any()


def test_content_without_features_is_refused(tmp_path):
    folder = write_dataset(tmp_path, "Bare")
    for file in (folder / "Bare").glob("*.npy"):
        file.unlink()
    (folder / "Bare" / "Bare.items.txt").unlink()
    with pytest.raises(ValueError, match=r"content_weight.*0\.5"):
        knn(folder, "Bare", content_weight=0.5, semantic_id_dir=str(tmp_path / "ids"))


@pytest.mark.parametrize(("shrink", "decay"), [(0, 1.0), (5, 1.0), (0, 0.5), (3, 0.8)])
def test_scores_are_the_formula(data, shrink, decay):
    run = knn(data, MAX_ITEM_LIST_LENGTH=4, shrink=shrink, decay=decay)
    histories = [set(history.tolist()) for history in run.valid_data._dataset.histories]
    items = run.valid_data._dataset.item_num
    holds = np.array([[item in history for item in range(items)] for history in histories], dtype=float)
    count = holds.T @ holds
    rows = run.test_data._dataset.inter_feat
    scores = scores_of(run, run.test_data)
    assert scores.shape == (len(rows), items) and torch.isinf(scores[:, 0]).all()
    for row in range(0, len(rows), 7):
        history = rows["item_id_list"][row][: rows["item_length"][row]].tolist()
        newest = {item: len(history) - 1 - place for place, item in enumerate(history)}  # a later place wins
        for item in range(1, items):
            expected = sum(
                decay**age * count[item, seen] / (math.sqrt(count[item, item] * count[seen, seen]) + shrink)
                for seen, age in newest.items()
                if seen != item and count[item, seen]
            )
            assert scores[row, item] == pytest.approx(expected, abs=1e-5)
    target = rows["item_id"]
    assert torch.equal(run.model.predict(rows), scores.gather(1, target[:, None])[:, 0])


def test_held_out_items_change_nothing(data, tmp_path):
    """The similarities must not see what validation and test ask for."""
    lines = (data / NAME / f"{NAME}.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    owners = [row[0] for row in rows]
    held = []
    for user in set(owners):
        places = [n for n, owner in enumerate(owners) if owner == user]
        held += places[-2:] if len(places) > 3 else places[2:]  # of three interactions RecBole tests one, of two none
    held.sort()
    values = [rows[n][1] for n in held]
    for n, value in zip(held, values[1:] + values[:1], strict=True):  # the same items in the data, elsewhere
        rows[n][1] = value
    (tmp_path / NAME).mkdir()
    text = "\n".join([lines[0], *("\t".join(row) for row in rows)]) + "\n"
    (tmp_path / NAME / f"{NAME}.inter").write_text(text)

    def similar(folder):
        run = knn(folder)
        token = run.valid_data._dataset.field2id_token["item_id"]
        order = np.argsort(token[1:]) + 1
        prior = run.model.prior
        similar = np.zeros((len(token), len(token)), dtype=np.float32)
        similar[tuple(prior.pair.numpy())] = prior.value.numpy()
        return token[order].tolist(), similar[np.ix_(order, order)]

    (tokens, before), (same, after) = similar(data), similar(tmp_path)
    assert same == tokens and before.any()
    np.testing.assert_array_equal(after, before)


def test_run_recbole_validates_once_and_trains_nothing(data):
    given = {"data_path": str(data), "MAX_ITEM_LIST_LENGTH": 8, "shrink": 2, **QUIET}
    result = run_recbole(model="CooccurrenceKNN", dataset=NAME, config_dict=given)
    run = knn(data, MAX_ITEM_LIST_LENGTH=8, shrink=2)
    assert run.trainer.train_loss_dict == {} and sum(p.numel() for p in run.model.parameters()) == 0
    assert dict(result["test_result"]) == run.test()
    assert result["best_valid_score"] == run.valid["ndcg@10"] > 0
    # RecBole's evaluator orders ties as it likes, ours counts them against the model.
    figures = metrics_from_ranks(experiment.target_ranks(run, run.test_data, exclude_history=False))
    assert all(figures[name] <= value + 1e-6 for name, value in run.test().items())


def test_a_checkpoint_brings_the_same_scores_back(data):
    run = knn(data, shrink=2, decay=0.9)
    _, model, _, _, _, test = checkpoint_io.load_data_and_model(run.trainer.saved_model_file)
    assert torch.equal(model.full_sort_predict(test._dataset.inter_feat), scores_of(run, run.test_data))


@pytest.mark.parametrize(("key", "value"), [("shrink", -1), ("decay", 0), ("decay", 1.1)])
def test_settings_out_of_range_are_refused(data, key, value):
    with pytest.raises(ValueError, match=f"{key} is {float(value)}"):
        knn(data, **{key: value})


def test_scientific(shared_data):
    """What docs/results.md reports; the plain cosine is the structural prior's evidence."""
    run = knn(shared_data, "Amazon_Scientific", MAX_ITEM_LIST_LENGTH=20, eval_batch_size=512)
    figures = metrics_from_ranks(experiment.target_ranks(run, run.test_data, exclude_history=True))
    assert figures["ndcg@10"] == pytest.approx(0.0937, abs=0.0001)
    assert figures["hit@10"] == pytest.approx(0.1383, abs=0.0001)
    rows = run.test_data._dataset.inter_feat[torch.arange(50)]
    sequences = rows["item_id_list"]
    prior = CooccurrencePrior(run.valid_data._dataset.histories, run.model.n_items)
    scores = run.model.full_sort_predict(rows).scatter(1, sequences, 0.0).clamp(min=0.0)
    torch.testing.assert_close(scores / scores.sum(1, keepdim=True), prior.share(sequences, rows["item_length"]))


# ----------------------------------------------------------------------------------------- RecBole's own models
def baseline(data, model, more=(), **settings):
    files = [str(property_file(f"baseline/{file}.yaml")) for file in ("common", model, *more)]
    return experiment.configure(
        model, NAME, data, {**PROTOCOL, "seed": 1, "checkpoint_dir": "checkpoints", **settings}, files
    )


@pytest.mark.parametrize("model", ["GRU4Rec", "SASRec", "BERT4Rec", "FDSA"])
def test_a_baseline_trains_with_its_file(data, model):
    run = experiment.train(baseline(data, model))
    assert 0 < run.valid["ndcg@10"] < 1
    assert experiment.target_ranks(run, run.test_data, exclude_history=True).min() >= 1


def test_s3rec_goes_from_stage_to_stage(data):
    """The second training starts from the weights of the first; titles in place of categories."""
    first = experiment.train(
        baseline(data, "S3Rec", ["title_words"], train_stage="pretrain", pretrain_epochs=2, save_step=2)
    )
    assert first.trainer.saved_model_file == f"checkpoints/S3Rec-{NAME}-2.pth" and first.valid == {}
    taken = {name: value.clone() for name, value in first.model.state_dict().items()}
    start = {}

    def keep(model):
        start.update({name: value.clone() for name, value in model.state_dict().items()})

    pretrained = {"train_stage": "finetune", "pre_model_path": first.trainer.saved_model_file}
    run = experiment.train(baseline(data, "S3Rec", ["title_words"], **pretrained), prepare=keep)
    assert start.keys() == taken.keys() and all(torch.equal(start[name], taken[name]) for name in taken)
    assert 0 < run.valid["ndcg@10"] < 1
    assert run.model.FEATURE_FIELD == "title"


@pytest.mark.parametrize("path", sorted(property_file("baseline").glob("*.yaml")), ids=lambda path: path.stem)
def test_baseline_files_hold_keys_that_recbole_knows(data, path):
    """RecBole takes any key in silence."""
    models = {"common": ["SASRec"], "title_words": ["FDSA", "S3Rec"]}.get(path.stem, [path.stem])
    plain = [experiment.configure(model, NAME, data, {"train_neg_sample_args": None}) for model in models]
    known = {key for config in plain for key in config.final_config_dict} | {"load_col", "attribute_min_items"}
    registry.check_keys(yaml.safe_load(path.read_text()), known, str(path))


# ---------------------------------------------------------------------------------------------- the paper's figures
IMPOSSIBLE = {  # listed at the head of published.yaml: HR and NDCG that no one ranking has
    ("Amazon_Games", "VQRec"), ("Amazon_Instruments", "S3Rec"), ("Amazon_Instruments", "MISSRec"),
    ("Amazon_Instruments", "P5CID"), ("Amazon_Arts", "S3Rec"), ("Amazon_Arts", "MISSRec"), ("Amazon_Arts", "P5CID"),
}  # fmt: skip
ROUNDING = 1.5e-4


def impossible(row):
    """What contradicts itself: with one target a user, hits between two cut-offs bound what NDCG gains between them."""
    found = []
    hits, gains = [[row.get(f"{name}@{k}") for k in (1, 5, 10)] for name in ("hit", "ndcg")]
    gains[0] = hits[0]  # NDCG@1 is HR@1
    for low, high, first, last in ((0, 1, 2, 5), (1, 2, 6, 10)):
        more = None if None in (hits[low], hits[high]) else hits[high] - hits[low]
        if more is not None and more < 0:
            found.append("hit")
        if more is not None and None not in (gains[low], gains[high]):
            step = gains[high] - gains[low]
            if not more / math.log2(last + 1) - ROUNDING <= step <= more / math.log2(first + 1) + ROUNDING:
                found.append("ndcg")
    found += [k for k in (0, 1, 2) if None not in (hits[k], gains[k]) and gains[k] > hits[k]]
    return found


@pytest.fixture(scope="module")
def published():
    return yaml.safe_load(property_file("benchmark/published.yaml").read_text())


def test_published_figures_contradict_themselves_only_where_said(published):
    quality = {suite: sets for suite, sets in published.items() if suite not in ("table1", "table6")}
    wrong = {
        (dataset, name)
        for sets in quality.values()
        for dataset, rows in sets.items()
        for name, row in rows.items()
        if impossible(row)
    }
    assert wrong == IMPOSSIBLE
    games = published["table2"]["Amazon_Games"]["VQRec"]
    assert games["ndcg@5"] > games["hit@5"] and games["ndcg@5"] > games["ndcg@10"]


def test_published_tables_are_whole_and_agree(published):
    assert [f"table{number}" in published for number in range(1, 7)] == [True] * 6
    targets = ["Amazon_Instruments", "Amazon_Arts", "Amazon_Games"]
    sizes = {"table2": (12, 5), "table3": (4, 4), "table4": (3, 2), "table5": (2, 2), "table6": (1, 3)}
    for suite, (rows, metrics) in sizes.items():
        assert list(published[suite]) == targets
        assert all(len(sets) == rows for sets in published[suite].values())
        assert all(len(row) == metrics for sets in published[suite].values() for row in sets.values())
    ours = {"table2": "Q-BERT4Rec", "table3": "all", "table4": "multi-mask", "table5": "dynamic"}
    for dataset in targets:  # the same model in four tables
        for metric in ("hit@10", "ndcg@10"):
            assert len({published[suite][dataset][name][metric] for suite, name in ours.items()}) == 1
    assert published["figure3"]["Amazon_Arts"]["n_layers=4"] == {"hit@10": 0.1419, "ndcg@10": 0.1039}


def test_published_statistics_agree_with_each_other(published):
    assert len(published["table1"]) == 9
    for sets in published["table1"].values():
        known = sets["statistics"]
        assert known["interactions"] / known["users"] == pytest.approx(known["length"], abs=0.0051)
        filled = known["interactions"] / known["users"] / known["items"]
        assert 1 - filled == pytest.approx(known["sparsity"], abs=0.000051)
    for sets in published["table6"].values():
        assert sets["Q-BERT4Rec"]["flops"] / sets["Q-BERT4Rec"]["parameters"] == pytest.approx(50, abs=0.1)
