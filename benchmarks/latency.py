"""Latency of recommending for one user by the Python API: p50 and p99 at several sizes of the catalog.

    python benchmarks/latency.py --items 10000 100000 1000000 --json latency.json

A network of the default settings with random weights (times do not depend on them, but for how many items the bounds of the
ranking leave) recommends ten items for one history of 20 items, a call a user. `scores`: `log-probabilities` (the default)
takes one more pass over the whole catalog, for the softmax; `raw` is `normalised=False`. `prepared` says how long the first
call took, which makes the item vectors and their sketch. Milliseconds are wall-clock times; on a busy machine p99 is that of
the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.serving.export import TrainedModel
from recbole_qbert.serving.recommender import Recommender

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only
from benchmarks import facts, steps

CODES, LEVELS, HISTORY, K = 256, "abcdefgh", 20, 10


def main(arguments: list[str] | None = None) -> None:
    """Measure every size and write one row for each kind of scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for items in args.items:
        model = recommender(items)
        random = np.random.default_rng(0)
        histories = [[str(item) for item in random.integers(0, items, HISTORY)] for _ in range(args.calls)]
        prepared = seconds_of(model, histories[0], True)
        for normalised in (False, True):
            seconds_of(model, histories[0], normalised)
            times = np.array([seconds_of(model, history, normalised) for history in histories]) * 1e3
            row: dict[str, Any] = {"items": items, "scores": "log-probabilities" if normalised else "raw"}
            row |= {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}
            rows.append(row | {"prepared_s": prepared})
            print(
                "  ".join(
                    f"{key} {value if isinstance(value, (int, str)) else round(value, 2)}" for key, value in rows[-1].items()
                )
            )
            if args.json:
                facts.write(args.json, vars(args), rows, {})


def seconds_of(model: Recommender, history: list[str], normalised: bool) -> float:
    """Seconds of one call for one user."""
    started = time.perf_counter()
    model.recommend([history], K, normalised=normalised)
    return time.perf_counter() - started


def recommender(items: int) -> Recommender:
    """A model of the default settings with random codes and weights."""
    config, _ = steps.config("default", max_length=50)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, CODES, (items + 1, len(LEVELS)), generator=generator, dtype=torch.int16)
    codes[0] = -1
    network = SemanticSequenceModel(config, codes, CODES)
    ids = SemanticIDs(tuple(map(str, range(items))), codes[1:].numpy(), tuple(LEVELS), CODES)
    return Recommender(TrainedModel("random", ids, network, None, {}))


if __name__ == "__main__":
    main()
