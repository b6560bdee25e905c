"""VQRec and MISSRec under ``run(nproc=2)``, in a suite's trial, and as rows of table 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_qbert.experiments.suites import suite_spec, trials, worker
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.recbole_integration.scoring_trainer import ScoreRanker
from tests.helpers_recbole import write_dataset

NAME = "Tiny"
ROOT = Path(__file__).resolve().parent.parent
QUICK = {
    "epochs": 2, "train_batch_size": 32, "eval_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "hidden_size": 16, "n_heads": 2, "inner_size": 32, "seed": 2026, "state": "ERROR",
    "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "opq_groups": 4, "opq_codes": 8, "opq_rounds": 2,
}  # fmt: skip
ROWS = ["VQRec", "VQRec (pretrained)", "MISSRec", "MISSRec without IDs"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


class Network:
    """Scores that are given, item 0 being padding."""

    def item_table(self):
        return None

    def scores(self, sequences, lengths, table):
        return torch.tensor([[-torch.inf, 0.3, 0.9, 0.3, 0.7]]).repeat(len(sequences), 1)


def test_ranks_count_ties_against_the_model_and_excluded_items_last():
    ranker, rows = ScoreRanker(Network()), torch.zeros(4, 1, dtype=torch.int64)
    target = torch.tensor([1, 2, 3, 4])
    assert ranker.rank(rows, rows[:, 0], target).tolist() == [4, 1, 4, 2]
    exclude = torch.tensor([[2, -1], [4, -1], [2, 4], [-1, -1]])
    assert ranker.rank(rows, rows[:, 0], target, exclude=exclude).tolist() == [3, 1, 2, 2]


@pytest.mark.pipeline
@pytest.mark.process
@pytest.mark.parametrize("model", ["VQRec", pytest.param("MISSRec", marks=pytest.mark.slow)])
def test_two_processes_equal_one(data, tmp_path, model):
    from recbole.quick_start import run

    code = (
        "import json, sys, recbole_qbert\n"
        "from recbole.quick_start import run\n"
        "if __name__ == '__main__':\n"
        "    port, settings = sys.argv[1], json.loads(sys.argv[2])\n"
        "    sys.argv = sys.argv[:1]\n"
        f"    result = run({model!r}, {NAME!r}, config_dict=settings, nproc=2, port=port)\n"
        "    print(json.dumps(result['test_result']))\n"
    )
    (tmp_path / "script.py").write_text(code)
    (tmp_path / "two").mkdir()
    settings = {**QUICK, "data_path": str(data)}
    with experiment.working_directory(tmp_path / "one"):
        one = run(model, NAME, config_dict=settings.copy())["test_result"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(30_000 + os.getpid() % 1000), json.dumps(settings)],
        capture_output=True, text=True, cwd=tmp_path / "two", env=quiet, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == dict(one)


@pytest.mark.pipeline
@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_table_2_is_trained_with_the_history_left_out(data, tmp_path, row, monkeypatch):
    suite = suite_spec.load("table2")
    left_out = {"seed", "state", "show_progress"} | ({"attn_dropout_prob"} if "MISSRec" in row else set())
    left_out |= {key for key in QUICK if key.startswith("opq_") and "MISSRec" in row}
    given = {key: value for key, value in QUICK.items() if key not in left_out}
    only = {"models": tuple(spec for spec in suite.models if spec.name == row)}
    plan = trials.plan_runs(suite_spec.Suite(**{**vars(suite), **only}), NAME, data, tmp_path, given, seeds=[1])
    [trial] = plan.trials
    assert trial.request["validated"] == "history_excluded" and trial.request["features"]
    trial.folder.mkdir(parents=True)
    (trial.folder / "config.json").write_text(json.dumps(trial.request))
    monkeypatch.chdir(tmp_path)
    worker.run(trial.folder)
    result = trial.result()
    assert result["prior"] is None and set(result["test"]) == {"plain", "history_excluded"}
    assert result["test"]["history_excluded"]["ndcg@10"] >= result["test"]["plain"]["ndcg@10"]
    assert [epoch["stage"] for epoch in result["curve"]] == (
        ["stage-1"] * 2 + ["stage-2"] * 2 if "pretrained" in row else ["train"] * 2
    )


def test_the_published_figures_stand_beside_the_rows():
    names = {spec.name for spec in suite_spec.load("table2").models}
    assert set(ROWS) <= names
    for dataset in ("Amazon_Instruments", "Amazon_Arts", "Amazon_Games"):
        printed = set(suite_spec.published("table2", dataset))
        assert printed - names == {"Q-BERT4Rec"}  # the paper's own; every other row has a model of ours
        assert {suite_spec.current_name(name) for name in printed} == printed
