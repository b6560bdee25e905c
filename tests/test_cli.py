"""The command line as a user types it: stages alone and together, caches, figures, refusals."""

import json
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_qbert import cli
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.recbole_integration import workflows
from recbole_qbert.serving import recommend_file
from recbole_qbert.serving.recommender import Recommendation, Skipped
from recbole_qbert.utils.atomic import run_lock
from tests.helpers_recbole import QUICK, write_dataset

NAME = "Tiny"
SMALL = [
    f"--{key}={json.dumps(value)}"
    for key, value in QUICK["QBERT4Rec"].items()
    if key not in ("show_progress", "state", "epochs")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture
def call(data, tmp_path, capsys):
    """Run a command on the small data set; returns exit status, figures (or None), stdout and stderr."""

    def run(command, *options, epochs=2):
        capsys.readouterr()
        file = tmp_path / "figures.json"
        file.unlink(missing_ok=True)
        base = ["--dataset", NAME, "--data_path", str(data), "--output", str(tmp_path / "out"), "--json", str(file)]
        status = cli.main([command, *base, *SMALL, f"--epochs={epochs}", "--pretrain_epochs=1", *options])
        said = capsys.readouterr()
        return status, json.loads(file.read_text()) if file.exists() else None, said.out, said.err

    return run


@pytest.mark.pipeline
def test_train_runs_all_stages_and_writes_its_figures(call, tmp_path, monkeypatch):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, figures, out, _ = call("train", "--baselines", "Pop")
    assert status == 0
    assert figures["dataset"] == NAME and figures["seed"] == 2026
    for split in ("valid", "test", "test_with_prior"):
        assert set(figures[split]) == {f"{m}@{k}" for m in ("hit", "ndcg") for k in (1, 5, 10)}
    ids = figures["semantic_ids"]
    assert ids["items"] == ids["unique"] == len(semantic_ids.load(tmp_path / "out" / NAME / f"{NAME}.sid").items)
    assert len(ids["usage_per_level"]) == len(ids["perplexity_per_level"]) == len(ids["levels"])
    assert {"features", "injection", "quantization", "pretrain", "finetune", "Pop"} <= set(figures["seconds"])
    assert f"{figures['test']['ndcg@10']:.4f}" in out and "Pop, history left out" in out
    assert not list(elsewhere.iterdir()), "everything goes under --output"
    for stage in ("pretrain", "finetune"):
        assert torch.load(figures["checkpoints"][stage], weights_only=True)["state_dict"]


def test_figures_of_whole_ids_count_every_item():
    """Also where no code set has them all: two items have text, two others an image."""
    codes = np.array([[0, -1], [1, -1], [-1, 0], [-1, 1]])
    half = {
        "unique_before": 2,
        "levels": ["a"],
        "usage_per_level": [1.0],
        "perplexity_per_level": [2.0],
    }
    figures = workflows.summarize_ids([half, half | {"levels": ["A"]}], codes)
    assert figures["items"] == figures["unique"] == 4 and figures["levels"] == ["a", "A"]


@pytest.mark.pipeline
def test_stages_are_kept_and_built_anew_when_something_changed(call, tmp_path, caplog):
    caplog.set_level("INFO", logger="recbole_qbert")

    def rebuilt(*options):
        caplog.clear()
        assert call("quantize", *options)[0] == 0
        return {
            record.getMessage().split(":")[0] for record in caplog.records if ": run (" in record.getMessage()
        }  # fmt: skip

    one, two = "stage 1 injection", "stage 2 quantization"
    assert rebuilt() == {one, two}
    assert rebuilt() == set()
    assert rebuilt("--rq_beta=0.5") == {two}
    assert rebuilt("--rq_beta=0.5", "--injection_contrast_temperature=0.2") == {one, two}
    assert rebuilt("--seed=5") == {one, two}
    assert rebuilt("--seed=5", "--rebuild=true") == {one, two}
    (tmp_path / "out" / NAME / f"{NAME}.sid").write_text("broken")
    assert rebuilt("--seed=5") == {two}


@pytest.mark.pipeline
def test_every_stage_runs_alone(call, tmp_path):
    status, figures, _, _ = call("features")
    assert status == 0 and set(figures["features"]["modalities"]) == {"text", "image"}
    status, figures, _, _ = call("inject")
    assert status == 0 and sum(figures["injection"]["depth"]) == pytest.approx(1)
    status, figures, _, _ = call("quantize")
    assert status == 0 and [s["code_set"] for s in figures["semantic_ids"]["code_sets"]] == ["fused", "text", "image"]
    status, figures, _, _ = call("pretrain")
    assert status == 0
    checkpoint = figures["checkpoints"]["pretrain"]
    status, figures, _, _ = call("finetune", f"--pretrained={checkpoint}")
    assert status == 0 and "test" in figures


@pytest.mark.pipeline
def test_the_same_command_gives_the_same_figures(call, tmp_path):
    first = call("train")[1]
    again = call("train")[1]  # from kept IDs
    fresh = call("train", "--rebuild=true")[1]
    for name in ("valid", "test", "test_with_prior", "semantic_ids"):
        assert first[name] == again[name] == fresh[name]


@pytest.mark.pipeline
def test_checkpoint_file_names_the_fine_tuned_model(call, tmp_path):
    """Pretraining writes another file, from which fine-tuning starts."""
    plain = call("train")[1]
    file = tmp_path / "mine.pth"
    named = call("train", f"--checkpoint_file={file}")[1]
    folder = tmp_path / "out" / NAME
    assert named["checkpoints"] == {"pretrain": str(folder / "pretrain.pth"), "finetune": str(file)}
    assert named["test"] == plain["test"]
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in (file, folder / "finetune.pth")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("option", ["--to", "--output"])
@pytest.mark.parametrize(
    "command",
    [
        ["add", "--dataset=D", "--vocabulary=v", "--features=f"],
        ["export", "--checkpoint=c"],
    ],
)
def test_the_old_name_of_the_output_option_still_works(command, option):
    assert cli.build_parser().parse_args([*command, option, "there"]).output == "there"


@pytest.mark.parametrize("count", [3, 10, 12])
def test_without_a_file_the_first_ten_recommendations_are_printed(count, tmp_path, monkeypatch, capsys):
    """The file of histories is read once."""
    path = tmp_path / "histories.tsv"
    path.write_text("user_id\thistory\n" + "".join(f"user{number}\ta b\n" for number in range(count)))
    opened = []
    reader = recommend_file.Histories
    monkeypatch.setattr(recommend_file, "Histories", lambda file, form: opened.append(file) or reader(file, form))
    monkeypatch.setattr(recommend_file.Recommender, "load", lambda *args, **options: OneItem())
    status = cli.main(["recommend", "--model", "m", "--histories", str(path), "--json", str(tmp_path / "figures.json")])
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert status == 0 and opened == [path]
    assert figures["histories"] == min(count, 10) and figures["total_histories"] == count
    assert [line for line in out.splitlines() if line.startswith("user")] == [f"user{n}" for n in range(min(count, 10))]
    assert (f"10 of {count} histories" in out) == (count > 10)


def test_a_list_of_items_is_no_list_of_histories(monkeypatch):
    monkeypatch.setattr(recommend_file.Recommender, "load", lambda *args, **options: OneItem())
    with pytest.raises(TypeError, match="'a'"):
        recommend_file.recommend("m", ["a", "b"], lambda users, recommendations: None)


class OneItem:
    """A recommender that always answers with the same item."""

    items = ("a",)
    form = AtomicFormat()

    def recommend_arrays(self, histories, k, **options):
        return SimpleNamespace(count=len(histories), skipped=Skipped())

    def named(self, ranked):
        return [[Recommendation("a", 1.0, None, "a_1")]] * ranked.count


def test_values_are_read_as_recbole_reads_them():
    given = {"a": "1e-3", "b": "[5E2, .5, 1_0e1]", "c": "1e", "d": "true", "e": "a1e3", "f": "-2.e+1", "g": "~"}
    read = cli.parse_properties([f"--{key}={value}" for key, value in given.items()])
    assert read == {"a": 0.001, "b": [500.0, 0.5, 100.0], "c": "1e", "d": True, "e": "a1e3", "f": -20.0, "g": None}


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--use_item_embeding=false"], "'use_item_embedding'"),
        (["use_item_embedding=false"], "'use_item_embedding=false'"),
        (["--topk=[1, 5"], "'--topk=[1, 5'"),
        (["--config_files", "nowhere.yaml"], "nowhere.yaml"),
        (["--injection_modalities=[sound]"], "Tiny.sound.npy"),
        (["--rq_levels=1", "--rq_codes=4"], "rq_levels"),
    ],
)
def test_refusals_go_to_stderr_with_status_2(call, tmp_path, options, message):
    status, figures, _, err = call("train", *options)
    assert status == 2 and figures is None
    assert message in err
    assert not list((tmp_path / "out").rglob("*.pth")) and not list((tmp_path / "out").rglob("*.sid"))


def test_prepare_writes_atomic_files_from_the_real_raw_data(shared_data, tmp_path, capsys):
    raw = shared_data / "raw_amazon2018"
    file = tmp_path / "prepare.json"
    status = cli.main(
        ["prepare", "--reviews", str(raw / "Gift_Cards_5.json.gz"), "--metadata", str(raw / "meta_Gift_Cards.json.gz"),
         "--dataset", "Gift_Cards", "--data_path", str(tmp_path), "--json", str(file)]
    )  # fmt: skip
    assert status == 0
    lines = (tmp_path / "Gift_Cards" / "Gift_Cards.inter").read_text().splitlines()
    assert len(lines) == 2941 + 1
    assert json.loads(file.read_text())


@pytest.mark.pipeline
def test_the_demo_goes_from_raw_data_to_a_table(tmp_path, capsys):
    """Two epochs of everything: that it is good is for the README's figures, that it works is for here."""
    file = tmp_path / "demo.json"
    small = ["--epochs=2", "--pretrain_epochs=1", "--rq_epochs=3", "--rq_warmup_epochs=2", "--injection_epochs=2"]
    status = cli.main(["demo", "--output", str(tmp_path), "--json", str(file), "--baselines", "Pop", "SASRec", *small])
    assert status == 0
    figures = json.loads(file.read_text())
    assert figures["semantic_ids"]["unique"] == figures["semantic_ids"]["items"] > 400
    assert set(figures["baselines"]) == {"Pop", "SASRec"}
    assert figures["test"]["ndcg@10"] > 0


class Planted:
    """Unpickling an instance creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("command", ["features", pytest.param("finetune", marks=pytest.mark.pipeline)])
def test_no_command_unpickles_what_lies_about(tmp_path, capsys, command):
    data, executed = write_dataset(tmp_path / "data", "X"), tmp_path / "was_executed"
    bomb = pickle.dumps(Planted(executed))
    for name in ("X-QBERT4RecDataset.pth", "X-for-QBERT4Rec-dataloader.pth"):
        for folder in (tmp_path / "out" / "X" / "checkpoints", tmp_path / "out" / "X", data / "X"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bomb)
    (tmp_path / "bomb.pth").write_bytes(bomb)
    base = [command, "--dataset=X", "--data_path", str(data), "--output", str(tmp_path / "out"), "--state=ERROR"]
    if command == "features":
        assert cli.main(base) == 0
    else:
        small = [f"--{key}={json.dumps(value)}" for key, value in QUICK["QBERT4Rec"].items() if key != "state"]
        assert cli.main([*base, *small, f"--pretrained={tmp_path / 'bomb.pth'}"]) == 2
        assert "bomb.pth" in capsys.readouterr().err
    assert not executed.exists()


@pytest.mark.parametrize("command", ["features", "inject", "quantize", "pretrain", "finetune", "train"])
def test_a_second_command_on_one_output_is_refused(tmp_path, capsys, command):
    data, folder = write_dataset(tmp_path / "data", "X"), tmp_path / "out" / "X"
    with run_lock(folder, "command"):
        assert cli.main([command, "--dataset=X", "--data_path", str(data), "--output", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert str(folder) in said and f"process {os.getpid()} " in said
        assert [path.name for path in folder.iterdir()] == [".lock"]
