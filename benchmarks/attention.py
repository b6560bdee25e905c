"""Compiled attention beside torch's, alone, for rows of one length: from which length on rows are left to torch.

    python benchmarks/attention.py

Some 2,048 packed items in rows of `length`; without gradients or dropout as in ranking, and with both as in training. Times
are of the process's CPU, medians; the ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from recbole_qbert.sequence import attention
from recbole_qbert.sequence.kernels.dispatch import without_kernels
from recbole_qbert.sequence.packing import PackedSequences

ITEMS = 2048


def ranking(length: int, width: int, heads: int) -> Callable[[], None]:
    """A pass over rows of a length."""
    rows, joint, distance = _made(length, width, heads)

    def run() -> None:
        with torch.no_grad():
            attention.Attention([(rows, False)], distance)(joint, 0.0)

    return run


def training(length: int, width: int, heads: int) -> Callable[[], None]:
    """A pass with dropout, and its gradients."""
    rows, joint, distance = _made(length, width, heads)
    joint.requires_grad_(), distance.requires_grad_()

    def run() -> None:
        attention.Attention([(rows, False)], distance)(joint, 0.2).sum().backward()

    return run


def _made(length: int, width: int, heads: int) -> tuple[PackedSequences, torch.Tensor, torch.Tensor]:
    lengths = torch.full((max(1, ITEMS // length),), length)
    joint, distance = torch.randn(int(lengths.sum()), 3 * width), torch.randn(heads, 2 * length + 1)
    return PackedSequences.of(lengths, length), joint, distance


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 12, 16, 24, 32, 50, 64, 100, 200])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    attention.MAX_KERNEL_LENGTH = attention.MAX_KERNEL_LENGTH_WITH_DROPOUT = max(
        args.lengths
    )  # here nothing is left to torch
    for kind in (ranking, training):
        for length in args.lengths:
            run = kind(length, args.width, args.heads)
            times: dict[bool, list[float]] = {True: [], False: []}
            for number in range(args.rounds + 2):  # the first ones compile and warm up
                for compiled, found in times.items():
                    before = time.process_time()
                    with nullcontext() if compiled else without_kernels():
                        run()
                    if number >= 2:
                        found.append(time.process_time() - before)
            mine, theirs = (1000 * statistics.median(found) for found in times.values())
            print(
                f"{kind.__name__:<9} length {length:>4}  {mine:7.2f} ms  torch {theirs:7.2f} ms  {theirs / mine:.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
