"""Stage 1: what fused vectors keep of the neighbors that users go to, and whether depth per item means anything.

    python benchmarks/fusion.py --dataset Amazon_Scientific --data_path ../shared/data

For every way of fusion: seconds, the loss of held-out items, the permutation test of depth, and the share of users whose
validation item is among the 10 nearest (by cosine) of the last item of their training part. Nothing is trained on the
validation items, and test items are not read. Properties (`--text_vectors=by_column`, `--injection_epochs=30`, ...) change
the settings of every run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.config.property_values import OF_OUR_MODELS
from recbole_qbert.config.schema import MODEL
from recbole_qbert.data.atomic_files import read_rows
from recbole_qbert.data.item_features import ItemFeatures, read_item_list
from recbole_qbert.injection import structural_vectors
from recbole_qbert.injection.depth import DepthTest
from recbole_qbert.pipeline import stages
from recbole_qbert.pipeline.builder import SemanticIDBuilder
from recbole_qbert.pipeline.catalog import Catalog, stage_settings

PAPER = {"injection_gate": "paper", "injection_attention": "aligned", "injection_reconstruction": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "concatenation": {"fusion": "concatenation"},
    "the paper: random queries, Eq. 5, drawn gates": {**PAPER, "injection_query": "random"},
    "structural queries, Eq. 5, drawn gates": {**PAPER, "injection_query": "structural"},
    "from the concatenation, Eq. 5": {"injection_reconstruction": 0.0},
    "from the concatenation, Eq. 5, reconstruction": {},
}


def read_histories(path: Path) -> list[list[str]]:
    """Read the items of each user in time order, ties in file order."""
    rows: dict[str, list[tuple[float, str]]] = {}
    for _, (user, item, moment) in read_rows(path, ("user_id", "item_id", "timestamp")):
        rows.setdefault(user, []).append((float(moment), item))
    return [[item for _, item in sorted(seen, key=lambda pair: pair[0])] for seen in rows.values() if len(seen) >= 3]


def hit_at_10(vectors: np.ndarray, last: np.ndarray, following: np.ndarray) -> float:
    """Share of pairs whose second item is among the 10 nearest of the first, by cosine; ties count against it."""
    points = torch.nn.functional.normalize(torch.from_numpy(vectors).double(), dim=1)
    hits = 0
    for start in range(0, len(last), 512):
        here, target = last[start : start + 512], following[start : start + 512]
        scores = points[here] @ points.T
        scores[torch.arange(len(here)), here] = -2.0
        wanted = scores[torch.arange(len(here)), target]
        hits += int(((scores >= wanted[:, None] - 1e-12).sum(1) <= 10).sum())
    return hits / len(last)


def own_sequence(histories: Sequence[np.ndarray], items: int, width: int, validation: tuple[np.ndarray, np.ndarray]) -> None:
    """Print how far structural vectors know the histories that they are made of.

    The last pair of each training part is found more often than the pair into validation, if vectors know it from the user
    who holds it. What vectors of other users find of it is measured with a tenth of the users left out at a time.
    """
    users = np.array([user for user, history in enumerate(histories) if len(history) > 1])
    last = np.array([histories[user][-2:] for user in users]).T
    for title, left_out in (("all histories", False), ("each pair without one history", True)):
        vectors = structural_vectors.vectors(histories, items, width, 0, left_out)
        hits = hit_at_10(vectors, *last), hit_at_10(vectors, *validation)
        print(
            f"structure, {title}: hit@10 {hits[0]:.4f} of the last training pair, {hits[1]:.4f} into validation", flush=True
        )
    fold, share = np.random.default_rng(0).permutation(len(histories)) % 10, 0.0
    for number in range(10):
        others = [history for history, of_user in zip(histories, fold, strict=True) if of_user != number]
        here = fold[users] == number
        share += hit_at_10(structural_vectors.vectors(others, items, width, 0), *last[:, here]) * here.sum() / len(users)
    print(f"structure, of other users: hit@10 {share:.4f} of the last training pair", flush=True)


def measure(
    features: ItemFeatures, histories: Sequence[np.ndarray], values: dict[str, Any], seed: int
) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Fuse; return vectors, seconds and figures."""
    settings, started = stage_settings({**values, "seed": seed}), time.perf_counter()
    if settings.identifiers.fusion == "concatenation":
        fused = stages.concatenate(features, settings.injection.dim)
    else:
        fused = stages.fuse(features, histories, settings.injection, seed)
    return fused.vectors, time.perf_counter() - started, fused.report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True, type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[2026])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="ways of fusion (default: all)")
    for key in sorted(OF_OUR_MODELS):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    import yaml

    changes = {key: yaml.safe_load(value) for key in OF_OUR_MODELS if (value := arguments[key]) is not None}
    folder, name = arguments["data_path"] / arguments["dataset"], arguments["dataset"]
    sequences = [history[:-1] for history in read_histories(folder / f"{name}.inter")]  # test items are not read
    listed = folder / f"{name}.items.txt"
    items = tuple(read_item_list(listed)) if listed.exists() else tuple(sorted({i for h in sequences for i in h}))
    row = {item: number for number, item in enumerate(items)}
    histories = [np.array([row[item] for item in history[:-1]]) for history in sequences]
    last = np.array([history[-1] for history in histories])
    following = np.array([row[history[-1]] for history in sequences])
    values = {**read_properties(property_file(f"model/{MODEL}.yaml")), "fusion": "injection", "seed": 2026, **changes}
    with tempfile.TemporaryDirectory() as output:
        catalog = Catalog(name, folder, items, histories)
        features, figures = SemanticIDBuilder(catalog, stage_settings(values), Path(output)).features()
    print(f"{name}: {len(items)} items, {len(last)} users, {figures['modalities']}", flush=True)
    own_sequence(histories, len(items), values["injection_dim"], (last, following))
    for way in arguments["ways"]:
        for seed in arguments["seeds"]:
            vectors, seconds, report = measure(features, histories, {**values, **WAYS[way], **changes}, seed)
            print(f"{way}, seed {seed}: {seconds:.1f} s, hit@10 {hit_at_10(vectors, last, following):.4f}")
            if report.get("depth_test"):
                test = DepthTest(**report["depth_test"])
                print(
                    f"    epochs {report['epochs']} + {report['more_epochs']}, loss {min(report['held_out_loss']):.4f}; "
                    f"depths {[round(x, 2) for x in report['depth']]} of the catalog, "
                    f"{[round(x, 2) for x in test.share]} by the gates; loss by depth {[round(x, 3) for x in test.fixed]}"
                )
                print(f"    {test.sentence()}", flush=True)


if __name__ == "__main__":
    main()
