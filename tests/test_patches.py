"""Patches and checkpoint_io: each shim against the problem it is there for, on RecBole's own models."""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import importlib
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recbole
import recbole.data
import recbole.data.utils
import recbole.quick_start
import recbole.utils
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.trainer import PretrainTrainer, Trainer
from scipy import sparse

from recbole_qbert.recbole_integration import checkpoint_io, file_settings, patches, registry
from recbole_qbert.recbole_integration.patches import quick_start
from tests.helpers_recbole import QUICK

patches.apply()
checkpoint_io.apply()

ROOT = Path(__file__).resolve().parents[1]
SEQUENTIAL: dict[str, Any] = {
    "train_neg_sample_args": None,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}
WITH_ITEMS: dict[str, Any] = {
    **SEQUENTIAL,
    "load_col": {**SEQUENTIAL["load_col"], "item": ["item_id", "categories"]},
}
SMALL: dict[str, Any] = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty folder with a data set of 24 users x 6 interactions, a bare command line, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setattr(quick_start, "get_environment", lambda config: SimpleNamespace(draw=lambda: ""))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (tmp_path / "data" / "toy").mkdir(parents=True)
    rows = [f"u{user}\ti{(user + 3 * step) % 12}\t{step}" for user in range(24) for step in range(6)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (tmp_path / "data" / "toy" / "toy.inter").write_text("\n".join([header, *rows]) + "\n")
    rows = [f"i{item}\tc{item % 3} d{item % 2}" for item in range(12)]
    (tmp_path / "data" / "toy" / "toy.item").write_text("\n".join(["item_id:token\tcategories:token_seq", *rows]) + "\n")
    yield
    torch.set_num_threads(threads)
    patches.fresh_logging()


def settings(**more: Any) -> dict[str, Any]:
    common = {"data_path": "data", "epochs": 2, "show_progress": False, "worker": 0, "gpu_id": "", "seed": 1}
    return {**common, "metrics": ["Hit", "NDCG"], "topk": [5], "valid_metric": "NDCG@5", **more}


def run(model: str, **more: Any) -> tuple[dict[str, Any], Path]:
    """RecBole's result, and the newest checkpoint."""
    result = quick_start.run_recbole(model, "toy", config_dict=settings(**more))
    return result["test_result"], max(Path("saved").glob("*.pth"), key=os.path.getmtime)


def make_trainer(model: str = "SASRec", **more: Any) -> tuple[Trainer, tuple[Any, Any, Any]]:
    config = Config(model=model, dataset="toy", config_dict=settings(**more))
    recbole.utils.init_seed(1, True)
    loaders = data_preparation(config, recbole.data.create_dataset(config))
    network = recbole.utils.get_model(model)(config, loaders[0]._dataset)
    return recbole.utils.get_trainer(config["MODEL_TYPE"], model)(config, network), loaders


# ---------------------------------------------------------------------------------------- writing checkpoints
@pytest.mark.process
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {**SEQUENTIAL, **SMALL}),
        ("FDSA", {**WITH_ITEMS, **SMALL, "selected_features": ["categories"]}),  # kept the Dataset
        ("BPR", {}),
        ("EASE", {}),  # scipy csr_matrix and np.matrix
        ("ItemKNN", {}),  # scipy lil_matrix
        ("Pop", {}),
    ],
)
def test_a_baseline_runs_and_is_read_again(model: str, more: dict[str, Any]) -> None:
    """run_recbole itself loads its best epoch with torch.load's default: that was what failed."""
    result, file = run(model, **more)
    state = torch.load(file, weights_only=True)
    assert state["config"].keys() == {"model", "dataset", "external"}
    assert state["module"].startswith("recbole.model.")
    assert type(state["best_valid_score"]) is float
    assert [path.suffix for path in Path("saved").iterdir()] == [".pth"], "no temporary file stays"
    assert file.stat().st_size < 100_000, "the data set must not be in it"

    config, network, dataset, *loaders = recbole.quick_start.load_data_and_model(model_file=str(file))
    assert (config["model"], dataset.item_num, len(loaders)) == (model, 13, 3)
    trainer = recbole.utils.get_trainer(config["MODEL_TYPE"], model)(config, network)
    assert trainer.evaluate(loaders[2], load_best_model=False) == result
    assert trainer.evaluate(loaders[2], model_file=str(file)) == result


@pytest.mark.pipeline
def test_a_resumed_run_goes_on_where_it_stopped() -> None:
    more = {**SEQUENTIAL, **SMALL, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "shuffle": False}
    whole, loaders = make_trainer(epochs=4, **more)
    whole.fit(loaders[0], loaders[1])
    half, loaders = make_trainer(epochs=2, **more)
    half.fit(loaders[0])  # without validation the last epoch is kept
    rest, loaders = make_trainer(epochs=4, **more)
    rest.resume_checkpoint(half.saved_model_file)
    assert rest.start_epoch == 2
    rest.fit(loaders[0], loaders[1])
    assert rest.train_loss_dict == {epoch: whole.train_loss_dict[epoch] for epoch in (2, 3)}


@pytest.mark.process
def test_s3rec_is_pretrained_and_fine_tuned() -> None:
    common = {**WITH_ITEMS, **SMALL, "item_attribute": "categories"}
    pretraining = {"train_stage": "pretrain", "pretrain_epochs": 2, "save_step": 2}
    quick_start.run_recbole("S3Rec", "toy", config_dict=settings(**common, **pretraining))
    file = Path("saved/S3Rec-toy-2.pth")
    pretrained = torch.load(file, weights_only=True)
    trainer, _ = make_trainer("S3Rec", **common, train_stage="finetune", pre_model_path=str(file))
    table = trainer.model.item_embedding.weight
    assert torch.equal(table, pretrained["state_dict"]["item_embedding.weight"])
    result, _ = run("S3Rec", **common, train_stage="finetune", pre_model_path=str(file))
    assert set(result) == {"hit@5", "ndcg@5"}


def test_what_numpy_and_scipy_hold_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = sparse.random(5, 4, density=0.5, format="csr", dtype=np.float32, random_state=0)
    values = {
        "number": np.float64(0.5),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "matrix": np.asmatrix(np.eye(2)),
        "lil": rows.tolil(),
        "nested": {np.int64(3): [np.bool_(True), (rows, None)]},
        "path": Path("a") / "b",
    }
    foreign: list[str] = []
    checkpoint_io.write_checkpoint({"it": checkpoint_io._plain(values, "it", foreign)}, tmp_path / "x.pth")
    back = checkpoint_io._revive(checkpoint_io.load_checkpoint(tmp_path / "x.pth")["it"])
    assert foreign == []
    assert (back["number"], back["path"]) == (0.5, str(Path("a") / "b"))
    assert type(back["matrix"]) is np.matrix
    np.testing.assert_array_equal(back["array"], values["array"], strict=True)
    np.testing.assert_array_equal(back["matrix"], values["matrix"])
    assert type(back["lil"]) is type(values["lil"])
    assert (back["lil"] != values["lil"]).nnz == 0
    flag, (inner, nothing) = back["nested"][3]
    assert (flag, nothing, inner.dtype) == (True, None, np.float32)


def test_what_is_not_plain_is_warned_about_and_needs_trust(caplog: pytest.LogCaptureFixture) -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    trainer.model.odd = collections.deque([1])
    trainer.model.loose = [torch.nn.Linear(1, 1)]  # its weights are not in state_dict: must not be dropped
    trainer.model.other_parameter_name = ["odd", "loose", "item_embedding"]
    with caplog.at_level("WARNING"):
        trainer._save_checkpoint(0, verbose=False)
    assert "other_parameter['odd'] (collections.deque), other_parameter['loose'][...] (torch" in caplog.text
    with pytest.raises(checkpoint_io.UntrustedCheckpointError, match=r"trusted=True"):
        checkpoint_io.load_data_and_model(trainer.saved_model_file)
    _, model, *_ = checkpoint_io.load_data_and_model(trainer.saved_model_file, trusted=True)
    assert model.odd == collections.deque([1])
    assert torch.equal(model.loose[0].weight, trainer.model.loose[0].weight)


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    checkpoint_io.write_checkpoint({"a": 1}, file)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint_io.write_checkpoint({"a": lambda: None}, file)
    assert checkpoint_io.load_checkpoint(file) == {"a": 1}
    assert [path.name for path in tmp_path.glob("x.pth*")] == ["x.pth"]


# ---------------------------------------------------------------------------------------- reading checkpoints
REFUSAL = r"evil\.pth.*(\w+\.mkdir|pickle).*trusted=True"


class Malicious:
    """Unpickling an instance creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("was_executed",))


@pytest.mark.parametrize("write", [torch.save, lambda state, path: Path(path).write_bytes(pickle.dumps(state))])
def test_a_malicious_file_is_refused_and_not_executed(write: Any) -> None:
    write({"config": Malicious(), "state_dict": {}}, "evil.pth")
    for read in (checkpoint_io.load_checkpoint, checkpoint_io.load_data_and_model, recbole.quick_start.load_data_and_model):
        with pytest.raises(checkpoint_io.UntrustedCheckpointError, match=REFUSAL):
            read("evil.pth")
        assert not Path("was_executed").exists()


@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path", "checkpoint_dir"])
def test_settings_in_a_checkpoint_do_not_make_recbole_unpickle_a_file(key: str) -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    trainer._save_checkpoint(0, verbose=False)
    state = checkpoint_io.load_checkpoint(trainer.saved_model_file)
    name = state["config"]["dataset"]
    planted = {
        "dataset_save_path": ["planted.bin"],
        "dataloaders_save_path": ["planted.bin"],
        "checkpoint_dir": [f"planted/{name}-SequentialDataset.pth", f"planted/{name}-for-SASRec-dataloader.pth"],
    }[key]
    for file in planted:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(pickle.dumps(Malicious()))
    state["config"]["external"][key] = "planted" if key == "checkpoint_dir" else "planted.bin"
    torch.save(state, "changed.pth")
    config, model, *_ = checkpoint_io.load_data_and_model("changed.pth")
    assert not Path("was_executed").exists() and model.n_items > 1 and config["model"] == state["config"]["model"]


def plant(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(pickle.dumps(Malicious()))


def every_property() -> list[str]:
    models = (Path(recbole.__file__).parent / "properties" / "model").glob("*.yaml")
    names = set().union(*(registry.own_properties(file.stem) for file in models), registry.own_properties("QBERT4Rec"))
    unlisted = {"config_file_list", "final_config_dict", "external_config_dict", "saved_model_file", "model_file"}
    return sorted(names | registry.common_properties() | unlisted)


def test_no_property_that_names_a_file_or_code_is_taken_from_a_checkpoint() -> None:
    words = (
        "path",
        "file",
        "dir",
        "pretrained",
        "warm_up",
        "teacher",
        "xgb_model",
        "wandb",
        "save_data",
        "worker",
        "config",
    )
    telling = {name for name in every_property() if any(word in name for word in words)}
    # Numbers, a part of the name of an atomic file, and names of parts of the network.
    telling -= {"warm_up_step", "direct", "benchmark_filename", "teachers", "teacher_weight", "pretrained_parts"}
    models = [file.stem for file in (Path(recbole.__file__).parent / "properties" / "model").glob("*.yaml")]
    for model in [*models, "QBERT4Rec", "CooccurrenceKNN"]:
        assert file_settings.taken_settings(model) & telling <= file_settings.PLACES, model


def test_a_file_that_any_property_of_a_checkpoint_names_is_not_unpickled() -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    state = checkpoint_io.checkpoint_state(trainer, 0)
    name = state["config"]["dataset"]
    plant("planted.bin", f"planted/{name}-SequentialDataset.pth", f"planted/{name}-for-SASRec-dataloader.pth")
    external = dict(state["config"]["external"])
    not_taken = set(every_property()) - file_settings.taken_settings("SASRec")
    named = {key: "planted.bin" for key in not_taken} | {
        "checkpoint_dir": "planted",
        "external": {"data_path": "planted.bin"},
    }
    checkpoint_io.write_checkpoint({**state, "config": {**state["config"], "external": external | named}}, Path("all.pth"))
    checkpoint_io.load_data_and_model("all.pth")
    for key in file_settings.taken_settings("SASRec"):
        changed = {**state["config"], "external": {**external, key: "planted.bin"}}
        checkpoint_io.write_checkpoint({**state, "config": changed}, Path("one.pth"))
        with contextlib.suppress(Exception):  # whatever RecBole says to such a value
            checkpoint_io.load_data_and_model("one.pth")
        assert not Path("was_executed").exists(), key


@pytest.mark.parametrize("write", [pickle.dumps, lambda value: b"\x93NUMPY"])
def test_a_pickle_in_the_folder_of_a_data_set_is_not_read(write: Any) -> None:
    np.save("data/toy/item_emb.npy", np.array([Malicious()], dtype=object), allow_pickle=True)
    if write is pickle.dumps:
        Path("data/toy/item_emb.npy").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"item_emb\.npy|pickle"):
        make_trainer("LDiffRec", n_cate=2)
    assert not Path("was_executed").exists()


def test_a_setting_that_recbole_evaluates_is_not_taken_from_a_checkpoint() -> None:
    code = "__import__('os').mkdir('was_executed')"
    external = {"teacher": code, "t_depth": code, "phase": code}
    taken = file_settings.settings_from_file("KD_DAGFM", external, "x.pth")
    assert "teacher" not in taken
    assert file_settings.settings_from_file("KD_DAGFM", {"teacher": "CIN"}, "x.pth") == {"teacher": "CIN"}
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    state = checkpoint_io.checkpoint_state(trainer, 0)
    for model in ("SASRec", "KD_DAGFM"):
        config = {
            **state["config"],
            "model": model,
            "external": state["config"]["external"] | external | {"loss_type": code},
        }
        checkpoint_io.write_checkpoint({**state, "config": config}, Path("evil.pth"))
        with contextlib.suppress(Exception):
            checkpoint_io.load_data_and_model("evil.pth")
        assert not Path("was_executed").exists()


def test_pickled_caches_are_read_only_for_a_user_who_asks() -> None:
    plant("saved/toy-SequentialDataset.pth", "saved/toy-for-SASRec-dataloader.pth")
    make_trainer(**SEQUENTIAL, **SMALL)
    assert not Path("was_executed").exists()
    asks: list[dict[str, Any]] = [{"save_dataset": True}, {"dataset_save_path": "saved/toy-SequentialDataset.pth"}]
    for ask in asks:
        with contextlib.suppress(AttributeError):  # what the file holds is no data set
            make_trainer(**SEQUENTIAL, **SMALL, **ask)
        assert Path("was_executed").exists(), ask
        Path("was_executed").rmdir()


def test_the_users_own_caches_are_used(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with caplog.at_level("INFO"):
            make_trainer(**SEQUENTIAL, **SMALL, save_dataset=True, save_dataloaders=True)
    assert "Load filtered dataset from" in caplog.text and "Load split dataloaders from" in caplog.text


def test_a_model_that_started_from_other_weights_is_loaded_without_them() -> None:
    common = {**WITH_ITEMS, **SMALL, "item_attribute": "categories"}
    first, _ = make_trainer("S3Rec", **common, train_stage="pretrain")
    first.save_pretrained_model(0, "first.pth")
    second, _ = make_trainer("S3Rec", **common, train_stage="finetune", pre_model_path="first.pth")
    second._save_checkpoint(0, verbose=False)
    Path("first.pth").unlink()
    _, model, *_ = checkpoint_io.load_data_and_model(second.saved_model_file)
    assert torch.equal(model.item_embedding.weight, second.model.item_embedding.weight)


# ---------------------------------------------------------------------------------------- damaged checkpoints
def test_any_damage_of_a_checkpoint_is_named() -> None:
    tensor = torch.arange(1000.0)
    checkpoint_io.write_checkpoint({"state_dict": {"a": tensor}, "epoch": 3, "config": {}}, "x.pth")
    content = Path("x.pth").read_bytes()
    weights = content.find(tensor.numpy().tobytes())
    metadata = content.find(b"K\x03", content.find(b"epoch")) + 1
    for place in (weights + 3, weights + 2003, metadata):
        Path("x.pth").write_bytes(content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.pth"):
            checkpoint_io.load_checkpoint("x.pth")
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        Path("x.pth").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.pth"):
            checkpoint_io.load_checkpoint("x.pth")


def test_changed_content_under_the_old_digest_is_refused() -> None:
    checkpoint_io.write_checkpoint({"state_dict": {"a": torch.ones(3)}}, "x.pth")
    state = torch.load("x.pth", weights_only=True)
    state["state_dict"]["a"][1] = -1
    torch.save(state, "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth.*damaged"):
        checkpoint_io.load_checkpoint("x.pth")


def test_a_checkpoint_without_a_digest_is_read_and_checked_by_its_checksums(caplog: pytest.LogCaptureFixture) -> None:
    state = {"state_dict": {"a": torch.arange(100.0)}}
    torch.save(state, "old.pth")
    with caplog.at_level("INFO"):
        assert torch.equal(checkpoint_io.load_checkpoint("old.pth")["state_dict"]["a"], torch.arange(100.0))
    assert "old.pth" in caplog.text
    content = Path("old.pth").read_bytes()
    place = content.find(state["state_dict"]["a"].numpy().tobytes())
    Path("old.pth").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(ValueError, match=r"old\.pth.*damaged"):
        checkpoint_io.load_checkpoint("old.pth")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("config"), "'config'"),
        (lambda s: s.update(config=3), "'config'"),
        (lambda s: s["config"].pop("dataset"), "'dataset'"),
        (lambda s: s["config"].update(model=7), "'model'"),
        (lambda s: s["config"].update(external=[1]), "'external'"),
        (lambda s: s["config"].update(external={1: 2}), "'external'"),
        (lambda s: s["config"]["external"].update(data_path=5), "data_path"),
        (lambda s: s["config"]["external"].update(load_col=3), "external"),
        (lambda s: s.update(deep=nested(200)), "nested"),
        (lambda s: s["config"].update(external={"topk": nested(90)}), "nested"),
        (lambda s: s.pop("state_dict"), "'state_dict'"),
        (lambda s: s.update(state_dict=[]), "'state_dict'"),
        (lambda s: s.update(other_parameter=[3]), "'other_parameter'"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": 3}), "item_embedding.weight"),
        (lambda s: s["state_dict"].pop("item_embedding.weight"), "item_embedding.weight"),
        (lambda s: s["state_dict"].update(more=torch.zeros(1)), "more"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": torch.zeros(2, 3)}), "item_embedding.weight"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": torch.zeros(13, 8).int()}), "item_embedding.weight"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": torch.zeros(13, 8).half()}), "item_embedding.weight"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": torch.full((13, 8), np.nan)}), "item_embedding.weight"),
        (lambda s: s["state_dict"].update({"item_embedding.weight": torch.full((13, 8), np.inf)}), "item_embedding.weight"),
    ],
)
def test_a_malformed_checkpoint_is_refused_with_file_and_key(change: Any, named: str) -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    state = copy.deepcopy(checkpoint_io.checkpoint_state(trainer, 0))
    change(state)
    torch.save(state, "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth.*{re.escape(named)}"):
        checkpoint_io.load_data_and_model("odd.pth")


def test_the_same_state_gives_the_same_bytes_whatever_the_name_of_the_file(tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0), "config": {"model": "SASRec"}}
    for name in ("one.pth", "another-name.pth"):
        checkpoint_io.write_checkpoint(state, tmp_path / name)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "another-name.pth").read_bytes()


def test_only_trust_executes() -> None:
    torch.save({"config": Malicious()}, "evil.pth")
    checkpoint_io.load_checkpoint("evil.pth", trusted=True)
    assert Path("was_executed").exists()


def test_other_files_are_named() -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint_io.load_checkpoint("none.pth")
    torch.save([1], "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth.*list"):
        checkpoint_io.load_checkpoint("list.pth")
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth.*'config'"):
        checkpoint_io.load_data_and_model("weights.pth")
    Path("half.pth").write_bytes(Path("weights.pth").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"half\.pth"):
        checkpoint_io.load_checkpoint("half.pth")
    Path("empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty\.pth"):
        checkpoint_io.load_checkpoint("empty.pth")


def stock_checkpoint(trainer: Trainer) -> str:
    """A file as RecBole 1.2.1 itself writes it."""
    Trainer._save_checkpoint.__wrapped__(trainer, 0, verbose=False)
    return trainer.saved_model_file


def test_a_checkpoint_of_stock_recbole_needs_trust() -> None:
    trainer, (_, _, test_data) = make_trainer(**SEQUENTIAL, **SMALL)
    file = stock_checkpoint(trainer)
    with pytest.raises(checkpoint_io.UntrustedCheckpointError):
        checkpoint_io.load_data_and_model(file)
    config, model, *_ = checkpoint_io.load_data_and_model(file, trusted=True)
    expected = trainer.evaluate(test_data, load_best_model=False)
    assert Trainer(config, model).evaluate(test_data, load_best_model=False) == expected


@pytest.mark.parametrize("stock", [False, True])
def test_a_checkpoint_written_under_ddp_is_read_by_one_process(stock: bool) -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    group = {"local_rank": 0, "world_size": 2, "nproc": 2, "ip": "localhost", "port": "5678", "offset": 0}
    trainer.config.external_config_dict.update(group)
    trainer.config.final_config_dict.update(group, single_spec=False)
    if stock:
        stock_checkpoint(trainer)
    else:
        trainer._save_checkpoint(0)
        stored = checkpoint_io.load_checkpoint(trainer.saved_model_file)["config"]["external"]
        assert not stored.keys() & group.keys()
    config, *_ = checkpoint_io.load_data_and_model(trainer.saved_model_file, trusted=stock)
    assert config["single_spec"] is True
    assert "world_size" not in config

    trainer.config.final_config_dict["local_rank"] = 1
    Path(trainer.saved_model_file).unlink()
    trainer._save_checkpoint(0)
    assert not Path(trainer.saved_model_file).exists(), "only the first process writes"


def test_settings_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Config evaluates strings of a config_dict, not those of a file; and it reads the command line."""
    Path("mine.yaml").write_text('user_inter_num_interval: "[5,10]"\n')
    more = {**SEQUENTIAL, **SMALL}
    quick_start.run_recbole("SASRec", "toy", config_file_list=["mine.yaml"], config_dict=settings(**more))
    monkeypatch.setattr(sys, "argv", ["test", "--hidden_size=16", "--topk=[1]"])
    (file,) = Path("saved").glob("*.pth")
    config, *_ = checkpoint_io.load_data_and_model(file)
    assert config["user_inter_num_interval"] == "[5,10]"
    assert (config["hidden_size"], config["topk"]) == (8, [5])
    assert Path(config["data_path"]) == Path("data/toy"), "not data/toy/toy"


def test_a_file_does_not_choose_what_is_imported() -> None:
    trainer, _ = make_trainer(**SEQUENTIAL, **SMALL)
    state = checkpoint_io.checkpoint_state(trainer, 0)
    Path("my_models.py").write_text("raise SystemExit('was imported')\n")
    for module in ("my_models", "recbole_qbert_evil.models"):
        checkpoint_io.write_checkpoint({**state, "module": module}, "x.pth")
        with pytest.raises(ImportError, match=rf"module '{module}'.*import {module} "):
            checkpoint_io.load_data_and_model("x.pth")
    checkpoint_io.write_checkpoint({**state, "module": "recbole_qbert.moved.since"}, "x.pth")
    checkpoint_io.load_data_and_model("x.pth")  # the package registers its models, wherever they are now


@pytest.mark.process
def test_a_fresh_process_reads_and_evaluates() -> None:
    result, file = run("SASRec", **SEQUENTIAL, **SMALL)
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import recbole_qbert\n"
        "from recbole.quick_start import load_data_and_model\n"
        "from recbole.trainer import Trainer\n"
        f"config, model, _, _, _, test = load_data_and_model({str(file)!r})\n"
        "print(dict(Trainer(config, model).evaluate(test, load_best_model=False)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--topk=[1]"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(dict(result))


# ------------------------------------------------------------------------------------------------- evaluation
def test_metrics_that_count_items_run() -> None:
    """Pop recommends the same 5 of 12 items, in 12 x 12 interactions, to everybody."""
    names = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage", "ShannonEntropy"]
    result, _ = run("Pop", metrics=names, valid_metric="ItemCoverage@5", repeatable=True)
    assert result["itemcoverage@5"] == pytest.approx(5 / 13, abs=1e-4)  # RecBole counts [PAD] among the items
    assert result["giniindex@5"] > 0.5
    assert 0 < result["averagepopularity@5"] <= 12
    assert 0 <= result["tailpercentage@5"] <= 1
    assert result["shannonentropy@5"] == pytest.approx(np.log(5) / 5, abs=1e-3)


# ----------------------------------------------------------------------------------------- logging, arguments
@pytest.mark.pipeline
def test_a_data_set_of_one_row_trains_on_it() -> None:
    """One user: our data set has one row, and get_flops asks for row 1."""
    rows = [f"u\ti{step}\t{step}" for step in range(9)]
    Path("data/toy/toy.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    result, _ = run("QBERT4Rec", **QUICK["QBERT4Rec"] | {"epochs": 1})
    assert result["hit@5"] in (0, 1)


def test_every_run_has_its_own_log() -> None:
    mine = logging.NullHandler()
    logging.getLogger().addHandler(mine)
    try:
        for seed in (1, 2):
            run("Pop", seed=seed)
        assert mine in logging.getLogger().handlers, "other handlers stay"
    finally:
        logging.getLogger().removeHandler(mine)
    logs = sorted(path.read_text() for path in Path("log/Pop").glob("*.log"))
    assert len(logs) == 2
    for log, seed in zip(logs, (1, 2), strict=True):
        assert f"seed = {seed}" in log
        assert log.count("test result") == 1
    assert len(list(Path("log_tensorboard").iterdir())) == 2


def test_fresh_logging_closes_what_recbole_opened() -> None:
    run("Pop")
    (file,) = [handler for handler in logging.getLogger().handlers if "Pop" in str(getattr(handler, "baseFilename", ""))]
    patches.fresh_logging()
    assert file not in logging.getLogger().handlers
    assert isinstance(file, logging.FileHandler)
    assert file.stream is None


def test_a_program_that_does_not_log_sees_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    run("Pop")
    assert [type(handler) for handler in root.handlers] == [logging.StreamHandler, logging.FileHandler]
    patches.fresh_logging()
    assert root.handlers == []


def test_clean_argv() -> None:
    sys.argv = ["program", "--epochs=99"]
    assert Config(model="Pop", dataset="toy", config_dict=settings())["epochs"] == 99
    with patches.clean_argv():
        assert Config(model="Pop", dataset="toy", config_dict=settings())["epochs"] == 2
    with contextlib.suppress(RuntimeError), patches.clean_argv():
        raise RuntimeError
    assert sys.argv == ["program", "--epochs=99"], "put back, whatever happens"


# -------------------------------------------------------------------------------------------- private touches
@pytest.mark.parametrize("module", ["utils.logger", "trainer.trainer", "data.utils", "data.dataset.dataset"])
def test_a_folder_that_another_process_made_is_no_error(module: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(os.path, "exists", lambda _: False)  # what the slower process saw a moment before
    importlib.import_module(f"recbole.{module}").ensure_dir(str(tmp_path / "log"))


#: Every name of RecBole that plugin.py, compat.py and checkpoints.py replace, call or read though it is nobody's promise,
#: with its arguments. A new version of RecBole that fails here needs a look at the code that uses the name.
TOUCHED = [
    ("config/configurator.py", "Config._load_internal_config_dict", "self, model, model_class, dataset"),
    ("config/configurator.py", "Config._load_config_files", "self, file_list"),
    ("config/configurator.py", "Config._load_cmd_line", "self"),
    ("config/configurator.py", "Config._convert_config_dict", "self, config_dict"),
    ("utils/utils.py", "get_model", "model_name"),
    ("utils/utils.py", "get_trainer", "model_type, model_name"),
    ("utils/utils.py", "ensure_dir", "dir_path"),
    ("config/configurator.py", "Config._init_device", "self"),
    ("trainer/trainer.py", "AbstractTrainer.__init__", "self, config, model"),
    ("utils/logger.py", "init_logger", "config"),
    ("utils/logger.py", "RemoveColorFilter.filter", "self, record"),
    ("data/utils.py", "create_dataset", "config"),
    ("data/utils.py", "data_preparation", "config, dataset"),
    ("trainer/trainer.py", "Trainer._save_checkpoint", "self, epoch, verbose=True, **kwargs"),
    ("trainer/trainer.py", "Trainer.resume_checkpoint", "self, resume_file"),
    ("trainer/trainer.py", "PretrainTrainer.save_pretrained_model", "self, epoch, saved_model_file"),
    ("model/abstract_recommender.py", "AbstractRecommender.other_parameter", "self"),
    ("model/abstract_recommender.py", "AbstractRecommender.load_other_parameter", "self, para"),
    ("evaluator/collector.py", "Collector.get_data_struct", "self"),
    ("quick_start/quick_start.py", "run_recboles", "rank, *args"),
    ("quick_start/quick_start.py", "load_data_and_model", "model_file"),
    (
        "quick_start/quick_start.py",
        "objective_function",
        "config_dict=None, config_file_list=None, saved=True",
    ),
]


@pytest.mark.pipeline
@pytest.mark.parametrize(("file", "name", "arguments"), TOUCHED)
def test_private_names_are_what_we_took_them_for(file: str, name: str, arguments: str) -> None:
    node: Any = ast.parse((Path(recbole.__file__).parent / file).read_text())
    for part in name.split("."):
        matches = [child for child in node.body if getattr(child, "name", None) == part]
        assert len(matches) == 1, f"{file} has no {name}"
        node = matches[0]
    assert ast.unparse(node.args) == arguments


def test_shared_objects_are_what_we_took_them_for() -> None:
    config = Config(model="Pop", dataset="toy", config_dict=settings())
    for name in (
        "file_config_dict",
        "variable_config_dict",
        "cmd_config_dict",
        "external_config_dict",
        "internal_config_dict",
        "final_config_dict",
        "yaml_loader",
    ):
        assert name in vars(config)
    # register() appends to the list in place: all who read it must hold the same one.
    arguments = recbole.utils.argument_list.dataset_arguments
    assert recbole.data.utils.dataset_arguments is arguments
    assert config.parameters["Dataset"] is arguments
    # One-module names that functions look up when called, so that replacing them has an effect.
    used = {"run": "run_recboles", "run_recbole": "init_logger", "load_data_and_model": "init_logger"}
    tree = ast.parse(Path(str(quick_start.__file__)).read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in used:
            assert used[node.name] in {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def test_apply_is_idempotent() -> None:
    def touched() -> list[Any]:
        return [
            Trainer._save_checkpoint,
            PretrainTrainer.save_pretrained_model,
            recbole.model.abstract_recommender.AbstractRecommender.load_other_parameter,
            recbole.evaluator.collector.Collector.get_data_struct,
            quick_start.init_logger,
            recbole.utils.init_logger,
            recbole.quick_start.load_data_and_model,
            quick_start.load_data_and_model,
        ]

    before = touched()
    patches.apply()
    checkpoint_io.apply()
    assert touched() == before
    assert before[-1] is before[-2] is checkpoint_io.load_data_and_model


@pytest.mark.process
def test_anomaly_detection_is_off_after_recbole_was_imported() -> None:
    """RecBole's sine.py turns it on for the whole process."""
    code = (
        "import torch, recbole_qbert\nfrom recbole.utils import get_model\nget_model('SASRec')\n"
        "import recbole.model.sequential_recommender.sine\nprint(torch.is_anomaly_enabled())"
    )
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
