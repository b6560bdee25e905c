"""The generative models inside RecBole: contracts, examples, ranks, determinism, resume, bad input."""

import copy
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

from recbole_qbert.config.property_files import property_file
from recbole_qbert.data.multi_domain import write_union
from recbole_qbert.experiments.suites import suite_spec, trials, worker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.recbole_integration import checkpoint_io, experiment, registry
from recbole_qbert.utils.io import write_json
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_generative import CODES, NAME, QUICK, configure, train
from tests.helpers_recbole import write_dataset
from tests.test_trainer import KilledError

pytestmark = pytest.mark.pipeline

MODELS = ["TIGER", "MQL4GRec", "P5CID", "VIP5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 users, 40 items with text, of which one has no picture; some users with very few interactions."""
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return {model: train(data, tmp_path_factory.mktemp(model), model) for model in MODELS}


def test_run_recbole_by_name(data, tmp_path):
    from recbole.quick_start import run_recbole

    result = run_recbole(model="TIGER", dataset=NAME, config_dict={**QUICK, **CODES, "epochs": 1, "data_path": str(data)})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert (tmp_path / "saved" / "semantic_ids" / "TIGER" / NAME / f"{NAME}.sid").exists()


@pytest.mark.parametrize("model", MODELS)
def test_predict_is_full_sort_predict_and_padding_is_never_ranked(trained, model):
    run = trained[model]
    for interaction, _, _, _ in run.test_data:
        full = run.model.full_sort_predict(interaction)
        assert full.shape == (len(interaction), run.model.n_items)
        one = run.model.predict(interaction)
        assert torch.allclose(one, full[torch.arange(len(full)), interaction["item_id"]], atol=1e-5)
        assert (full[:, 0] == -torch.inf).all() and (full[:, 1:] > -torch.inf).all()


@pytest.mark.parametrize("model", MODELS)
def test_metrics_are_those_of_ranks_by_hand_with_and_without_the_history(trained, model):
    """Ranks up to the cut-off equal those of the whole catalog's scores; RecBole's own evaluator agrees."""
    run = trained[model]
    for exclude in (False, True):
        by_hand = []
        for interaction, _, _, target in run.test_data:
            scores = run.model.full_sort_predict(interaction)
            if exclude:
                scores.scatter_(1, interaction["item_id_list"], -torch.inf)
            own = scores.gather(1, target[:, None])
            by_hand += zip(interaction["user_id"].tolist(), (scores >= own).sum(1).tolist(), own[:, 0].tolist(), strict=True)
        expected = [11 if own == -np.inf else min(rank, 11) for _, rank, own in sorted(by_hand)]
        ranks = experiment.target_ranks(run, run.test_data, exclude_history=exclude)
        assert ranks.tolist() == expected
        if not exclude:
            assert run.test() == pytest.approx(metrics_from_ranks(ranks), abs=1e-6)


@pytest.mark.parametrize("ranking", ["exact", "beam"])
@pytest.mark.parametrize("model", MODELS)
def test_other_ways_to_rank(data, tmp_path, trained, model, ranking):
    """All items scored gives the same metrics; a beam as wide as the catalog, too."""
    run = train(data, tmp_path, model, ranking=ranking, beams=10 if model == "MQL4GRec" else 40)
    if ranking == "exact" or model != "MQL4GRec":
        assert run.test() == trained[model].test() and run.valid == trained[model].valid
    assert 0 <= run.test()["ndcg@10"] <= 1


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_metrics_other_seed_other_weights(data, tmp_path, trained, model):
    again, other = train(data, tmp_path / "a", model), train(data, tmp_path / "b", model, seed=7)
    assert again.test() == trained[model].test() and again.valid == trained[model].valid
    for name, value in trained[model].model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert not torch.equal(other.model.network.embedding[:3], again.model.network.embedding[:3])


@pytest.mark.parametrize(("model", "until"), [("TIGER", 3), ("MQL4GRec", 5), ("P5CID", 3), ("VIP5", 3)])
def test_a_killed_training_that_goes_on_equals_one_that_was_not_killed(data, tmp_path, model, until):
    whole = train(data, tmp_path, model, checkpoint_file=str(tmp_path / "whole.pth"))
    settings = {"checkpoint_file": str(tmp_path / "part.pth")}
    count = 0

    def prepare(network):
        plain = network.batch_loss

        def counted(*args):
            nonlocal count
            count += 1
            if count > until + len(network.examples) // 64:
                raise KilledError
            return plain(*args)

        network.batch_loss = counted

    with experiment.working_directory(tmp_path), pytest.raises(KilledError):
        experiment.train(configure(data, tmp_path, model, **settings), prepare=prepare)
    assert (tmp_path / "part.progress").exists()
    part = train(data, tmp_path, model, **settings)
    assert part.valid == whole.valid and part.test() == whole.test()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name


@pytest.mark.parametrize("model", MODELS)
def test_the_shares_of_several_processes_sum_to_the_loss_and_gradient_of_one(trained, model):
    network = trained[model].model
    network.eval()
    network.zero_grad()
    batch = network.examples[torch.arange(0, 50)]
    whole = network.batch_loss(batch)
    whole.backward()
    gradient = network.network.embedding.grad.clone()
    network.zero_grad()
    parts = [network.batch_loss(batch, None, (number, 3)) for number in range(3)]
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(network.network.embedding.grad, gradient, atol=1e-6)
    network.zero_grad()


@pytest.mark.process
def test_two_processes_train_and_rank_as_one_does(data, tmp_path):
    """run(nproc=2) of both languages, without dropout, so that nothing differs but the order of sums."""
    from recbole.quick_start import run

    code = (
        "import json, sys, recbole_qbert\n"
        "from recbole.quick_start import run\n"
        "if __name__ == '__main__':\n"
        "    port, settings = sys.argv[1], json.loads(sys.argv[2])\n"
        "    sys.argv = sys.argv[:1]\n"
        f"    result = run('MQL4GRec', {NAME!r}, config_dict=settings, nproc=2, port=port)\n"
        "    print(json.dumps([result['best_valid_score'], result['test_result']]))\n"
    )
    (tmp_path / "script.py").write_text(code)
    settings = {**QUICK, **CODES, "data_path": str(data), "dropout_rate": 0.0}
    with experiment.working_directory(tmp_path / "one"):
        one = run("MQL4GRec", NAME, config_dict=settings.copy())
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(30_000 + os.getpid() % 1000), json.dumps(settings)],
        capture_output=True, text=True, cwd=tmp_path / "two", env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [one["best_valid_score"], dict(one["test_result"])]


def test_the_loss_of_an_interaction_is_that_of_its_users_next_items(trained):
    run = trained["TIGER"]
    network = run.model.eval()
    users = torch.tensor([5, 9])
    loss = network.calculate_loss({"user_id": users})
    history = dict(zip(network.examples.histories.user.tolist(), run.valid_data._dataset.histories, strict=True))
    ids = network.vocabulary.languages[0].ids
    total, count = 0.0, 0
    with torch.no_grad():
        for user in users.tolist():
            for end in range(1, len(history[user])):
                read = ids[history[user][max(0, end - 8) : end]].flatten()
                source = torch.cat([torch.tensor([2 + user % 7]), read, torch.tensor([1])])
                target = torch.cat([ids[history[user][end]], torch.tensor([1])])
                encoded = network.network.encode(PackedTokens.of(source[None]))
                states = network.network.decode(torch.cat([torch.zeros(1, dtype=torch.int64), target[:-1]])[None], encoded)
                log = network.network.logits(states)[0].log_softmax(1)
                total -= log[torch.arange(len(target)), target].sum().item()
                count += len(target)
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_a_checkpoint_is_reloaded_and_refused_with_other_ids(data, trained, tmp_path):
    run = trained["TIGER"]
    path = run.trainer.saved_model_file
    with experiment.working_directory(tmp_path):
        config, model, _, _, _, test_data = checkpoint_io.load_data_and_model(path)
        trainer = type(run.trainer)(config, model)
        assert {k: float(v) for k, v in trainer.evaluate(test_data, load_best_model=False).items()} == run.test()
    other = configure(data, tmp_path, "TIGER", seed=5)
    with experiment.working_directory(tmp_path):
        moved = experiment.train(other)
        with pytest.raises(ValueError, match="other item IDs"):
            moved.model.load_other_parameter(checkpoint_io.load_checkpoint(path)["other_parameter"])


@pytest.mark.parametrize(("model", "file"), [("TIGER", f"{NAME}.sid"), ("P5CID", f"{NAME}.cid.npy")])
def test_a_suite_trains_and_tests_them_without_a_prior(data, tmp_path, model, file):
    """IDs lie beside those of other trials; given codes change what a trial is; both evaluations are of items."""
    settings = {key: value for key, value in {**QUICK, **CODES}.items() if key not in ("show_progress", "state", "seed")}
    content = {"title": "Tiny", "kind": "quality", "seeds": [1], "models": {model: {"model": model}}}
    content["shared"] = suite_spec.load("table2").shared | settings | {"epochs": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    suite = suite_spec.load(str(tmp_path / "tiny.yaml"))
    [trial] = trials.plan_runs(suite, NAME, data, tmp_path / "out", {}).trials
    write_json(trial.folder / "config.json", trial.request)
    worker.run(trial.folder)
    result, ranks = trial.result(), trial.ranks()
    assert result is not None and result["prior"] is None and set(ranks) == {"plain", "history_excluded", "users"}
    assert len(list((tmp_path / "out" / "vocabularies").glob(f"*/**/{file}"))) == 1
    assert result["test"]["plain"] == pytest.approx(metrics_from_ranks(ranks["plain"]))
    if model == "P5CID":
        assert result["identifiers"]["backbone"] == "from scratch"
        return
    assert result["identifiers"]["semantic_ids"]["code_sets"][0]["code_set"] == "text"
    write_tables(data, tmp_path / "given", shared=2)
    [given] = trials.plan_runs(suite, NAME, tmp_path / "given", tmp_path / "out", {}).trials
    assert given.folder != trial.folder


# ---------------------------------------------------------------------------------------------------------- codes
def test_ids_of_tiger_end_in_a_digit_and_those_of_mql4grec_are_moved(trained):
    ids = trained["TIGER"].model.vocabulary.languages[0].ids[1:]
    assert ids.shape == (40, 3) and len(ids.unique(dim=0)) == 40
    codes, digit = ids[:, :2], ids[:, 2] - ids[:, 2].min()
    _, group, count = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    for number in range(len(count)):
        assert sorted(digit[group == number].tolist()) == list(range(int(count[number])))
    text, image = trained["MQL4GRec"].model.vocabulary.languages
    assert len(text.ids[1:].unique(dim=0)) == 40
    described = image.ids[1:][image.ids[1:, 0] >= 0]
    assert len(described) == 39 == len(described.unique(dim=0))
    assert not set(text.ids.unique().tolist()) & set(image.ids.unique().tolist()) - {-1}


def write_tables(data, folder, shared):
    """Copy the data set, with given codes beside it; the first ``shared`` items have one text ID."""
    import shutil

    shutil.copytree(data / NAME, folder / NAME)
    items = (folder / NAME / f"{NAME}.items.txt").read_text().split()
    for kind in ("text", "image"):
        lines = ["item_id\tcode_0\tcode_1"]
        for row, item in enumerate(items):
            number = 0 if kind == "text" and row < shared else row
            lines.append(f"{item}\t{number // 8}\t{number % 8}")
        if kind == "image":
            lines.pop(3)
        (folder / NAME / f"{NAME}.{kind}_codes.tsv").write_text("\n".join(lines) + "\n")
    return items


def test_given_codes_that_items_share(data, tmp_path, caplog):
    items = write_tables(data, tmp_path, shared=3)
    run = train(tmp_path, tmp_path / "digit", "TIGER", epochs=1)
    token = run.valid_data._dataset.field2id_token["item_id"][1:].tolist()
    rows = [token.index(item) for item in sorted(items[:3])]
    assert run.model.code_sets[0].codes[rows].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert run.model.identifier_figures["semantic_ids"]["code_sets"][0]["shared_before"] == 3
    with caplog.at_level("WARNING"):
        kept = train(tmp_path, tmp_path / "kept", "MQL4GRec", epochs=1, fuse="text", state="WARNING")
    assert "3 of 40 items share their text codes" in caplog.text
    assert kept.model.code_sets[0].codes.shape == (40, 2)
    scores = kept.model.full_sort_predict(next(iter(kept.test_data))[0])
    assert (scores[:, 1 + np.array(rows)] == scores[:, 1 + rows[0], None]).all()  # twins tie, and both are before neither
    trained_anyway = configure(tmp_path, tmp_path / "own", "TIGER", ids="trained")
    with experiment.working_directory(tmp_path):
        assert experiment.train(trained_anyway).model.code_sets[0].codes.shape == (40, 3)


def test_codes_that_do_not_fit_are_refused(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text_codes\.tsv"):
        train(data, tmp_path / "none", "TIGER", ids="given")
    with pytest.raises(ValueError, match="keep"):
        train(data, tmp_path / "keep", "TIGER", collisions="keep")
    write_tables(data, tmp_path, shared=0)
    table = tmp_path / NAME / f"{NAME}.text_codes.tsv"
    whole = table.read_text()
    for text, complaint in (
        (whole.replace("\t1\n", "\tx\n", 1), "is not an item and 2 codes"),
        (whole.replace("code_0\t", ""), "1 codes"),
        ("\n".join(whole.split("\n")[:-3]) + "\n", "no codes of 2 of 40"),
        (whole + whole.split("\n")[1] + "\n", "has codes already"),
        ("item_id\tcode_0\nnone\t1\n", "another data set"),
        ("id\tcode_0\n", "header"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            train(tmp_path, tmp_path / "bad", "TIGER")


# ------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("model", "settings", "complaint"),
    [
        ("TIGER", {"beams": 3, "ranking": "beam"}, "beams is 3"),
        ("TIGER", {"warmup_steps": 5}, "warmup_ratio"),
        ("TIGER", {"lr_schedule": "step"}, "lr_schedule"),
        ("TIGER", {"d_modell": 3}, "d_model"),
        ("MQL4GRec", {"tasks": ["seqimage"]}, "seqrec"),
        ("MQL4GRec", {"tasks": ["chat"]}, "tasks"),
    ],
)
def test_settings_that_cannot_be_are_refused(data, tmp_path, model, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        train(data, tmp_path, model, **settings)


def test_without_pictures_text_alone_remains(data, tmp_path):
    run = train(data, tmp_path, "MQL4GRec", injection_modalities=["text"], epochs=1)
    assert run.model.examples.counts() == {"seqrec": len(run.model.examples)}
    assert run.model.ranking_languages == (0,)
    with pytest.raises(ValueError, match="fuse is image"):
        train(data, tmp_path, "MQL4GRec", injection_modalities=["text"], fuse="image")


def test_the_epoch_is_chosen_on_a_sample_of_users_and_tested_on_all(data, tmp_path):
    run = train(data, tmp_path, "TIGER", valid_users=20)
    sample = run.trainer._sample(run.valid_data)
    assert len(sample._dataset) == 20 and run.trainer._sample(run.valid_data) is sample
    assert run.valid["ndcg@10"] == pytest.approx(
        metrics_from_ranks(run.trainer.target_ranks(sample).numpy())["ndcg@10"], abs=1e-6
    )
    assert len(run.trainer.target_ranks(run.test_data)) > 40


def test_learning_rates_rise_and_fall(trained):
    from recbole_qbert.recbole_integration.generative_trainer import ScheduledAdamW

    rates = {}
    for schedule in ("constant", "linear", "cosine", "inverse_sqrt"):
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = ScheduledAdamW(
            [{"params": [parameter]}], schedule=schedule, total_steps=20, eps=1e-6, lr=1.0, betas=(0.9, 0.99), warmup_steps=4
        )
        rates[schedule] = []
        for _ in range(20):
            parameter.grad = torch.ones(2)
            optimizer.step()
            rates[schedule].append(optimizer.param_groups[0]["lr"])
        assert rates[schedule][:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and optimizer.param_groups[0]["eps"] == 1e-6
        assert all(later <= earlier for earlier, later in pairwise(rates[schedule][3:]))
    assert rates["linear"][11] == pytest.approx(0.5) and rates["cosine"][11] == pytest.approx(0.5)
    assert rates["linear"][-1] == pytest.approx(0, abs=1e-9) and rates["inverse_sqrt"][15] == pytest.approx(0.5)
    assert set(rates["constant"][3:]) == {1.0}


@pytest.mark.parametrize("path", sorted(property_file("baseline").glob("*/*.yaml")), ids=lambda path: str(path.parent.name))
def test_files_of_sizes_hold_known_keys(path):
    model = path.stem if path.stem in MODELS else "QBERT4Rec"
    registry.check_keys(yaml.safe_load(path.read_text()), registry.known_properties(model), str(path))


@pytest.mark.parametrize("model", ["TIGER", "P5CID", "VIP5"])
def test_a_cyclic_language_is_learned(tmp_path, model):
    """The item after i is i + 1: HR@1 is 1 within seconds."""
    folder = tmp_path / "data" / "Ring"
    folder.mkdir(parents=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(50):
        rows += [f"u{user}\ti{(user * 3 + step) % 30}\t{step}" for step in range(9)]
    (folder / "Ring.inter").write_text("\n".join(rows) + "\n")
    codes = ["item_id\tcode_0\tcode_1", *(f"i{item}\t{item // 6}\t{item % 6}" for item in range(30))]
    (folder / "Ring.text_codes.tsv").write_text("\n".join(codes) + "\n")
    # Two items are read: of longer histories those of the test are longer than all of the training.
    settings = {**QUICK, **CODES, "epochs": 15, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "dropout_rate": 0.0}
    settings |= {"learning_rate": 0.005, "train_batch_size": 32, "eval_step": 5, "MAX_ITEM_LIST_LENGTH": 2}
    settings |= {"lr_schedule": "constant", "checkpoint_dir": str(tmp_path / "saved")}
    settings |= {
        "TIGER": {"user_tokens": 0},
        # A ring has equal eigenvalues, so the clusters and how hard they are to learn depend on the machine's LAPACK.
        "P5CID": {"cid_clusters": 3, "cid_leaf": 10, "epochs": 40, "learning_rate": 0.003},
        "VIP5": {"visual_tokens": 0, "target_draw": "every", "draws": 4},
    }[model]
    with experiment.working_directory(tmp_path):
        run = experiment.train(experiment.configure(model, "Ring", tmp_path / "data", settings))
    assert run.test()["hit@1"] > 0.95


def test_counts_of_real_examples(shared_data):
    """Examples an epoch on Amazon_Scientific: a figure of the published data."""
    from recbole_qbert.generative.examples import Examples, Histories
    from recbole_qbert.generative.vocabulary import Vocabulary
    from recbole_qbert.models.mql4grec import TASKS

    lines = (shared_data / "Amazon_Scientific" / "Amazon_Scientific.inter").read_text().splitlines()[1:]
    items, histories = {}, {}
    for line in lines:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(items.setdefault(item, len(items) + 1))
    codes = np.stack([np.arange(len(items)) // 256, np.arange(len(items)) % 256], 1)
    vocabulary = Vocabulary.of([("text", codes, (256, 256)), ("image", codes, (256, 256))], prompts=12)
    training = Histories.of([np.array(history[:-2]) for history in histories.values()], np.arange(len(histories)) + 1)
    counts = Examples(list(TASKS.values()), vocabulary, training, 20, 4).counts()
    assert counts == {
        "seqrec": 10_928, "seqimage": 10_928, "item2image": 1_585, "image2item": 1_585, "fusionseqrec": 10_928,
    }  # fmt: skip
    assert json.dumps(sum(counts.values())) == "35954"


def test_given_codes_of_the_published_data(shared_data, tmp_path):
    """Amazon_Instruments: 262 pairs share their text codes; a digit separates them; prefixes and examples are counted."""
    from recbole.data import create_dataset

    settings = {"show_progress": False, "state": "ERROR", "checkpoint_dir": str(tmp_path / "saved"), "num_layers": 1}
    built = {}
    for name in ("TIGER", "MQL4GRec"):
        config = experiment.configure(name, "Amazon_Instruments", shared_data, settings)
        with experiment.working_directory(tmp_path):
            part = create_dataset(config).build()[0]
            built[name] = registry._registered[name].model(config, part)
    depths = {name: model.ranker(0).trie.depth.bincount().tolist() for name, model in built.items()}
    assert depths == {"TIGER": [1, 126, 1708, 5012, 5988, 6250], "MQL4GRec": [1, 126, 1708, 5012, 5988]}
    assert len(built["TIGER"].examples) == 84_890 and len(built["MQL4GRec"].examples) == 267_170
    assert built["TIGER"].code_sets[0].sizes == (256, 256, 256, 256, 2)
    assert [one["shared_before"] for one in built["MQL4GRec"].identifier_figures["semantic_ids"]["code_sets"]] == [524, 0]


def write_codes(folder, name, sizes=(4, 5), seed=0):
    """Tables of given codes, as of one quantizer: an item of a number has the same codes in every data set."""
    items = (folder / name / f"{name}.items.txt").read_text().split()
    for language, shift in (("text", 0), ("image", 3)):
        rows = [f"{item}\t{(int(item[1:]) + shift) % sizes[0]}\t{int(item[1:]) // sizes[0] % sizes[1]}" for item in items]
        (folder / name / f"{name}.{language}_codes.tsv").write_text("item_id\tcode_0\tcode_1\n" + "\n".join(rows) + "\n")


def before_training(config, folder):
    """The model of a run before its first step."""
    models = []
    with experiment.working_directory(folder):
        experiment.train(config, prepare=lambda model: models.append(copy.deepcopy(model)))
    return models[0]


def test_mql4grec_takes_body_and_codes_of_its_pretraining_and_starts_prompts_anew(tmp_path):
    for name, items in (("A", 15), ("B", 18), (NAME, 17)):
        write_dataset(tmp_path, name, users=20, items=items, seed=items)
        write_codes(tmp_path, name)
    write_union(["A", "B"], tmp_path, tmp_path, "A+B")
    settings = {**QUICK, "checkpoint_dir": str(tmp_path / "first"), "epochs": 1, "tasks": ["seqrec", "seqimage"]}
    with experiment.working_directory(tmp_path):
        first = experiment.train(experiment.configure("MQL4GRec", "A+B", tmp_path, settings))
    path = first.trainer.saved_model_file
    untrained = before_training(configure(tmp_path, tmp_path, "MQL4GRec", epochs=1), tmp_path)
    started = before_training(configure(tmp_path, tmp_path, "MQL4GRec", epochs=1, pretrained=path), tmp_path)
    theirs, mine = first.model.network.state_dict(), started.network.state_dict()
    for name, value in mine.items():
        if name != "embedding":
            assert torch.equal(value, theirs[name]), name
    for level, (start, size) in started.code_rows.items():
        other, others = first.model.code_rows[level]
        count = min(size, others)
        assert torch.equal(mine["embedding"][start : start + count], theirs["embedding"][other : other + count]), level
    prompts = slice(started.vocabulary.first_prompt, started.code_rows["text 0"][0])
    assert prompts.stop > prompts.start
    assert torch.equal(mine["embedding"][prompts], untrained.network.embedding[prompts]), "drawn from the same seed"
    assert started.fingerprint() != untrained.fingerprint()
    with pytest.raises(ValueError, match="d_model"):
        before_training(configure(tmp_path, tmp_path, "MQL4GRec", pretrained=path, d_model=24), tmp_path)


def test_the_suite_of_mql4grec_pretrains_on_the_union_of_the_sources(tmp_path):
    for name, items in (("A", 15), ("B", 18), (NAME, 17)):
        write_dataset(tmp_path / "data", name, users=20, items=items, seed=items)
        write_codes(tmp_path / "data", name)
    suite = suite_spec.load("mql4grec")
    small = {key: value for key, value in QUICK.items() if key in ("d_model", "d_ff", "d_kv", "num_heads", "beams")}
    small |= {"num_layers": 1, "num_decoder_layers": 1, "epochs": 1, "train_batch_size": 64}
    options = (suite, NAME, tmp_path / "data", tmp_path / "results", small)
    assert "--sources" in trials.plan_runs(*options).impossible["pretrained"]
    planned = trials.plan_runs(*options, sources=["A", "B"], models=["pretrained"], seeds=[1])
    [trial] = [trial for trial in planned.trials if trial.spec.name == "pretrained"]
    assert trial.request["sources"] == ["A", "B"]
    folder = trial.folder
    folder.mkdir(parents=True)
    write_json(folder / "config.json", trial.request)
    worker.run(folder)
    result = json.loads((folder / "cell.json").read_text())
    assert {epoch["stage"] for epoch in result["curve"]} == {"stage-1", "stage-2"}
    assert 0 <= result["test"]["plain"]["ndcg@10"] <= 1
