"""QBERT4Rec inside RecBole: contracts, data, determinism, tuning, reload, bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recbole.data.dataset
import torch

import recbole_qbert
from recbole_qbert.config import property_files
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.recbole_integration import checkpoint_io, experiment, patches
from recbole_qbert.recbole_integration.attribute_dataset import AttributeDataset
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.sequence import prior_fitting
from recbole_qbert.serving import export
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline

NAME = "Tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set: 60 users, 40 items, two feature modalities, some users with very few interactions."""
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


def configure(data, folder, model="QBERT4Rec", **settings):
    base = {"checkpoint_dir": str(folder / "saved"), "semantic_id_dir": str(folder / "ids")} if model == "QBERT4Rec" else {}
    return experiment.configure(model, NAME, data, {**QUICK.get(model, {}), **base, **settings})


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with experiment.working_directory(folder):
        return experiment.train(configure(data, folder))


def test_run_recbole_by_name(data, tmp_path, monkeypatch):
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    result = run_recbole(model="QBERT4Rec", dataset=NAME, config_dict={**QUICK["QBERT4Rec"], "data_path": str(data)})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert (tmp_path / "saved" / "semantic_ids" / NAME / f"{NAME}.sid").exists()


def test_validation_and_test_rows_are_recboles(data, tmp_path):
    """Same users, histories and targets as SequentialDataset; users with 2 or 3 interactions included."""
    from recbole.data import create_dataset

    ours = create_dataset(configure(data, tmp_path)).build()
    theirs = create_dataset(configure(data, tmp_path, model="SASRec")).build()
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        a, b = by_user(mine), by_user(other)
        assert a == b and len(a) > 30
    # Training: the targets of RecBole's prefix rows are the positions of our rows, and popularity counts agree.
    prefixes = sum(len(history) - 1 for history in ours[0].histories)
    assert prefixes == len(theirs[0])
    assert ours[0].item_counter == theirs[0].item_counter
    # What is held out stays out of the training rows: they are what stands before the validation target in the file.
    token = ours[0].field2id_token["item_id"]
    whole = {}
    for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        whole.setdefault(user, []).append(item)
    feat = ours[0].inter_feat
    for user, items, length in zip(feat["user_id"], feat["item_id_list"], feat["item_length"], strict=True):
        history = whole[ours[0].field2id_token["user_id"][user]]
        held = min(max(len(history) - 2, 0), 2)
        assert [token[i] for i in items[:length]] == history[: len(history) - held][-9:]


def by_user(part):
    feat = part.inter_feat
    rows = zip(
        feat["user_id"].tolist(),
        feat["item_id_list"].tolist(),
        feat["item_length"].tolist(),
        feat["item_id"].tolist(),
        strict=True,
    )
    return {user: (tuple(items[:length]), target) for user, items, length, target in rows}


def test_predict_is_full_sort_predict(trained):
    for interaction, _, _, _ in trained.test_data:
        full = trained.model.full_sort_predict(interaction)
        assert full.shape == (len(interaction), trained.model.n_items)
        one = trained.model.predict(interaction)
        assert torch.equal(one, full[torch.arange(len(full)), interaction["item_id"]])


def test_recboles_metrics_equal_ranks_counted_by_hand(trained):
    by_hand = metrics_from_ranks(experiment.target_ranks(trained, trained.test_data, exclude_history=False))
    assert trained.test() == pytest.approx(by_hand, abs=1e-6)


def test_untrained_codes_know_what_items_are_like(data, tmp_path):
    """With ``code_init: content`` items that stand near each other on the ring have near vectors before any training."""
    near = {}
    for code_init in ("content", "random"):
        with experiment.working_directory(tmp_path):
            run = experiment.train(configure(data, tmp_path, epochs=0, code_init=code_init, semantic_ids="fused"))
        table = torch.nn.functional.normalize(run.model.network.item_table()[1:].detach(), dim=1)
        place = torch.tensor([int(token[1:]) for token in run.model.ids.items])
        distance = (place[:, None] - place).abs()
        distance = torch.minimum(distance, 40 - distance)
        alike = table @ table.T
        near[code_init] = float(alike[(distance > 0) & (distance < 4)].mean() - alike[distance > 12].mean())
    assert near["content"] > near["random"] + 0.3


def test_a_checkpoint_is_loaded_without_features(data, tmp_path):
    copy = tmp_path / "data" / NAME
    shutil.copytree(data / NAME, copy)
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(copy.parent, tmp_path, epochs=1), checkpoint_file=tmp_path / "model.pth")
    ids = tmp_path / "ids" / f"{NAME}.sid"
    for file in copy.glob("*"):
        if file.suffix != ".inter":
            file.unlink()
    shutil.copy(ids, copy)
    model = checkpoint_io.load_data_and_model(tmp_path / "model.pth")[1]
    assert torch.equal(model.network.codebook, run.model.network.codebook)


def test_same_seed_same_metrics_other_seed_other_weights(data, tmp_path, trained):
    with experiment.working_directory(tmp_path):
        again = experiment.train(configure(data, tmp_path))
        other = experiment.train(configure(data, tmp_path, seed=7))
    assert again.test() == trained.test() and again.valid == trained.valid
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert not torch.equal(other.model.network.codebook, trained.model.network.codebook)


def test_reload_gives_the_same_metrics_and_reads_no_pickle(trained, tmp_path):
    with experiment.working_directory(tmp_path):
        path = trained.trainer.saved_model_file
        torch.load(path, weights_only=True)
        config, model, _, _, _, test_data = recbole_qbert.load_data_and_model(path)
        from recbole.utils import get_trainer

        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        assert dict(trainer.evaluate(test_data, load_best_model=False)) == pytest.approx(trained.test(), abs=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"views": ["causal"]},
        {
            "views": ["masked"],
            "loss": "code",
            "repeat_penalty": "none",
            "use_item_embedding": False,
            "semantic_ids": "fused",
        },
        {"views": ["masked"], "train_stage": "pretrain", "view_schedule": "alternate"},
        {"semantic_ids": "both", "repeat_penalty": "exclude", "view_schedule": "alternate"},
        {"injection_modalities": ["image"], "semantic_ids": "fused", "injection_gate": "none"},
        {"injection_modalities": [], "semantic_ids": "fused"},
        {"structural_prior": "cooccurrence"},
    ],
    ids=["causal", "paper", "pretrain", "both", "image only", "ID only", "prior"],
)
def test_named_choices_train_and_learn(data, tmp_path, settings):
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(data, tmp_path, **settings))
    losses = list(run.trainer.train_loss_dict.values())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert set(run.test()) == {f"{m}@{k}" for m in ("hit", "ndcg") for k in (1, 5, 10)}


@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec"])
def test_item_rows_alone_make_a_plain_baseline(data, tmp_path, name):
    """No stage 1 or 2, no codes: what is left is the baseline on this engine."""
    file = property_files.property_file(f"baseline/fast/{name}.yaml")
    with experiment.working_directory(tmp_path):
        settings = {
            **QUICK["QBERT4Rec"],
            "semantic_ids": "none",
            "epochs": 15,
            "stopping_step": 15,
            "learning_rate": 0.01,
            "checkpoint_dir": str(tmp_path / "saved"),
        }
        run = experiment.train(experiment.configure("QBERT4Rec", NAME, data, settings, [str(file)]))
        assert run.model.network.codebook.numel() == 0 and not (tmp_path / "saved" / "semantic_ids").exists()
        falling = list(run.trainer.train_loss_dict.values())
        assert min(falling[1:]) < falling[0] and 0 <= run.test()["ndcg@10"] <= 1
        with pytest.raises(ValueError, match="semantic ID"):
            export.from_checkpoint(Path(run.trainer.saved_model_file))


def test_items_need_a_row_or_an_id(data, tmp_path):
    for settings in ({"use_item_embedding": False}, {"loss": "code", "repeat_penalty": "none"}):
        with (
            experiment.working_directory(tmp_path),
            pytest.raises(ValueError, match=r"semantic_ids.*none.*use_item_embedding.*loss"),
        ):
            experiment.train(configure(data, tmp_path, semantic_ids="none", **settings))


def test_half_precision_is_an_option(data, tmp_path, trained):
    """RecBole's enable_amp: bfloat16 where it serves, sums and softmax in float32."""
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(data, tmp_path, enable_amp=True))
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in run.model.parameters())
    for epoch, loss in run.trainer.train_loss_dict.items():
        assert loss == pytest.approx(trained.trainer.train_loss_dict[epoch], rel=0.02)


def test_ranks_do_not_depend_on_the_batch(trained):
    """Rows come back in their order though they are ranked by length; equal to ranks of the full score matrix."""
    rows = trained.test_data._dataset
    batch = rows[torch.arange(len(rows))]
    with torch.no_grad():
        scores = trained.model.eval().full_sort_predict(batch)
    for exclude in (False, True):
        if exclude:
            scores = scores.scatter(1, batch["item_id_list"], -torch.inf)
        wanted = (~(scores < scores.gather(1, batch["item_id"][:, None]))).sum(1)
        assert torch.equal(trained.trainer.target_ranks(trained.test_data, exclude_history=exclude), wanted)


def test_the_prior_is_fitted_on_validation_and_kept_in_the_checkpoint(data, tmp_path):
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(data, tmp_path, structural_prior="cooccurrence"))
        without = run.model.prior.weight.clone()
        _, model, *_ = recbole_qbert.load_data_and_model(run.trainer.saved_model_file)
    assert torch.equal(model.prior.weight, without)
    best = run.valid["ndcg@10"]
    run.model.prior.weight.zero_()
    plain = run.trainer.evaluate(run.valid_data, load_best_model=False)["ndcg@10"]
    assert best >= plain - 1e-9


def test_without_a_file_the_prior_is_fitted_to_the_weights_at_hand(data, tmp_path, monkeypatch):
    """RecBole's run_recbole(saved=False)."""
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    fitted = []
    monkeypatch.setattr(
        prior_fitting,
        "fit_prior",
        lambda prior, batches, fit=prior_fitting.fit_prior: fitted.append(fit(prior, batches)),
    )
    settings = {**QUICK["QBERT4Rec"], "data_path": str(data), "structural_prior": "cooccurrence", "epochs": 2}
    result = run_recbole(model="QBERT4Rec", dataset=NAME, config_dict=settings, saved=False)
    assert len(fitted) == 1 and fitted[0]["weight"] > 0
    assert result["best_valid_score"] == pytest.approx(fitted[0]["ndcg@10"], abs=1e-6)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_checkpoint_alone_is_enough(data, tmp_path):
    """Of a fine-tuned model the pretrained file may be gone, and nothing is built again."""
    with experiment.working_directory(tmp_path):
        first = experiment.train(configure(data, tmp_path, train_stage="pretrain", epochs=1))
        given = {"pretrained": first.trainer.saved_model_file, "rebuild": True}
        second = experiment.train(configure(data, tmp_path, epochs=1, checkpoint_dir=str(tmp_path / "second"), **given))
        Path(first.trainer.saved_model_file).unlink()
        sid = Path(second.config["semantic_id_dir"]) / f"{NAME}.sid"
        stamp = sid.stat().st_mtime_ns
        _, model, *_ = recbole_qbert.load_data_and_model(second.trainer.saved_model_file)
    assert sid.stat().st_mtime_ns == stamp
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_folder_of_the_data_is_no_folder_for_ids(data, tmp_path):
    """What lies there is taken as given, so a later run would take the first one's output for ready-made."""
    with experiment.working_directory(tmp_path), pytest.raises(ValueError, match=rf"{NAME}.*semantic_id_dir"):
        experiment.train(configure(data, tmp_path, semantic_id_dir=str(data / NAME)))
    assert not (data / NAME / f"{NAME}.sid").exists()


def test_a_checkpoint_of_when_that_was_allowed_is_read(tmp_path):
    folder = write_dataset(tmp_path / "data", NAME)
    with experiment.working_directory(tmp_path):
        trained = experiment.train(configure(folder, tmp_path, epochs=1))
        built, path = Path(trained.config["semantic_id_dir"]), trained.trainer.saved_model_file
        for name in (f"{NAME}.sid", f"{NAME}.sid.json"):
            (built / name).rename(folder / NAME / name)
        checkpoint = checkpoint_io.load_checkpoint(path)
        checkpoint["config"]["external"]["semantic_id_dir"] = str(folder / NAME)
        checkpoint_io.write_checkpoint(checkpoint, Path(path))
        _, model, *_ = recbole_qbert.load_data_and_model(path)
    assert torch.equal(model.network.codes, trained.model.network.codes)


def test_excluded_history_never_comes_first(data, tmp_path):
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(data, tmp_path, repeat_penalty="exclude"))
    for interaction, _, _, _ in run.test_data:
        scores = run.model.full_sort_predict(interaction)
        assert torch.isinf(scores.gather(1, interaction["item_id_list"])).all()


@pytest.mark.process
def test_hyper_tuning_finds_the_model(data, tmp_path, monkeypatch):
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "base.yaml"
    settings.write_text(json.dumps({**QUICK["QBERT4Rec"], "data_path": str(data), "model": "QBERT4Rec", "dataset": NAME}))
    space = tmp_path / "space.hyper"
    space.write_text("hidden_dropout_prob choice [0.1,0.3]\n")
    with patches.clean_argv():
        tuning = HyperTuning(
            recbole_qbert.objective_function, algo="exhaustive", early_stop=5, max_evals=2, params_file=str(space),
            fixed_config_file_list=[str(settings)], display_file=None,
        )  # fmt: skip
        tuning.run()
    assert len(tuning.params2result) == 2


def test_one_configuration_serves_several_models(data, tmp_path, trained):
    """Properties of SASRec and GRU4Rec change nothing, nor does RecBole's default of negative samples."""
    theirs = {"loss_type": "CE", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "embedding_size": 16, "num_layers": 1}
    theirs |= {"dropout_prob": 0.3, "train_neg_sample_args": None}
    for model in ("SASRec", "GRU4Rec"):
        assert configure(data, tmp_path, model=model, **theirs)["loss_type"] == "CE"
    negatives = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    for number, also in enumerate(({}, {"train_neg_sample_args": negatives}, {"loss_type": "BPR"})):
        folder = tmp_path / str(number)
        with experiment.working_directory(folder):
            assert experiment.train(configure(data, folder, **theirs | also)).test() == trained.test()


def test_unused_properties_are_told_on_the_terminal_of_a_command(data, tmp_path, caplog):
    config = configure(data, tmp_path, loss_type="CE", attribute_min_items=5, state="INFO")
    with caplog.at_level("INFO"), experiment.working_directory(tmp_path):
        from recbole.utils import init_logger

        init_logger(config)
    (record,) = [record for record in caplog.records if "loss_type" in record.getMessage()]
    assert record.name.startswith("recbole_qbert") and "attribute_min_items" in record.getMessage()


def test_loaders_from_a_file_have_the_semantic_ids_of_the_settings(data, tmp_path, monkeypatch):
    """RecBole takes the file whatever the settings of stages 1 and 2 are."""
    from recbole.data import create_dataset, data_preparation

    monkeypatch.chdir(tmp_path)

    def prepare(**settings):
        config = configure(data, tmp_path, semantic_ids="fused", save_dataloaders=True, state="INFO", **settings)
        train_data, *others = data_preparation(config, create_dataset(config))
        parts = [train_data._dataset, *(loader._dataset for loader in others)]
        assert all(part.semantic_ids is parts[0].semantic_ids for part in parts)
        return parts[0]

    first = prepare()
    (saved,) = (tmp_path / "saved").glob("*dataloader.pth")
    stamp = saved.stat().st_mtime_ns
    again = prepare()
    assert np.array_equal(again.semantic_ids.codes, first.semantic_ids.codes)
    other = prepare(rq_codes=12)
    assert saved.stat().st_mtime_ns == stamp, "the file was read, not replaced"
    assert other.semantic_ids.size == 12
    with pytest.raises(ValueError, match="rq_levels"):
        prepare(rq_levels=1)


def test_baselines_build_no_semantic_ids(data, tmp_path):
    from recbole.data import create_dataset

    dataset = create_dataset(configure(data, tmp_path, model="CooccurrenceKNN"))
    assert type(dataset) is HistoryDataset
    with experiment.working_directory(tmp_path):
        experiment.train(configure(data, tmp_path, model="CooccurrenceKNN", state="ERROR"))
    assert not list(tmp_path.rglob("*.sid"))
    for name in ("FDSA", "S3Rec"):
        assert getattr(recbole.data.dataset, f"{name}Dataset") is AttributeDataset


def test_baseline_in_the_same_process(data, tmp_path, trained):
    with experiment.working_directory(tmp_path):
        run = experiment.train(configure(data, tmp_path, model="SASRec"))
    plain = metrics_from_ranks(experiment.target_ranks(run, run.test_data, exclude_history=False))
    assert run.test() == pytest.approx(plain, abs=1e-6)
    excluded = experiment.target_ranks(run, run.test_data, exclude_history=True)
    assert (excluded <= experiment.target_ranks(run, run.test_data, exclude_history=False)).mean() > 0.9
    assert run.test(history_excluded=True) == pytest.approx(metrics_from_ranks(excluded), abs=1e-6)
    assert run.test() == pytest.approx(plain, abs=1e-6)  # as before
    before = trained.test()
    by_hand = metrics_from_ranks(experiment.target_ranks(trained, trained.test_data, exclude_history=True))
    assert trained.test(history_excluded=True) == pytest.approx(by_hand, abs=1e-6)
    assert trained.test() == before


# ------------------------------------------------------------------------------------------------------- pretraining
def test_pretrained_weights_are_taken_over(data, tmp_path):
    with experiment.working_directory(tmp_path):
        first = experiment.train(configure(data, tmp_path, train_stage="pretrain", epochs=3))
        config = configure(data, tmp_path, pretrained=first.trainer.saved_model_file, epochs=0, learning_rate=0.0)
        from recbole.data import create_dataset

        model = recbole_qbert.QBERT4Rec(config, create_dataset(config).build()[0])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, first.model.state_dict()[name]), name


@pytest.mark.parametrize("parts", [["encoder", "codebook"], ["codebook"], ["encoder", "mask_vector"]])
def test_parts_of_a_pretrained_network_are_taken_over(data, tmp_path, parts):
    from recbole.data import create_dataset

    with experiment.working_directory(tmp_path):
        first = experiment.train(configure(data, tmp_path, train_stage="pretrain", epochs=1))
        config = configure(data, tmp_path, pretrained=first.trainer.saved_model_file, pretrained_parts=parts)
        network = recbole_qbert.QBERT4Rec(config, create_dataset(config).build()[0]).network
    for name, weight in network.named_parameters():
        pretrained = first.model.network.state_dict()[name]
        assert torch.equal(weight, pretrained) == (name.split(".")[0] in parts or bool((pretrained == weight).all())), name
    # Beside pretrained codes an item embedding that was not taken over is 0; without them it is random.
    assert bool(network.item_embedding.any()) == ("codebook" not in parts)


def test_pretrained_with_another_width_is_refused(data, tmp_path):
    from recbole.data import create_dataset

    with experiment.working_directory(tmp_path):
        first = experiment.train(configure(data, tmp_path, epochs=1))
        config = configure(data, tmp_path, pretrained=first.trainer.saved_model_file, hidden_size=32)
        with pytest.raises(ValueError, match=r"\.pth.*hidden_size"):
            recbole_qbert.QBERT4Rec(config, create_dataset(config).build()[0])


def test_pretrained_with_other_semantic_ids_is_refused(data, tmp_path):
    from recbole.data import create_dataset

    with experiment.working_directory(tmp_path):
        first = experiment.train(configure(data, tmp_path, epochs=1))
        config = configure(
            data, tmp_path, pretrained=first.trainer.saved_model_file, seed=9, semantic_id_dir=str(tmp_path / "other")
        )
        with pytest.raises(ValueError, match=r"\.pth.*semantic_id_file"):
            recbole_qbert.QBERT4Rec(config, create_dataset(config).build()[0])


# --------------------------------------------------------------------------------------------------------- bad input
def test_files_are_those_of_where_the_user_is(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("semantic_id_file: ids/mine.sid\n")
    config = experiment.configure("QBERT4Rec", NAME, data, {"pretrained": "mine.pth"}, ["mine.yaml"])
    assert (config["pretrained"], config["semantic_id_file"]) == (
        str(tmp_path / "mine.pth"), str(tmp_path / "ids" / "mine.sid")
    )  # fmt: skip
    assert config["checkpoint_file"] is None


def test_blank_lines_of_interactions_are_skipped_as_recbole_does(tmp_path):
    from recbole.data import create_dataset

    sizes = []
    for end in ("", "\n", "  \n\n"):
        folder = write_dataset(tmp_path / f"blank{len(sizes)}", NAME)
        with open(folder / NAME / f"{NAME}.inter", "a", encoding="utf-8") as handle:
            handle.write(end)
        with experiment.working_directory(tmp_path):
            sizes.append(len(create_dataset(configure(folder, tmp_path))))
    assert sizes[1:] == sizes[:1] * 2


def test_unknown_property_names_the_nearest(data, tmp_path):
    with pytest.raises(ValueError, match=r"use_item_embeding.*use_item_embedding"):
        configure(data, tmp_path, use_item_embeding=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ["sideways"]}, "views.*'sideways'"),
        ({"loss": "itm"}, "'itm'.*'item'"),
        ({"loss": "code"}, "repeat_penalty.*'learned'.*'code'"),
        ({"hidden_size": 65}, "65.*n_heads"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO", "mode": "full", "group_by": "user"}}, r"eval_args.*RS"),
        ({"rq_codes": 2, "rq_levels": 2}, "rq_levels.*rq_codes"),
        ({"semantic_id_file": "nowhere.sid"}, r"nowhere\.sid"),
    ],
)
def test_settings_that_cannot_work_are_refused(data, tmp_path, settings, message):
    from recbole.data import create_dataset

    def build():
        config = configure(data, tmp_path, **settings)
        recbole_qbert.QBERT4Rec(config, create_dataset(config).build()[0])

    with experiment.working_directory(tmp_path), pytest.raises((ValueError, FileNotFoundError), match=message):
        build()
    assert not list((tmp_path / "ids").glob("*.sid")), "nothing half-written"


def test_a_sid_file_of_another_data_set_is_refused(data, tmp_path):
    from recbole.data import create_dataset

    path = tmp_path / "other.sid"
    ids = semantic_ids.SemanticIDs(("x1", "x2"), np.array([[0, 1], [1, 0]], dtype=np.int16), ("a", "b"), 2)
    ids.save(path)
    with experiment.working_directory(tmp_path):
        config = configure(data, tmp_path, semantic_id_file=str(path))
        with pytest.raises(ValueError, match=r"other\.sid"):
            create_dataset(config).build()


@pytest.mark.parametrize("word", ["NA", "null", "None"])
def test_ids_that_pandas_reads_as_missing_are_refused(tmp_path, word):
    from recbole.data import create_dataset

    write_dataset(tmp_path, NAME)
    path = tmp_path / NAME / f"{NAME}.inter"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(lines[4].split("\t")[1], word)
    path.write_text("\n".join(lines) + "\n")
    config = configure(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=rf"{NAME}\.inter:5: item_id '{word}'.*prefix"):
        create_dataset(config)


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Nowhere\.inter"):
        experiment.configure("QBERT4Rec", "Nowhere", tmp_path, {})


@pytest.mark.process
def test_registered_in_a_fresh_process_and_light(tmp_path):
    code = (
        "import sys, recbole_qbert; from recbole.utils import get_model;"
        "assert get_model('QBERT4Rec') is recbole_qbert.QBERT4Rec;"
        "print([m for m in ('transformers', 'open_clip', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr
