"""Throughput and memory of `dataset_prep.amazon.convert` beside a straightforward pandas version of the same steps.

    python benchmarks/preparation.py --size 5e9 --folder /tmp/preparation --rounds 2 --json preparation.json

Made-up reviews of the 2018 edition (a quarter of a kilobyte to several kilobytes a line, gzip) are written once into
the folder. Both versions then read them in turn, each in a process of its own on the same cores: JSON lines, repeats
removed, 5-core, ordered by time, written as `.inter`. That both write the same bytes is checked. MB/s are of unpacked
input (1 MB = 10^6 bytes), memory is the peak resident set of the process. `convert` also hashes its input and lists bad
lines; pandas does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks.memory import peak_kb

VERSIONS = ("convert", "pandas")
LINE = 575  # bytes of an average line


def write_reviews(path: Path, size: int, seed: int = 1) -> int:
    """Write gzip reviews of `size` bytes or a little more before packing; returns how many bytes it were.

    Two thirds of the users write once or twice and a few often, items are popular by a power law: a third of the
    interactions is in the 5-core, as in the real files.
    """
    rng = np.random.default_rng(seed)
    total = max(size // LINE, 1000)
    weights = rng.pareto(1.6, total) + 0.08
    user_share = np.cumsum(weights) / weights.sum()
    popularity = 1 / np.arange(1, max(total // 22, 10) + 1) ** 0.85
    item_share = np.cumsum(popularity) / popularity.sum()
    words = ["".join(rng.choice(list("etaoinshrdlucmfwyp"), rng.integers(2, 10))) for _ in range(8000)]
    share = 1 / np.arange(1, len(words) + 1)
    corpus = " ".join(np.array(words)[rng.choice(len(words), 2_000_000, p=share / share.sum())])
    written = 0
    with open(path, "wb") as file, subprocess.Popen(["gzip", "-6"], stdin=subprocess.PIPE, stdout=file) as packer:
        assert packer.stdin is not None
        while written < size:
            block = "".join(_lines(rng, user_share, item_share, corpus, 50_000)).encode()
            packer.stdin.write(block)
            written += len(block)
    return written


def _lines(rng: np.random.Generator, users: np.ndarray, items: np.ndarray, corpus: str, count: int) -> Iterator[str]:
    columns = (
        np.searchsorted(users, rng.random(count)),
        np.searchsorted(items, rng.random(count)),
        rng.integers(10_957, 17_800, count) * 86_400,
        rng.integers(1, 6, count),
        np.minimum(rng.lognormal(5.1, 0.9, count), 8000).astype(int) + 20,
        rng.integers(0, len(corpus) - 9000, count),
    )
    for user, item, seconds, stars, length, at in zip(*(column.tolist() for column in columns), strict=True):
        text, summary = corpus[at : at + length], corpus[at + 7 : at + 30]
        yield (
            f'{{"overall": {stars}.0, "vote": "{length % 17}", "verified": true, "reviewTime": "06 17, 2018", '
            f'"reviewerID": "A{user * 2654435761 % 10**13:013d}", "asin": "B{item * 48271 % 10**9:09d}", '
            f'"style": {{"Format:": " {corpus[at : at + 9]}"}}, "reviewerName": "{corpus[at + 20 : at + 33]}", '
            f'"reviewText": "{text}. It\\u2019s \\"{summary}\\"", "summary": "{summary}", "unixReviewTime": {seconds}}}\n'
        )


def by_convert(reviews: Path, output: Path) -> Path:
    """The version of this project."""
    from dataset_prep.amazon.convert import convert

    convert(reviews, None, "X", output, threads=len(os.sched_getaffinity(0)), progress=False)
    return output / "X" / "X.inter"


def by_pandas(reviews: Path, output: Path) -> Path:
    """What one writes first: read in chunks, keep four columns, then everything in memory."""
    import pandas as pd

    columns = ["reviewerID", "asin", "overall", "unixReviewTime"]
    chunks = pd.read_json(reviews, lines=True, chunksize=100_000, convert_dates=False)
    frame = pd.concat([chunk[columns] for chunk in chunks], ignore_index=True)
    frame = frame.sort_values("unixReviewTime", kind="stable").drop_duplicates(["reviewerID", "asin"])
    while True:
        users = frame.groupby("reviewerID")["asin"].transform("size")
        items = frame.groupby("asin")["reviewerID"].transform("size")
        keep = (users >= 5) & (items >= 5)
        if keep.all():
            break
        frame = frame[keep]
    output.mkdir(parents=True)
    header = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    frame = frame.astype({"overall": float, "unixReviewTime": float})
    frame.to_csv(output / "X.inter", sep="\t", index=False, header=header)
    return output / "X.inter"


def measure_here(version: str, reviews: Path, output: Path) -> dict[str, Any]:
    """Run one version in this process."""
    from hashlib import sha256

    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    inter = {"convert": by_convert, "pandas": by_pandas}[version](reviews, output)
    seconds = time.perf_counter() - started
    peak = peak_kb() / 1000
    content = inter.read_bytes()
    shutil.rmtree(output)
    cpu = time.process_time()
    result = {"seconds": seconds, "cpu_seconds": cpu, "peak_rss_mb": peak}
    return {**result, "rows": content.count(b"\n") - 1, "sha256": sha256(content).hexdigest()}


def measure(version: str, reviews: Path, folder: Path, cores: int) -> dict[str, Any]:
    """Run one version in a process of its own."""
    command = [sys.executable, __file__, "--version", version, "--folder", str(folder), "--cores", str(cores)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Write the reviews, measure in turn, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=5e9, help="bytes of reviews before packing (default: 5e9)")
    parser.add_argument("--folder", type=Path, required=True, help="for the reviews and what is written")
    parser.add_argument("--rounds", type=int, default=1, help="how often each version runs (default: once)")
    parser.add_argument("--cores", type=int, default=2, help="cores each version may use (default: 2)")
    parser.add_argument("--keep", action="store_true", help="leave the reviews in the folder, and use those that are there")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--version", choices=VERSIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    reviews = args.folder / "reviews.json.gz"
    if args.version:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        print(json.dumps(measure_here(args.version, reviews, args.folder / args.version)))
        return
    from benchmarks import facts  # not above: it loads torch, which would count as memory of what is measured
    from recbole_qbert.utils.environment import ratio

    args.folder.mkdir(parents=True, exist_ok=True)
    size = args.folder / f"reviews-{int(args.size)}.size"
    if not (args.keep and size.exists()):
        size.write_text(str(write_reviews(reviews, int(args.size))))
    megabytes = int(size.read_text()) / 1e6
    settings = {**vars(args), "megabytes": megabytes, "packed_megabytes": reviews.stat().st_size / 1e6}
    settings |= {package: importlib.metadata.version(package) for package in ("duckdb", "pandas", "pyarrow", "msgspec")}
    rows: list[dict[str, Any]] = []
    for turn in range(args.rounds):
        for version in VERSIONS:
            row = {"version": version, "round": turn, **measure(version, reviews, args.folder, args.cores)}
            rows.append({**row, "mb_per_second": megabytes / row["seconds"]})
            print(json.dumps(rows[-1]), flush=True)
        assert rows[-1]["sha256"] == rows[-2]["sha256"], "the versions wrote different files"
    ours, theirs = ([row for row in rows if row["version"] == version] for version in VERSIONS)
    ratios = {
        name: ratio([row[key] for row in theirs], [row[key] for row in ours])
        for name, key in (("throughput", "seconds"), ("processor_time", "cpu_seconds"), ("memory", "peak_rss_mb"))
    }
    print(json.dumps(ratios))
    if not args.keep:
        reviews.unlink()
        size.unlink()
    if args.json:
        facts.write(args.json, settings, rows, ratios)


if __name__ == "__main__":
    main()
