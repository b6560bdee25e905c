"""The choice of the kind of semantic IDs on validation (``semantic_ids: auto``)."""

from __future__ import annotations

import pytest
import torch

from recbole_qbert.recbole_integration import checkpoint_io, experiment, id_choice
from recbole_qbert.utils.io import json_lines
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), "Tiny")


def train(data, folder, **settings):
    base = {**QUICK["QBERT4Rec"], "fusion": "concatenation", "quantizer": "residual_kmeans", "rq_levels": 4, "epochs": 8}
    folder.mkdir(exist_ok=True)
    base |= {"semantic_ids": "auto", "checkpoint_dir": str(folder), "checkpoint_file": str(folder / "f.pth")}
    config = experiment.configure("QBERT4Rec", "Tiny", data, base | settings)
    with experiment.working_directory(folder):
        return experiment.train(config)


@pytest.mark.parametrize("kinds", [None, ["none", "fused"], ["none", "per_modality"]])
def test_the_result_is_that_of_the_chosen_kind_trained_alone(data, tmp_path, monkeypatch, kinds):
    if kinds:
        monkeypatch.setattr(id_choice, "_kinds", lambda student: kinds)
    run = train(data, tmp_path / "auto")
    choice = run.model.identifier_figures["semantic_id_choice"]
    tried = choice["tried"]
    assert set(tried) == set(kinds or ["fused", "per_modality", "none"])
    assert tried[choice["chosen"]]["score"] == max(one["score"] for one in tried.values())
    first = next(iter(tried.values()))["epochs"]
    assert sum(one["epochs"] for one in tried.values()) <= 2 * first
    chosen = {key: run.config[key] for key in ("semantic_ids", "rq_levels")} | {"epochs": tried[choice["chosen"]]["epochs"]}
    assert chosen["semantic_ids"] == choice["chosen"]
    assert chosen["rq_levels"] == (2 if choice["chosen"] == "per_modality" else 4)
    alone = train(data, tmp_path / "alone", **chosen)
    assert torch.equal(run.model.network.item_table(), alone.model.network.item_table())
    assert run.test() == alone.test() and run.valid == pytest.approx(alone.valid)


def test_an_interrupted_choice_goes_on_and_its_checkpoint_needs_no_choice(data, tmp_path, monkeypatch):
    whole = train(data, tmp_path / "whole", structural_prior="cooccurrence")
    epoch, calls = type(whole.trainer)._train_epoch, []

    def killed(self, *args, **kwargs):
        calls.append(self.saved_model_file)
        if len(calls) == 9:  # in the second kind
            raise KeyboardInterrupt
        return epoch(self, *args, **kwargs)

    monkeypatch.setattr(type(whole.trainer), "_train_epoch", killed)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(data, folder, structural_prior="cooccurrence")
    again = train(data, folder, structural_prior="cooccurrence")
    assert calls.count(str(folder / "f.fused.pth")) == 8 == len(json_lines(folder / "f.fused.jsonl"))
    assert again.test() == whole.test()
    assert again.model.identifier_figures["semantic_id_choice"] == whole.model.identifier_figures["semantic_id_choice"]
    config, model, *_ = checkpoint_io.load_data_and_model(str(folder / "f.pth"))
    assert config["semantic_ids"] == whole.config["semantic_ids"] != "auto"
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_teachers_teach_a_new_network_of_the_chosen_kind(data, tmp_path):
    run = train(data, tmp_path / "taught", teachers=1, epochs=4)
    chosen = {key: run.config[key] for key in ("semantic_ids", "rq_levels")}
    alone = train(data, tmp_path / "alone", teachers=1, epochs=4, **chosen)
    assert torch.equal(run.model.network.item_table(), alone.model.network.item_table())


@pytest.mark.parametrize("settings", [{"train_stage": "pretrain"}, {"pretrained": __file__}])
def test_pretraining_names_its_kind(data, tmp_path, settings):
    with pytest.raises(ValueError, match="auto"):
        train(data, tmp_path / "refused", **settings)
