"""Seconds and memory of stages 1 and 2 for catalogs of growing size.

    python benchmarks/identifiers.py --items 10000 100000 1000000 --json identifiers.json
    python benchmarks/identifiers.py --items 10000 --fusion injection --quantizer rqvae

Items are made up: two modalities of 128 columns that lie in clusters of clusters, as embeddings of a shop's items do. Every
size runs in a process of its own, from feature files to the .sid file; the default settings hold unless options say
otherwise. The exponent is that of seconds against items, from one size to the next: 1 is linear.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks import facts
from benchmarks.memory import peak_kb

NAME = "Made"
MODALITIES = ("text", "image")


def main(arguments: list[str] | None = None) -> None:
    """Measure every size, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=128, help="columns of each modality")
    parser.add_argument("--fusion", choices=["concatenation", "injection"], default="concatenation")
    parser.add_argument("--quantizer", choices=["residual_kmeans", "rqvae"], default="residual_kmeans")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one size, in this process
    args = parser.parse_args(arguments)
    if args.alone:
        print(json.dumps(measure(args)))
        return
    rows: list[dict[str, Any]] = []
    for items in args.items:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            options = [f"--{key}={getattr(args, key)}" for key in ("width", "fusion", "quantizer", "threads")]
            command = [sys.executable, __file__, "--alone", f"--items={items}", f"--folder={folder}", *options]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        row = rows[-1]
        print(
            f"{row['items']:>9} items: stage 1 {row['seconds_stage_1']:.1f} s, stage 2 {row['seconds_stage_2']:.1f} s, "
            f"{row['cpu_seconds']:.1f} CPU s in all ({row['system_share']:.0%} of them system), "
            f"peak {row['peak_rss_mb']} MB, {row['unique']} different IDs, {row['unique_before']} before reallocation",
            flush=True,
        )
    exponents = {
        f"exponent {one['items']}-{two['items']}": math.log(two["cpu_seconds"] / one["cpu_seconds"])
        / math.log(two["items"] / one["items"])
        for one, two in itertools.pairwise(rows)
    }
    for name, exponent in exponents.items():
        print(f"{name}: {exponent:.2f}")
    if args.json:
        facts.write(args.json, vars(args), rows, exponents)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make the features of one size, run stages 1 and 2 on them and return a row."""
    import torch

    from recbole_qbert.config.property_files import property_file, read_properties
    from recbole_qbert.data import item_features
    from recbole_qbert.pipeline.builder import SemanticIDBuilder
    from recbole_qbert.pipeline.catalog import Catalog, stage_settings

    (count,) = args.items
    torch.set_num_threads(args.threads)
    items = tuple(f"i{number}" for number in range(count))
    data = args.folder / NAME
    item_features.save(data, NAME, items, {name: vectors(count, args.width, n) for n, name in enumerate(MODALITIES)}, {})
    properties = read_properties(property_file("model/QBERT4Rec.yaml"))
    chosen = {"fusion": args.fusion, "quantizer": args.quantizer, "injection_query": "random", "seed": 2026}
    catalog = Catalog(NAME, data, items, [np.arange(2)])
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    ids, figures = SemanticIDBuilder(catalog, stage_settings({**properties, **chosen}), args.folder / "out").build()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    (health,) = figures["semantic_ids"]["code_sets"]
    return {
        "items": count,
        "seconds": seconds,
        "seconds_stage_1": figures["seconds"]["injection"],
        "seconds_stage_2": figures["seconds"]["quantization"],
        "cpu_seconds": user + system,
        "system_share": system / (user + system),
        "peak_rss_mb": peak_kb() // 1024,
        "unique": len(np.unique(ids.codes, axis=0)),
        "unique_before": health["unique_before"],
    }


def vectors(count: int, width: int, seed: int) -> np.ndarray:
    """Make vectors in clusters of clusters, ``[N, D]`` float16."""
    random = np.random.default_rng(seed)
    matrix = np.empty((count, width), np.float16)
    levels = [random.normal(size=(64, width)) / 2**level for level in range(4)]
    for start in range(0, count, 65_536):
        rows = min(65_536, count - start)
        part = random.normal(size=(rows, width)) / 16
        for centers in levels:
            part += centers[random.integers(len(centers), size=rows)]
        matrix[start : start + rows] = part
    return matrix


if __name__ == "__main__":
    main()
