"""Top-k over large catalogs: recbole_qbert.retrieval.index beside a dense float32 product and faiss's flat index.

    python benchmarks/ranking.py --items 10000 100000 1000000 10000000 --users 1 32 256 --codes 4 8 --json ranking.json
    python benchmarks/ranking.py --items 1000000 --users 1 --checkpoint saved/QBERT4Rec.pth --json trained.json

Ways: `chunked`, `merged`, `pruned` (recbole_qbert.retrieval.index), `vectors` (DenseIndex: what a network with
`use_item_embedding: true` takes), `dense` (float32 product of all items, then torch.topk; 1 GB of scores at a time)
and `faiss` (IndexFlatIP, if it is installed), which share one matrix. They take turns in every round;
milliseconds are medians, ratios medians of the rounds' ratios. With one thread (--threads has another number), both are of
processor time, so that other work on the machine counts less. Every answer is checked: `vectors`, `merged` and
`pruned` against scoring everything and sorting it, the latter two for more than a million items against `chunked`.

Tables of code scores: `flat` has normal entries, all levels alike (the worst case of pruning: nothing is certain until all
codes are seen); `peaked` has levels that matter less and less (x 0.6) and heavy tails; `trained` comes from a checkpoint of
a model with `use_item_embedding: false`, for users of its test set. The codes are uniform at random, but for `trained`:
there every item is a real one, the first half of each of its IDs kept and the rest drawn from what real items have at that
level.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.retrieval.index import DenseIndex, ItemIndex
from recbole_qbert.sequence import scoring
from recbole_qbert.utils.environment import ratio, take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only
from benchmarks import facts

SCORES_AT_ONCE = 1 << 28  # of the plain dense product: 1 GB
CODES = 256
ID_LEVELS = 4  # levels of one ID; more codes are several IDs side by side


def main() -> None:
    """Measure every combination of the options and write one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--codes", type=int, nargs="+", default=[4, 8], help="levels; a checkpoint has its own number")
    parser.add_argument("--tables", nargs="+", choices=["flat", "peaked"], default=["flat", "peaked"])
    parser.add_argument("--checkpoint", type=Path, help="tables and codes of a trained model instead")
    parser.add_argument("--vectors_of", type=Path, help="vectors and states of a trained model with item embeddings instead")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--width", type=int, default=64, help="of the dense vectors")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=["chunked", "merged", "pruned", "vectors", "dense", "faiss"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    real = from_checkpoint(args.checkpoint, max(args.users)) if args.checkpoint else None
    args.parts, args.states = parts_from_checkpoint(args.vectors_of) if args.vectors_of else (None, None)
    for items in args.items:
        vectors, search = dense_rivals(items, args)
        if vectors is not None and args.parts is not None:
            fill(vectors, *args.parts)
        for levels in [real[1].shape[1]] if real else args.codes:
            codes = grown(real[1], items) if real else draw_codes(items, levels)
            size = real[0].shape[2] if real else CODES
            indexes = indexes_of(codes, size, args)
            for users in args.users:
                for kind in ["trained"] if real else args.tables:
                    tables = real[0][:users] if real else draw_tables(kind, users, levels)
                    at = {"items": items, "users": len(tables), "codes": levels, "tables": kind}
                    measure(at, tables, codes, indexes, vectors, search, args, rows, ratios)
                    if args.json:
                        options = {key: value for key, value in vars(args).items() if key not in ("parts", "states")}
                        facts.write(args.json, options, rows, ratios)


def measure(
    at: dict[str, Any],
    tables: Tensor,
    codes: Tensor,
    indexes: dict[str, ItemIndex],
    vectors: Tensor | None,
    search: Callable[[Tensor, int], Any] | None,
    args: argparse.Namespace,
    rows: list[dict[str, Any]],
    ratios: dict[str, float],
) -> None:
    """Time all ways on one question, check them, and add their rows and ratios."""
    equal = check(tables, codes, indexes, args.k)
    state = torch.randn(len(tables), args.width) if args.states is None else args.states[: len(tables)]
    ways: dict[str, Callable[[], Any]] = {
        name: functools.partial(index.top_k, tables, args.k, threads=args.threads) for name, index in indexes.items()
    }
    held = {name: index.nbytes for name, index in indexes.items()}
    if vectors is not None and "vectors" in args.ways:
        dense = DenseIndex(vectors)
        equal["vectors"] = check_vectors(dense, state, args.k)
        held["vectors"] = dense.nbytes
        ways["vectors"] = functools.partial(dense.top_k, state, args.k, threads=args.threads)
    if vectors is not None and "dense" in args.ways:
        ways["dense"] = functools.partial(dense_top_k, state, vectors, args.k)
    if search is not None:
        ways["faiss"] = functools.partial(search, state, args.k)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seconds = take_turns(ways, args.rounds, clock=clock)
    print("  ".join(f"{key} {value}" for key, value in at.items()), flush=True)
    for name, times in seconds.items():
        row = at | {"way": name, "ms_per_user": statistics.median(times) / at["users"] * 1e3}
        row |= {"ms_per_user_best": min(times) / at["users"] * 1e3, "rounds": args.rounds, "equal": equal.get(name)}
        row["catalogue_mb"] = held.get(name, 4 * args.width * at["items"]) / 1e6
        rows.append(row)
        print(f"  {name:<14}{row['ms_per_user']:>12.3f} ms a user   {row['catalogue_mb']:>10.1f} MB   equal: {row['equal']}")
    ours = [name for name in seconds if name in ("merged", "pruned", "vectors")]
    for slow in ("dense", "faiss"):
        for fast in ours if slow in seconds else ():
            name = f"{slow}/{fast}, " + ", ".join(f"{key} {value}" for key, value in at.items())
            ratios[name] = ratio(seconds[slow], seconds[fast])
            print(f"  {slow}/{fast}: {ratios[name]:.1f}", flush=True)


def indexes_of(codes: Tensor, size: int, args: argparse.Namespace) -> dict[str, ItemIndex]:
    """One index a method."""
    methods = [name for name in ("chunked", "merged", "pruned") if name in args.ways]
    return {method: ItemIndex(codes, size, method=method) for method in methods}


def check(tables: Tensor, codes: Tensor, indexes: dict[str, ItemIndex], k: int) -> dict[str, bool]:
    """Whether each way gives the right items with the right scores, in order, for the first two users."""
    some = tables[:2]
    if len(codes) <= 1_000_000:
        wanted = scoring.top_k(scoring.code_scores(some, codes), k)
    else:
        wanted = ItemIndex(codes, tables.shape[2], method="chunked").top_k(some, k)
    found = {name: index.top_k(some, len(wanted[0][0])) for name, index in indexes.items()}
    equal = {name: all(map(torch.equal, answer, wanted)) for name, answer in found.items()}
    if not all(equal.values()):
        raise AssertionError(f"not all ways agree: {equal}")
    return equal


def check_vectors(index: DenseIndex, state: Tensor, k: int) -> bool:
    """Whether the whole batch gets what scoring everything by the definition gives its first two users, to the bit."""
    found = [part[:2] for part in index.top_k(state, min(k, index.items))]
    if not all(map(torch.equal, found, scoring.top_k(scoring.dot_scores(state[:2], index.vectors), k))):
        raise AssertionError("vectors: not what scoring everything gives")
    return True


def dense_top_k(state: Tensor, vectors: Tensor, k: int) -> Tensor:
    """Indices by the plain way: the whole product, a part of the users at a time, then ``torch.topk``."""
    parts = state.split(max(1, SCORES_AT_ONCE // len(vectors)))
    return torch.cat([(part @ vectors.T).topk(min(k, len(vectors))).indices for part in parts])


def dense_rivals(items: int, args: argparse.Namespace) -> tuple[Tensor | None, Callable[[Tensor, int], Any] | None]:
    """Random item vectors, and faiss's search over the same memory."""
    if "faiss" in args.ways:
        try:
            import faiss
        except ImportError:
            print("faiss-cpu is not installed: left out")
        else:
            faiss.omp_set_num_threads(args.threads)
            index = faiss.IndexFlatIP(args.width)
            index.codes.resize(4 * items * args.width)
            index.ntotal = items
            vectors = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), items * args.width)).view(items, args.width)
            return vectors.normal_(), lambda state, k: index.search(state.numpy(), k)
    if {"dense", "vectors"} & set(args.ways):
        return torch.randn(items, args.width), None
    return None, None


def draw_codes(items: int, levels: int) -> Tensor:
    """``[N, K]`` uint8, uniform."""
    return torch.randint(0, CODES, (items, levels), dtype=torch.uint8, generator=torch.Generator().manual_seed(levels))


def draw_tables(kind: str, users: int, levels: int) -> Tensor:
    """``[B, K, M]`` float32."""
    tables = torch.randn(users, levels, CODES, generator=torch.Generator().manual_seed(users))
    if kind == "flat":
        return tables
    level = torch.arange(levels) % ID_LEVELS
    return tables * tables.abs() * (0.6**level)[None, :, None]


def grown(codes: Tensor, items: int) -> Tensor:
    """A larger catalog in the likeness of a real one, ``[N, K]`` int16."""
    generator = torch.Generator().manual_seed(0)
    larger = codes[torch.randint(len(codes), (items,), generator=generator)]
    for level in range(codes.shape[1]):
        if level % ID_LEVELS >= ID_LEVELS // 2:
            drawn = codes[torch.randint(len(codes), (items,), generator=generator), level]
            larger[:, level] = torch.where(larger[:, level] < 0, larger[:, level], drawn)
    return larger


@torch.no_grad()
def from_checkpoint(path: Path, users: int) -> tuple[Tensor, Tensor]:
    """Tables ``[B, K, M]`` of the first test users of a trained QBERT4Rec, and the codes ``[N, K]`` of its items."""
    import recbole_qbert

    _, model, _, _, _, test_data = recbole_qbert.load_data_and_model(path)
    network = model.eval().network
    if network.item_embedding is not None:
        raise SystemExit(f"{path} was trained with use_item_embedding: true; its scores are not those of its codes alone")
    state = states_of(model, test_data)[:users]
    return torch.einsum("bd,kmd->bkm", state, network.codebook), network.codes[1:]


@torch.no_grad()
def parts_from_checkpoint(path: Path) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What the codes and what the embeddings of a trained QBERT4Rec's items add to their vectors, and its users' states."""
    import recbole_qbert

    _, model, _, _, _, test_data = recbole_qbert.load_data_and_model(path)
    network = model.eval().network
    if network.item_embedding is None:
        raise SystemExit(f"{path} was trained with use_item_embedding: false; its codes are compared with --checkpoint")
    own = network.item_embedding.detach()[1:]
    return (network.item_table()[1:] - own, own), states_of(model, test_data)


def states_of(model: Any, test_data: Any) -> Tensor:
    """States ``[B, D]`` of all test users."""
    network, states = model.network, []
    for interaction, *_ in test_data:
        sequences, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
        views = [network.states(sequences, lengths, view) for view in network.config.ranking_views]
        states.append(torch.stack(views).mean(0))
    return torch.cat(states)


def fill(vectors: Tensor, by_code: Tensor, own: Tensor) -> None:
    """Make a catalog in the likeness of a real one: the codes of one item and the embedding of another."""
    generator = torch.Generator().manual_seed(0)
    for part in vectors.split(1 << 16):
        codes, owner = (torch.randint(len(own), (len(part),), generator=generator) for _ in range(2))
        part.copy_(by_code[codes] + own[owner])


if __name__ == "__main__":
    main()
