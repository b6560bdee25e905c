"""What an epoch of a million interactions costs as the catalog grows, with the full softmax and with a sample of it.

    python benchmarks/catalog_growth.py --json catalog_growth.json
    python benchmarks/catalog_growth.py --items 10000 1000000 --losses sampled --steps 100

Histories are made up: 125,000 users with 8 interactions each, items by Zipf's law. The default settings hold: both views,
item embeddings, fused IDs of 8 levels. Every catalog and loss has a process of its own, so that peak memory is its own; a
step is loss, gradient, clipping and the optimizer's update. Times are of the process's CPU. An epoch is its number of steps
times the median step; validation, which ranks all items, is not in it. The exponent is that of seconds against items, from
one size to the next: 0 does not grow, 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks import facts
from benchmarks.memory import peak_kb
from benchmarks.steps import config
from recbole_qbert.recbole_integration.optimizer import WarmupAdamW, stored_gradients
from recbole_qbert.sequence.candidates import CandidateSampler
from recbole_qbert.sequence.model import SemanticSequenceModel

USERS, LENGTH, BATCH = 125_000, 8, 256
LEVELS, CODES = 8, 256
LARGEST_FULL = 100_000  # the full softmax over a million items takes minutes a step


def main(arguments: list[str] | None = None) -> None:
    """Measure every catalog with every loss, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--losses", nargs="+", choices=["item", "sampled"], default=["item", "sampled"])
    parser.add_argument("--sampled_items", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one catalog and loss, in this process
    args = parser.parse_args(arguments)
    if args.alone:
        print(json.dumps(measure(args.items[0], args.losses[0], args)))
        return
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for loss in args.losses:
        before = None
        for items in sorted(args.items):
            if loss == "item" and items > LARGEST_FULL:
                continue
            options = [f"--{key}={getattr(args, key)}" for key in ("sampled_items", "steps", "threads")]
            command = [sys.executable, __file__, "--alone", f"--items={items}", f"--losses={loss}", *options]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rows.append(row)
            growth = ""
            if before:
                ratio = row["epoch_seconds"] / before["epoch_seconds"]
                ratios[f"{loss}: {items} / {before['items']} items"] = ratio
                growth = f", {ratio:.2f} x (exponent {math.log(ratio) / math.log(items / before['items']):.2f})"
            print(
                f"{loss:<8} {items:>9} items: {1000 * row['step_seconds']:.0f} ms a step, "
                f"{row['epoch_seconds']:.0f} CPU s an epoch, peak {row['peak_rss_mb']} MB{growth}",
                flush=True,
            )
            before = row
    if args.json:
        facts.write(args.json, vars(args), rows, ratios)


def measure(items: int, loss: str, args: argparse.Namespace) -> dict[str, Any]:
    """Take steps over a catalog of ``items``; return the median of their CPU seconds."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    settings, _ = config("default", 20)
    object.__setattr__(settings, "loss", loss)
    codes = torch.randint(CODES, (items + 1, LEVELS), generator=random)
    codes[0] = -1
    network = SemanticSequenceModel(settings, codes, CODES).train()
    users = zipf(items, (USERS, LENGTH), random)
    lengths = torch.full((BATCH,), LENGTH)
    sampler = CandidateSampler(users, items + 1, args.sampled_items) if loss == "sampled" else None
    optimizer = WarmupAdamW(
        [{"params": list(network.parameters()), "weight_decay": 0.01}], lr=1e-3, betas=(0.9, 0.98), warmup_steps=100
    )
    seconds = []
    for number in range(args.steps + 2):  # the first ones compile and warm up
        batch = users[torch.randint(USERS, (BATCH,), generator=random)]
        before = time.process_time()
        optimizer.zero_grad()
        network.loss(batch, lengths, settings.views, {"random": 0.3}, random, sampler=sampler).backward()
        torch.nn.utils.clip_grad_norm_(stored_gradients(network.parameters()), 5.0)
        optimizer.step()
        if number >= 2:
            seconds.append(time.process_time() - before)
    step = statistics.median(seconds)
    return {
        "loss": loss, "items": items, "step_seconds": step, "epoch_seconds": step * math.ceil(USERS / BATCH),
        "peak_rss_mb": peak_kb() // 1024,
    }  # fmt: skip


def zipf(items: int, shape: tuple[int, int], random: torch.Generator) -> torch.Tensor:
    """Draw items from 1 to ``items`` with probabilities that fall as one over the rank."""
    share = (1 / torch.arange(1, items + 1, dtype=torch.float64)).cumsum(0)
    drawn = torch.rand(shape, generator=random, dtype=torch.float64) * share[-1]
    return torch.searchsorted(share, drawn).clamp(max=items - 1) + 1


if __name__ == "__main__":
    main()
