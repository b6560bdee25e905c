"""Parameters, operations and latency beside RecBole's models: the paper's Table 6, with attention counted.

    python benchmarks/model_cost.py --items 6250 100000 --width 64 --layers 2 --json model_cost.json
    python benchmarks/model_cost.py --items 6250 9416 13839 --device cuda --json model_cost_gpu.json

What is counted, and what a user in training is: recbole_qbert/experiments/suites/cost.py. No data are needed. Latency is
that of the ten best items of the whole catalog for histories of the full length, in batches of --batch users, on
the device that the output names; models take turns in every round.
The rows called `paper` have the paper's width and layers whatever the
options say; --width 256 --layers 4 --heads 4 --inner 512 gives RecBole's models the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

import recbole_qbert  # noqa: F401  sets up RecBole
from benchmarks import facts
from recbole_qbert.experiments.suites import cost


def main(arguments: list[str] | None = None) -> None:
    """Measure every catalog size, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[6250, 100_000])
    parser.add_argument("--models", nargs="+", default=list(cost.MODELS), choices=cost.MODELS, metavar="MODEL")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--inner", type=int, default=256, help="width of the feed-forward layer")
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for items in args.items:
        try:
            sizes = cost.Sizes(items, args.width, args.layers, args.heads, args.inner, args.max_length)
            found, quotients = cost.measure(sizes, args.models, args.batch, args.rounds, args.device)
        except ValueError as error:
            parser.error(str(error))
        rows += found
        ratios |= quotients
        for row in found:
            print(
                f"{row['items']:>9} items  {row['model']:<32}{row['parameters'] / 1e6:8.3f}M parameters; operations a user: "
                f"{row['flops_score'] / 1e6:9.2f}M scoring {row['flops_training_user'] / 1e6:9.1f}M training; "
                f"{row['ms_a_user']:8.3f} ms a user (batch {row['batch']}, {row['device']})",
                flush=True,
            )
        if args.json:
            facts.write(args.json, vars(args), [*rows, *cost.published()], ratios)
    print("\n".join(f"{name}: {value:.2f}" for name, value in ratios.items()))


if __name__ == "__main__":
    main()
