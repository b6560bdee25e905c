"""Rows against rows: means and spread over seeds, paired tests, the paper's figures beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recbole_qbert.experiments.statistics import Paired, Spread, gains, paired
from recbole_qbert.experiments.suites import suite_spec
from recbole_qbert.experiments.suites.suite_spec import ModelSpec
from recbole_qbert.experiments.suites.trials import RunPlan, Trial


@dataclass(frozen=True)
class ResultRow:
    """A line of the table.

    Attributes:
        name: of ``spec.lines``: the row's, with ``+ prior`` behind it where the co-occurrence prior is added.
        row: the suite's row.
        model: its model.
        tuned: where a file of the ``tune`` command was used, out of how many trials, on which data set, and of which row if
            of another; else empty.
        seeds: that have a result.
        asked: that were asked for.
        figures: setting -> metric -> spread; empty where no seed has a result.
        tests: setting -> test against ``Comparison.against``; none of that row itself, or of other test users.
        depth: share of items that end after each layer of stage 1, mean over seeds; ``None`` without stage 1.
        parameters: of the model, frozen ones, too.
        items: that were ranked.
        users: that were tested.
        epochs: mean over seeds, of the last stage.
        revisions: of the code that its cells were run with, where known.
        published: the paper's figures of the row, by metric.
        failed: seed -> reason.
        impossible: why the row cannot be run on this data set.
        note: of the suite file.
        earlier: of an earlier table, which had more seeds than there are here.
        as_asked: its cells have the configuration that is asked for now; of an earlier line that is not sure.
        key: of its cells' configuration and data; empty in tables of before it was kept.
        validated: of ``spec.EVALUATIONS``, by which epochs and prior were chosen; empty in such tables.
        kept: properties that were given for all rows, and have the row's own value here, or in one of its stages.
        without_prior: seeds whose results lack the prior that a line below this one is of.
        unknown: properties that were given for all rows, and mean nothing to the row's model.
        capped: seeds that ran all of the epochs, if several, that the property ``epochs`` allows.
    """

    name: str
    row: str
    model: str
    tuned: str = ""
    seeds: tuple[int, ...] = ()
    asked: int = 0
    figures: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)
    tests: Mapping[str, Paired] = field(default_factory=dict)
    depth: Sequence[float] | None = None
    parameters: int | None = None
    items: int | None = None
    users: int | None = None
    epochs: float | None = None
    revisions: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    impossible: str | None = None
    note: str = ""
    earlier: bool = False
    as_asked: bool = True
    key: str = ""
    validated: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)
    without_prior: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    capped: tuple[int, ...] = ()

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> ResultRow:
        """A line of an earlier ``table.json``."""
        figures = {
            setting: {metric: Spread(**spread) for metric, spread in metrics.items()}
            for setting, metrics in known["figures"].items()
        }
        tests = {setting: Paired(**test) for setting, test in known["tests"].items()}
        lists = {n: tuple(known.get(n, ())) for n in ("seeds", "revisions", "without_prior", "unknown", "capped")}
        failed = {int(seed): reason for seed, reason in known["failed"].items()}
        return cls(**{**known, **lists, "figures": figures, "tests": tests, "failed": failed, "earlier": True})


@dataclass(frozen=True)
class Comparison:
    """The table: what was run, ``copied``, the paper's rows that were not (row -> metric -> number), what was ``given``."""

    suite: str
    title: str
    paper: str
    dataset: str
    metrics: tuple[str, ...]
    against: str
    sources: tuple[str, ...]
    lines: tuple[ResultRow, ...]
    copied: Mapping[str, Mapping[str, float]]
    given: Mapping[str, Any] = field(default_factory=dict)


def compare(plan: RunPlan) -> Comparison:
    """Read the finished cells of a suite; the same cells give the same comparison, whenever they were run."""
    suite, known = plan.suite, suite_spec.published(plan.suite.name, plan.dataset)
    cells: dict[str, list[Trial]] = {}
    for cell in plan.shown:
        cells.setdefault(cell.row.name, []).append(cell)
    other, its_prefix = suite_spec.lines(suite.rows).get(suite.against, ("", ""))
    opponents = {} if _earlier(plan, other, cells) else _users(cells.get(other, []), its_prefix)
    lines: list[ResultRow] = []
    for row in suite.rows:
        kept = _kept(row, plan.given)
        common: dict[str, Any] = {"row": row.name, "model": row.model, "note": row.note, "kept": kept}
        common["published"] = known.get(row.name, {})
        before = _earlier(plan, row.name, cells)
        if row.name in plan.impossible:
            lines.append(ResultRow(row.name, **common, impossible=plan.impossible[row.name]))
        elif before:
            lines += before
        elif row.name in cells:
            for name, (_, prefix) in suite_spec.lines([row]).items():
                line = _line(name, cells[row.name], prefix, common, plan, {} if name == suite.against else opponents)
                if line.seeds or not prefix:
                    lines.append(line)
    copied = {name: figures for name, figures in known.items() if name not in {line.row for line in lines}}
    about = (suite.name, suite.title, suite.paper, plan.dataset, suite.metrics, suite.against, plan.sources)
    return Comparison(*about, tuple(lines), copied, plan.given)


def _earlier(plan: RunPlan, row: str, cells: Mapping[str, Sequence[Trial]]) -> list[ResultRow]:
    """Lines of a row in an earlier table, while seeds are missing here and there are more of them there."""
    finished = sum(cell.result() is not None for cell in cells.get(row, []))
    if finished and finished == len(cells[row]):
        return []
    known = [line for line in plan.earlier.get("lines", []) if line["row"] == row and len(line["seeds"]) > finished]
    same = plan.earlier.get("against") == plan.suite.against
    now = {cell.asked["key"] for cell in plan.cells if cell.row.name == row} if known else set()
    return [
        replace(ResultRow.of(line if same else {**line, "tests": {}}), as_asked=line.get("key") in now) for line in known
    ]


def _kept(row: ModelSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a row, or one of its stages, has in place of those that are given for all."""
    own = [("", row.settings), *((f" (stage {number})", stage) for number, stage in enumerate(row.stages, 1))]
    return {
        f"{key}{where}": settings[key]
        for where, settings in own
        for key, value in given.items()
        if key in settings and settings[key] != value
    }


def _tuned(plan: RunPlan, cell: Trial) -> str:
    """``4 trials on X``, ``4 trials of the row default on X, but for KEY``: settings of the ``tune`` command; or empty."""
    if not cell.asked["tuned"]:
        return ""
    path = plan.output / cell.asked["tuned"]
    trials = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) if path.with_suffix(".json").exists() else []
    done = sum(trial["ndcg@10"] is not None for trial in trials)
    whose = "" if path.stem == cell.row.name else f" of the row {path.stem}"
    but = f", but for {', '.join(cell.asked['overridden'])}" if cell.asked["overridden"] else ""
    return f"{done or 'unknown'} trials{whose} on {path.parent.name}{but}"


def _line(
    name: str, cells: Sequence[Trial], prefix: str, common: Mapping[str, Any], plan: RunPlan, opponents: Mapping[str, Any]
) -> ResultRow:
    """The line of a row, or of the row with its prior."""
    results = [(cell, result) for cell in cells if (result := cell.result()) is not None]
    failed = {cell.seed: found["reason"] for cell in cells if cell.result() is None and (found := cell.failure())}
    if prefix:
        results = [(cell, result) for cell, result in results if _has(cell, result, prefix)]
        common, failed = {**common, "note": "", "published": {}, "kept": {}}, {}
    if not results:
        return ResultRow(name, **common, asked=len(cells), failed=failed)
    if not prefix:
        common = {**common, **_remarkable(cells[0], results)}
    figures = {
        setting: {
            metric: Spread.of(r["test"][prefix + setting][metric] for _, r in results) for metric in plan.suite.metrics
        }
        for setting in suite_spec.EVALUATIONS
    }
    own = _users([cell for cell, _ in results], prefix)
    tests = {}
    if opponents and np.array_equal(own["users"], opponents["users"]):
        tests = {setting: paired(opponents[setting], own[setting]) for setting in suite_spec.EVALUATIONS}
    first = results[0][1]
    depths = [found["depth"] for _, r in results if (found := (r["identifiers"] or {}).get("injection"))]
    return ResultRow(
        name, **common, tuned=_tuned(plan, cells[0]), seeds=tuple(cell.seed for cell, _ in results), asked=len(cells),
        figures=figures, tests=tests, depth=np.mean(depths, 0).tolist() if depths and not prefix else None, failed=failed,
        parameters=first["parameters"], items=first["items"], users=first["users"],
        epochs=float(np.mean([r["epochs"] for _, r in results])),
        revisions=tuple(sorted({r["revision"] for _, r in results if r["revision"]})), key=cells[0].asked["key"],
        validated=cells[0].asked["validated"],
    )  # fmt: skip


def _remarkable(first: Trial, results: Sequence[tuple[Trial, Mapping[str, Any]]]) -> dict[str, tuple[Any, ...]]:
    """Of a row's line, what a reader must know besides its figures."""
    lacks_prior = first.row.prior and not first.asked["prior_inside"]
    return {
        "unknown": tuple(first.asked["unknown"]),
        "capped": tuple(cell.seed for cell, result in results if result["epochs"] >= first.asked["most_epochs"] > 1),
        "without_prior": tuple(cell.seed for cell, r in results if lacks_prior and not _has(cell, r, "prior_")),
    }


def _has(cell: Trial, result: Mapping[str, Any], prefix: str) -> bool:
    """Whether a result has a line's figures: a prior counts if it was fitted under the rule of the row's validation.

    Once all priors were fitted with the history in the ranking, and no rule was kept.
    """
    there = f"{prefix}plain" in result["test"]
    return there and (not prefix or (result.get("prior") or {}).get("rule", "plain") == cell.asked["validated"])


def _users(cells: Sequence[Trial], prefix: str) -> dict[str, np.ndarray]:
    """Gains by setting, ``[S, U]``, and the ``users``; empty without a result."""
    ranks = [cell.ranks() for cell in cells if (result := cell.result()) is not None and _has(cell, result, prefix)]
    if not ranks:
        return {}
    found = {setting: gains([one[prefix + setting].tolist() for one in ranks]) for setting in suite_spec.EVALUATIONS}
    return found | {"users": ranks[0]["users"]}
