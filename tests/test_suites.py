"""Benchmark suites: files and what is refused, trials, the runner, the comparison, and a suite that is killed."""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_qbert.cli import benchmark
from recbole_qbert.experiments.suites import (
    comparison as compare,
)
from recbole_qbert.experiments.suites import (
    learning_curve,
    progress_display,
    result_archive,
    runner,
    suite_kinds,
    suite_spec,
    trials,
    worker,
)
from recbole_qbert.experiments.suites.suite_spec import ModelSpec, Suite
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.utils.io import file_lock, write_json
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline

NAME = "Tiny"
OURS = {
    key: value
    for key, value in QUICK["QBERT4Rec"].items()
    if key not in ("state", "seed", "show_progress", "epochs", "MAX_ITEM_LIST_LENGTH", "eval_batch_size")
}
THEIRS = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "train_batch_size": 64}
COLUMNS = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "categories"]}
SHARED = {**suite_spec.load("table2").shared} | {"MAX_ITEM_LIST_LENGTH": 8, "epochs": 2, "eval_batch_size": 32}
BASELINE = {"model": "SASRec", "files": ["baseline/common.yaml", "baseline/SASRec.yaml"], "settings": THEIRS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two data sets with the same features, one of them with item attributes."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, NAME)
    write_dataset(folder, "Other", users=30, seed=1)
    items = (folder / NAME / f"{NAME}.items.txt").read_text().split()
    rows = "".join(f"{item}\tc{number % 5} d{number % 3}\n" for number, item in enumerate(items))
    (folder / NAME / f"{NAME}.item").write_text("item_id:token\tcategories:token_seq\n" + rows)
    return folder


def suite_file(folder, rows, **given):
    folder.mkdir(exist_ok=True)
    content = {"title": "Tiny", "kind": "quality", "seeds": [1], "shared": SHARED, "models": rows} | given
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def planned(folder, data, rows, given=None, dataset=NAME, sources=(), **suite):
    loaded = suite_spec.load(suite_file(folder, rows, **suite))
    return trials.plan_runs(loaded, dataset, data, folder / "out", given or {}, sources=sources)


def run_here(plan):
    """All trials in this process, which is quicker than a process each."""
    for trial in plan.trials:
        write_json(trial.folder / "config.json", trial.request)
        worker.run(trial.folder)
    return plan


def command(argv):
    """The benchmark command as the command line calls it."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")

    def add(name, run, text, kind):
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run, properties={})
        return one

    benchmark.add_commands(add)
    args = parser.parse_args(["benchmark", *argv])
    return args.run(args)


# -------------------------------------------------------------------------------------------------------- suite files
def test_every_suite_of_the_package_is_read_and_shares_the_same_care():
    suites = {name: suite_spec.load(name) for name in suite_spec.names()}
    assert {"table1", "table2", "table3", "table4", "table5", "figure3", "figure7"} <= set(suites)
    assert suite_spec.PUBLISHED not in suites
    with_rows = [suite for suite in suites.values() if suite.models]
    assert all(suite.shared == suites["table2"].shared for suite in with_rows)
    assert {suite.kind for suite in suites.values()} == set(suite_spec.KINDS) == set(suite_kinds.KINDS)


def test_rows_of_several_suites_that_ask_for_the_same_share_a_cell(data, tmp_path):
    same = {"table2": "QBERT4Rec", "table3": "all", "table4": "multi-mask", "figure3": "n_layers=2"}
    same |= {"figure5": "mask_ratio=0.3"}
    folders = set()
    for name, row in same.items():
        suite = suite_spec.load(name)
        only = replace(suite, models=tuple(known for known in suite.models if known.name == row))
        plan = trials.plan_runs(only, NAME, data, tmp_path, {}, seeds=[5])
        folders.add(plan.trials[0].folder)
    assert len(folders) == 1 and folders.pop().name == "seed-5"


def test_a_sweep_makes_a_row_a_value(tmp_path):
    base = {"base": {"model": "QBERT4Rec", "settings": {"n_heads": 1}}}
    both = {"key": ["hidden_dropout_prob", "attn_dropout_prob"], "label": "dropout", "values": [0.1, 0.2]}
    suite = suite_spec.load(suite_file(tmp_path, base, sweep=both))
    assert suite.sweep == "dropout" and [row.name for row in suite.models] == ["dropout=0.1", "dropout=0.2"]
    assert suite.models[1].settings == {"n_heads": 1, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": ["hit@1"]}, "unknown key 'metric' (did you mean 'metrics'?)"),
        ({"metrics": ["ndgc@10"]}, "metrics has 'ndgc@10' (did you mean 'ndcg@10'?)"),
        ({"kind": "qualty"}, "kind has 'qualty' (did you mean 'quality'?)"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; it must list different whole numbers"),
        ({"seeds": [-1]}, "seeds is [-1]; it must list different whole numbers from 0 on"),
        ({"seeds": 3}, "seeds is 3, a int; it must be a list"),
        ({"reference": "defualt"}, "reference has 'defualt' (did you mean 'default'?)"),
        ({"rows": {}}, "models is missing"),
        ({"rows": {"a": {"files": []}}}, "models.a: model is missing"),
        ({"rows": {"a": {"model": "SASRec", "setings": {}}}}, "models.a: unknown key 'setings' (did you mean 'settings'?)"),
        ({"rows": {"a": {"model": "SASRec", "needs": ["prices"]}}}, "models.a: needs has 'prices'"),
        ({"rows": {"a": {"model": "SASRec", "seeds": 0}}}, "models.a: seeds is 0"),
        ({"rows": {"a": {"model": "S3Rec", "stages": [{"epochs": 1}, {}]}}}, "stages must be mappings"),
        ({"rows": {"a": {"model": "S3Rec", "stages": [{"checkpoint_as": "pretrained"}]}}}, "checkpoint_as"),
        ({"sweep": {"key": "epochs", "values": [1]}}, "models must hold base and nothing else, not default"),
        ({"sweep": {"key": "epochs", "value": [1]}}, "sweep: unknown key 'value' (did you mean 'values'?)"),
        ({"shared": "nowhere"}, "nowhere.yaml is missing"),
        ({"metrics": []}, "metrics is empty; name some of"),
    ],
)
def test_bad_suite_files_are_refused(tmp_path, given, message):
    path = suite_file(tmp_path, **({"rows": {"default": {"model": "QBERT4Rec"}}} | given))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        suite_spec.load(path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_a_suite_of_ones_own_may_share_with_one_of_the_package(tmp_path):
    path = suite_file(tmp_path, {"default": {"model": "QBERT4Rec"}}, shared="table2")
    assert suite_spec.load(path).shared == suite_spec.load("table2").shared


def test_an_unknown_suite_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'tabel2'.*'table2'"):
        suite_spec.load("tabel2")
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml is missing"):
        suite_spec.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("rows: [")
    with pytest.raises(ValueError, match=r"mine\.yaml:1 is not YAML"):
        suite_spec.load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        ({"model": "SASRek"}, {}, "model a of suite tiny: no model named 'SASRek'"),
        ({"model": "QBERT4Rec", "settings": {"item_row": 1}}, {}, "model a of suite tiny: unknown property 'item_row'"),
        ({"model": "QBERT4Rec", "files": ["nowhere.yaml"]}, {}, "model a of suite tiny: no property file nowhere.yaml"),
        ({"model": "QBERT4Rec"}, {"epoch": 1}, "knows the property 'epoch' (did you mean 'epochs'?)"),
        (BASELINE, {"n_layer": 1}, "knows the property 'n_layer' (did you mean 'n_layers'?)"),
    ],
)
def test_what_no_model_understands_is_refused_before_anything_runs(data, tmp_path, row, given, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        planned(tmp_path, data, {"a": row}, given)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_a_suite_varies_is_not_taken_from_the_command_line(data, tmp_path):
    with pytest.raises(ValueError, match="--n_layers"):
        planned(tmp_path, data, {"base": {"model": "QBERT4Rec"}}, {"n_layers": 3}, sweep={"key": "n_layers", "values": [1]})
    with pytest.raises(ValueError, match="--sources"):
        planned(tmp_path, data, {"a": {"model": "QBERT4Rec"}}, sources=["Other"])
    with pytest.raises(ValueError, match="--sources"):
        planned(tmp_path, data, {"a": {"model": "QBERT4Rec"}}, sources=[NAME], transfer=True)
    pretrained = {"a": {"model": "MQL4GRec", "stages": [{"on_sources": True, "checkpoint_as": "pretrained"}, {}]}}
    for sources, reason in (((), "--sources"), (("Nowhere",), "Nowhere.inter is missing"), (("Other",), "text_codes.tsv")):
        assert reason in planned(tmp_path, data, pretrained, sources=sources, transfer=True).impossible["a"]


# -------------------------------------------------------------------------------------------------------------- trials
def test_seeds_are_different_whole_numbers_and_no_property(data, tmp_path):
    loaded = suite_spec.load(suite_file(tmp_path, {"SASRec": BASELINE}))
    for seeds in ([1, 1], [-1]):
        with pytest.raises(ValueError, match=f"--seeds is {' '.join(map(str, seeds))}"):
            trials.plan_runs(loaded, NAME, data, tmp_path, {}, seeds=seeds)
    with pytest.raises(ValueError, match="--seed "):
        trials.plan_runs(loaded, NAME, data, tmp_path, {"seed": 7})


def test_a_damaged_result_is_named(data, tmp_path):
    trial = planned(tmp_path, data, {"SASRec": BASELINE}).trials[0]
    trial.folder.mkdir(parents=True)
    (trial.folder / "cell.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed-1/cell\.json"):
        trial.result()


def test_the_key_is_of_what_matters(data, tmp_path):
    def key(row, given=None):
        return planned(tmp_path, data, {"a": {"model": "QBERT4Rec"} | row}, given).trials[0].request["key"]

    plain = key({})
    assert plain == key({"settings": {"rq_codes": 16}, "note": "said otherwise", "seeds": 1})  # what auto means here
    assert key({"settings": {"semantic_ids": "none"}}) == key({"settings": {"semantic_ids": "none", "rq_codes": 256}})
    assert plain == key({}, {"worker": 0}) == key({"settings": {"checkpoint_dir": "elsewhere"}})
    assert plain != key({"settings": {"rq_codes": 128}})
    assert plain != key({"settings": {"code_init": "random"}})
    assert key({"settings": {"semantic_ids": "none"}}) == key({"settings": {"semantic_ids": "none", "code_init": "random"}})
    assert plain == key({"settings": {"injection_gate": "none"}})  # of a network that does not run
    network = {"fusion": "injection"}
    assert key({"settings": network | {"injection_gate": "none"}}) != key({"settings": network | {"injection_gate": "auto"}})
    assert plain != key({}, {"epochs": 3})
    assert key({}, {"epochs": 3}) == key({"settings": {"epochs": 3}})
    sas = planned(tmp_path, data, {"a": BASELINE}).trials[0].request["key"]
    assert (
        sas
        == planned(tmp_path, data, {"a": BASELINE, "b": {"model": "QBERT4Rec"}}, {"rq_epochs": 9}).trials[0].request["key"]
    )


def test_other_data_are_another_cell(data, tmp_path):
    keys = set()
    for seed in (0, 1):
        folder = write_dataset(tmp_path / str(seed), NAME, seed=seed)
        keys.add(planned(tmp_path, folder, {"a": BASELINE}).trials[0].request["key"])
    assert len(keys) == 2


def test_the_first_seed_of_all_rows_comes_first_and_a_row_may_have_fewer(data, tmp_path):
    plan = planned(tmp_path, data, {"a": BASELINE | {"seeds": 1}, "b": {"model": "QBERT4Rec"}}, seeds=[7, 8])
    assert [(trial.spec.name, trial.seed) for trial in plan.trials] == [("a", 7), ("b", 7), ("b", 8)]
    assert plan.trials[1].folder.parent == plan.trials[2].folder.parent


def test_tuned_settings_are_used_where_they_exist(data, tmp_path):
    row = BASELINE | {"tuned": True}
    before = planned(tmp_path, data, {"mine": row}).trials[0].request
    tuned = tmp_path / "out" / "tuned" / NAME / "mine.yaml"
    tuned.parent.mkdir(parents=True)
    tuned.write_text("learning_rate: 0.0005\n")
    after = planned(tmp_path, data, {"mine": row}).trials[0].request
    assert before["tuned"] is None and after["tuned"] == f"tuned/{NAME}/mine.yaml" and before["key"] != after["key"]
    borrowed = planned(tmp_path, data, {"other": BASELINE | {"tuned": "mine"}}).trials[0].request
    assert borrowed["key"] == after["key"]
    loaded = suite_spec.load(suite_file(tmp_path, {"mine": row}))
    elsewhere = trials.plan_runs(loaded, "Other", data, tmp_path / "out", {}, settings_from=NAME).trials[0].request
    assert elsewhere["tuned"] == after["tuned"] and elsewhere["files"] == after["files"]
    with pytest.raises(FileNotFoundError, match="Elsewhere"):
        trials.plan_runs(loaded, NAME, data, tmp_path / "out", {}, settings_from="Elsewhere")


def test_a_row_that_the_data_cannot_serve_is_said_to_be_impossible(data, tmp_path):
    row = {"model": "FDSA", "files": ["baseline/common.yaml"], "needs": ["item_attributes"]}
    row["settings"] = {"selected_features": ["categories"]}
    assert planned(tmp_path, data, {"FDSA": row}).trials[0].request["files"] == row["files"]
    plan = planned(tmp_path, data, {"FDSA": row}, dataset="Other")
    assert not plan.trials and "Other.item has no column categories or title" in plan.impossible["FDSA"]
    assert "FDSA: not possible on this data set: needs item attributes" in suite_kinds.make(plan)


def test_a_row_that_needs_pictures_is_impossible_without(data, tmp_path):
    row = {"model": "VIP5", "needs": ["image"]}
    assert planned(tmp_path, data, {"VIP5": row}).trials
    folder = write_dataset(tmp_path / "without", NAME)
    (folder / NAME / f"{NAME}.image.npy").unlink()
    plan = planned(tmp_path, folder, {"VIP5": row})
    assert not plan.trials and f"{NAME}.image.npy" in plan.impossible["VIP5"]


def test_words_of_titles_are_the_attributes_where_there_are_no_categories(tmp_path):
    folder = write_dataset(tmp_path / "data", NAME)
    (folder / NAME / f"{NAME}.item").write_text("item_id:token\ttitle:token_seq\ni1\ta pen\n")
    row = {"model": "FDSA", "files": ["baseline/common.yaml", "baseline/FDSA.yaml"], "needs": ["item_attributes"]}
    plan = planned(tmp_path, folder, {"FDSA": row})
    assert plan.trials[0].request["files"] == [*row["files"], "baseline/title_words.yaml"]
    assert "words of titles" in plan.suite.models[0].note


# ----------------------------------------------------------------------------------------------------------- trainings
def test_a_cell_of_ours_keeps_what_the_contract_names(data, tmp_path):
    plan = run_here(planned(tmp_path, data, {"default": {"model": "QBERT4Rec", "settings": OURS | {"pretrain_epochs": 1}}}))
    trial = plan.trials[0]
    result, ranks = trial.result(), trial.ranks()
    assert {"plain", "history_excluded", "prior_plain", "prior_history_excluded", "users"} == set(ranks)
    assert all(found.dtype == np.int32 and len(found) == result["users"] for found in ranks.values())
    for name, figures in result["test"].items():
        assert figures == metrics_from_ranks(ranks[name])
    assert (ranks["history_excluded"] <= ranks["plain"]).all()
    assert [epoch["stage"] for epoch in result["curve"]] == ["pretrain", "finetune", "finetune"]
    assert max(epoch["valid_score"] for epoch in result["curve"][1:]) == pytest.approx(result["valid"]["ndcg@10"])
    assert all(epoch["train_loss"] > 0 and epoch["seconds"] >= 0 for epoch in result["curve"])
    assert result["epochs"] == 2 and result["items"] == 40 and result["peak_memory_mb"] > 100
    assert sum(result["identifiers"]["injection"]["depth"]) == pytest.approx(1)
    assert result["seconds"]["data"] >= result["identifiers"]["seconds"]["quantization"] > 0
    assert not list(trial.folder.rglob("*.pth")) and (trial.folder / result["sid"]).name == f"{NAME}.sid"
    assert (trial.folder / result["sid"]).is_file()


def test_cells_with_the_same_identifiers_build_them_once(data, tmp_path):
    rows = {
        "one": {"model": "QBERT4Rec", "settings": OURS},
        "two": {"model": "QBERT4Rec", "settings": OURS | {"n_layers": 1}},
        "other": {"model": "QBERT4Rec", "settings": OURS | {"rq_beta": 0.5}},
        "rows": {"model": "QBERT4Rec", "settings": OURS | {"semantic_ids": "none"}},
    }
    one, two, other, alone = run_here(planned(tmp_path, data, rows, {"epochs": 1, "pretrain_epochs": 0})).trials
    files = [(trial.folder / trial.result()["sid"]).resolve() for trial in (one, two, other)]
    assert files[0] == files[1] != files[2] and alone.result()["sid"] is None
    assert two.result()["identifiers"]["semantic_ids"] == one.result()["identifiers"]["semantic_ids"]


def test_stages_hand_over_their_checkpoint_and_one_may_be_kept(data, tmp_path):
    attributes = THEIRS | {"load_col": COLUMNS, "item_attribute": "categories"}
    stages = [
        {"train_stage": "pretrain", "pretrain_epochs": 1, "save_step": 1, "checkpoint_as": "pre_model_path"},
        {"train_stage": "finetune"},
    ]
    row = {"model": "S3Rec", "files": ["baseline/common.yaml"], "settings": attributes, "stages": stages, "keep": True}
    trial = run_here(planned(tmp_path, data, {"S3Rec": row})).trials[0]
    result = trial.result()
    assert [epoch["stage"] for epoch in result["curve"]] == ["stage-1", "stage-2", "stage-2"]
    assert [path.name for path in trial.folder.rglob("*.pth")] == [(trial.folder / result["checkpoint"]).name]
    assert not list(trial.folder.rglob("*.progress"))
    assert "Load pretrained model from" in "".join(path.read_text() for path in trial.folder.rglob("*.log"))


@pytest.fixture
def pretrained_row():
    stages = [
        {"train_stage": "pretrain", "pretrain_epochs": 2, "save_step": 2, "checkpoint_as": "pre_model_path"},
        {"train_stage": "finetune"},
    ]
    attributes = THEIRS | {"load_col": COLUMNS, "item_attribute": "categories"}
    return {"model": "S3Rec", "files": ["baseline/common.yaml"], "settings": attributes, "stages": stages}


@pytest.fixture
def stop_in(monkeypatch):
    """``stop_in(stage)``: the next training of it is stopped as Ctrl-C does; a list of all trainings begun."""
    train, begun, due = experiment.train, [], []

    def one(config, **given):
        begun.append(config["train_stage"])
        if begun[-1] in due:
            due.remove(begun[-1])
            raise KeyboardInterrupt
        return train(config, **given)

    monkeypatch.setattr(worker.experiment, "train", one)
    return lambda stage: (due.append(stage), begun)[1]


def test_a_pretraining_that_has_ended_is_not_run_again(data, tmp_path, pretrained_row, stop_in):
    whole = run_here(planned(tmp_path / "whole", data, {"S3Rec": pretrained_row})).trials[0]
    begun = stop_in("finetune")
    begun.clear()
    plan = planned(tmp_path / "stopped", data, {"S3Rec": pretrained_row})
    with pytest.raises(KeyboardInterrupt):
        run_here(plan)
    trial = run_here(plan).trials[0]
    assert begun == ["pretrain", "finetune", "finetune"]
    for name, ranks in whole.ranks().items():
        assert (trial.ranks()[name] == ranks).all(), name
    same = ("valid", "test", "epochs", "checkpoint", "sid", "prior")
    assert [trial.result()[key] for key in same] == [whole.result()[key] for key in same]
    found, wanted = ([{**epoch, "seconds": 0} for epoch in each.result()["curve"]] for each in (trial, whole))
    assert found == wanted


def test_a_pretraining_that_was_stopped_or_lost_its_checkpoint_begins_anew(data, tmp_path, pretrained_row, stop_in):
    plan = planned(tmp_path, data, {"S3Rec": pretrained_row})
    begun = stop_in("pretrain")
    with pytest.raises(KeyboardInterrupt):
        run_here(plan)
    [place] = (tmp_path / "out" / "pretrained" / NAME).glob("S3Rec-*/seed-1")
    (place / f"S3Rec-{NAME}-2.pth").write_bytes(b"half of a training")
    run_here(plan)
    assert begun == ["pretrain", "pretrain", "finetune"]
    (place / f"S3Rec-{NAME}-2.pth").unlink()
    run_here(planned(tmp_path, data, {"S3Rec": pretrained_row | {"keep": True}}))  # the same trial, with its checkpoint
    assert begun[3:] == ["pretrain", "finetune"]


def test_cells_share_the_pretraining_that_they_have_in_common(data, tmp_path, pretrained_row, stop_in):
    begun = stop_in("nothing")
    fixed = [dict(pretrained_row["stages"][0]) | {"learning_rate": 0.001}, pretrained_row["stages"][1]]
    settings = pretrained_row["settings"]
    rows = {
        "one": pretrained_row | {"stages": fixed, "settings": settings | {"learning_rate": 0.001}},
        "two": pretrained_row | {"stages": fixed, "settings": settings | {"learning_rate": 0.01}},
        "other": pretrained_row | {"settings": settings | {"learning_rate": 0.01}},  # of both stages
    }
    one, two, other = run_here(planned(tmp_path, data, rows)).trials
    assert begun == ["pretrain", "finetune", "finetune", "pretrain", "finetune"]
    losses = [[e["train_loss"] for e in trial.result()["curve"] if e["stage"] == "stage-1"] for trial in (one, two, other)]
    assert losses[0] == losses[1] != losses[2]
    assert (one.ranks()["plain"] != two.ranks()["plain"]).any()
    [again] = run_here(planned(tmp_path / "alone", data, {"two": rows["two"]})).trials
    assert (again.ranks()["plain"] == two.ranks()["plain"]).all()  # as if it had trained all by itself


def test_a_shared_pretraining_keeps_the_revision_that_it_began_with(data, tmp_path, pretrained_row, monkeypatch):
    said = iter("abc")
    monkeypatch.setattr(
        worker.environment, "revision", lambda: next(said)
    )  # of the trial, of the pretraining, of another trial
    first, last = pretrained_row["stages"]
    rows = {str(rate): pretrained_row | {"stages": [first, last | {"learning_rate": rate}]} for rate in (0.01, 0.02)}
    first, second = run_here(planned(tmp_path, data, rows)).trials
    assert [trial.result()["revision"] for trial in (first, second)] == ["b then a", "b then c"]
    assert learning_curve.latest(first.folder / "work") != learning_curve.latest(tmp_path / "nowhere")


def test_the_prior_is_chosen_under_the_rule_of_validation(data, tmp_path):
    """Where the history is left out it is so for the prior's weight, too; else its evidence is paid for what it hides."""
    rows = {
        name: {"model": "QBERT4Rec", "settings": OURS | {"repeat_penalty": penalty}, "prior": True}
        for name, penalty in (("without", "none"), ("learned", "learned"))
    }
    for trial in run_here(planned(tmp_path, data, rows, {"epochs": 1, "pretrain_epochs": 0})).trials:
        result = trial.result()
        assert result["prior"]["ndcg@10_without"] == pytest.approx(result["valid"]["ndcg@10"], abs=1e-6), trial.spec.name
        assert result["prior"]["rule"] == trial.request["validated"]


def test_baselines_that_know_no_penalty_are_stopped_with_the_history_left_out(data, tmp_path, monkeypatch):
    trial = run_here(planned(tmp_path, data, {"SASRec": BASELINE})).trials[0]
    monkeypatch.setattr(experiment, "exclude_history", lambda model, exclude=True: None)
    other = run_here(planned(tmp_path / "2", data, {"SASRec": BASELINE})).trials[0]
    better, worse = (max(e["valid_score"] for e in one.result()["curve"]) for one in (trial, other))
    assert better > worse


def test_general_models_are_evaluated_without_the_history_as_recbole_does(data, tmp_path):
    row = suite_spec.load("table2").models[0]
    given = {"model": row.model, "files": list(row.files), "settings": dict(row.settings)}
    trial = run_here(planned(tmp_path, data, {"Pop": given})).trials[0]
    assert (trial.ranks()["plain"] == trial.ranks()["history_excluded"]).all()
    files = [str(trials.resolve_property_file(file)) for file in row.files]
    trained = experiment.train(experiment.configure("Pop", NAME, data, trial.request["settings"], files))
    found = trained.trainer.evaluate(trained.test_data, load_best_model=False)
    # Ties, of which Pop has many, are against the model here, and as they come there.
    assert 0.5 * found["hit@10"] < trial.result()["test"]["plain"]["hit@10"] <= found["hit@10"] + 1e-6


def test_transfer_rows_share_one_vocabulary(data, tmp_path):
    plain = OURS | {"pretrain_epochs": 1, "pretrain_masks": ["random"]}
    rows = {
        "none": {"model": "QBERT4Rec", "settings": OURS | {"pretrain_epochs": 0}},
        "plain": {"model": "QBERT4Rec", "settings": plain},
        "few": {"model": "QBERT4Rec", "settings": plain | {"train_users": 0.2}},
        "zero": {"model": "QBERT4Rec", "settings": plain | {"epochs": 0}},
        "random": {"model": "QBERT4Rec", "settings": plain | {"code_init": "random"}},
        "alone": {"model": "QBERT4Rec", "settings": OURS | {"pretrain_epochs": 0}, "sources": 0},
        "kNN": {"model": "CooccurrenceKNN"},
    }
    plan = run_here(planned(tmp_path, data, rows, {"epochs": 1}, sources=["Other"], transfer=True))
    none, plain, few, zero, random, alone, knn = plan.trials
    assert [epoch["stage"] for epoch in zero.result()["curve"]] == ["pretrain"]
    assert few.result()["curve"][0] == plain.result()["curve"][0]  # the same pretraining, which was run once
    assert random.result()["curve"][0]["train_loss"] != plain.result()["curve"][0]["train_loss"]  # a pretraining of its own
    assert len(list((tmp_path / "out" / "pretrained").rglob("stage.json"))) == 2
    assert few.result()["test"] != plain.result()["test"] != zero.result()["test"]
    assert alone.request["sources"] == knn.request["sources"] == []
    untouched = planned(tmp_path, data, {"kNN": {"model": "CooccurrenceKNN"}}, {"epochs": 1}).trials[0]
    assert knn.request["key"] == untouched.request["key"]
    assert [epoch["stage"] for epoch in none.result()["curve"]] == ["finetune"]
    assert [epoch["stage"] for epoch in plain.result()["curve"]] == ["pretrain", "finetune"]
    files = {trial.result()["identifiers"]["semantic_ids"]["file"] for trial in plan.trials[:4]}
    assert len(files) == 1 and files.pop().endswith(f"/{NAME}.sid")
    assert len(list((tmp_path / "out" / "vocabularies" / NAME).iterdir())) == 2  # with the sources, and alone
    assert none.request["key"] != planned(tmp_path, data, rows, {"epochs": 1}, transfer=True).trials[0].request["key"]
    assert "Pretrained on Other" in suite_kinds.make(plan)


def test_statistics_are_those_of_the_file(data, tmp_path):
    lines = [line.split("\t") for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]]
    users, items = len({line[0] for line in lines}), len({line[1] for line in lines})
    plan = planned(tmp_path, data, {}, kind="statistics")
    text = suite_kinds.make(plan)
    found = json.loads((plan.folder / "table.json").read_text())["statistics"]
    assert found == {
        "users": users, "items": items, "interactions": len(lines),
        "sparsity": 1 - len(lines) / users / items, "length": len(lines) / users,
    }  # fmt: skip
    assert f"| {users} | {items} | {len(lines)} |" in text
    suite_kinds.make(planned(tmp_path, data, {}, {"user_inter_num_interval": "[7,inf)"}, kind="statistics"))
    counts = Counter(line[0] for line in lines)
    found = json.loads((plan.folder / "table.json").read_text())["statistics"]
    assert 0 < found["users"] == sum(count >= 7 for count in counts.values()) < users
    assert "- Given for every row: user_inter_num_interval=[7,inf)." in (plan.folder / "table.md").read_text()
    with pytest.raises(ValueError, match=r"'epcohs'.*'epochs'"):
        planned(tmp_path, data, {}, {"epcohs": 3}, kind="statistics")


def test_item_vectors_and_costs_become_tables(data, tmp_path):
    rows = {"dynamic": {"model": "QBERT4Rec", "settings": OURS | {"pretrain_epochs": 0}}}
    plan = run_here(planned(tmp_path, data, rows, {"epochs": 1}, kind="embedding"))
    text = suite_kinds.make(plan)
    assert "| dynamic |" in text and (plan.folder / "embedding.json").exists()
    options = {"models": ["SASRec"], "batches": [2], "rounds": 1, "sizes": {"width": 16}}
    plan = planned(tmp_path, data, {}, kind="cost", options=options)
    assert "| SASRec |" in suite_kinds.make(plan)
    assert json.loads((plan.folder / "table.json").read_text())["costs"][0]["items"] == 40
    before = json.loads((plan.folder / "table.json").read_text())["costs"][0]["flops_score"]
    suite_kinds.make(planned(tmp_path, data, {}, {"MAX_ITEM_LIST_LENGTH": 25}, kind="cost", options=options))
    assert json.loads((plan.folder / "table.json").read_text())["costs"][0]["flops_score"] < before
    with pytest.raises(ValueError, match=r"'round'.*rounds"):
        suite_kinds.make(planned(tmp_path, data, {}, kind="cost", options={"round": 1}))


# ------------------------------------------------------------------------------------------------------------- runner
WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "config.json").read_text())
with open(folder / "started", "a") as handle:
    handle.write("x")
if request["do"] == "fail":
    (folder / "failed.json").write_text(json.dumps({"reason": "ValueError: no good", "log": []}))
    sys.exit(1)
if request["do"] == "die" and (folder / "started").read_text() == "x":
    os.kill(os.getpid(), signal.SIGKILL)
if request["do"] == "vanish":
    sys.exit(3)
if request["do"] == "hang":
    time.sleep(600)
figures = {"ndcg@10": 0.5}
(folder / "cell.json").write_text(json.dumps({"test": {"plain": figures, "history_excluded": figures}, "epochs": 1}))
"""


@pytest.fixture
def run_fake(tmp_path):
    """Runs trials whose process does what it is told: ``run_fake({name: what to do}, **options)``."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(tasks, **options):
        made = [trials.Trial(ModelSpec(name, "M"), 1, tmp_path / "cells" / name, {"do": do}) for name, do in tasks.items()]
        return runner.run(made, worker=(sys.executable, str(script)), **options)

    return run


def names(found):
    return [trial.spec.name for trial in found]


def test_a_failed_cell_does_not_stop_the_others_and_is_named(run_fake, tmp_path, capsys):
    tasks = {"a": "succeed", "b": "fail", "c": "vanish", "d": "succeed"}
    outcome = run_fake(tasks, jobs=2)
    assert sorted(names(outcome.ran)) == ["a", "d"]
    reasons = {folder.name: reason for folder, reason in outcome.failed.items()}
    assert reasons == {"b": "ValueError: no good", "c": "ended with status 3 and without a result"}
    said = capsys.readouterr().out
    assert "b, seed 1: FAILED after" in said and "ValueError: no good (log:" in said and "[4/4]" in said
    again = run_fake(tasks)
    assert sorted(names(again.kept)) == ["a", "d"] and not again.ran and again.failed == outcome.failed
    assert "0 trials to run, 2 done, 2 failed before (--retry tries them again)" in capsys.readouterr().out
    assert run_fake({"b": "succeed"}, retry=True).ran
    assert (tmp_path / "cells" / "b" / "started").read_text() == "xx"
    assert (tmp_path / "cells" / "a" / "started").read_text() == "x"


def test_a_killed_cell_is_run_again_without_being_asked(run_fake):
    first = run_fake({"a": "die"})
    assert list(first.failed.values()) == ["killed by SIGKILL (out of memory?)"]
    assert names(run_fake({"a": "die"}).ran) == ["a"]


def test_a_cell_that_is_asked_for_twice_is_run_once(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    twice = [trials.Trial(ModelSpec(name, "M"), 1, tmp_path / "trial", {"do": "succeed"}) for name in ("default", "all")]
    assert len(runner.run(twice, worker=(sys.executable, str(script))).ran) == 1


def test_of_two_rows_with_one_cell_the_one_that_keeps_its_checkpoint_is_run(tmp_path):
    rows = [ModelSpec("keeps", "M", keep=True), ModelSpec("does not", "M")]
    script = tmp_path / "worker.py"
    script.write_text(WORKER.replace('"epochs": 1}', '"epochs": 1, "checkpoint": "a.pth" if request["keep"] else None}'))
    both = [trials.Trial(row, 1, tmp_path / "trial", {"do": "succeed", "keep": row.keep}) for row in rows]
    assert names(runner.run(both, worker=(sys.executable, str(script))).ran) == ["keeps"]
    assert all(trial.result() for trial in both)


def test_of_two_rows_with_one_cell_the_one_that_needs_its_ids_is_run(tmp_path):
    done = trials.Trial(ModelSpec("one", "M"), 1, tmp_path / "trial", {})
    write_json(done.folder / "cell.json", {"checkpoint": None, "archived": True})
    wanting = replace(done, spec=ModelSpec("two", "M"), with_ids=True)
    for both in ([done, wanting], [wanting, done]):
        [trial] = runner._once(both)
        assert trial.result() is None


def test_a_cell_says_with_which_code_it_began_and_went_on(tmp_path, monkeypatch):
    said = iter(["abc", "abc", "def+", None])
    monkeypatch.setattr(worker.environment, "revision", lambda: next(said))
    found = [worker._revision(tmp_path / "revisions.txt") for _ in range(4)]
    assert found == ["abc", "abc", "abc then def+", "abc then def+"]


def test_a_spent_budget_starts_nothing(run_fake, capsys):
    outcome = run_fake({"a": "succeed", "b": "succeed"}, time_limit=0)
    assert names(outcome.left) == ["a", "b"] and not outcome.ran
    assert "2 trials left; the same command goes on" in capsys.readouterr().out
    assert [runner.duration(text) for text in ("2h", "30m", "1h30m", "45s")] == [7200, 1800, 5400, 45]
    for text in ("2", "h", "2 h", "2x", "1.2.3h"):
        with pytest.raises(ValueError, match="2h"):
            runner.duration(text)


class Interrupting:
    """Sends Ctrl-C where Python swallows every exception."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_the_children(run_fake, tmp_path, monkeypatch):
    sent = []

    def interrupt(seconds):
        assert not sent, "the signal was lost"
        time.sleep(seconds)
        if (tmp_path / "cells" / "a" / "started").exists():
            sent.append(Interrupting())
            sent[0] = None  # collected here

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    children = []
    popen = subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(runner.Interrupted, match="SIGINT"):
        run_fake({"a": "hang"})
    assert [child.returncode for child in children] == [-signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cell_that_runs_says_where_it_is(tmp_path, capsys, caplog, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    running = [("default, seed 1", tmp_path)]
    monkeypatch.setattr(progress_display, "PULSE", 0.0)
    with progress_display.Status(2) as shown:
        shown.show(running)
        shown.show([])
        shown.end("default, seed 1: done")
    assert capsys.readouterr().out.splitlines() == [
        "running: default, seed 1: before the first epoch", "[1/2] default, seed 1: done"
    ]  # fmt: skip

    (work / "curve-pretrain.jsonl").write_text('{"epoch": 0, "seconds": 1.0, "valid_score": null}\n')
    assert learning_curve.latest(work) == "pretrain epoch 1"
    monkeypatch.chdir(work)
    with learning_curve.watched("finetune"):
        caplog.set_level(logging.INFO)
        logger = logging.getLogger()
        for epoch, score in enumerate([0.25, 0.5, 0.375]):
            logger.info(f"epoch {epoch} training [time: 1.00s, train loss: 3.0]")
            logger.info(f"epoch {epoch} evaluating [time: 0.50s, valid_score: {score}]")
        assert learning_curve.latest(work) == "finetune epoch 3, validation 0.3750 (best 0.5000)"
        logger.info("epoch 3 training [time: 1.00s, train loss: 3.0]")
    with open("curve-finetune.jsonl", "a") as half:
        half.write('{"epoch": 4, "sec')
    assert learning_curve.latest(work) == "finetune epoch 4, validation 0.3750 (best 0.5000)"

    monkeypatch.setattr(progress_display, "progress_bars_wanted", lambda: True)
    monkeypatch.setattr(progress_display, "REDRAW", 0.0)
    with progress_display.Status(2) as shown:
        shown.show(running)
    assert "0/2 trials" in (drawn := capsys.readouterr().err) and "default, seed 1: finetune epoch 4" in drawn


# --------------------------------------------------------------------------------------------------------- comparison
def finished(folder, row, seed, ranks, prior=None, users=None, tuned=None, **given):
    """A trial with made-up ranks."""
    ranks = {"plain": ranks, "history_excluded": [max(1, rank - 1) for rank in ranks]}
    if prior:
        ranks |= {"prior_plain": prior, "prior_history_excluded": prior}
    ranks = {name: np.array(found, dtype=np.int32) for name, found in ranks.items()}
    figures = {name: metrics_from_ranks(found) for name, found in ranks.items()}
    request = {
        "sources": [],
        "tuned": tuned,
        "key": row.name,
        "settings_key": row.name,
        "interactions": "same",
        "features": None,
        "validated": "history_excluded",
        "overridden": [],
        "unknown": [],
    }
    request |= {"prior_inside": False, "most_epochs": 200}
    trial = trials.Trial(row, seed, folder / row.name / f"seed-{seed}", request)
    result = {
        **{"model": row.model, "dataset": NAME, "seed": seed, "key": row.name, "checkpoint": None},
        **{"settings_key": row.name, "interactions": "same", "features": None},
        "test": figures,
        "identifiers": None,
        "prior": {"rule": request["validated"]} if prior else None,
        "tuned": None,
        "parameters": 5,
        "items": 9,
        "users": 3,
        "epochs": seed,
        "revision": None,
    }
    write_json(trial.folder / "cell.json", result | given)
    ids = np.arange(1, 1 + len(ranks["plain"])) if users is None else np.array(users)
    np.savez(trial.folder / "ranks.npz", users=ids, **ranks)
    return trial


def compared(tmp_path, made, rows, **given):
    suite = Suite("tiny", "Tiny", "quality", metrics=("hit@1", "ndcg@10"), models=rows, **given)
    return trials.RunPlan(suite, NAME, tmp_path, tmp_path, tuple(made), {}, tuple(row.name for row in rows))


def test_a_row_is_tuned_if_it_was_asked_for_so(tmp_path):
    """Whoever ran the trial first: a trial of the tune command is a trial like any other, and is not told that it won."""
    rows = (ModelSpec("plain", "M"), ModelSpec("chosen", "M"))
    made = [
        finished(tmp_path, rows[0], 1, [1, 2, 3]),
        finished(tmp_path, rows[1], 1, [1, 1, 3], tuned="tuned/D/chosen.yaml"),
    ]
    plan = compared(tmp_path, made, rows)
    assert [line.tuned for line in compare.compare(plan).rows] == ["", "unknown trials on D"]
    trials = [(0.5, None), (None, "ValueError"), (0.25, None), (None, None)]  # the last was killed
    write_json(tmp_path / "tuned" / "D" / "chosen.json", [{"ndcg@10": score, "failed": why} for score, why in trials])
    assert [line.tuned for line in compare.compare(plan).rows] == ["", "2 trials on D"]
    assert "- Tuned by the command tune, 2 trials on D: chosen.\n" in suite_kinds.make(plan)
    other = ModelSpec("ablation", "M")
    plan = compared(tmp_path, [finished(tmp_path, other, 1, [1, 2, 3], tuned="tuned/D/chosen.yaml")], (other,))
    assert "- Tuned by the command tune, 2 trials of chosen on D: ablation.\n" in suite_kinds.make(plan)


def test_the_comparison_is_what_a_hand_computes(tmp_path):
    ours, theirs = ModelSpec("ours", "QBERT4Rec", prior=True), ModelSpec("theirs", "SASRec", note="a note")
    many = [1, 3, 11] * 20
    made = [
        finished(tmp_path, ours, 1, many, prior=[1, 1, 1] * 20),
        finished(tmp_path, ours, 2, [2, 3, 11] * 20, prior=[1, 1, 2] * 20),
        finished(tmp_path, theirs, 1, [4, 3, 11] * 20),
    ]
    comparison = compare.compare(compared(tmp_path, made, (ours, theirs), reference="ours"))
    line, prior, other = comparison.rows
    assert [x.name for x in comparison.rows] == ["ours", "ours + co-occurrence", "theirs"]
    # Ranks 1 and 2 of the first user, 3 of the second, 11 (no gain) of the third.
    one, two = (1 + 0.5) / 3, (1 / np.log2(3) + 0.5) / 3
    found = line.figures["plain"]
    assert found["ndcg@10"].mean == pytest.approx((one + two) / 2)
    assert found["ndcg@10"].sd == pytest.approx(abs(one - two) / 2**0.5)
    assert found["hit@1"].mean == pytest.approx(1 / 6) and line.seeds == (1, 2) and line.epochs == 1.5
    assert line.figures["history_excluded"]["hit@1"].mean == pytest.approx(1 / 3)
    assert other.figures["plain"]["ndcg@10"].sd is None and other.note == "a note"
    assert prior.figures["plain"]["hit@1"].mean == pytest.approx((1 + 2 / 3) / 2)
    assert not line.tests
    test = other.tests["plain"]
    gain = (1 + 1 / np.log2(3)) / 2 - 1 / np.log2(5)
    assert test.difference == pytest.approx(gain / 3) and not test.significant
    assert test.p == pytest.approx(0.267, abs=0.02)  # 20 users that differ, but two seeds of ours that do, too: who knows
    assert test.low < 0 < test.difference < test.high
    assert prior.tests["plain"].difference < 0


def test_rows_may_be_compared_with_a_row_and_its_prior(tmp_path):
    ours, theirs = ModelSpec("ours", "QBERT4Rec", prior=True), ModelSpec("theirs", "SASRec", prior=True)
    made = [
        finished(tmp_path, ours, 1, [1, 3, 11] * 20, prior=[1, 1, 1] * 20),
        finished(tmp_path, theirs, 1, [4, 3, 11] * 20),  # of another command: no prior
    ]
    comparison = compare.compare(compared(tmp_path, made, (ours, theirs), reference="ours + co-occurrence"))
    plain, prior, other = comparison.rows
    assert [line.name for line in comparison.rows] == ["ours", "ours + co-occurrence", "theirs"] and not prior.tests
    assert plain.tests["plain"].difference == pytest.approx((0.5 + 1) / 3)
    assert other.tests["plain"].difference == pytest.approx((1 - 1 / np.log2(5) + 0.5 + 1) / 3)


def test_what_is_not_significant_is_marked_and_the_direction_is_right(tmp_path):
    first, second = ModelSpec("first", "SASRec"), ModelSpec("second", "SASRec")
    ranks = [1, 2, 11, 4, 5, 6] * 3
    shuffled = [2, 1, 11, 5, 4, 6] * 3  # as good, for other users
    made = [finished(tmp_path, first, 1, [*ranks, 1]), finished(tmp_path, second, 1, [*shuffled, 2])]
    for against, other, sign in (("first", 1, 1), ("second", 0, -1)):
        plan = compared(tmp_path, made, (first, second), reference=against)
        test = compare.compare(plan).rows[other].tests["plain"]
        assert np.sign(test.difference) == sign and test.p > 0.05 and not test.significant
        assert test.low < 0 < test.high
        assert suite_kinds.make(plan).count("*n.s.* |") >= 1
    same = compare.paired(np.array([[0.5, 0.0]]), np.array([[0.5, 0.0]]))
    assert same.p == 1.0 and same.difference == 0.0 and not same.significant


def test_other_users_are_not_paired_and_said_so(tmp_path):
    one, two = ModelSpec("one", "SASRec"), ModelSpec("two", "Pop")
    made = [finished(tmp_path, one, 1, [1, 2, 3]), finished(tmp_path, two, 1, [1, 2, 3, 4], users=[1, 2, 3, 9])]
    (made[1].folder / "cell.json").write_text((made[1].folder / "cell.json").read_text().replace('"users": 3', '"users": 4'))
    plan = compared(tmp_path, made, (one, two), reference="one")
    assert not compare.compare(plan).rows[1].tests
    assert "- **Not the same users for all rows, which are not comparable: one 3, two 4.**\n" in suite_kinds.make(plan)


def test_failed_and_copied_rows_stand_in_the_table(tmp_path, monkeypatch):
    published = {"SASRec": {"hit@1": 0.25}, "TIGER": {"ndcg@10": 0.125}}
    monkeypatch.setattr(suite_spec, "published", lambda suite, dataset: published)
    row, other = ModelSpec("SASRec", "SASRec"), ModelSpec("slow", "GRU4Rec")
    made = [finished(tmp_path, row, 1, [1, 2, 3])]
    for seed, known in ((2, row), (1, other)):
        made.append(trials.Trial(known, seed, tmp_path / known.name / f"seed-{seed}", {}))
    write_json(made[1].folder / "failed.json", {"reason": "MemoryError: too big", "log": []})
    text = suite_kinds.make(compared(tmp_path, made, (row, other)))
    assert "| SASRec | 1/2 |" in text and "| *SASRec (copied)* |  | *.2500* |  |" in text
    assert "| *TIGER (copied)* |  |  | *.1250* |" in text
    assert "- **SASRec, seed 2: failed: MemoryError: too big**\n" in text and "slow: not run yet" in text


def test_the_table_says_what_was_given_and_which_row_keeps_its_own(tmp_path):
    one = ModelSpec("one", "SASRec", settings={"stopping_step": 25, "epochs": 3})
    two = ModelSpec("two", "S3Rec", stages=({"epochs": 20, "checkpoint_as": "pre_model_path"}, {"epochs": 3}))
    made = [finished(tmp_path, row, 1, [1, 2]) for row in (one, two)]
    given = {"stopping_step": 5, "epochs": 3}
    text = suite_kinds.make(replace(compared(tmp_path, made, (one, two)), overrides=given))
    assert "- Given for every row: stopping_step=5, epochs=3.\n" in text
    assert "- one keeps its own stopping_step=25.\n- two keeps its own epochs (stage 1)=20.\n" in text
    assert "on validation, with the history left out: one, two.\n" in text


def test_the_table_says_what_a_row_does_not_know_and_what_ended_it(tmp_path):
    one, two, three = ModelSpec("one", "Pop"), ModelSpec("two", "M", prior=True), ModelSpec("three", "M")
    made = [finished(tmp_path, row, seed, [1, 2]) for row in (one, two, three) for seed in (1, 3)]
    changes = (
        {"unknown": ["dropout"], "most_epochs": 1},
        {"prior_inside": True, "most_epochs": 3},
        {"tuned": "tuned/D/x.yaml"},
    )
    request = {row.name: change for row, change in zip((one, two, three), changes, strict=True)}
    request["three"]["overridden"] = ["learning_rate"]
    made = [replace(trial, request={**trial.request, **request[trial.spec.name]}) for trial in made]
    text = suite_kinds.make(replace(compared(tmp_path, made, (one, two, three)), overrides={"dropout": 0.3}))
    assert "- Given for every row: dropout=0.3.\n- one knows no dropout.\n" in text
    assert "- two: with the seeds 3 all epochs were run that the property epochs allows.\n" in text
    assert text.count("the property epochs") == 1 and "no prior" not in text
    assert "unknown trials of x on D, but for learning_rate: three.\n" in text


def test_what_a_plan_knows_of_its_rows(data, tmp_path):
    tuned = tmp_path / "out" / "tuned" / NAME / "mine.yaml"
    tuned.parent.mkdir(parents=True)
    tuned.write_text("learning_rate: 0.0005\nattn_dropout_prob: 0.2\n")
    mine = BASELINE | {"tuned": True}
    ours = {"model": "QBERT4Rec", "settings": OURS | {"structural_prior": "cooccurrence", "epochs": 7}}
    plan = planned(tmp_path, data, {"mine": mine, "ours": ours}, {"learning_rate": 0.1, "mask_ratio": 0.4})
    mine, ours = (trial.request for trial in plan.trials)
    assert (mine["unknown"], ours["unknown"]) == (["mask_ratio"], [])
    assert (mine["overridden"], ours["overridden"]) == (["learning_rate"], [])
    assert (mine["prior_inside"], ours["prior_inside"]) == (False, True)
    assert (mine["most_epochs"], ours["most_epochs"]) == (2, 7)


@pytest.mark.process
def test_a_result_that_does_not_serve_stands_until_there_is_another(data, tmp_path):
    """An archived result has no IDs beside it; whoever wants them runs the trial, and another command may be quicker."""
    plan = planned(tmp_path, data, {"ours": {"model": "QBERT4Rec", "settings": OURS | {"epochs": 1, "pretrain_epochs": 0}}})
    [trial] = run_here(plan).trials
    before = trial.result()
    write_json(trial.folder / "cell.json", before | {"archived": True})
    wanting = replace(trial, with_ids=True)
    assert trial.result() and not wanting.result()
    worker.run(trial.folder)  # asks for no IDs
    assert trial.result()["archived"]
    assert names(runner.run([wanting]).ran) == ["ours"]
    assert "archived" not in wanting.result() and wanting.result()["test"] == before["test"]
    stamp = (trial.folder / "cell.json").stat().st_mtime_ns
    worker.run(trial.folder)  # as a second command would, which waited
    assert (trial.folder / "cell.json").stat().st_mtime_ns == stamp


def test_priors_of_another_rule_do_not_count(tmp_path):
    row = ModelSpec("one", "QBERT4Rec", prior=True)
    rules = [{"weight": 1.0}, {"rule": "history_excluded"}, None]  # of once, of now, none
    made = [finished(tmp_path, row, seed, [1, 2, 3], prior=[1, 1, 1]) for seed in (1, 2, 3)]
    for trial, rule in zip(made, rules, strict=True):
        write_json(trial.folder / "cell.json", trial.result() | {"prior": rule})
    plan = compared(tmp_path, made, (row,))
    lines = compare.compare(plan).rows
    assert [line.seeds for line in lines] == [(1, 2, 3), (2,)] and lines[0].without_prior == (1, 3)
    assert "- one: no prior with the seeds 1, 3, whose trials are of another version.\n" in suite_kinds.make(plan)
    assert len(compare._gains(made, "prior_")["plain"]) == 1


def test_the_table_says_with_which_code_its_cells_were_run(tmp_path):
    one, two = ModelSpec("one", "SASRec"), ModelSpec("two", "SASRec")
    made = [finished(tmp_path, row, seed, [1, 2], revision="abc") for row, seed in ((one, 1), (two, 1))]
    assert "- Revision of the code: abc.\n" in suite_kinds.make(compared(tmp_path, made, (one, two)))
    made.append(finished(tmp_path, two, 2, [1, 2], revision="def+"))
    said = "- Revisions of the code, not the same for all trials: abc (one, two); def+ (two).\n"
    assert said in suite_kinds.make(compared(tmp_path, made, (one, two)))


def test_rows_that_were_not_asked_for_are_shown_if_they_were_run(tmp_path, monkeypatch):
    one, two, three = (ModelSpec(name, "SASRec") for name in ("one", "two", "three"))
    made = [finished(tmp_path, one, 1, [1, 2]), finished(tmp_path, two, 1, [1, 2])]
    made.append(trials.Trial(three, 1, tmp_path / "three" / "seed-1", {}))
    plan = replace(compared(tmp_path, made, (one, two, three)), models=("one",))
    monkeypatch.setattr(suite_spec, "published", lambda suite, dataset: {"two": {"hit@1": 0.2}, "three": {"hit@1": 0.3}})
    comparison = compare.compare(plan)
    assert [line.name for line in comparison.rows] == ["one", "two"] and comparison.rows[1].published == {"hit@1": 0.2}
    assert comparison.copied == {"three": {"hit@1": 0.3}}


# -------------------------------------------------------------------------------------------------------- an archive
@pytest.mark.process
def test_an_archive_carries_a_suite_to_another_machine(data, tmp_path, monkeypatch, capsys):
    ours = {"model": "QBERT4Rec", "settings": OURS | {"pretrain_epochs": 0, "epochs": 1}}
    path = suite_file(tmp_path, {"SASRec": BASELINE, "ours": ours})
    trained = []

    def run(found, **given):
        for trial in found:
            if trial.result() is None:
                trained.append(trial.spec.name)
                write_json(trial.folder / "config.json", trial.request)
                worker.run(trial.folder)
        return runner.Outcome()

    monkeypatch.setattr(runner, "run", run)
    options = ["--suite", path, "--dataset", NAME, "--data_path", str(data), "--results_cache", "kept", "--output"]
    command([*options, "one", "--models", "SASRec"])
    capsys.readouterr()
    command([*options, "two"])  # of which "one" knows nothing
    assert trained == ["SASRec", "ours"] and "1 finished trials taken from kept" in capsys.readouterr().out
    shutil.rmtree("one")
    shutil.rmtree("two")
    command([*options, "three", "--time_limit", "0s"])
    assert trained == ["SASRec", "ours"] and "| ours | 1/1 |" in (text := Path("kept/tiny-Tiny.md").read_text())
    typed = f"benchmark --suite {path} --dataset {NAME} --data_path {data} --results_cache kept -->"
    assert text.startswith(f"<!-- run_recbole_qbert.py {typed}\n")
    kept = sorted(path.name for path in Path("kept").rglob("*") if path.is_file())
    assert kept == ["Tiny.parquet", "tiny-Tiny.json", "tiny-Tiny.md"]
    ranks = pd.read_parquet("kept/Tiny.parquet")
    assert list(ranks.columns) == ["trial", "seed", "evaluation", "user", "rank", "record"]
    assert len(ranks.record.unique()) == 2 and not any(str(tmp_path) in record for record in ranks.record.unique())
    table = Path(f"three/suites/tiny/{NAME}/table.json").read_bytes()
    assert table == Path("kept/tiny-Tiny.json").read_bytes()

    before = Path("kept/Tiny.parquet").read_bytes()
    local = next(path for path in Path("three/cells").rglob("cell.json") if "QBERT4Rec" in str(path))
    local.write_text(local.read_text().replace('"epochs": 1', '"epochs": 7'))
    command([*options, "three", "--seeds", "1"])
    assert Path("kept/Tiny.parquet").read_bytes() == before  # what is there stays
    assert Path("kept/tiny-Tiny.md").read_text() == text  # the table of other seeds is another one

    plan = trials.plan_runs(replace(suite_spec.load(path), kind="embedding"), NAME, data, Path("three"), {})
    assert [trial.result() for trial in plan.trials] == [None, None]  # an archive has no semantic IDs
    with pytest.raises(ValueError, match=r"--results_cache.*kept"):
        command([*options, "kept"])
    with pytest.raises(ValueError, match="statistics"):
        result_archive.refuse(Path("kept"), Path("three"), ["statistics"])


@pytest.mark.process
def test_only_trials_that_read_item_features_are_outdated_by_new_ones(tmp_path, monkeypatch, capsys):
    """After a change of the features, trials that read none are found again; the others are shown, marked, until rerun."""
    data = write_dataset(tmp_path / "data", NAME)
    ours = {"model": "QBERT4Rec", "settings": OURS, "prior": True}
    path = suite_file(
        tmp_path, {"SASRec": BASELINE, "IDs": ours, "no IDs": ours | {"settings": OURS | {"semantic_ids": "none"}}},
        reference="IDs", seeds=[1, 2],
    )  # fmt: skip
    trained = []

    def run(found, **given):
        for trial in found:
            if trial.result() is None and len(trained) < limit[0]:
                trained.append((trial.spec.name, trial.seed))
                made = finished(tmp_path / "made", trial.spec, trial.seed, [trial.seed, 2, 300], prior=[1, 1, 1])
                same = ("dataset", "model", "key", "settings_key", "interactions", "features")
                result = made.result() | {key: trial.request[key] for key in same}
                write_json(trial.folder / "cell.json", result | {"prior": {"rule": trial.request["validated"]}})
                shutil.copy(made.folder / "ranks.npz", trial.folder)
        return runner.Outcome()

    def table():
        trials.fingerprint.cache_clear()
        trials._hashes.cache_clear()
        trials.interactions_fingerprint.cache_clear()
        trained.clear()
        output = str(tmp_path / f"out{np.random.default_rng().integers(2**60)}")
        command(
            ["--suite", path, "--dataset", NAME, "--data_path", str(data), "--results_cache", "kept", "--output", output]
        )
        return {row["name"]: row for row in json.loads(Path("kept/tiny-Tiny.json").read_text())["rows"]}

    monkeypatch.setattr(runner, "run", run)
    limit = [6]  # of trainings
    before = table()
    assert len(trained) == 6 and not any(row["other_features"] for row in before.values())

    np.save(data / NAME / f"{NAME}.text.npy", np.load(data / NAME / f"{NAME}.text.npy") + 1)
    for limit[0], ran in ((0, []), (1, [("IDs", 1)])):  # one of two seeds is not enough
        now = table()
        marked = {name for name, row in now.items() if row["other_features"]}
        assert trained == ran and marked == {"IDs", "IDs + co-occurrence"}
        for name, row in now.items():
            assert [row[key] for key in ("figures", "tests", "seeds", "planned")] == [
                before[name][key] for key in ("figures", "tests", "seeds", "planned")
            ]
            assert name in marked or not row["earlier"]
        text = Path("kept/tiny-Tiny.md").read_text()
        assert "| IDs † | 2/2 |" in text and "| SASRec | 2/2 |" in text
        assert f"IDs, IDs + co-occurrence: made with the features {now['IDs']['other_features']}, not run again yet" in text
        assert now["IDs"]["key"] == before["IDs"]["key"]
    limit[0] = 6
    now = table()
    assert trained == [("IDs", 2)] and not any(row["other_features"] for row in now.values())
    assert "†" not in Path("kept/tiny-Tiny.md").read_text() and now["IDs"]["key"] != before["IDs"]["key"]
    assert pd.read_parquet("kept/Tiny.parquet").groupby(["trial", "seed"], observed=True).ngroups == 8  # both are kept

    inter = data / NAME / f"{NAME}.inter"
    inter.write_text("\n".join(inter.read_text().splitlines()[:-1]) + "\n")
    limit[0] = 9
    table()
    assert len(trained) == 6  # other interactions: nothing is found


def test_ranks_of_the_tail_are_cut_and_nothing_else_is_lost(tmp_path):
    cache, spec = tmp_path / "kept", ModelSpec("one", "M")
    made = [finished(tmp_path, spec, seed, [1, 100, 101, 5000], prior=[4, 3, 2, 1]) for seed in (2, 1)]
    result_archive.store(cache, tmp_path, made[:1])
    result_archive.store(cache, tmp_path, made)
    before = [(trial.result(), trial.ranks()) for trial in made]
    for trial in made:
        shutil.rmtree(trial.folder)
    assert result_archive.restore(cache, NAME, made) == (2, [])
    assert result_archive.restore(cache, NAME, made) == (0, [])
    for trial, (result, ranks) in zip(made, before, strict=True):
        assert trial.result() == result | {"sid": None, "archived": True}
        assert {name: found.tolist() for name, found in trial.ranks().items()} == {
            name: [min(rank, 101) for rank in found] for name, found in ranks.items()
        }


def test_a_damaged_results_cache_is_named(tmp_path):
    trial = finished(tmp_path, ModelSpec("one", "M"), 1, [1, 2])
    result_archive.store(tmp_path / "kept", tmp_path, [trial])
    path = tmp_path / "kept" / f"{NAME}.parquet"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], b"no Parquet file"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Tiny\.parquet"):
            result_archive.restore(tmp_path / "kept", NAME, [trial])
        with pytest.raises(ValueError, match=r"Tiny\.parquet"):
            result_archive.store(tmp_path / "kept", tmp_path, [trial])
        assert path.read_bytes() == damaged


def test_results_of_earlier_versions_get_their_hashes_in_the_results_cache(tmp_path):
    trial = finished(tmp_path, ModelSpec("one", "M"), 1, [1, 2])
    hashes = {key: trial.request[key] for key in ("settings_key", "interactions", "features")}
    old = {key: value for key, value in trial.result().items() if key not in hashes}
    write_json(trial.folder / "cell.json", old)
    result_archive.store(tmp_path / "kept", tmp_path, [trial])
    shutil.rmtree(trial.folder)
    assert result_archive.restore(tmp_path / "kept", NAME, [trial]) == (1, [])
    assert trial.result() == hashes | old | {"sid": None, "archived": True}


def test_lines_of_an_earlier_table_stand_for_rows_without_results(tmp_path):
    ours, theirs = ModelSpec("ours", "QBERT4Rec"), ModelSpec("theirs", "SASRec", prior=True)
    ranks = [1, 3, 11] * 20
    made = [finished(tmp_path, ours, 1, ranks), finished(tmp_path, theirs, 1, [4, 3, 11] * 20, prior=ranks)]
    made.append(finished(tmp_path, theirs, 2, [5, 3, 11] * 20, prior=ranks))
    unfinished = trials.Trial(theirs, 2, tmp_path / "nowhere", made[1].request)
    plan = compared(tmp_path, made, (ours, theirs), reference="ours")
    suite_kinds.make(plan)
    table = json.loads((plan.folder / "table.json").read_text())
    known = {line["name"]: line for line in table["rows"]}

    def now(trials, against="ours"):
        made = compared(tmp_path, trials, (ours, theirs), reference=against)
        later = replace(made, models=("ours", "theirs"), previous_table=table)
        return later, {line.name: json.loads(json.dumps(asdict(line))) for line in compare.compare(later).rows}

    later, lines = now([*made[:1], unfinished])
    assert list(lines) == ["ours", "theirs", "theirs + co-occurrence"]
    assert (
        lines["theirs + co-occurrence"] == known["theirs + co-occurrence"] | {"earlier": True}
        and not lines["ours"]["earlier"]
    )
    said = (
        "- Of an earlier table, which had more seeds; tests are against the ours of then: theirs, theirs + co-occurrence.\n"
    )
    assert said in suite_kinds.make(later) and "other settings" not in suite_kinds.make(later)
    assert now([*made[:2], unfinished])[1]["theirs"]["earlier"]  # one of two seeds here, two there
    for line in table["rows"][1:]:
        line["key"] = "of other settings"
    later = now([*made[:2], unfinished])[0]
    assert (
        "- Of these, maybe with other settings than are asked for now: theirs, theirs + co-occurrence.\n"
        in suite_kinds.make(later)
    )
    for line in table["rows"][1:]:
        line["key"] = "theirs"
    later = replace(
        now([*made[:1], unfinished])[0], models=("ours",)
    )  # whoever does not ask for a row knows what it would be
    assert said in suite_kinds.make(later) and "other settings" not in suite_kinds.make(later)
    assert not now(made[:2])[1]["theirs"]["earlier"]  # all that were asked for
    assert now(made)[1] == known
    later, lines = now(made[:1], "theirs")
    assert not lines["theirs + co-occurrence"]["tests"] and "of then" not in suite_kinds.make(
        later
    )  # they were against ours
    assert not lines["ours"]["tests"]  # and the ranks of theirs are not here
    lost = trials.Trial(ours, 2, tmp_path / "ours" / "seed-2", made[0].request)
    table["rows"][0]["seeds"] = [1, 2]
    lines = now([made[0], lost, *made[1:]])[1]
    assert lines["ours"]["earlier"] and not lines["theirs"]["tests"]  # what is shown of ours is not what is here


def test_settings_in_an_archive_are_written_over_by_new_ones_only(tmp_path, capsys):
    output, kept = tmp_path / "out", tmp_path / "kept"
    mine, theirs = output / "tuned/D/one.yaml", kept / "tuned/D/one.yaml"
    for path, text in ((mine, "lr: 1\n"), (theirs, "lr: 2\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    trial = finished(output, ModelSpec("one", "M"), 1, [1, 2], tuned="tuned/D/one.yaml")
    result_archive.store(kept, output, [trial])
    assert theirs.read_text() == "lr: 2\n" and f"{theirs} stays as it is" in capsys.readouterr().out
    result_archive.store(kept, output, [], [mine])
    assert theirs.read_text() == "lr: 1\n"


def test_an_archive_of_another_question_is_refused(tmp_path):
    plan = replace(compared(tmp_path, [], (ModelSpec("ours", "M"),)), overrides={"epochs": 3}, sources=("A",))
    assert result_archive.previous_table(tmp_path, plan) == {}
    path = tmp_path / f"tiny-{NAME}.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tiny-Tiny\.json"):
        result_archive.previous_table(tmp_path, plan)
    same = {"overrides": {"epochs": 3}, "sources": ["A"], "metrics": ["hit@1", "ndcg@10"], "rows": []}
    for other in ({"overrides": {}}, {"sources": []}, {"metrics": ["hit@1"]}, {"metrics": None}):
        write_json(path, same | other)
        with pytest.raises(ValueError, match=f"{next(iter(other))}.*--results_cache"):
            result_archive.previous_table(tmp_path, plan)
    write_json(path, same)
    assert result_archive.previous_table(tmp_path, plan) == same
    more = same | {"metrics": ["hit@1", "hit@5", "ndcg@10"]}
    write_json(path, more)
    assert result_archive.previous_table(tmp_path, plan) == more


# ------------------------------------------------------------------------------------------------------ the whole way
@pytest.mark.process
def test_a_killed_suite_goes_on_and_gives_the_tables_of_one_that_was_not(data, tmp_path):
    """The runner is killed with -9 in the middle of a training, which dies with it and goes on later."""
    slow = OURS | {"pretrain_epochs": 0, "epochs": 12, "stopping_step": 12}
    rows = {"default": {"model": "QBERT4Rec", "settings": slow, "prior": True}, "SASRec": BASELINE}
    path = suite_file(tmp_path, rows, reference="default")
    options = ["--suite", path, "--dataset", NAME, "--data_path", str(data), "--jobs", "2", "--threads", "1", "--output"]
    code = "import sys; from tests.test_suites import command; sys.exit(command(sys.argv[1:])['exit_code'])"
    started = subprocess.Popen([sys.executable, "-c", code, *options, "killed"], stdout=subprocess.DEVNULL)
    plan = trials.plan_runs(suite_spec.load(path), NAME, data, tmp_path / "killed", {})
    ours = plan.trials[0]
    progress = ours.folder / "work" / "finetune.progress"
    while not progress.exists():
        assert started.poll() is None, "the runner ended by itself"
        time.sleep(0.02)
    started.kill()
    started.wait()
    with file_lock(ours.folder):  # when the training has ended, too
        assert ours.result() is None and not list(plan.output.rglob("table.*"))

    figures = command([*options, "killed"])
    assert figures["exit_code"] == 0 and not figures["failed"]
    assert len(ours.result()["curve"]) == ours.result()["epochs"]
    assert not any("Fatal" in (trial.folder / "log.txt").read_text() for trial in plan.trials)  # they end as they should

    whole = run_here(trials.plan_runs(suite_spec.load(path), NAME, data, tmp_path / "whole", {}))
    suite_kinds.make(whole)
    tables = {name: (plan.folder / name).read_bytes() for name in ("table.json", "table.md")}
    assert tables == {name: (whole.folder / name).read_bytes() for name in tables}

    assert command([*options, "killed"])["exit_code"] == 0  # nothing left to run
    assert tables == {name: (plan.folder / name).read_bytes() for name in tables}


def test_old_names_are_still_understood(data, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(benchmark, "benchmark", lambda *given, **options: seen.update(options) or {})
    old = ["--rows", "default", "--archive", "a", "--budget", "1h", "--tuned_on", "X", "--against", "default + prior"]
    command(["--suite", "table2", "--dataset", NAME, "--data_path", str(data), *old])
    assert (seen["models"], seen["results_cache"], seen["time_limit"]) == (["default"], "a", "1h")
    assert (seen["settings_from"], seen["reference"]) == ("X", "default + prior")
    assert suite_spec.current_name("default + prior") == "QBERT4Rec + co-occurrence"
    path = Path(suite_file(tmp_path, {"QBERT4Rec": {"model": "QBERT4Rec"}}, reference="QBERT4Rec"))
    path.write_text(path.read_text().replace("models:", "rows:").replace("reference: QBERT4Rec", "against: default"))
    assert suite_spec.load(str(path)).reference == suite_spec.load(str(path)).models[0].name == "QBERT4Rec"
    monkeypatch.undo()
    options = ["--suite", str(path), "--dataset", NAME, "--data_path", str(data), "--output", "out", "--budget", "0s"]
    assert command([*options, "--rows", "default", "--against", "default"])["left"] == 1
    tuned = tmp_path / "out" / "tuned" / NAME / "SASRec fast.yaml"  # of before the names were changed
    tuned.parent.mkdir(parents=True)
    tuned.write_text("learning_rate: 0.0005\n")
    [trial] = planned(tmp_path, data, {"SASRec (ours)": BASELINE | {"tuned": True}}).trials
    assert trial.request["tuned"] == f"tuned/{NAME}/SASRec fast.yaml"


def test_the_command_reports_failures_by_its_exit_code_and_prints_the_table(data, tmp_path, capsys, monkeypatch):
    def run(found, **_):
        return runner.Outcome(failed={trial.folder: "ValueError: no good" for trial in found})

    monkeypatch.setattr(runner, "run", run)
    path = suite_file(tmp_path, {"SASRec": BASELINE})
    options = ["--suite", path, "--dataset", NAME, "--data_path", str(data), "--output", "out"]
    assert command(options)["exit_code"] == 1
    assert f"# Tiny: {NAME}" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "suites" / "tiny" / NAME / "suite.json").read_text())
    assert about["trials"][0]["path"].startswith(f"cells/{NAME}/SASRec-") and about["suite"]["models"][0]["name"] == "SASRec"
    with pytest.raises(ValueError, match=r"'SASREC'.*'SASRec'"):
        command([*options, "--models", "SASREC"])
    with pytest.raises(ValueError, match="'SASRec \\+ co-occurrence'"):  # the row asks for none
        command([*options, "--reference", "SASRec + co-occurrence"])
    with pytest.raises(ValueError, match="--jobs is 0"):
        command([*options, "--jobs", "0"])

    def stopped(found, **_):
        raise runner.Interrupted("SIGINT")

    monkeypatch.setattr(runner, "run", stopped)
    assert command(options)["exit_code"] == 130
    assert "the same command goes on" in capsys.readouterr().out


def test_figure_7_says_where_depth_per_item_means_nothing():
    from recbole_qbert.experiments.suites.markdown import depth_tests

    test = {"learned": 0.5, "permuted": 0.6, "permuted_sd": 0.01, "fixed": [0.7, 0.55], "common": 2, "oracle": 0.4}
    good, chance = ({**test, "beats_permuted": passed, "beats_common": passed} for passed in (True, False))
    lines = depth_tests({"item by item": [good, good], "by chance": [good, {**chance, "learned": 0.62}]})
    assert "| item by item | 0.5000 | 0.6000 (0.0100) | 0.5500 | 0.4000 | 2 |" in lines
    assert "| by chance | 0.5600 | 0.6000 (0.0100) | 0.5500 | 0.4000 | 2 |" in lines
    (warning,) = [line for line in lines if line.startswith("- **")]
    assert "by chance" in warning and "1 of 2" in warning
    assert depth_tests({}) == []
