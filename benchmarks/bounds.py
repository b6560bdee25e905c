"""How many items the bounds of a coarse scan leave for exact scoring, by the way in which vectors are stored.

    python benchmarks/bounds.py --items 200000 --vectors_of saved/QBERT4Rec.pth

A bound is good if few items reach the k-th best score with it. Random vectors are the worst case; `--vectors_of` adds those
of a trained model, as in ranking.py. Ways: 8, 4 and 3 bits a number, with the item's own error or the largest of all; 4 bits
after a random rotation; and the first 16 or 32 principal axes in 8 bits, with Cauchy-Schwarz for the other axes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only
from benchmarks.ranking import fill, parts_from_checkpoint


def main(arguments: list[str] | None = None) -> None:
    """Print the mean number of items that each bound leaves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--vectors_of", type=Path, help="checkpoint with item embeddings")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    kinds = {"random": (torch.randn(args.items, args.width), torch.randn(args.users, args.width))}
    if args.vectors_of:
        parts, states = parts_from_checkpoint(args.vectors_of)
        vectors = torch.empty(args.items, states.shape[1])
        fill(vectors, *parts)
        kinds["trained"] = vectors, states[torch.randperm(len(states))[: args.users]]
    for kind, (vectors, states) in kinds.items():
        limits = (states @ vectors.T).topk(max(args.k), 1).values
        for name, megabytes, bounds in ways(vectors, states):
            left = {k: int((bounds >= limits[:, k - 1 : k]).sum(1).double().mean()) for k in args.k}
            counts = "".join(f"  k {k}: {count:>8}" for k, count in left.items())
            print(f"{kind:<8} {name:<32} {megabytes:>4.0f} MB a million{counts}", flush=True)


def ways(vectors: Tensor, states: Tensor) -> Iterator[tuple[str, float, Tensor]]:
    """Name of each way, MB a million items, and its bounds ``[B, N]``."""
    width, norm = vectors.shape[1], states.norm(dim=1, keepdim=True)
    for bits in (8, 4, 3):
        rough, error, scale = rounded(vectors, bits)
        yield f"{bits} bits, own error", width * bits / 8, states @ rough.T + norm * error
        yield f"{bits} bits, largest error", width * bits / 8, states @ rough.T + norm * scale * (error / scale).max()
    rotation = torch.linalg.qr(torch.randn(width, width)).Q
    rough, error, _ = rounded(vectors @ rotation, 4)
    yield "4 bits, rotated, own error", width / 2, states @ rotation @ rough.T + norm * error
    axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)
    turned, queries = vectors @ axes, states @ axes
    for count in (16, 32):
        rough, error, _ = rounded(turned[:, :count], 8)
        rest = queries[:, count:].norm(dim=1, keepdim=True) * turned[:, count:].norm(dim=1)
        bounds = queries[:, :count] @ rough.T + queries[:, :count].norm(dim=1, keepdim=True) * error + rest
        yield f"{count} principal axes, 8 bits", count, bounds


def rounded(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors ``[N, D]`` in a few bits a number, the norm of what is lost and the scale, ``[N]`` each."""
    scale = vectors.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    rough = (vectors / scale).round() * scale
    return rough, (vectors - rough).norm(dim=1), scale[:, 0]


if __name__ == "__main__":
    main()
