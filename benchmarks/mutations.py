"""Damaged inputs: what the product makes of files of every kind after a random change.

    python benchmarks/mutations.py --count 2000 --keep /tmp/offenders

A small world is made once: a data set with features and pictures, semantic IDs, a checkpoint, an export, histories, raw
reviews, a published folder, YAML files, stored results. For each input one file of it is changed by a seeded mutation, and a
command of the command line reads it, in a worker process that is started again when it hangs. The table counts outcomes:

* ``ok``: the command came to an end (the change did no harm, or the command has a rule for it);
* ``named``: it ended in ``error: …`` that names the file or its folder;
* ``unnamed``: in an ``error: …`` that names neither;
* ``traceback``: in another exception;
* ``partial``: it left a temporary file behind;
* ``hang``: it took longer than ``--seconds``.

All but ``ok`` and ``named`` are offenders. ``--keep`` receives their files, with a command to see each again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

OUTCOMES = ("ok", "named", "unnamed", "traceback", "partial", "hang")
SMALL = [
    "--hidden_size=16", "--inner_size=16", "--n_layers=1", "--injection_dim=16", "--injection_layers=1", "--rq_dim=8",
    "--rq_hidden=[16]", "--rq_codes=16", "--rq_levels=2", "--epochs=1", "--pretrain_epochs=0", "--injection_epochs=1",
    "--rq_epochs=1", "--rq_warmup_epochs=1", "--builtin_width=8", "--MAX_ITEM_LIST_LENGTH=8", "--state=error",
]  # fmt: skip
PREPARE = ["prepare", "--dataset=R", "--data_path=out", "--min_user=1", "--min_item=1"]
TOO_LATE = ["--dataset=T", "--data_path=data", "--time_limit=0s"]
DATA = ["--dataset=T", "--data_path=data", "--output=out"]
#: Kind of file -> the file that is changed, and the command that reads it. Paths are relative to the world.
KINDS: dict[str, tuple[str, list[str]]] = {
    "inter": ("data/T/T.inter", ["features", *DATA]),
    "inter, training": ("data/T/T.inter", ["train", *DATA, *SMALL]),
    "inter, doctor": ("data/T/T.inter", ["doctor", *DATA]),
    "item": ("words/T/T.item", ["features", "--dataset=T", "--data_path=words", "--output=out"]),
    "picture": ("words/T/images/i1/000.png", ["features", "--dataset=T", "--data_path=words", "--output=out"]),
    "matrix": ("data/T/T.text.npy", ["features", *DATA]),
    "item list": ("data/T/T.items.txt", ["features", *DATA]),
    "matrix, doctor": ("data/T/T.text.npy", ["doctor", *DATA]),
    "property file": ("mine.yaml", ["features", *DATA, "--config_files", "mine.yaml"]),
    "suite": ("suite.yaml", ["benchmark", "--suite=suite.yaml", *TOO_LATE]),
    "space": ("space.yaml", ["tune", "--model=SASRec", "--space=space.yaml", *TOO_LATE]),
    "stored results": (
        "cache/T.parquet",
        ["benchmark", "--suite=table2", "--results_cache=cache", *TOO_LATE],
    ),
    "sid": ("runs/T/T.sid", ["export", "--checkpoint=runs/T/finetune.pth", "--output=out", "--sid=runs/T/T.sid"]),
    "checkpoint": ("runs/T/finetune.pth", ["export", "--checkpoint=runs/T/finetune.pth", "--output=out"]),
    "export config": ("model/config.json", ["recommend", "--model=model", "--items", "i1", "i2"]),
    "export titles": ("model/titles.tsv", ["recommend", "--model=model", "--items", "i1", "i2"]),
    "export weights": ("model/model.safetensors", ["recommend", "--model=model", "--items", "i1", "i2"]),
    **{
        f"histories {end}": (f"histories.{end}", ["recommend", "--model=model", f"--histories=histories.{end}"])
        for end in ("inter", "csv", "tsv", "parquet")
    },
    "reviews": ("raw/reviews.json", [*PREPARE, "--reviews=raw/reviews.json"]),
    "reviews gzip": ("raw/reviews.json.gz", [*PREPARE, "--reviews=raw/reviews.json.gz"]),
    "metadata": (
        "raw/meta.json",
        [*PREPARE, "--reviews=raw/reviews.json", "--metadata=raw/meta.json"],
    ),
    **{
        f"MQL4GRec {end}": (f"mql/Toys/Toys.{end}", ["import", "--source=mql/Toys", "--dataset=Toys", "--data_path=out"])
        for end in ("inter.json", "item2id", "item.json", "emb-llama-td.npy", "index_lemb.json")
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the changes
def _at(body: bytes, rng: random.Random, new: Callable[[bytes], bytes], length: int = 1) -> bytes:
    """Replace a random piece of the bytes."""
    place = rng.randrange(max(1, len(body)))
    return body[:place] + new(body[place : place + length]) + body[place + length :]


def _lines(body: bytes, rng: random.Random, change: Callable[[list[bytes], int], None]) -> bytes:
    lines = body.splitlines(keepends=True) or [b""]
    change(lines, rng.randrange(len(lines)))
    return b"".join(lines)


def _number(body: bytes, rng: random.Random, new: bytes) -> bytes:
    found = list(re.finditer(rb"\d+(\.\d+)?", body[:200_000]))
    match = rng.choice(found) if found else None
    return body[: match.start()] + new + body[match.end() :] if match else body + new


def _binary_numbers(body: bytes, rng: random.Random) -> bytes:
    value = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e-40])
    place = rng.randrange(max(1, len(body) // 4)) * 4
    return body[:place] + np.float32(value).tobytes() + body[place + 4 :]


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip a bit": lambda body, rng: _at(body, rng, lambda piece: bytes(one ^ 1 << rng.randrange(8) for one in piece)),
    "flip many": lambda body, rng: bytes(one ^ (rng.random() < 0.01) * rng.randrange(256) for one in body),
    "cut": lambda body, rng: body[: rng.randrange(max(1, len(body)))],
    "cut the start": lambda body, rng: body[rng.randrange(max(1, len(body))) :],
    "take out": lambda body, rng: _at(body, rng, lambda piece: b"", rng.randrange(1, 200)),
    "double": lambda body, rng: _at(body, rng, lambda piece: piece * 2, rng.randrange(1, 2000)),
    "append itself": lambda body, rng: body + body,
    "latin-1": lambda body, rng: _at(body, rng, lambda piece: b"\xe9" + piece),
    "UTF-16": lambda body, rng: body.decode("utf-8", "replace").encode("utf-16"),
    "byte order mark": lambda body, rng: b"\xef\xbb\xbf" + body,
    "CRLF": lambda body, rng: body.replace(b"\n", b"\r\n"),
    "CR": lambda body, rng: body.replace(b"\n", b"\r"),
    "blank line": lambda body, rng: _lines(body, rng, lambda lines, at: lines.insert(at, b"\n")),
    "repeat a line": lambda body, rng: _lines(body, rng, lambda lines, at: lines.insert(at, lines[at])),
    "lose a line": lambda body, rng: _lines(body, rng, lambda lines, at: lines.__delitem__(at)),
    "lose a tab": lambda body, rng: body.replace(b"\t", b"", 1),
    "NUL": lambda body, rng: _at(body, rng, lambda piece: b"\0" + piece),
    "quote": lambda body, rng: _at(body, rng, lambda piece: b'"' + piece),
    "brackets": lambda body, rng: _at(body, rng, lambda piece: b"[" * 100_000),
    "many digits": lambda body, rng: _number(body, rng, b"9" * 5000),
    "huge number": lambda body, rng: _number(body, rng, rng.choice([b"1e400", b"1e308", b"99999999999999999999"])),
    "no number": lambda body, rng: _number(body, rng, rng.choice([b"NaN", b"inf", b"-1", b"", b"null", b"true", b"{}"])),
    "odd floats": _binary_numbers,
    "empty": lambda body, rng: b"",
    "other content": lambda body, rng: rng.choice([b"PK\x03\x04", b"%PDF-1.4", b"<html></html>", b"\x80\x04K\x01.", b"[]"]),
    "long line": lambda body, rng: _at(body, rng, lambda piece: b"x" * 200_000),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the world
def make_world(folder: Path) -> None:
    """Make one sound file of every kind."""
    from PIL import Image

    from recbole_qbert import cli
    from recbole_qbert.data import item_features
    from recbole_qbert.recbole_integration.experiment import working_directory

    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{(u + 3 * n) % 20}", n) for u in range(30) for n in range(6)]
    inter = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)
    items = [f"i{n}" for n in range(20)]
    table = "item_id:token\ttitle:token_seq\tbrand:token\n" + "".join(f"{i}\tA title of {i}\tB\n" for i in items)
    for data in ("data", "words"):
        (folder / data / "T").mkdir(parents=True)
        (folder / data / "T" / "T.inter").write_text(inter)
        (folder / data / "T" / "T.item").write_text(table)
    for item in items:
        place = folder / "words" / "T" / "images" / item
        place.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(place / "000.png")
    vectors = rng.normal(size=(20, 8)).astype(np.float32)
    item_features.save(folder / "data" / "T", "T", items, {"text": vectors}, {"made": "here"})
    (folder / "mine.yaml").write_text("seed: 7\nrq_codes: 16\neval_args: {split: {LS: valid_and_test}, order: TO}\n")
    (folder / "space.yaml").write_text("learning_rate: [0.001, 0.002]\nhidden_dropout_prob: [0.2, 0.5]\n")
    suite = "title: A\nkind: quality\nseeds: [1, 2]\nshared: table2\nmodels:\n  QBERT4Rec: {model: QBERT4Rec}\n"
    (folder / "suite.yaml").write_text(suite)
    (folder / "cache").mkdir()
    stored = Path(__file__).resolve().parents[1] / "docs" / "results" / "Amazon_Scientific.parquet"
    shutil.copy(stored, folder / "cache" / "T.parquet")
    _make_histories(folder, inter)
    _make_raw(folder, vectors)
    with working_directory(folder), contextlib.redirect_stdout(io.StringIO()):
        for command in (
            ["train", "--dataset=T", "--data_path=data", "--output=runs", *SMALL],
            ["export", "--checkpoint=runs/T/finetune.pth", "--output=model"],
        ):
            if cli.main(command) != 0:
                raise RuntimeError(f"the world cannot be made: {command}")


def _make_histories(folder: Path, inter: str) -> None:
    import pandas as pd

    (folder / "histories.inter").write_text(inter)
    (folder / "histories.tsv").write_text("user_id\thistory\nu1\ti1 i2\nu2\ti3 i4 i5\n")
    (folder / "histories.csv").write_text("user_id,item_id,timestamp\nu1,i1,1\nu1,i2,2\nu2,i3,1\n")
    pd.DataFrame({"user_id": ["u1", "u2"], "history": [["i1", "i2"], ["i3"]]}).to_parquet(folder / "histories.parquet")


def _make_raw(folder: Path, vectors: np.ndarray) -> None:
    import gzip

    (folder / "raw").mkdir()
    lines = [
        json.dumps({"reviewerID": f"A{u}", "asin": f"B{(u + n) % 9}", "overall": 5.0, "unixReviewTime": 1_400_000_000 + n})
        for u in range(12)
        for n in range(4)
    ]
    body = "\n".join(lines) + "\n"
    (folder / "raw" / "reviews.json").write_text(body)
    (folder / "raw" / "reviews.json.gz").write_bytes(gzip.compress(body.encode(), mtime=0))
    meta = [json.dumps({"asin": f"B{n}", "title": f"T{n}", "brand": "X", "imageURLHighRes": []}) for n in range(9)]
    (folder / "raw" / "meta.json").write_text("\n".join(meta) + "\n")
    place = folder / "mql" / "Toys"
    place.mkdir(parents=True)
    (place / "Toys.inter.json").write_text(json.dumps({str(u): [(u + n) % 5 for n in range(4)] for u in range(6)}, indent=1))
    (place / "Toys.item2id").write_text("".join(f"B{n}\t{n}\n" for n in range(5)))
    (place / "Toys.user2id").write_text("".join(f"A{n}\t{n}\n" for n in range(6)))
    texts = {"title": "A toy", "description": ".", "brand": "E", "categories": "Toys"}
    (place / "Toys.item.json").write_text(json.dumps({str(n): texts for n in range(5)}))
    codes = {str(n): [f"<{letter}_{n}>" for letter in "abcd"] for n in range(5)}
    (place / "Toys.index_lemb.json").write_text(json.dumps(codes))
    np.save(place / "Toys.emb-llama-td.npy", vectors[:5])


# -------------------------------------------------------------------------------------------------------- the worker
def work(channel: Connection) -> None:
    """Run what comes through the channel: ``(folder, kind)``; answer ``(outcome, words)``."""
    import logging

    import recbole_qbert  # noqa: F401  now, not in the time of the first input

    logging.disable(logging.CRITICAL)
    channel.send("ready")
    while True:
        folder, kind = channel.recv()
        channel.send(run(Path(folder), kind))


def run(folder: Path, kind: str) -> tuple[str, str]:
    """Run the command of a kind in a folder and say how it ended."""
    from recbole_qbert import cli
    from recbole_qbert.recbole_integration.experiment import working_directory

    file, command = KINDS[kind]
    errors = io.StringIO()
    try:
        with working_directory(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = cli.main(command)
    except (Exception, SystemExit) as error:
        return "traceback", f"{type(error).__name__}: {error}"
    if any(folder.rglob("*.part")):
        return "partial", str(next(folder.rglob("*.part")))
    said = errors.getvalue().strip().splitlines()[-1:] or [""]
    if status in (0, 1):
        return "ok", said[0]
    names = (Path(file).name, Path(file).stem, str(Path(file).parent))
    return ("named" if any(name in errors.getvalue() for name in names if name != ".") else "unnamed"), said[0]


class Worker:
    """A process that runs commands, started again after a hang."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process: Any = None
        self.start()

    def start(self) -> None:
        """Start a process in place of the one before."""
        self.stop()
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.channel.recv()  # that all is imported

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def __call__(self, folder: Path, kind: str) -> tuple[str, str]:
        """Run one input."""
        self.channel.send((str(folder), kind))
        try:
            if self.channel.poll(self.seconds):
                answer: tuple[str, str] = self.channel.recv()
                return answer
        except EOFError:
            self.start()
            return "traceback", "the process ended"
        self.start()
        return "hang", f"more than {self.seconds:g} seconds"


def change(path: Path, name: str, rng: random.Random) -> None:
    """Change a file in place; ``folder`` and ``missing`` are changes, too."""
    body = path.read_bytes()
    path.unlink()
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes(CHANGES[name](body, rng))


def main() -> None:
    """Run the inputs and print the table and the offenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of inputs (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="longest time of one input (default: 30)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--keep", type=Path, help="folder for the files of offenders")
    args = parser.parse_args()
    table: dict[str, Counter[str]] = {kind: Counter() for kind in args.kinds}
    names = [*CHANGES, "folder", "missing"]
    offenders: dict[tuple[str, str, str], str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        world, place = Path(temporary) / "world", Path(temporary) / "input"
        make_world(world)
        worker = Worker(args.seconds)
        for kind in args.kinds:  # a sound world ends in a command's own words, or a space without trials
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(world, place)
            outcome, words = worker(place, kind)
            if outcome != "ok" and kind != "space":
                raise RuntimeError(f"{kind} is {outcome} without a change: {words}")
        for number in range(args.count):
            rng = random.Random(f"{args.seed} {number}")
            kind, name = args.kinds[number % len(args.kinds)], rng.choice(names)
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(world, place)
            file = place / KINDS[kind][0]
            change(file, name, rng)
            outcome, words = worker(place, kind)
            table[kind][outcome] += 1
            if outcome in ("ok", "named"):
                continue
            offenders.setdefault((kind, outcome, words[:160]), name)
            if args.keep:
                kept = args.keep / f"{number:06d}"
                kept.mkdir(parents=True, exist_ok=True)
                if file.is_file():
                    shutil.copy(file, kept)
                (kept / "about.json").write_text(json.dumps([kind, name, outcome, words, KINDS[kind]], indent=1))
        worker.stop()
    print(f"{'':<26}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for kind, counts in table.items():
        print(f"{kind:<26}" + "".join(f"{counts[outcome]:>10}" for outcome in OUTCOMES))
    for (kind, outcome, words), name in sorted(offenders.items()):
        print(f"{kind} | {name} | {outcome}: {words}")
    sys.exit(bool(offenders))


if __name__ == "__main__":
    main()
