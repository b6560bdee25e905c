"""Training speed beside RecBole's models: seconds an epoch, seconds to a stated validation NDCG@10, peak memory.

    python benchmarks/training.py --dataset Amazon_Instruments --data_path ../shared/data --epochs 2 --json training.json
    python benchmarks/training.py --dataset Amazon_Scientific --data_path ../shared/data --epochs 20 --max_length 20 \
        --models 'QBERT4Rec both' SASRec --json same.json

Same width, layers, maximum length, data and cores for all. One view of QBERT4Rec does what SASRec (causal) or BERT4Rec
(masked) does; `both` does both in every batch. An epoch is one pass over all users, validation not counted: RecBole's
models see every prefix of a history as a row of its own, QBERT4Rec all of them in one row.

Every model has a process of its own, so that the peak memory (of the process; data, validation and all) is its own. The
processes take turns: one epoch of one, with its validation, then one of the next, so that a busy machine is busy for all.
Seconds an epoch are medians, ratios medians of the turns' own ratios.

RecBole's models train `--epochs` epochs. Ours go on, `--our_epochs` at most, until their validation NDCG@10 is what the best
of RecBole's reached: the ratios `seconds_to_the_same` compare how long both took to RecBole's best, validation included.
The history is left out of the ranking for all. RecBole's models run without autograd's anomaly detection, which importing
RecBole's models switches on for the whole process (sine.py) and this package off again; `SASRec as it comes` and so on run
with it, as they do for whoever has RecBole alone. Semantic IDs are made first, in a process that is reported as a row of its
own: what QBERT4Rec needs besides. On a machine with a GPU all train there, and `peak_gpu_mb` is reported too.

`RecTools SASRec`, `RecTools BERT4Rec` and `RePlay SASRec` (full softmax, on CPUs) run in an environment of their own, which
is made in `--peers` where it is missing: a download of PyTorch, RecTools and RePlay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks.memory import peak_kb

AS_IT_COMES = "as it comes"
OURS = {"QBERT4Rec both": ["causal", "masked"], "QBERT4Rec causal": ["causal"], "QBERT4Rec masked": ["masked"]}
RECBOLES = ("SASRec", "BERT4Rec", "GRU4Rec", *(f"{name} {AS_IT_COMES}" for name in ("SASRec", "BERT4Rec", "GRU4Rec")))
PEERS = ("RecTools SASRec", "RecTools BERT4Rec", "RePlay SASRec")
THEIRS = (*RECBOLES, *PEERS)
IDENTIFIERS = "semantic IDs (stages 1 and 2)"
COMMON = {
    "seed": 2026, "eval_batch_size": 512, "metrics": ["Hit", "NDCG"], "topk": [1, 5, 10], "valid_metric": "NDCG@10",
    "metric_decimal_place": 6, "show_progress": False, "state": "ERROR",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}  # fmt: skip


class EnoughError(Exception):
    """No further epoch is wanted."""


class Turns:
    """One model's side of the turns: a line of JSON whenever an epoch is due, a line on standard input to go on."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.total: list[float] = []
        self.scores: list[float] = []
        self.started = 0.0

    def wait(self) -> None:
        """Before an epoch: say what the last one took, and wait.

        Raises:
            EnoughError: it was the last.
        """
        self.end()
        last: dict[str, float] = {"epoch": len(self.total)}
        last |= {"seconds": self.training[-1], "valid": self.scores[-1]} if self.total else {}
        print(json.dumps(last), flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise SystemExit("the benchmark that asked for turns has ended")
        if answer.strip() == "stop":
            raise EnoughError
        self.started = time.perf_counter()

    def trained(self) -> None:
        """After an epoch's training, before its validation."""
        self.training.append(time.perf_counter() - self.started)

    def validated(self, score: float) -> None:
        """After an epoch's validation."""
        self.scores.append(float(score))

    def end(self) -> None:
        """A turn is over; what follows is not this model's time."""
        if len(self.total) < len(self.training):
            self.total.append(time.perf_counter() - self.started)


def configure(args: argparse.Namespace, model: str, folder: Path) -> Any:
    """RecBole's configuration of one of the models."""
    from recbole_qbert.config.property_files import property_file
    from recbole_qbert.recbole_integration import experiment

    settings: dict[str, Any] = COMMON | {
        "hidden_size": args.width, "n_layers": args.layers, "n_heads": args.heads, "inner_size": args.inner,
        "MAX_ITEM_LIST_LENGTH": args.max_length, "epochs": args.epochs, "stopping_step": args.our_epochs + args.epochs,
        "checkpoint_dir": str(folder),
    }  # fmt: skip
    if model in RECBOLES:
        model = model.removesuffix(f" {AS_IT_COMES}")
        settings |= {"num_layers": args.layers, "embedding_size": args.width} if model == "GRU4Rec" else {}
        files = [str(property_file(f"baseline/{file}.yaml")) for file in ("common", model)]
        return experiment.configure(model, args.dataset, args.data_path, settings, files)
    settings["epochs"] = max(args.epochs, args.our_epochs)
    settings |= {"views": OURS.get(model, OURS["QBERT4Rec both"]), "semantic_id_dir": str(args.folder / "ids")}
    return experiment.configure("QBERT4Rec", args.dataset, args.data_path, settings)


def identifiers_here(args: argparse.Namespace) -> dict[str, Any]:
    """Make the semantic IDs, all of it anew."""
    import recbole_qbert  # noqa: F401  registers QBERT4Rec
    from recbole_qbert.recbole_integration import experiment, identifiers

    with experiment.working_directory(args.folder):
        config = configure(args, IDENTIFIERS, args.folder)
        config["rebuild"] = True
        catalog = experiment.load_catalog(config)
        started = time.perf_counter()
        identifiers.load_or_build(config, catalog)
    return {"model": IDENTIFIERS, "seconds": time.perf_counter() - started, **peaks()}


def train_here(args: argparse.Namespace) -> dict[str, Any]:
    """Train one model in this process, in turns with those of others."""
    import torch

    import recbole_qbert  # noqa: F401  registers QBERT4Rec
    from recbole_qbert.recbole_integration import experiment
    from recbole_qbert.recbole_integration.experiment import exclude_history

    torch.set_num_threads(args.threads)
    torch.autograd.set_detect_anomaly(args.model.endswith(AS_IT_COMES))
    turns = Turns()

    with tempfile.TemporaryDirectory(dir=args.folder) as folder, experiment.working_directory(Path(folder)):
        config = configure(args, args.model, Path(folder))
        watch(config, turns)
        with contextlib.suppress(EnoughError):
            experiment.train(config, prepare=exclude_history)
        turns.end()
    return {
        "model": args.model, "epochs": len(turns.training), "seconds_an_epoch": statistics.median(turns.training),
        "seconds_of_epochs": turns.training, "seconds_of_turns": turns.total, "valid_of_epochs": turns.scores,
        "valid_ndcg@10": max(turns.scores), "device": str(config["device"]), **peaks(),
    }  # fmt: skip


def watch(config: Any, turns: Turns) -> None:
    """Have the trainer of this configuration wait for its turns and tell its times."""
    from recbole.utils import get_trainer

    trainer = get_trainer(config["MODEL_TYPE"], config["model"])
    train_epoch, valid_epoch = trainer._train_epoch, trainer._valid_epoch

    def train_in_turn(self: Any, *given: Any, **named: Any) -> Any:
        turns.wait()
        result = train_epoch(self, *given, **named)  # RecBole's and ours read the loss at the end: a GPU has finished
        turns.trained()
        return result

    def validate(self: Any, *given: Any, **named: Any) -> Any:
        score, result = valid_epoch(self, *given, **named)
        turns.validated(score)
        return score, result

    trainer._train_epoch, trainer._valid_epoch = train_in_turn, validate


def peaks() -> dict[str, float | None]:
    """Peak memory of this process, and of the GPU's."""
    import torch

    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return {"peak_rss_mb": peak_kb() * 1024 / 1e6, "peak_gpu_mb": gpu}


class Child:
    """A process that trains one model, from outside."""

    def __init__(self, model: str, command: Sequence[str], threads: int) -> None:
        self.model, self.turns, self.best = model, 0, 0.0
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `stop`
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )

    def next(self, word: str = "go") -> dict[str, Any]:
        """Let it have its turn, or ("stop") end, or ("") start; what it said then.

        Raises:
            SystemExit: it failed; with the end of what it wrote.
        """
        assert self.process.stdin and self.process.stdout
        try:
            if word:
                self.process.stdin.write(f"{word}\n")
                self.process.stdin.flush()
            while line := self.process.stdout.readline():
                if line.startswith("{"):
                    said: dict[str, Any] = json.loads(line)
                    self.turns += bool(word)
                    self.best = max(self.best, said.get("valid", said.get("valid_ndcg@10", 0.0)))
                    return said
        except BrokenPipeError:
            pass
        self.process.wait()
        self.errors.seek(0)
        raise SystemExit(f"{self.model} failed (exit code {self.process.returncode}):\n{self.errors.read()[-3000:]}")

    def stop(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def command_of(model: str, args: argparse.Namespace) -> list[str]:
    """The command of the process that trains a model."""
    if model not in PEERS:
        return [sys.executable, __file__, *sys.argv[1:], "--model", model]
    names = ("dataset", "data_path", "width", "layers", "heads", "inner", "max_length", "threads", "epochs")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    return [str(peer_python(args.peers)), str(Path(__file__).with_name("peer_models.py")), *options, f"--model={model}"]


def peer_python(folder: Path) -> Path:
    """The interpreter of the environment with RecTools and RePlay, which is made if it is not there."""
    from benchmarks.peer_models import NEEDED

    python = folder.resolve() / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != str(NEEDED):
        from importlib.metadata import version

        print(f"an environment with {' and '.join(NEEDED)} in {folder}: downloads PyTorch, once", flush=True)
        torch = f"torch=={version('torch').partition('+')[0]}"
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", torch, *NEEDED], check=True)
        ready.write_text(str(NEEDED))
    return python


def in_turns(models: Sequence[str], commands: Sequence[Sequence[str]], threads: int, epochs: int) -> list[dict[str, Any]]:
    """Train all models, an epoch of one after an epoch of the other; the row of each, in the order of ``models``.

    After ``epochs`` turns ours wait for RecBole's to end, and go on alone until they have reached the same.
    """
    children: list[Child] = []
    rows: dict[str, dict[str, Any]] = {}
    try:
        for model, command in zip(models, commands, strict=True):
            children.append(Child(model, command, threads))
            children[-1].next("")  # has read its data before the next one starts
            print(f"{model}: ready", flush=True)
        while len(rows) < len(models):
            for child in (child for child in children if child.model not in rows):
                word = "go"
                if child.model in OURS and child.turns >= epochs:
                    theirs = [other for other in children if other.model in THEIRS]
                    if any(other.model not in rows for other in theirs):
                        continue  # what there is to be reached is not known yet
                    if child.best >= max((other.best for other in theirs), default=0.0):
                        word = "stop"
                said = child.next(word)
                if "model" in said:
                    rows[child.model] = said
                print(f"{child.model}: {figures(said)}", flush=True)
    finally:
        for child in children:
            child.stop()
    return [rows[model] for model in models]


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Theirs divided by ours: for each turn's epoch the median of the quotients, for other figures the quotient."""
    ratios = {}
    for ours in (row for row in rows if row["model"] in OURS):
        for other in (row for row in rows if row["model"] in THEIRS):
            names = f"{other['model']}/{ours['model']}"
            each = [one / two for one, two in zip(other["seconds_of_epochs"], ours["seconds_of_epochs"], strict=False)]
            ratios[f"seconds_an_epoch: {names}"] = statistics.median(each)
            theirs, mine = (seconds_to(row, other["valid_ndcg@10"]) for row in (other, ours))
            if theirs and mine:
                ratios[f"seconds_to_the_same: {names}"] = theirs / mine
            for key in ("peak_rss_mb", "peak_gpu_mb"):
                if ours[key] and other[key]:
                    ratios[f"{key}: {names}"] = other[key] / ours[key]
    return ratios


def seconds_to(row: dict[str, Any], score: float) -> float | None:
    """Seconds, validation included, after which the validation score was reached; ``None`` if it never was."""
    spent = 0.0
    for seconds, reached in zip(row["seconds_of_turns"], row["valid_of_epochs"], strict=True):
        spent += seconds
        if reached >= score:
            return spent
    return None


def figures(row: dict[str, Any]) -> str:
    """The numbers of a row, for a person."""
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, (int, float)))


def main() -> None:
    """Measure the models, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--models", nargs="+", default=[*OURS, *THEIRS[:3]], choices=[*OURS, *THEIRS])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--our_epochs", type=int, default=60, help="of ours, at most, to reach what RecBole's reached")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--inner", type=int, default=256, help="width of the feed-forward layer")
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/training"), help="for checkpoints and semantic IDs")
    parser.add_argument(
        "--peers", type=Path, default=Path("runs/peers"), help="environment of the models of RecTools and RePlay"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=[*OURS, *THEIRS, IDENTIFIERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.model:
        print(json.dumps((identifiers_here if args.model == IDENTIFIERS else train_here)(args)), flush=True)
        return
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}; it must be at least 1")
    models = list(dict.fromkeys(args.models))
    made = []
    if any(model in OURS for model in models):
        child = Child(IDENTIFIERS, command_of(IDENTIFIERS, args), args.threads)
        try:
            made = [child.next("")]
        finally:
            child.stop()
        print(f"{IDENTIFIERS}: {figures(made[0])}", flush=True)
    rows = in_turns(models, [command_of(model, args) for model in models], args.threads, args.epochs)
    ratios = compare(rows)
    print("\n".join(f"{name}: {value:.2f}" for name, value in ratios.items()))
    if args.json:
        from benchmarks import facts

        facts.write(args.json, {key: value for key, value in vars(args).items() if key != "model"}, [*made, *rows], ratios)


if __name__ == "__main__":
    main()
