"""Figure 6 of the paper: text, image and fused vectors of items in one plane, and how far apart they are.

Text and image vectors are those that stage 1 attends to: projected into the width of the fused vector (Eq. 3). All are
scaled to length 1. A distance is the mean over items of the squared Euclidean distance, 2 - 2 x cosine: 0 where two vectors
point the same way, 2 where they have nothing in common. The paper prints an "average MSE" (0.6351 with dynamic, 0.6603 with
fixed depth) without its formula; these numbers are not to be compared with it, only with each other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from recbole_qbert.data import item_features as features
from recbole_qbert.injection.network import DynamicInjection
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.utils.io import write_json

METHODS = ("pca", "tsne")
FILE = "embedding.json"  # in the folder of a suite
SHOWN = 150  # items drawn; distances are of all


def vectors(identifiers: Path, features_folder: Path, dataset: str) -> dict[str, np.ndarray]:
    """Read the vectors of stage 1: those of each modality in the space of the fused ones, and the fused ones.

    Args:
        identifiers: folder of ``X.fused.npy``, ``X.injection.safetensors`` and ``X.sid``.
        features_folder: folder of ``X.items.txt`` and ``X.<modality>.npy``.
        dataset: ``X``.

    Returns:
        modality -> ``[N, D]`` float32 of length 1 in the order of the IDs, NaN for items without it; ``fused`` is the last.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: stage 1 was not run, or it is of other items.
    """
    tokenizer = Tokenizer.load(identifiers)
    network = tokenizer.fusion
    if not isinstance(network, DynamicInjection) or not network.project:
        raise ValueError(
            f"{identifiers}: stage 1 injected nothing here (no code set needs it, fusion is concatenation, or there are no "
            "features); run quantize with fusion: injection"
        )
    fused = features.open_matrix(identifiers / f"{dataset}.fused.npy")
    if len(fused) != len(tokenizer.ids.items):
        raise ValueError(
            f"{identifiers / dataset}.fused.npy has {len(fused)} rows for {len(tokenizer.ids.items)} items with an ID; "
            "run quantize again"
        )
    names = sorted(network.project, key=lambda name: ("text", "image", name).index(name))
    matrices = features.load(features_folder, dataset, tokenizer.ids.items, names, missing="mask")
    fused_space = {}
    with torch.no_grad():
        # With one vector an item and modality the query has no say; with several, new items' query weighs them here.
        given = {name: torch.from_numpy(matrix) for name, matrix in matrices.vectors.items()}
        present = {name: torch.from_numpy(mask) for name, mask in matrices.present.items()}
        query = network.id_vectors(torch.full((len(fused),), network.no_id), given, present)
        for name in names:
            there = matrices.present[name].any(1)
            aligned = network.align(query, network.shared(name, given[name]), present[name])
            fused_space[name] = F.normalize(aligned, dim=1).numpy()
            fused_space[name][~there] = np.nan
    fused_space["fused"] = F.normalize(torch.from_numpy(np.array(fused, dtype=np.float32)), dim=1).numpy()
    return fused_space


def distances(vectors_of: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | int]]:
    """Measure the distances of every two kinds of vectors.

    Args:
        vectors_of: kind -> ``[N, D]`` of length 1, NaN where an item has none.

    Returns:
        ``"text - image"`` -> ``mean`` over items that have both, ``other_items`` the same between vectors of different items
        (what the mean would be if nothing were aligned), ``items`` how many have both. Pairs that fewer than two items have
        are left out.
    """
    result: dict[str, dict[str, float | int]] = {}
    for (left, a), (right, b) in itertools.combinations(vectors_of.items(), 2):
        both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
        count = int(both.sum())
        if count < 2:
            continue
        one, two = a[both].astype(np.float64), b[both].astype(np.float64)
        own = float((one * two).sum())
        all_pairs = float(one.sum(0) @ two.sum(0))
        result[f"{left} - {right}"] = {
            "mean": 2 - 2 * own / count,
            "other_items": 2 - 2 * (all_pairs - own) / (count * (count - 1)),
            "items": count,
        }
    return result


def plane(vectors_of: Mapping[str, np.ndarray], method: str = "pca", shown: int = SHOWN, seed: int = 0) -> dict[str, Any]:
    """Place some items in the plane.

    Args:
        vectors_of: as for ``distances``.
        method: ``pca``, or ``tsne`` (which keeps neighbours together, and no distances).
        shown: how many items at most.
        seed: of the choice of items and of t-SNE.

    Returns:
        ``method``, ``axes`` (their names), ``points``: kind -> one ``[x, y]`` an item, ``None`` where it has no such vector.

    Raises:
        ValueError: unknown method, or fewer than three vectors.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    count = len(next(iter(vectors_of.values())))
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:shown])
    there = {kind: np.isfinite(matrix[rows]).all(1) for kind, matrix in vectors_of.items()}
    stacked = np.concatenate([matrix[rows][there[kind]] for kind, matrix in vectors_of.items()]).astype(np.float64)
    if len(stacked) < 3:
        raise ValueError(f"{len(stacked)} vectors are too few for a plane; there must be 3 or more")
    if method == "pca":
        from sklearn.decomposition import PCA

        reduction = PCA(2, svd_solver="full")
        flat = reduction.fit_transform(stacked)
        shares = reduction.explained_variance_ratio_
        axes = [
            f"{name} principal component ({share:.0%} of variance)"
            for name, share in zip(("1st", "2nd"), shares, strict=True)
        ]
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(stacked) - 1) / 3)
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(stacked)
        axes = ["t-SNE 1", "t-SNE 2"]
    places = iter(np.round(flat, 4).tolist())
    points = {kind: [next(places) if real else None for real in there[kind]] for kind in vectors_of}
    return {"method": method, "axes": axes, "points": points}


def of_cell(trial: Path) -> dict[str, np.ndarray]:
    """Read the ``vectors`` of a finished trial (``cell.json``, ``config.json``, the folder of its IDs).

    Raises:
        FileNotFoundError: the trial keeps no semantic IDs, or its features are gone.
        ValueError: as ``vectors``.
    """
    dataset = json.loads((trial / "config.json").read_text(encoding="utf-8"))["dataset"]
    result = json.loads((trial / "cell.json").read_text(encoding="utf-8"))
    made = (trial / str(result.get("sid"))).parent
    if not (made / f"{dataset}.quantizer.safetensors").is_file():
        raise FileNotFoundError(
            f"{trial.parent.name}/{trial.name} keeps no {dataset}.quantizer.safetensors: no semantic IDs"
        )
    folder = (result.get("identifiers") or {}).get("features", {}).get("folder")
    return vectors(made, Path(folder) if folder else made, dataset)


def measure(rows: Mapping[str, Sequence[Path]], method: str = "pca", shown: int = SHOWN) -> dict[str, Any]:
    """Measure Figure 6 for the models of a suite.

    Args:
        rows: model -> its finished trials, one per seed.
        method: as for ``plane``.
        shown: as for ``plane``.

    Returns:
        model -> what ``plane`` returns of the first trial, ``seeds``, and ``distances``: pair -> ``mean`` and
        ``other_items`` (over seeds), ``sd`` (of the mean, ``None`` of one seed), ``items``. A model that cannot be measured
        has a ``reason`` instead.
    """
    result: dict[str, Any] = {}
    for row, trials in rows.items():
        try:
            of_trials = [of_cell(trial) for trial in trials]
            if not of_trials:
                raise ValueError("no finished trial")
            result[row] = {
                **plane(of_trials[0], method, shown),
                "seeds": len(of_trials),
                "distances": _over_seeds(of_trials),
            }
        except (OSError, ValueError) as error:
            result[row] = {"reason": str(error)}
    return result


def write(suite: Path, rows: Mapping[str, Sequence[Path]], method: str = "pca") -> dict[str, Any]:
    """Write what ``measure`` returns as ``embedding.json`` into the folder of a suite, for its report.

    Args:
        suite: folder of the suite.
        rows: as for ``measure``.
        method: as for ``plane``.
    """
    measured = measure(rows, method)
    write_json(suite / FILE, measured)
    return measured


def table(measured: Mapping[str, Any]) -> str:
    """Write the distances as a Markdown table."""
    pairs = list(dict.fromkeys(pair for values in measured.values() for pair in values.get("distances", {})))
    lines = ["| squared distance | " + " | ".join(pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for row, values in measured.items():
        if "reason" in values:
            lines.append(f"| {row} | " + " | ".join([f"not measured: {values['reason']}", *[""] * (len(pairs) - 1)]) + " |")
            continue
        cells = [values["distances"].get(pair) for pair in pairs]
        lines.append(f"| {row} | " + " | ".join(_cell(cell) if cell else "" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(distance: Mapping[str, Any]) -> str:
    spread = "" if distance["sd"] is None else f" ({distance['sd']:.4f})"
    return f"{distance['mean']:.4f}{spread}; different items {distance['other_items']:.4f}"


def _over_seeds(of_trials: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, float | int | None]]:
    several = [distances(one) for one in of_trials]
    result: dict[str, dict[str, float | int | None]] = {}
    for pair in several[0]:
        of_pair = [one[pair] for one in several if pair in one]
        means = [one["mean"] for one in of_pair]
        result[pair] = {
            "mean": float(np.mean(means)),
            "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
            "other_items": float(np.mean([one["other_items"] for one in of_pair])),
            "items": of_pair[0]["items"],
        }
    return result
