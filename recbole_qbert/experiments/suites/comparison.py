"""Compare the models of a suite: means and spread over seeds, paired tests, the paper's figures beside them."""

from __future__ import annotations

import json
from collections import Counter
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
    """A row of the table.

    Attributes:
        name: the model's name, with ``+ co-occurrence`` behind it where the prior is added.
        spec: name of the suite's ``ModelSpec``.
        model: its registered name.
        tuned: how many trials of the ``tune`` command its settings were chosen from, on which data set, and for which model
            if for another; empty if it was not tuned.
        seeds: those that have a result.
        planned: how many seeds were requested.
        figures: evaluation -> metric -> spread; empty where no seed has a result.
        tests: evaluation -> test against ``Comparison.reference``; none of that row itself, or of other test users.
        depth: share of items that end after each layer of stage 1, mean over seeds; ``None`` without stage 1.
        depth_tests: of each seed the permutation test of that depth (``injection.depth.DepthTest``), on held-out items.
        parameters: of the model, with frozen ones.
        items: how many were ranked.
        users: how many were tested.
        epochs: mean over seeds, of the last stage.
        revisions: of the code that the trials were run with, where they are recorded.
        published: the paper's figures of this model, by metric.
        failed: seed -> reason.
        impossible: why the model cannot be trained on this data set.
        note: of the suite file.
        earlier: the row is of an earlier table, which had more seeds than there are here.
        same_settings: its trials have the configuration that is requested now; not certain for a row of an earlier table.
        key: hash of the trials' configuration and data; empty in tables of before it was recorded.
        validated: the evaluation, of ``suite_spec.EVALUATIONS``, that chose epochs and prior; empty in such tables.
        own_settings: properties that were given for all models, and have the model's own value here or in one of its stages.
        without_prior: seeds whose results lack the prior that the next row shows.
        unknown: properties that were given for all models, and that this model does not read.
        capped: seeds that ran all of the epochs, if several, that the property ``epochs`` allows.
        other_features: with which features the trials were made, if not with those that the data set has now; else empty.
    """

    name: str
    spec: str
    model: str
    tuned: str = ""
    seeds: tuple[int, ...] = ()
    planned: int = 0
    figures: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)
    tests: Mapping[str, Paired] = field(default_factory=dict)
    depth: Sequence[float] | None = None
    depth_tests: Sequence[Mapping[str, Any]] = ()
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
    same_settings: bool = True
    key: str = ""
    validated: str = ""
    own_settings: Mapping[str, Any] = field(default_factory=dict)
    without_prior: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    capped: tuple[int, ...] = ()
    other_features: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ResultRow:
        """Read a row of an earlier ``table.json``."""
        figures = {
            setting: {metric: Spread(**spread) for metric, spread in metrics.items()}
            for setting, metrics in row["figures"].items()
        }
        tests = {setting: Paired(**test) for setting, test in row["tests"].items()}
        lists = {n: tuple(row.get(n, ())) for n in ("seeds", "revisions", "without_prior", "unknown", "capped")}
        failed = {int(seed): reason for seed, reason in row["failed"].items()}
        return cls(**{**row, **lists, "figures": figures, "tests": tests, "failed": failed, "earlier": True})


@dataclass(frozen=True)
class Comparison:
    """The table.

    Attributes:
        suite: name of the suite.
        title: title of the table.
        paper: the paper's table or figure.
        dataset: name of the data set.
        metrics: columns.
        reference: the row that tests compare all others with.
        sources: data sets that models were pretrained on.
        rows: in order.
        copied: figures that the paper prints and that have no row here: model -> metric -> number.
        overrides: properties from the command line.
    """

    suite: str
    title: str
    paper: str
    dataset: str
    metrics: tuple[str, ...]
    reference: str
    sources: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    copied: Mapping[str, Mapping[str, float]]
    overrides: Mapping[str, Any] = field(default_factory=dict)


def compare(plan: RunPlan) -> Comparison:
    """Read the finished trials of a suite; the same trials give the same comparison, whenever they were run."""
    suite, published = plan.suite, suite_spec.published(plan.suite.name, plan.dataset)
    shown: dict[str, list[Trial]] = {}
    for trial in plan.shown:
        shown.setdefault(trial.spec.name, []).append(trial)
    planned = Counter(trial.spec.name for trial in plan.trials)
    reference, prefix = suite_spec.table_rows(suite.models).get(suite.reference, ("", ""))
    opponents = {} if _earlier(plan, reference, shown) else _gains(shown.get(reference, []), prefix)
    rows: list[ResultRow] = []
    for spec in suite.models:
        common: dict[str, Any] = {
            "spec": spec.name, "model": spec.model, "note": spec.note, "published": published.get(spec.name, {}),
            "own_settings": _own_settings(spec, plan.overrides),
        }  # fmt: skip
        earlier = _earlier(plan, spec.name, shown)
        if spec.name in plan.impossible:
            rows.append(ResultRow(spec.name, **common, impossible=plan.impossible[spec.name]))
        elif earlier:
            rows += earlier
        elif spec.name in shown:
            outdated = shown[spec.name][0] in plan.outdated and shown[spec.name][0].result()
            common |= {"planned": planned[spec.name], "other_features": outdated["features"] if outdated else ""}
            for name, (_, prefix) in suite_spec.table_rows([spec]).items():
                row = _row(name, shown[spec.name], prefix, common, plan, {} if name == suite.reference else opponents)
                if row.seeds or not prefix:
                    rows.append(row)
    copied = {name: figures for name, figures in published.items() if name not in {row.spec for row in rows}}
    about = (suite.name, suite.title, suite.paper, plan.dataset, suite.metrics, suite.reference, plan.sources)
    return Comparison(*about, tuple(rows), copied, plan.overrides)


def _earlier(plan: RunPlan, name: str, trials: Mapping[str, Sequence[Trial]]) -> list[ResultRow]:
    """Return a model's rows of an earlier table, while seeds are missing here and there are more of them there."""
    finished = sum(trial.result() is not None for trial in trials.get(name, []))
    if finished and finished == len(trials[name]):
        return []
    rows = [row for row in plan.previous_table.get("rows", []) if row["spec"] == name and len(row["seeds"]) > finished]
    same = plan.previous_table.get("reference") == plan.suite.reference
    now = {trial.request["key"] for trial in plan.trials if trial.spec.name == name} if rows else set()
    return [
        replace(ResultRow.of(row if same else {**row, "tests": {}}), same_settings=row.get("key") in now) for row in rows
    ]


def _own_settings(spec: ModelSpec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a model, or one of its stages, has in place of those that are given for all."""
    own = [("", spec.settings), *((f" (stage {number})", stage) for number, stage in enumerate(spec.stages, 1))]
    return {
        f"{key}{where}": settings[key]
        for where, settings in own
        for key, value in overrides.items()
        if key in settings and settings[key] != value
    }


def _tuned(plan: RunPlan, trial: Trial) -> str:
    """Describe settings of the ``tune`` command: ``4 trials of QBERT4Rec on X, but for KEY``; empty without them."""
    if not trial.request["tuned"]:
        return ""
    path = plan.output / trial.request["tuned"]
    tried = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) if path.with_suffix(".json").exists() else []
    count = sum(each["ndcg@10"] is not None for each in tried)
    whose = "" if path.stem == trial.spec.name else f" of {path.stem}"
    but = f", but for {', '.join(trial.request['overridden'])}" if trial.request["overridden"] else ""
    return f"{count or 'unknown'} trials{whose} on {path.parent.name}{but}"


def _row(
    name: str, trials: Sequence[Trial], prefix: str, common: Mapping[str, Any], plan: RunPlan, opponents: Mapping[str, Any]
) -> ResultRow:
    """Make the row of a model, or, with a prefix, of the model with its prior."""
    results = [(trial, result) for trial in trials if (result := trial.result()) is not None]
    failed = {trial.seed: failure["reason"] for trial in trials if trial.result() is None and (failure := trial.failure())}
    if prefix:
        results = [(trial, result) for trial, result in results if _has_prefix(trial, result, prefix)]
        common, failed = {**common, "note": "", "published": {}, "own_settings": {}}, {}
    if not results:
        return ResultRow(name, **common, failed=failed)
    if not prefix:
        common = {**common, **_peculiarities(trials[0], results)}
    figures = {
        setting: {
            metric: Spread.of(r["test"][prefix + setting][metric] for _, r in results) for metric in plan.suite.metrics
        }
        for setting in suite_spec.EVALUATIONS
    }
    own = _gains([trial for trial, _ in results], prefix)
    tests = {}
    if opponents and np.array_equal(own["users"], opponents["users"]):
        tests = {setting: paired(opponents[setting], own[setting]) for setting in suite_spec.EVALUATIONS}
    first = results[0][1]
    stage_1 = [(r["identifiers"] or {}).get("injection") or {} for _, r in results]
    depths = [injection["depth"] for injection in stage_1 if "depth" in injection]
    depth_tests = [] if prefix else [injection["depth_test"] for injection in stage_1 if injection.get("depth_test")]
    return ResultRow(
        name, **common, tuned=_tuned(plan, trials[0]), seeds=tuple(trial.seed for trial, _ in results),
        figures=figures, tests=tests, depth=np.mean(depths, 0).tolist() if depths and not prefix else None, failed=failed,
        depth_tests=depth_tests,
        parameters=first["parameters"], items=first["items"], users=first["users"],
        epochs=float(np.mean([r["epochs"] for _, r in results])),
        revisions=tuple(sorted({r["revision"] for _, r in results if r["revision"]})), key=trials[0].request["key"],
        validated=trials[0].request["validated"],
    )  # fmt: skip


def _peculiarities(first: Trial, results: Sequence[tuple[Trial, Mapping[str, Any]]]) -> dict[str, tuple[Any, ...]]:
    """Return what a reader must know of a model's row besides its figures."""
    lacks_prior = first.spec.prior and not first.request["prior_inside"]
    return {
        "unknown": tuple(first.request["unknown"]),
        "capped": tuple(trial.seed for trial, result in results if result["epochs"] >= first.request["most_epochs"] > 1),
        "without_prior": tuple(trial.seed for trial, r in results if lacks_prior and not _has_prefix(trial, r, "prior_")),
    }


def _has_prefix(trial: Trial, result: Mapping[str, Any], prefix: str) -> bool:
    """Tell whether a result has a row's figures; a prior counts if it was fitted under the protocol of validation.

    The first priors were fitted with the history in the ranking, and their results name no protocol (``rule``).
    """
    there = f"{prefix}plain" in result["test"]
    return there and (not prefix or (result.get("prior") or {}).get("rule", "plain") == trial.request["validated"])


def _gains(trials: Sequence[Trial], prefix: str) -> dict[str, np.ndarray]:
    """Return gains by evaluation, ``[S, U]``, and the ``users``; empty without a result."""
    ranks = [trial.ranks() for trial in trials if (result := trial.result()) and _has_prefix(trial, result, prefix)]
    if not ranks:
        return {}
    by_evaluation = {name: gains([each[prefix + name] for each in ranks]) for name in suite_spec.EVALUATIONS}
    return by_evaluation | {"users": ranks[0]["users"]}
