"""What a training step costs, with compiled attention and dropout and with torch's, and in which precision of products.

    python benchmarks/steps.py --json docs/results/steps.json

Configurations of stage 3 on synthetic histories (no data are needed) of which most are short, as those of Amazon's data are:
`length` items on average, geometrically distributed from 2 to `max_length`. Ways take turns in every round. Times are of the
process's CPU, which other processes disturb less than a clock; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks import facts
from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.config.schema import SequenceConfig
from recbole_qbert.recbole_integration.optimizer import WarmupAdamW
from recbole_qbert.sequence.kernels.dispatch import without_kernels
from recbole_qbert.sequence.model import SemanticSequenceModel

FILES = {"default": [], "SASRec fast": ["baseline/fast/SASRec.yaml"], "paper": ["paper/QBERT4Rec.yaml"]}
LEVELS = {"none": 0, "fused": 4, "both": 12}  # codes of an item
CODES = 256
#: Way -> whether kernels are compiled, and the precision of products.
WAYS = {"torch": (False, "highest"), "compiled": (True, "highest"), "compiled, bfloat16 products": (True, "medium")}


def config(name: str, max_length: int) -> tuple[SequenceConfig, int]:
    """A named configuration of the property files, and its codes an item."""
    values: dict[str, Any] = {}
    for file in ["model/QBERT4Rec.yaml", *FILES[name]]:
        values |= read_properties(property_file(file))
    known = SequenceConfig.__dataclass_fields__
    given = {key: value for key, value in values.items() if key in known} | {"max_length": max_length}
    return SequenceConfig(**given), LEVELS[values["semantic_ids"]]


def stepper(name: str, items: int, batch: int, length: float, max_length: int) -> Callable[[int], None]:
    """A function that takes one training step, on a batch of its number."""
    settings, levels = config(name, max_length)
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(CODES, (items + 1, levels), generator=random)
    codes[0] = -1
    model = SemanticSequenceModel(settings, codes, CODES).train()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.01}]
    optimizer = WarmupAdamW(groups, lr=1e-3, betas=(0.9, 0.98), warmup_steps=100)

    def step(number: int) -> None:
        random.manual_seed(number)
        lengths = torch.empty(batch).geometric_(1 / (length - 1), generator=random).long() + 1
        lengths = lengths.clamp(max=max_length)
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        sequences = torch.randint(1, items + 1, real.shape, generator=random) * real
        optimizer.zero_grad()
        model.loss(sequences, lengths, settings.views, {"random": 0.3}, random).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", default=list(FILES), choices=FILES, metavar="NAME")
    parser.add_argument("--items", type=int, default=6250)
    parser.add_argument("--batch", type=int, default=256, help="histories a step")
    parser.add_argument("--length", type=float, default=6.0, help="items of a history on average, at least 2")
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rows, ratios = [], {}
    for name in args.configurations:
        torch.manual_seed(0)
        step = stepper(name, args.items, args.batch, args.length, args.max_length)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(args.rounds + 2):  # the first ones compile and warm up
            for way, (compiled, precision) in WAYS.items():
                torch.set_float32_matmul_precision(precision)
                before = time.process_time()
                with nullcontext() if compiled else without_kernels():
                    step(number)
                if number >= 2:
                    seconds[way].append(time.process_time() - before)
        for way, times in seconds.items():
            ratio = statistics.median(one / other for one, other in zip(seconds["torch"], times, strict=True))
            rows.append({"model": name, "way": way, "ms_a_step": 1000 * statistics.median(times)})
            ratios[f"{name}: torch / {way}"] = ratio
            print(f"{name:<12} {way:<28} {rows[-1]['ms_a_step']:7.1f} ms   {ratio:.2f} x torch", flush=True)
    torch.set_float32_matmul_precision("highest")
    if args.json:
        facts.write(args.json, vars(args), rows, ratios)


if __name__ == "__main__":
    main()
