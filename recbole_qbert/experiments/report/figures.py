"""Choose the plots of a suite: learning curves, seeds, sweep, lines, embeddings in a plane, fusion depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_qbert.experiments.report import plots
from recbole_qbert.experiments.report.plots import Curve, Plot
from recbole_qbert.experiments.report.suite_reader import SETTINGS, FinishedTrial, Suite
from recbole_qbert.experiments.statistics import Spread


def metric_name(metric: str) -> str:
    """Write ``hit@10`` as ``HR@10``, as the paper and the documents do."""
    return metric.upper().replace("HIT@", "HR@")


def seeds(suite: Suite) -> list[Plot]:
    """Plot every seed of every model."""
    if suite.spec["sweep"] or not suite.rows:
        return []
    metric = "ndcg@10" if "ndcg@10" in suite.spec["metrics"] else suite.spec["metrics"][-1]
    rows = {
        row: {
            title: [float(trial.result["test"][setting][metric]) for trial in trials] for setting, title in SETTINGS.items()
        }
        for row, trials in suite.by_row()
    }
    caption = f"Test {metric_name(metric)} of every seed (dots) and the mean over seeds (strokes)."
    return [plots.seeds("seeds", caption, rows, f"test {metric_name(metric)}")] if rows else []


def sweep(suite: Suite) -> list[Plot]:
    """Plot metrics over the values of the setting that varies (figures 3 to 5)."""
    label = suite.spec["sweep"]
    rows = [line for line in suite.rows if line["figures"] and line["name"] == line["spec"]]
    if not label or not rows:
        return []
    made = []
    values = [_number(line["name"].partition("=")[2]) for line in rows]
    for metric in [name for name in ("hit@10", "ndcg@10") if name in suite.spec["metrics"]] or suite.spec["metrics"][:2]:
        spreads = {
            title: [Spread(**line["figures"][setting][metric]) for line in rows] for setting, title in SETTINGS.items()
        }
        name = metric_name(metric)
        caption = f"Test {name} over {label}: mean over seeds; bars are one standard deviation."
        made.append(plots.sweep(f"sweep_{metric.replace('@', '_')}", caption, values, spreads, label, f"test {name}"))
    return made


def lines(suite: Suite) -> list[Plot]:
    """Plot the models named ``<value>, <line>`` line by line over the values that all lines have (few users)."""
    label = suite.spec.get("lines")  # which files of earlier versions do not have
    if not label:
        return []
    found: dict[str, dict[str, Spread]] = {}
    for row in suite.rows:
        value, _, line = row["name"].partition(", ")
        if row["figures"] and line:
            found.setdefault(line, {})[value] = Spread(**row["figures"]["history_excluded"]["ndcg@10"])
    values = [value for value in next(iter(found.values()), {}) if all(value in line for line in found.values())]
    spreads = {line: [by_value[value] for value in values] for line, by_value in found.items()}
    caption = f"Test NDCG@10 over {label}, history left out: mean over seeds; bars are one standard deviation."
    return [plots.sweep("lines", caption, values, spreads, label, "test NDCG@10")] if values else []


def curves(suite: Suite) -> list[Plot]:
    """Plot validation by epoch and by seconds of training."""
    by_epoch: dict[str, list[Curve]] = {}
    by_time: dict[str, list[Curve]] = {}
    for trial in suite.trials:
        points = _points(trial.result.get("curve") or ())
        if points:
            stages, epochs, seconds, scores = zip(*points, strict=True)
            by_epoch.setdefault(trial.row, []).append(Curve(epochs, scores, stages))
            by_time.setdefault(trial.row, []).append(Curve(seconds, scores, stages))
    if not by_epoch:
        return []
    how = (
        "one line a seed, its best epoch marked; stages before the last (pretraining) are pale. Each row is validated under "
        "the rule by which its epoch is chosen, which the notes of the tables name"
    )
    label = "validation NDCG@10"
    return [
        plots.learning_curves("curves_epochs", f"Validation by epoch: {how}.", by_epoch, "epoch", label),
        plots.learning_curves(
            "curves_seconds", "The same by time: training and validation together.", by_time, "seconds", label
        ),
    ]


def depth(suite: Suite) -> list[Plot]:
    """Plot Figure 7; rows whose shares are the same (they have the same IDs) are one."""
    rows = same_together({row: [depth_of(trial) for trial in trials if depth_of(trial)] for row, trials in suite.by_row()})
    caption = "Share of items by layers of fusion; error bars are one standard deviation over seeds."
    return [plots.depth("fusion_depth", caption, rows)] if rows else []


def depth_of(trial: FinishedTrial) -> list[float]:
    """Return the share of items at depth 1, 2, … of a finished trial; empty where stage 1 did not run."""
    shares = ((trial.result.get("identifiers") or {}).get("injection") or {}).get("depth") or []
    return [float(share) for share in shares] if any(shares) else []


def depth_test_of(trial: FinishedTrial) -> dict[str, Any] | None:
    """Return the permutation test of depth of a finished trial, as `injection.depth.DepthTest` has it."""
    return ((trial.result.get("identifiers") or {}).get("injection") or {}).get("depth_test")


def same_together(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Join the names of rows with the same values by commas; leave out rows without any."""
    groups: dict[str, list[Any]] = {}
    for row, known in rows.items():
        same = next((name for name, other in groups.items() if other == known), None)
        if same is not None:
            groups = {f"{name}, {row}" if name == same else name: other for name, other in groups.items()}
        elif known:
            groups[row] = known
    return groups


def embeddings(suite: Suite) -> list[Plot]:
    """Plot Figure 6."""
    rows = {row: values for row, values in suite.embedding.items() if "points" in values}
    if not rows:
        return []
    first = next(iter(rows.values()))
    method = {"pca": "principal components", "tsne": "t-SNE, which keeps neighbours but not distances"}[first["method"]]
    shown = len(next(iter(first["points"].values())))
    caption = (
        f"Text, image and fused vectors of {shown} items, drawn at random, in one plane ({method}); grey lines join an "
        "item's fused vector with its text and its image. Each panel has a plane of its own."
    )
    return [plots.planes("embeddings", caption, rows)]


#: What a report draws, each where the suite has it.
ALL = (seeds, sweep, lines, curves, depth, embeddings)


def _points(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float, float]]:
    """Return ``(stage, epoch, seconds, score)`` of validated epochs; epochs and seconds are counted over all stages."""
    points = []
    stages: list[Any] = []
    seconds = 0.0
    for number, point in enumerate(curve, 1):
        if point["stage"] not in stages:
            stages.append(point["stage"])
        seconds += point.get("seconds") or 0.0
        if point.get("valid_score") is not None:
            points.append((len(stages) - 1, float(number), seconds, float(point["valid_score"])))
    return points


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
