"""Tuning: declared spaces, trials that are kept and run once, the chosen point in the file that a suite then uses."""

import argparse
import itertools
import json
import shutil
import sys
from functools import partial

import pytest
import yaml

from recbole_qbert.cli import tune
from recbole_qbert.config.property_files import property_file
from recbole_qbert.experiments import tuning
from recbole_qbert.experiments.suites import result_archive, runner, suite_spec
from recbole_qbert.experiments.suites import trials as suite_trials
from tests.helpers_recbole import write_dataset

NAME = "Tiny"
SPACE = "learning_rate: [0.01, 0.001]\nhidden_dropout_prob: [0.1, 0.5]\n"
# In place of a training: best at learning_rate 0.001 and hidden_dropout_prob 0.5; 0.01 with 0.5 can be made to fail.
WORKER = """
import json, pathlib, sys
import numpy as np
training = pathlib.Path(sys.argv[1])
settings = json.loads((training / "config.json").read_text())["settings"]
rate, dropout = settings["learning_rate"], settings["hidden_dropout_prob"]
with open("ran.txt", "a") as log:
    print(rate, dropout, file=log)
if pathlib.Path("break").exists() and (rate, dropout) == (0.01, 0.5):
    (training / "failed.json").write_text(json.dumps({"reason": "out of luck", "log": []}))
    sys.exit(1)
test = {"plain": {"ndcg@10": 0.0}, "history_excluded": {"ndcg@10": 0.0}}
request = json.loads((training / "config.json").read_text())
same = ("dataset", "model", "seed", "key", "settings_key", "interactions", "features")
result = {key: request[key] for key in same} | {"valid": {"ndcg@10": dropout - rate}, "test": test}
result |= {"epochs": 1, "checkpoint": None, "settings": {}}
np.savez(training / "ranks.npz", users=np.arange(1, 4), plain=np.arange(1, 4))
(training / "cell.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture
def files(tmp_path):
    """A suite with one row, and a space."""
    baseline = ["baseline/common.yaml", "baseline/SASRec.yaml"]
    row = {"model": "SASRec", "files": baseline, "settings": {"hidden_size": 16, "inner_size": 16}, "tuned": True}
    shared = suite_spec.load("table2").shared | {"MAX_ITEM_LIST_LENGTH": 8, "epochs": 1}
    suite = {"title": "Tiny", "kind": "quality", "seeds": [tuning.SEED], "shared": shared, "models": {"my SASRec": row}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


@pytest.fixture
def fake(files, monkeypatch):
    """Trials that take no time; returns what has run since the last call."""
    (files / "worker.py").write_text(WORKER)
    monkeypatch.setattr(runner, "run", partial(runner.run, worker=(sys.executable, str(files / "worker.py"))))

    def ran():
        log = files / "ran.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return ran


def command(files, data, *more, **given):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")

    def add(name, run, text, kind):
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run, properties=given)
        return one

    tune.add_commands(add)
    suite = ["--model", "my SASRec", "--suite", str(files / "tiny.yaml"), "--space", str(files / "space.yaml")]
    place = ["--dataset", NAME, "--data_path", str(data), "--output", str(files / "out"), "--threads", "1"]
    args = parser.parse_args(["tune", *suite, *place, *more])
    return args.run(args)


def test_every_model_has_the_same_budget():
    spaces = {path.stem: tuning.read_space(path) for path in property_file("tuning").glob("*.yaml")}
    assert {len(tuning.points(space)) for space in spaces.values()} == {tuning.BUDGET}
    tuned = {row.model for row in suite_spec.load("table2").models if row.tuned}
    assert tuned <= set(spaces)


def test_points_are_shuffled_the_same_way_every_time():
    space = {"a": [1, 2, 3], "b": [4, 5, 6]}
    grid = tuning.points(space)
    assert grid == tuning.points(space) and tuning.points(space, 4) == grid[:4]
    assert sorted(map(str, grid)) == sorted(str({"a": a, "b": b}) for a in space["a"] for b in space["b"])
    assert grid != sorted(grid, key=str)
    with pytest.raises(ValueError, match="--trials is 0"):
        tuning.points(space, 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1", "must hold lines"),
        ("", "must hold lines"),
        ("a: 1", "a is 1; it must be a list"),
        ("a: []", "it must be a list"),
        ("a: [1, 1]", "different values"),
        ("a: [1e-3, 0.001]", "different values"),
        ("a: [1, 2, 3, 4]\nb: [1, 2, 3]", "has 12 points; 9 are allowed"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_space_that_is_none_is_refused(tmp_path, text, complaint):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        tuning.read_space(tmp_path / "space.yaml")


@pytest.mark.pipeline
def test_the_best_point_is_written_and_nothing_runs_twice(files, data, fake, capsys):
    figures = command(files, data)
    best = {"learning_rate": 0.001, "hidden_dropout_prob": 0.5}
    assert figures["chosen"] == best and figures["trials"] == 4 and figures["exit_code"] == 0
    assert sorted(fake()) == ["0.001 0.1", "0.001 0.5", "0.01 0.1", "0.01 0.5"]
    path = files / "out" / "tuned" / NAME / "my SASRec.yaml"
    written = path.read_text()
    assert str(path) == figures["file"] and yaml.safe_load(written) == best
    assert "# Chosen for my SASRec on Tiny out of 4 trials" in written and "ndcg@10 0.499" in written
    assert "--model 'my SASRec'" in written
    assert "learning_rate=0.001, hidden_dropout_prob=0.5  0.4990  <- chosen" in capsys.readouterr().out
    trials = json.loads(path.with_suffix(".json").read_text())
    assert [trial["ndcg@10"] for trial in trials if trial["point"] == best] == [0.499]

    assert command(files, data) == figures and fake() == [] and path.read_text() == written
    (files / "out" / trials[0]["trial"] / "cell.json").unlink()  # as if killed before its end
    assert command(files, data) == figures and len(fake()) == 1 and path.read_text() == written


@pytest.mark.pipeline
def test_few_trials_are_part_of_many(files, data, fake):
    assert command(files, data, "--trials", "2")["trials"] == 2
    assert len(fake()) == 2
    command(files, data)
    assert len(fake()) == 2


@pytest.mark.pipeline
def test_trials_and_what_they_chose_are_taken_from_an_archive(files, data, fake):
    figures = command(files, data, "--results_cache", str(files / "kept"))
    assert len(fake()) == 4
    shutil.rmtree(files / "out")
    again = command(files, data, "--results_cache", str(files / "kept"))
    assert again == figures and fake() == []
    shutil.rmtree(files / "out")
    result_archive.restore_tuned(files / "kept", files / "out")
    chosen = (files / "out" / "tuned" / NAME / "my SASRec.yaml").read_text()
    assert chosen == (files / "kept" / "tuned" / NAME / "my SASRec.yaml").read_text()


@pytest.mark.pipeline
def test_a_failed_trial_does_not_stop_the_others(files, data, fake):
    (files / "break").touch()
    figures = command(files, data)
    assert figures["exit_code"] == 1 and figures["chosen"] == {"learning_rate": 0.001, "hidden_dropout_prob": 0.5}
    assert "out of 3 trials (1 failed)" in (files / "out" / "tuned" / NAME / "my SASRec.yaml").read_text()
    assert len(fake()) == 4
    (files / "break").unlink()
    assert command(files, data)["exit_code"] == 1 and fake() == []
    assert command(files, data, "--retry")["exit_code"] == 0 and fake() == ["0.01 0.5"]


def test_a_budget_ends_the_trials_and_the_best_so_far_is_written(files, data, fake, capsys, monkeypatch):
    with pytest.raises(ValueError, match="0s"):
        command(files, data, "--time_limit", "0s")
    assert fake() == []
    monkeypatch.setattr(runner.time, "monotonic", partial(next, itertools.count(0, 20)))  # 20 s a look
    figures = command(files, data, "--time_limit", "1m")
    done = len(fake())
    assert 0 < done < 4 and figures["trials"] == 4
    assert f"out of {done} trials ({4 - done} not run)" in (files / "out" / "tuned" / NAME / "my SASRec.yaml").read_text()
    said = capsys.readouterr().out
    assert f"{4 - done} trials left; the same command goes on" in said and said.count("not run") == 4 - done


def test_without_any_result_nothing_is_written(files, data, fake):
    (files / "break").touch()
    (files / "space.yaml").write_text("learning_rate: [0.01]\nhidden_dropout_prob: [0.5]\n")
    with pytest.raises(ValueError, match="out of luck"):
        command(files, data)
    assert not (files / "out" / "tuned").exists()


def test_the_suite_uses_the_chosen_point_and_the_trial_is_its_cell(files, data, fake):
    figures = command(files, data)
    suite = suite_spec.load(str(files / "tiny.yaml"))
    plan = suite_trials.plan_runs(suite, NAME, data, files / "out", {})
    assert [training.request["tuned"] for training in plan.trials] == [f"tuned/{NAME}/my SASRec.yaml"]
    assert plan.trials[0].result()["valid"]["ndcg@10"] == figures["valid ndcg@10"]


@pytest.mark.parametrize(
    ("space", "given", "complaint"),
    [
        (SPACE, {"learning_rate": 0.1}, "learning_rate is in the space, and set by the command line"),
        ("hidden_size: [8, 16]", {}, "set by the row my SASRec"),
        ("stopping_step: [1, 2]", {}, "set by the suite"),
        ("hidden_dropout: [0.1]", {}, "SASRec knows no property 'hidden_dropout' .did you mean 'hidden_dropout_prob'"),
    ],
)
def test_a_space_that_changes_nothing_is_refused(files, data, fake, space, given, complaint):
    (files / "space.yaml").write_text(space)
    with pytest.raises(ValueError, match=complaint):
        command(files, data, **given)
    assert fake() == []


def test_a_suite_that_does_not_measure_what_trials_are_judged_by_is_refused(files, data, fake):
    suite = yaml.safe_load((files / "tiny.yaml").read_text())
    suite["shared"] = {**suite.get("shared", {}), "topk": [20], "valid_metric": "NDCG@20"}
    (files / "tiny.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(ValueError, match=r"\[20\].*NDCG@10"):
        command(files, data)
    assert fake() == []


def test_jobs_and_threads_are_at_least_one(files, data):
    for option in ("jobs", "threads"):
        with pytest.raises(ValueError, match=f"--{option} is 0"):
            command(files, data, f"--{option}=0")


def test_models_without_a_space_or_a_row(data, tmp_path):
    suite = suite_spec.load("table2")
    with pytest.raises(ValueError, match=r"Pop .*--space"):
        tuning.space_file("Pop")
    assert tuning.find_model("SASRec", suite) in suite.models
    assert tuning.find_model("Caser", suite).files == ("baseline/common.yaml",)
    assert tuning.find_model("QBERT4Rec", suite).files == ()
    fdsa = tuning.find_model("FDSA", suite)
    with pytest.raises(ValueError, match=r"FDSA.*Tiny.*item attributes"):
        tuning.plan(fdsa, suite, [{"learning_rate": 0.1}], NAME, data, tmp_path, {})


@pytest.mark.pipeline
def test_a_trial_is_a_training(files, data):
    """The whole way, in a process of its own."""
    (files / "space.yaml").write_text("learning_rate: [0.01]\n")
    figures = command(files, data)
    assert figures["exit_code"] == 0 and 0 < figures["valid ndcg@10"] < 1
    assert yaml.safe_load((files / "out" / "tuned" / NAME / "my SASRec.yaml").read_text()) == {"learning_rate": 0.01}
