"""Commands that are killed at random moments, run again, and compared with commands that were not.

    python benchmarks/interruptions.py --kills 50 --seed 1

Small data are made in a folder. `prepare`, `train`, `export` and `recommend` run on them once without an interruption, in
that order. Then each is started from the same input again and again, ended at a random moment (kill -9, TERM, INT, or a
limit on the size of files, which stands for a full disk), and run again. The second run has to end with exit code 0 and the
same bytes, and to leave nothing behind. Logs hold times and are not compared.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = """--epochs=3 --pretrain_epochs=1 --injection_epochs=3 --injection_dim=16 --injection_heads=2 --rq_codes=32
    --rq_levels=2 --rq_dim=8 --rq_hidden=[16] --rq_epochs=4 --rq_warmup_epochs=2 --hidden_size=16 --n_heads=2 --inner_size=32
    --builtin_width=32 --structural_prior=cooccurrence --state=ERROR""".split()
#: Files with times in them, and RecBole's logs.
NOT_COMPARED = (".jsonl", ".log", ".out")
WAYS: dict[str, int | None] = {"kill -9": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT, "full disk": None}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: its name.
        arguments: of the command line, relative to the folder it runs in.
        needs: files and folders that earlier commands wrote.
        writes: files and folders that it writes.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    writes: tuple[str, ...]


STEPS = (
    Step(
        "prepare",
        ("prepare", "--dataset=T", "--data_path=data", "--reviews=raw/reviews.jsonl.gz", "--metadata=raw/meta.jsonl.gz"),
        ("raw",),
        ("data",),
    ),
    Step("train", ("train", "--dataset=T", "--data_path=data", "--output=runs", *QUICK), ("data",), ("runs",)),
    Step("export", ("export", "--checkpoint=runs/T/finetune.pth", "--output=model"), ("data", "runs"), ("model",)),
    Step(
        "recommend",
        ("recommend", "--model=model", "--histories=data/T/T.inter", "--output=answers/a.tsv"),
        ("data", "model"),
        ("answers",),
    ),
)


def write_raw(folder: Path, users: int = 120, items: int = 60, seed: int = 0) -> None:
    """Write reviews and metadata in the form of the 2023 edition."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    with gzip.open(folder / "reviews.jsonl.gz", "wt") as handle:
        for user in range(users):
            for step, item in enumerate(chance.sample(range(items), chance.randint(6, 14))):
                review = {"user_id": f"U{user}", "parent_asin": f"B{item:03}", "asin": f"B{item:03}", "rating": 5.0}
                handle.write(json.dumps(review | {"timestamp": 1_600_000_000_000 + 1000 * (user + 1000 * step)}) + "\n")
    with gzip.open(folder / "meta.jsonl.gz", "wt") as handle:
        for item in range(items):
            text = f"thing of kind {item % 7} and colour {item % 5}"
            handle.write(
                json.dumps({"parent_asin": f"B{item:03}", "title": text, "categories": [f"kind {item % 7}"]}) + "\n"
            )


def start(step: Step, folder: Path, file_limit: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command; with ``file_limit`` no file may grow beyond so many bytes."""

    def limit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell lets commands in the background ignore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with an error, as on a full disk
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with open(folder / f"{step.name}.out", "ab") as out:
        command = [sys.executable, str(ROOT / "run_recbole_qbert.py"), *step.arguments]
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment, preexec_fn=limit)


def content(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the digest of every file that a command wrote."""
    files = [file for name in names for file in sorted((folder / name).rglob("*")) if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.suffix not in NOT_COMPARED and not {"log", "log_tensorboard"} & set(file.parts)
    }


def places(whole: Path, target: Path, step: Step) -> None:
    """Put what a command needs where it runs."""
    target.mkdir()
    for name in step.needs:
        shutil.copytree(whole / name, target / name)


def one_kill(
    step: Step, whole: Path, target: Path, way: str, seconds: float, largest: int, chance: random.Random
) -> list[str]:
    """End a command at a random moment and run it again; return what is wrong then."""
    places(whole, target, step)
    number = WAYS[way]
    while number is not None:
        started = time.perf_counter()
        process = start(step, target)
        try:
            process.wait(seconds * chance.random())
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait()
            break
        seconds = time.perf_counter() - started  # it was over before: the machine is faster now
        shutil.rmtree(target)
        places(whole, target, step)
    else:
        start(step, target, int(largest * chance.random())).wait()
    code = start(step, target).wait()
    if code:
        return [f"the second run ends with {code}"]
    expected, there = content(whole, step.writes), content(target, step.writes)
    wrong = [f"other bytes: {name}" for name in expected if name in there and there[name] != expected[name]]
    wrong += [f"missing: {name}" for name in expected.keys() - there.keys()]
    wrong += [f"left: {name}" for name in there.keys() - expected.keys()]
    hidden = {str(file.relative_to(target)) for name in step.needs for file in (target / name).rglob(".*")}
    return wrong + [f"left: {name}" for name in sorted(hidden)]


def run_all(
    kills: int, seed: int, folder: Path, steps: list[str], say: Callable[[str], None]
) -> Iterator[tuple[str, str, list[str]]]:
    """Run every command whole, then kill each; yield the command, the way, and what was wrong."""
    chance = random.Random(seed)
    work = folder / "work"
    work.mkdir(parents=True)
    write_raw(work / "raw")
    seconds: dict[str, float] = {}
    # All runs take place under one path, because checkpoints hold the paths that they were trained with.
    for step in STEPS:
        started = time.perf_counter()
        code = start(step, work).wait()
        seconds[step.name] = time.perf_counter() - started
        if code:
            raise RuntimeError(
                f"{step.name} fails without an interruption: {(work / f'{step.name}.out').read_text()[-2000:]}"
            )
        say(f"{step.name}: {seconds[step.name]:.1f} s without an interruption")
    whole = folder / "whole"
    work.rename(whole)
    chosen = [step for step in STEPS if step.name in steps]
    for number in range(kills):
        step, way = chosen[number % len(chosen)], chance.choice(list(WAYS))
        largest = max(file.stat().st_size for name in step.writes for file in (whole / name).rglob("*") if file.is_file())
        wrong = one_kill(step, whole, work, way, seconds[step.name], largest, chance)
        say(f"{number + 1}: {step.name}, {way}: {'; '.join(wrong) or 'as without'}")
        if wrong:
            shutil.copytree(work, folder / f"wrong-{number + 1}")
        shutil.rmtree(work)
        yield step.name, way, wrong


def main() -> int:
    """Print a table of what was wrong; return 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="+", choices=[step.name for step in STEPS], default=[s.name for s in STEPS])
    parser.add_argument("--folder", type=Path, help="keep everything there (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary) / "interruptions").resolve()
        kills: Counter[tuple[str, str]] = Counter()
        wrong: Counter[tuple[str, str]] = Counter()
        for name, way, found in run_all(args.kills, args.seed, folder, args.commands, lambda text: print(text, flush=True)):
            kills[name, way] += 1
            wrong[name, way] += bool(found)
    print("\n| command | " + " | ".join(WAYS) + " |\n|---" + "|---" * len(WAYS) + "|")
    for name in args.commands:
        cells = [f"{kills[name, way]} ({wrong[name, way]} wrong)" if kills[name, way] else "-" for way in WAYS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    return int(bool(sum(wrong.values())))


if __name__ == "__main__":
    sys.exit(main())
