"""Training steps of the packed T5 beside the module of transformers, and milliseconds a user of each way to rank.

    python benchmarks/generative.py --data_path DATA --dataset X [--size published]

Batches of next-item examples of a real data set under random IDs of four codes: a source has 4 tokens an item of the history
and an end mark, a target 4 tokens and an end mark. The networks have the same sizes and take turns on the same batches, one
thread, AdamW and dropout included. transformers' module pads to the longest row; it is measured twice, with the vocabulary
of the codes and with T5's own 32,100 pieces beside them, as the published models have it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from dataset_prep.encoders import torchvision_ops
from recbole_qbert.data.histories import Histories
from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.t5 import T5, T5Sizes, shift

SIZES: dict[str, dict[str, int]] = {
    "published": {"d_model": 128, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 4, "num_decoder_layers": 4},
    "reduced": {"d_model": 64, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2},
}
CODES, LEVELS, HISTORY, END = 256, 4, 20, 1
VOCABULARY = 2 + CODES * LEVELS
T5_PIECES = 32_100


def batches(path: Path, rows: int, count: int, seed: int = 0) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return ``(source matrix [B, W], targets [B, 5])`` of random next-item examples, and the IDs of all items."""
    random = np.random.default_rng(seed)
    number: dict[str, int] = {}
    histories = [np.array([number.setdefault(item, len(number)) for item in items]) for _, items in Histories(path)]
    ids = random.integers(0, CODES, (len(number), LEVELS)) + 2 + CODES * np.arange(LEVELS)
    ids = np.concatenate([ids, np.full((len(number), 1), END)], 1)
    examples = [(user, end) for user, items in enumerate(histories) for end in range(1, len(items) - 2)]
    made = []
    for _ in range(count):
        matrix, targets = np.full((rows, HISTORY * LEVELS + 1), -1), []
        for row, at in enumerate(random.integers(0, len(examples), rows)):
            user, end = examples[at]
            tokens = ids[histories[user][max(0, end - HISTORY) : end], :LEVELS].ravel()
            matrix[row, : len(tokens)], matrix[row, len(tokens)] = tokens, END
            targets.append(ids[histories[user][end]])
        made.append((torch.from_numpy(matrix), torch.from_numpy(np.stack(targets))))
    return made, torch.from_numpy(ids)


def ours(sizes: dict[str, int]) -> Callable[[Tensor, Tensor], float]:
    """Make a training step of the packed network."""
    torch.manual_seed(0)
    model = T5(T5Sizes(VOCABULARY, **sizes, dropout_rate=0.1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)

    def step(matrix: Tensor, targets: Tensor) -> float:
        source = PackedTokens.of(matrix)
        wanted = targets[source.order]
        states = model.decode(shift(wanted), model.encode(source))
        loss = F.cross_entropy(model.logits(states).flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def theirs(sizes: dict[str, int], vocabulary: int) -> Callable[[Tensor, Tensor], float]:
    """Make a training step of transformers' module."""
    torchvision_ops.make_importable()
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    settings: dict[str, Any] = {**sizes, "vocab_size": vocabulary, "dropout_rate": 0.1, "decoder_start_token_id": 0}
    model: Any = T5ForConditionalGeneration(T5Config(**settings)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)

    def step(matrix: Tensor, targets: Tensor) -> float:
        longest = int((matrix >= 0).sum(1).max())
        matrix = matrix[:, :longest]
        loss = model(input_ids=matrix.clamp(min=0), attention_mask=(matrix >= 0).long(), labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="Amazon_Scientific")
    parser.add_argument("--size", choices=SIZES, default="reduced")
    parser.add_argument("--rows", type=int, default=256, help="examples in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=64, help="users that are ranked")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    data, ids = batches(args.data_path / args.dataset / f"{args.dataset}.inter", args.rows, args.rounds + 1)
    ways = {
        "packed": ours(SIZES[args.size]),
        "transformers, codes only": theirs(SIZES[args.size], VOCABULARY),
        "transformers, T5's vocabulary": theirs(SIZES[args.size], VOCABULARY + T5_PIECES),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number, (matrix, targets) in enumerate(data):
        for name, step in ways.items():
            before = time.process_time()
            step(matrix, targets)
            if number:  # the first one compiles and warms up
                times[name].append(time.process_time() - before)
    mine = statistics.median(times["packed"])
    print(f"{args.dataset}, {args.size} size, {args.rows} examples a step, {args.threads} thread, seconds of the CPU:")
    for name, found in times.items():
        middle = statistics.median(found)
        print(
            f"  {name:<30} {middle:7.3f} s a step  {args.rows / middle:7.0f} examples/s  {middle / mine:5.2f} x", flush=True
        )
    rank(args, ids, data[0][0][: args.users], data[0][1][: args.users])


def rank(args: argparse.Namespace, ids: Tensor, matrix: Tensor, targets: Tensor) -> None:
    """Measure the ways to rank, with an untrained network: the worst case of the way `cutoff`."""
    torch.manual_seed(0)
    model = T5(T5Sizes(VOCABULARY, **SIZES[args.size], dropout_rate=0.1)).eval()
    source = PackedTokens.of(matrix)
    target = (ids[None] == targets[:, None]).all(2).long().argmax(1)
    for way in ("exact", "cutoff", "beam"):
        ranker = ItemRanker(model, ids[:, :LEVELS], way)
        before = time.process_time()
        ranker.rank(source, target, 10)
        spent = time.process_time() - before
        print(f"  ranking, {way:<8} {1000 * spent / len(matrix):8.2f} ms a user, untrained", flush=True)


if __name__ == "__main__":
    main()
