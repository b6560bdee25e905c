"""New items: how well a trained model ranks items that it has never seen, known by their features only.

    python benchmarks/cold.py --dataset Amazon_Scientific --data_path ../shared/data --max_length 20 --json cold.json

Protocol. A share of the items is held out with all their interactions. The pipeline is trained on what is left. The held-
out items get semantic IDs (`Tokenizer.add`) and neighbours (`newcomers`) from their features, with every weight as it is.
Then each interaction with a held-out item that has items left before it is a question: which item comes next? It is ranked
among all held-out items (`among new`) and among all items (`among all`), ties against the model. Baselines know the same
features: the cosine of the item's text and image vectors with those of the history (its mean, and its last item), random
order, and popularity (no new item has any). Everything that is chosen, is chosen with another set of held-out items
(`--choose`).
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import recbole_qbert  # noqa: F401  registers QBERT4Rec
from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import read_rows
from recbole_qbert.experiments.statistics import Spread, gains
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.sequence.scoring import rank_of
from recbole_qbert.serving import cold_start
from recbole_qbert.utils.io import write_json
from recbole_qbert.utils.metrics import metrics_from_ranks

CARE = {"eval_batch_size": 512, "stopping_step": 5, "metric_decimal_place": 6, "show_progress": False, "state": "ERROR"}


def read_histories(path: Path) -> dict[str, list[str]]:
    """Items of each user in time order, ties in file order."""
    rows: dict[str, list[tuple[float, str]]] = {}
    for _, (user, item, moment) in read_rows(path, ("user_id", "item_id", "timestamp")):
        rows.setdefault(user, []).append((float(moment), item))
    return {name: [item for _, item in sorted(seen, key=lambda pair: pair[0])] for name, seen in rows.items()}


def write_warm(source: Path, dataset: str, target: Path, cold: set[str]) -> None:
    """The data set without the held-out items; features are the same files."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob(f"{dataset}.*"):
        if path.name.endswith((".npy", ".items.txt", ".features.json")):
            shutil.copyfile(path, target / path.name)
    fields = ("user_id", "item_id", "timestamp")
    with open(target / f"{dataset}.inter", "w", encoding="utf-8") as new:
        new.write("user_id:token\titem_id:token\ttimestamp:float\n")
        rows = (cells for _, cells in read_rows(source / f"{dataset}.inter", fields))
        new.writelines("\t".join(cells) + "\n" for cells in rows if cells[1] not in cold)


def questions(histories: Mapping[str, Sequence[str]], cold: set[str], longest: int) -> list[tuple[list[str], str]]:
    """(items left before it, held-out item) of every interaction with a held-out item that has some."""
    asked = []
    for items in histories.values():
        for place, item in enumerate(items):
            before = [other for other in items[:place] if other not in cold]
            if item in cold and before:
                asked.append((before[-longest:], item))
    return asked


@torch.no_grad()
def model_scores(
    run: experiment.Run,
    folder: Path,
    new: features.ItemFeatures,
    old: features.ItemFeatures | None,
    asked: list[tuple[list[str], str]],
) -> Any:
    """``([Q, N_new], [Q, N_old])`` scores of new and old items, history left out; by codes alone without ``old``."""
    extended = Tokenizer.load(folder).add(new)
    tokens = run.valid_data._dataset.item_tokens()
    codes = torch.full((1 + len(tokens) + len(new.items), extended.codes.shape[1]), -1)
    codes[1:] = torch.from_numpy(extended.aligned([*tokens, *new.items], "the extended vocabulary").astype("int64"))
    row_of = {token: row for row, token in enumerate(tokens, 1)}
    nearest = weights = None
    if old is not None:
        found = cold_start.nearest_neighbors(new, old)
        nearest = torch.tensor([[row_of[item] for item in row] for row in found.nearest.tolist()])
        weights = torch.from_numpy(found.weights)
    network = run.model.network.with_items(codes, nearest, weights)
    parts = []
    for start in range(0, len(asked), 256):
        rows = [[row_of[item] for item in before] for before, _ in asked[start : start + 256]]
        lengths = torch.tensor([len(row) for row in rows])
        sequences = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for number, row in enumerate(rows):
            sequences[number, : len(row)] = torch.tensor(row)
        scores = network.scores(sequences, lengths)
        parts.append(scores.scatter(1, sequences, -torch.inf))
    scores = torch.cat(parts)
    return scores[:, 1 + len(tokens) :], scores[:, 1 : 1 + len(tokens)]


def neighbour_scores(
    everything: features.ItemFeatures, new: Sequence[str], old: Sequence[str], asked: list[tuple[list[str], str]], last: bool
) -> Any:
    """Cosine of text and image with the history's: the mean over its items, or its last item."""
    blocks = []
    for name, vectors in everything.vectors.items():
        mean = vectors.sum(1) / np.maximum(everything.present[name].sum(1, keepdims=True), 1)
        blocks.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
    table = torch.from_numpy(np.concatenate(blocks, 1))
    row_of = {item: row for row, item in enumerate(everything.items)}
    query = torch.stack([table[[row_of[i] for i in (before[-1:] if last else before)]].mean(0) for before, _ in asked])
    scores = query @ table.T
    for number, (before, _) in enumerate(asked):
        scores[number, [row_of[item] for item in before]] = -torch.inf
    return scores[:, [row_of[item] for item in new]], scores[:, [row_of[item] for item in old]]


def figures(scores: Any, asked: list[tuple[list[str], str]], new: Sequence[str]) -> dict[str, Any]:
    """HR and NDCG among the new items and among all."""
    among_new, old = scores
    place = {item: number for number, item in enumerate(new)}
    target = torch.tensor([place[item] for _, item in asked])
    result: dict[str, Any] = {}
    for name, table in (("among_new", among_new), ("among_all", torch.cat([among_new, old], 1))):
        rank = rank_of(table, target).numpy()
        found = metrics_from_ranks(rank, (1, 5, 10, 50))
        result[name] = {key: found[key] for key in ("hit@10", "ndcg@10", "hit@50")}
        result[f"{name}_ranks"] = rank.tolist()
    return result


def ahead(results: Sequence[Mapping[str, Any]], model: str, other: str, setting: str) -> np.ndarray:
    """By how much NDCG@10 of one is higher than of the other; ``[seeds]``, each with items and a training of its own."""
    means = [[gains([r["models"][name][f"{setting}_ranks"]]).mean() for name in (model, other)] for r in results]
    return np.array([one - two for one, two in means])


def two_sided(by: np.ndarray, new: int, old: int) -> float:
    """p of a mean over choices of held-out items being 0; NaN of one choice.

    The choices are of one set of items and overlap in what they train on, so they are not independent: the variance of the
    mean is corrected by the ratio of held-out to other items (Nadeau and Bengio 2003, equation 9).
    """
    if len(by) < 2:
        return float("nan")
    error = np.sqrt(by.var(ddof=1) * (1 / len(by) + new / old))
    return float(2 * stats.t.sf(abs(by.mean()) / error, len(by) - 1))


def one(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One choice of held-out items."""
    source = Path(args.data_path) / args.dataset
    histories = read_histories(source / f"{args.dataset}.inter")
    items = sorted({item for seen in histories.values() for item in seen})
    order = np.random.default_rng(seed).permutation(len(items))
    held = [items[row] for row in order[: int(args.share * len(items))]]
    half = len(held) // 2
    cold = held[:half] if args.choose else held[half:]
    folder = (args.output / f"{args.dataset}-{seed}").resolve()
    warm = folder / "data" / args.dataset
    write_warm(source, args.dataset, warm, set(held))
    settings = {**CARE, "seed": seed, "MAX_ITEM_LIST_LENGTH": args.max_length, **args.set}
    settings |= {"checkpoint_dir": str(folder), "semantic_id_dir": str(folder / "ids")}
    started = time.perf_counter()
    with experiment.working_directory(folder):
        run = experiment.train(experiment.configure("QBERT4Rec", args.dataset, folder / "data", settings))
    seconds = time.perf_counter() - started
    modalities = features.available(source, args.dataset)
    new = features.load(source, args.dataset, cold, modalities, "mask")
    asked = questions(
        {u: [i for i in seen if i not in set(held) - set(cold)] for u, seen in histories.items()}, set(cold), 20
    )
    old = run.valid_data._dataset.item_tokens()
    asked = [(kept, item) for before, item in asked if (kept := [i for i in before if i in set(old)])]
    everything = features.load(source, args.dataset, [*cold, *old], modalities, "mask")
    random = torch.Generator().manual_seed(seed)
    described = features.load(source, args.dataset, old, modalities, "mask")
    tables = {
        "QBERT4Rec": model_scores(run, folder / "ids", new, described, asked),
        "QBERT4Rec, by codes alone": model_scores(run, folder / "ids", new, None, asked),
        "nearest to the history's mean": neighbour_scores(everything, cold, old, asked, last=False),
        "nearest to the last item": neighbour_scores(everything, cold, old, asked, last=True),
        "random": tuple(torch.rand(len(asked), n, generator=random) for n in (len(cold), len(old))),
        "popularity": (torch.zeros(len(asked), len(cold)), torch.ones(len(asked), len(old))),
    }
    result = {
        "seed": seed,
        "questions": len(asked),
        "new": len(cold),
        "old": len(old),
        "valid": run.valid,
        "seconds": seconds,
    }
    return result | {"models": {name: figures(scores, asked, cold) for name, scores in tables.items()}}


def main() -> None:
    """Run every seed, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True, type=lambda p: str(Path(p).resolve()))
    parser.add_argument(
        "--share", type=float, default=0.2, help="share of items held out; half to choose with, half to report"
    )
    parser.add_argument("--choose", action="store_true", help="report the half that is for choosing")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(2026, 2036)))
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of properties")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/cold"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    results = [one(args, seed) for seed in args.seeds]
    print(f"{sum(r['questions'] for r in results)} questions, {results[0]['new']} new items a seed, {len(results)} seeds")
    for name in results[0]["models"]:
        cells = []
        for setting in ("among_new", "among_all"):
            for key in ("hit@10", "ndcg@10"):
                known = Spread.of(r["models"][name][setting][key] for r in results)
                cells.append(f"{setting} {key} {known.mean:.4f}" + ("" if known.sd is None else f" ({known.sd:.4f})"))
        print(f"{name:<30} " + "  ".join(cells))
    for setting in ("among_new", "among_all"):
        for other in (name for name in results[0]["models"] if name.startswith("nearest")):
            by = ahead(results, "QBERT4Rec", other, setting)
            p = two_sided(by, results[0]["new"], results[0]["old"])
            seeds = f"ahead with {(by > 0).sum()} of {len(by)} seeds"
            print(f"{setting}: QBERT4Rec - {other}: {by.mean():+.4f}, {seeds}, p {p:.4f}")
    if args.json:
        write_json(args.json, {"settings": args.set, "share": args.share, "results": results})


if __name__ == "__main__":
    main()
