"""QBERT4RecTrainer: interrupted equals uninterrupted, several processes equal one, ranks give RecBole's metrics."""

import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recbole.trainer import Trainer

from recbole_qbert import cli
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from recbole_qbert.utils.io import json_lines
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline

NAME = "Tiny"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return tmp_path_factory.mktemp("ids")


@pytest.fixture
def configure(data, ids, tmp_path):
    def make(name="run", **settings):
        base = {"checkpoint_dir": str(tmp_path / name), "semantic_id_dir": str(ids)}
        return experiment.configure("QBERT4Rec", NAME, data, {**QUICK["QBERT4Rec"], **base, **settings})

    return make


class KilledError(Exception):
    """Stands for kill -9 at a place that a test chooses."""


def train(config, folder, until=None, loss="batch_loss", **options):
    """A run; ``until`` = n ends it as a kill in the n-th batch would."""
    with experiment.working_directory(folder):
        if until is None:
            return experiment.train(config, **options)
        count = 0

        def prepare(model):
            plain = getattr(model, loss)

            def counted(*args):
                nonlocal count
                count += 1
                if count > until:
                    raise KilledError
                return plain(*args)

            setattr(model, loss, counted)

        with pytest.raises(KilledError):
            experiment.train(config, prepare=prepare, **options)
        return None


@pytest.mark.parametrize(("until", "loss"), [(0, "item"), (1, "item"), (3, "sampled"), (5, "item"), (7, "sampled")])
def test_a_killed_training_that_goes_on_equals_one_that_was_not_killed(configure, tmp_path, until, loss):
    """60 users in batches of 32 are 2 batches an epoch; 4 epochs; stopping in the first, within and after others."""
    settings = {"loss": loss, "sampled_items": 8}
    whole = train(configure(checkpoint_file=str(tmp_path / "whole.pth"), **settings), tmp_path)
    config = configure(checkpoint_file=str(tmp_path / "part.pth"), **settings)
    train(config, tmp_path, until)
    part = train(configure(checkpoint_file=str(tmp_path / "part.pth"), **settings), tmp_path)
    assert part.valid == whole.valid
    assert part.test() == whole.test()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name
    logs = [[json.loads(line) for line in (tmp_path / f"{x}.jsonl").read_text().splitlines()] for x in ("whole", "part")]
    for line in [line for log in logs for line in log]:
        line.pop("seconds")
    assert logs[0] == logs[1]
    assert [line["epoch"] for line in logs[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize("until", [1, 5])
@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "GRU4Rec"])
def test_so_does_a_training_of_recboles(data, tmp_path, model, until):
    """Dropout, masks that Python draws, negatives that numpy draws, and the order of the rows."""

    def one(folder, until=None):
        settings = QUICK["SASRec"] | {"train_batch_size": 256}
        if model == "GRU4Rec":
            negatives = {"distribution": "uniform", "sample_num": 1}
            settings |= {"loss_type": "BPR", "train_neg_sample_args": negatives, "dropout_prob": 0.3}
        config = experiment.configure(model, NAME, data, settings)
        return train(config, folder, until, "calculate_loss", checkpoint_file=folder / "best.pth")

    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = one(tmp_path / "whole")
    one(tmp_path / "part", until)
    kept = (tmp_path / "part" / "best.progress").exists()
    part = one(tmp_path / "part")
    assert kept == (until == 5)
    assert part.valid == whole.valid and part.test() == whole.test()
    assert part.trainer.train_loss_dict == whole.trainer.train_loss_dict
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name
    stamp = (tmp_path / "part" / "best.pth").stat().st_mtime_ns
    assert one(tmp_path / "part").valid == whole.valid
    assert (tmp_path / "part" / "best.pth").stat().st_mtime_ns == stamp  # a finished one is not run again


@pytest.mark.parametrize("model", ["CooccurrenceKNN", "Pop", "MultiVAE", "RecVAE"])
def test_a_training_that_keeps_more_than_is_saved_starts_anew(data, tmp_path, model):
    """Other trainers, and models with counters or optimizers of their own; none of them fails for it."""
    shared = ("epochs", "train_batch_size", "eval_batch_size", "show_progress", "seed", "state")
    shared += ("metrics", "topk", "valid_metric", "metric_decimal_place")
    settings = {key: QUICK["SASRec"][key] for key in shared}
    if model in ("Pop", "CooccurrenceKNN"):
        settings["epochs"] = 1
    if model != "CooccurrenceKNN":  # which sets these itself
        settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None}
    run = train(experiment.configure(model, NAME, data, settings), tmp_path, checkpoint_file=tmp_path / "best.pth")
    assert run.valid and not experiment.supports_resume(run.trainer) and not list(tmp_path.glob("*.progress"))


def test_a_progress_file_of_another_version_leaves_the_weights_as_they_were(configure, tmp_path):
    file = tmp_path / "x.pth"
    first = train(configure(checkpoint_file=str(file)), tmp_path)
    state = checkpoint_io.load_checkpoint(file.with_suffix(".progress"))
    for break_it in (
        lambda new: new["state_dict"].popitem(),
        lambda new: new["optimizer"]["param_groups"].pop(),
    ):
        broken = copy.deepcopy(state)
        break_it(broken)
        checkpoint_io.write_checkpoint(broken, file.with_suffix(".progress"))
        again = train(configure(checkpoint_file=str(file)), tmp_path)
        assert again.valid == first.valid
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), name


def flip_weights(file):
    """Change the signs of some weights of a checkpoint, as a damaged disk does."""
    content = bytearray(file.read_bytes())
    for weights in checkpoint_io.load_checkpoint(file)["state_dict"].values():
        if weights.dtype == torch.float32 and weights.numel() > 100:
            place = content.find(weights.numpy().tobytes())
            content[place + 3 : place + 403 : 16] = bytes(byte ^ 0x80 for byte in content[place + 3 : place + 403 : 16])
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-500])


def put_another(file):
    """Put a whole checkpoint of another training there."""
    state = checkpoint_io.load_checkpoint(file)
    state["state_dict"]["network.mask_vector"].neg_()
    checkpoint_io.write_checkpoint(state | {"run": "another"}, file)


@pytest.mark.parametrize("model", ["QBERT4Rec", "SASRec"])
@pytest.mark.parametrize("damage", [flip_weights, truncate, put_another])
def test_a_damaged_checkpoint_is_trained_again_to_the_same_bytes(configure, data, tmp_path, caplog, damage, model):
    file = tmp_path / "x.pth"

    def once():
        if model == "QBERT4Rec":
            return train(configure(checkpoint_file=str(file), state="WARNING"), tmp_path)
        settings = QUICK[model] | {"state": "WARNING"}
        return train(experiment.configure(model, NAME, data, settings), tmp_path, checkpoint_file=file)

    if model == "SASRec" and damage is put_another:
        pytest.skip("the name of the weight is of QBERT4Rec")
    first = once()
    whole = file.read_bytes()
    damage(file)
    with caplog.at_level("WARNING"):
        again = once()
    assert str(file) in caplog.text
    assert again.test() == first.test() and again.valid == first.valid
    assert file.read_bytes() == whole


def test_a_damaged_checkpoint_is_not_started_from_nor_evaluated(configure, tmp_path):
    file = tmp_path / "x.pth"
    run = train(configure(checkpoint_file=str(file)), tmp_path)
    flip_weights(file)
    with pytest.raises(ValueError, match=r"x\.pth"):
        run.trainer.evaluate(run.test_data, model_file=str(file))
    with pytest.raises(ValueError, match=r"x\.pth"):
        train(configure(pretrained=str(file)), tmp_path)


def test_a_finished_training_is_not_run_again_and_another_one_is(configure, tmp_path):
    file = str(tmp_path / "kept.pth")
    first = train(configure(checkpoint_file=file), tmp_path)
    stamp = Path(file).stat().st_mtime_ns
    again = train(configure(checkpoint_file=file), tmp_path)
    assert Path(file).stat().st_mtime_ns == stamp
    assert again.valid == first.valid and again.test() == first.test()
    rows = again.valid_data
    twice = again.trainer.progress.fit(again.trainer, lambda callback: pytest.fail("trained again"), rows, rows, None)
    assert twice[0] == again.trainer.best_valid_score
    more = train(configure(checkpoint_file=file, epochs=6), tmp_path)
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 6
    straight = train(configure(checkpoint_file=str(tmp_path / "straight.pth"), epochs=6), tmp_path)
    assert more.valid == straight.valid
    train(configure(checkpoint_file=file, seed=5), tmp_path)
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("model", ["QBERT4Rec", "SASRec"])
def test_other_validation_items_are_another_training(tmp_path, model):
    """The training part is the same, and the stored figures are of other targets."""
    folder = write_dataset(tmp_path / "data", NAME)
    inter = folder / NAME / f"{NAME}.inter"

    def one():
        given = {"checkpoint_dir": str(tmp_path / "run"), "semantic_id_dir": str(tmp_path / "ids")} | QUICK[model]
        return train(experiment.configure(model, NAME, folder, given), tmp_path, checkpoint_file=tmp_path / "kept.pth")

    first = one()
    rows = [line.split("\t") for line in inter.read_text().splitlines()]
    last = {row[0]: number for number, row in enumerate(rows) if number}
    for user, number in last.items():
        before = {row[1] for row in rows[1 : number - 1]}
        if int(user[1:]) > 30 and rows[number - 1][1] in before:  # items keep their order of appearance, RecBole's ids
            rows[number - 1][1] = min(before - {rows[number - 1][1]})
    inter.write_text("".join("\t".join(row) + "\n" for row in rows))
    again = one()
    assert again.valid != first.valid
    evaluated = again.trainer.evaluate(again.valid_data, load_best_model=False)
    assert {name: float(value) for name, value in evaluated.items()} == pytest.approx(again.valid)


def test_a_damaged_progress_file_means_starting_anew(configure, tmp_path):
    file = tmp_path / "x.pth"
    first = train(configure(checkpoint_file=str(file)), tmp_path)
    file.with_suffix(".progress").write_bytes(b"half")
    assert train(configure(checkpoint_file=str(file)), tmp_path).valid == first.valid


@pytest.mark.parametrize("metrics", [["Hit", "NDCG", "MRR", "Precision", "Recall", "MAP"], ["Hit", "ItemCoverage"]])
def test_metrics_from_ranks_are_recboles(configure, tmp_path, metrics):
    run = train(configure(metrics=metrics, topk=[1, 3, 10], valid_metric="Hit@10", metric_decimal_place=10), tmp_path)
    for data in (run.valid_data, run.test_data):
        theirs = Trainer.evaluate(run.trainer, data, load_best_model=False)
        ours = run.trainer.evaluate(data, load_best_model=False)
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("schedule", "loss"), [("joint", "item"), ("alternate", "item"), ("joint", "sampled")])
def test_the_shares_of_two_processes_add_up_to_the_whole(configure, tmp_path, schedule, loss):
    """Loss and gradient of the two halves of a batch, without dropout, against one process that has all of it."""
    off = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "view_schedule": schedule, "epochs": 1}
    off |= {"loss": loss, "sampled_items": 4}
    run = train(configure(**off), tmp_path)
    model, batch = run.model.train(), run.trainer.model.device
    rows = run.valid_data._dataset
    interaction = rows[torch.arange(len(rows))].to(batch)

    def gradient(shares):
        model.zero_grad()
        total = 0.0
        for share in shares:
            model.batches.zero_()
            loss = model.batch_loss(interaction, torch.Generator().manual_seed(1), share)
            loss.backward()
            total += loss.item()
        return total, torch.cat([p.grad.to_dense().flatten() for p in model.parameters() if p.grad is not None])

    (one, whole), (two, halves) = gradient([(0, 1)]), gradient([(0, 2), (1, 2)])
    assert one == pytest.approx(two, rel=1e-5)
    torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_and_the_others_learn(configure, tmp_path):
    first = train(configure(epochs=1), tmp_path)
    settings = {"pretrained": first.trainer.saved_model_file, "freeze": ["encoder", "codebook"]}
    second = train(configure("second", **settings), tmp_path)
    before, after = first.model.state_dict(), second.model.state_dict()
    for name in before:
        if name.startswith(("network.encoder", "network.codebook")):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["network.item_embedding"], after["network.item_embedding"])


@pytest.mark.process
def test_kill_9_of_the_command_and_the_same_command_again(data, tmp_path):
    """Killed as soon as the first epoch is on disk; the second call ends with the figures of a call that was left alone."""
    arguments = ["--dataset", NAME, "--data_path", str(data), "--epochs=12", "--stopping_step=12"]
    whole, _ = call(1, tmp_path / "whole", "finetune", *arguments)
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, str(ROOT / "run_recbole_qbert.py"), "finetune", "--output", str(folder), *COMMON, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    progress = folder / NAME / "finetune.progress"
    while not progress.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the kill came in time"
    again, _ = call(1, folder, "finetune", *arguments)
    for key in ("valid", "test", "test_with_prior", "prior", "parameters"):
        assert again[key] == whole[key]
    logs = [(out / NAME / "finetune.jsonl").read_text().splitlines() for out in (tmp_path / "whole", folder)]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


# ------------------------------------------------------------------------------------------------ several processes
COMMON = [
    f"--{key}={json.dumps(value)}" for key, value in QUICK["QBERT4Rec"].items() if key not in ("show_progress", "state")
]
OFF = ["--hidden_dropout_prob=0.0", "--attn_dropout_prob=0.0"]
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def call(processes, folder, command, *options):
    """Run a command here, or in several processes under torchrun; returns its figures and what it printed."""
    arguments = [command, "--output", str(folder), "--json", str(folder / "figures.json"), *COMMON, *options]
    folder.mkdir(exist_ok=True)
    if processes == 1:
        with experiment.working_directory(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main(arguments) == 0
        return json.loads((folder / "figures.json").read_text()), printed.getvalue()
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*start, str(ROOT / "run_recbole_qbert.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
        cwd=folder,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "figures.json").read_text()), done.stdout


@pytest.mark.process
def test_pretraining_and_finetuning_on_two_processes_equal_one(tmp_path):
    """Two data sets, a third that only shares the vocabulary; every figure of one process and of two."""
    for number, name in enumerate(("A", "B", "T")):
        write_dataset(tmp_path / "data", name, users=30, items=20 + 5 * number, seed=number)
    results = []
    for processes in (1, 2):
        folder = tmp_path / f"out{processes}"
        base = ["--data_path", str(tmp_path / "data"), *OFF, "--epochs=2", "--pretrain_epochs=2"]
        sampled = ["--loss=sampled", "--sampled_items=8"]
        first, _ = call(processes, folder, "pretrain", "--datasets", "A", "B", "--targets", "T", *base, *sampled)
        vocabulary = folder / "A+B+T"
        assert {path.name for path in vocabulary.glob("?.sid")} == {"A.sid", "B.sid", "T.sid"}
        second, said = call(processes, folder, "finetune", "--dataset=T", "--vocabulary", str(vocabulary), *base)
        assert said.count("QBERT4Rec + co-occurrence,") == 1, "one process speaks"
        weights = checkpoint_io.load_checkpoint(folder / "T" / "finetune.pth")["state_dict"]
        results.append((first["valid"], second["valid"], second["test"], weights))
    assert results[0][:3] == results[1][:3]
    for name, value in results[0][3].items():
        torch.testing.assert_close(value, results[1][3][name], rtol=1e-3, atol=1e-5)


@pytest.mark.process
def test_recboles_run_with_two_processes_on_cpus(data, tmp_path):
    """run(nproc=2) trains, evaluates and answers as one process does (dropout off, so that nothing differs).

    Also with a prior, which goes into the checkpoint last, however long the disk takes.
    """
    from recbole.quick_start import run

    code = (
        "import json, sys, time, recbole_qbert\n"
        "from recbole_qbert.recbole_integration import checkpoint_io as checkpoints\n"
        "from recbole.quick_start import run\n"
        "def slow(checkpoint, path, write=checkpoints.write_checkpoint):\n"
        "    time.sleep(0.5)\n"
        "    write(checkpoint, path)\n"
        "checkpoints.write_checkpoint = slow\n"
        "if __name__ == '__main__':\n"
        "    port, settings = sys.argv[1], json.loads(sys.argv[2])\n"
        "    sys.argv = sys.argv[:1]\n"
        f"    result = run('QBERT4Rec', {NAME!r}, config_dict=settings, nproc=2, port=port)\n"
        "    print(json.dumps(result['test_result']))\n"
    )
    (tmp_path / "script.py").write_text(code)
    settings = {**QUICK["QBERT4Rec"], "data_path": str(data), "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    settings |= {"structural_prior": "cooccurrence", "epochs": 2}
    with experiment.working_directory(tmp_path / "one"):
        one = run("QBERT4Rec", NAME, config_dict=settings.copy())["test_result"]
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(29_000 + os.getpid() % 1000), json.dumps(settings)],
        capture_output=True, text=True, cwd=tmp_path / "two", env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == dict(one)


@pytest.mark.pipeline
def test_annealing_goes_on_from_the_best_weights_with_the_ranking_view_and_resumes(data, tmp_path, monkeypatch):
    def train(folder, **settings):
        folder.mkdir(exist_ok=True)
        given = {
            **QUICK["QBERT4Rec"],
            "semantic_ids": "none",
            "checkpoint_dir": str(folder),
            "epochs": 30,
            "stopping_step": 1,
        }
        given |= {"learning_rate": 0.02, "annealing": 0.5, "checkpoint_file": str(folder / "f.pth")}
        with experiment.working_directory(folder):
            return experiment.train(experiment.configure("QBERT4Rec", NAME, data, given | settings))

    plain, annealed = train(tmp_path / "plain", annealing=0), train(tmp_path / "annealed")
    first = len(plain.trainer.train_loss_dict)
    assert annealed.trainer.annealing and len(annealed.trainer.train_loss_dict) > first
    assert annealed.trainer.best_valid_score >= plain.trainer.best_valid_score
    # By hand: the best weights of the first phase, the causal view alone, half the learning rate and no warm-up.
    train(
        tmp_path / "by_hand", pretrained=str(tmp_path / "plain" / "f.pth"), views=["causal"], learning_rate=0.01,
        warmup_steps=0, annealing=0,
    )  # fmt: skip
    logs = [json_lines(tmp_path / name / "f.jsonl") for name in ("plain", "annealed", "by_hand")]
    assert [line["loss"] for line in logs[1][:first]] == [line["loss"] for line in logs[0]]
    assert logs[1][first]["loss"] == pytest.approx(logs[2][0]["loss"], rel=0.1)  # of another order of users

    epoch, calls = type(plain.trainer)._train_epoch, []
    for stop in (first, first + 1):  # at the first epoch of the second phase, and after it

        def killed(self, *args, stop=stop, **kwargs):
            calls.append(1)
            if len(calls) == stop + 1:
                raise KeyboardInterrupt
            return epoch(self, *args, **kwargs)

        folder = tmp_path / f"killed{stop}"
        calls.clear()
        monkeypatch.setattr(type(plain.trainer), "_train_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(folder)
        again = train(folder)
        for name, weight in annealed.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], weight), name
        assert [line["loss"] for line in json_lines(folder / "f.jsonl")] == [line["loss"] for line in logs[1]]
    finished = train(tmp_path / "annealed")
    assert torch.equal(finished.model.network.item_embedding, annealed.model.network.item_embedding)


@pytest.mark.parametrize(("batch", "patience", "warned"), [(64, 1, True), (8, 1, False), (64, 0, False)])
def test_epochs_of_few_steps_are_warned_of(configure, tmp_path, caplog, batch, patience, warned):
    """Early stopping counts epochs, of which one may be a single step."""
    train(configure(epochs=2, train_batch_size=batch, stopping_step=patience, state="WARNING"), tmp_path)
    found = [record.message for record in caplog.records if "train_batch_size" in record.message]
    assert bool(found) == warned
    if warned:
        assert "1 step " in found[0] and "60 users" in found[0]
