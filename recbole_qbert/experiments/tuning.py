"""Tuning: a small declared space, the same number of trials for every model, chosen on validation.

A trial is a training of the suites (``experiments.suites.trials``): it has a process of its own, its result is stored,
and it is not run twice. The trial with the best score is also the training that a table needs with that seed. RecBole's
HyperTuning stores nothing between calls and runs all trials in one process. Optuna's samplers learn from trials, and nine
are too few for that. A shuffled grid serves both: with as many trials as points all of it is run, with fewer it is a
random search.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from recbole_qbert.config.property_files import property_file, read_yaml
from recbole_qbert.experiments.suites import trials as suite_trials
from recbole_qbert.experiments.suites.suite_spec import ModelSpec, Suite, current_name
from recbole_qbert.recbole_integration import experiment, registry
from recbole_qbert.utils.formatting import format_properties
from recbole_qbert.utils.io import atomic_write, write_json
from recbole_qbert.utils.spelling import did_you_mean

BUDGET = 9  # the largest number of points of a space, so that no model gets more trials than another
SEED = 2026  # of every trial, and of the order of trials
METRIC = "ndcg@10"  # on validation, under the evaluation protocol that also stops the model early

Point = dict[str, Any]


@dataclass(frozen=True)
class TuningTrial:
    """A point of the space and its training."""

    point: Point
    training: suite_trials.Trial

    @property
    def score(self) -> float | None:
        """The validation metric; ``None`` while there is no result."""
        result = self.training.result()
        return None if result is None else float(result["valid"][METRIC])

    @property
    def state(self) -> str:
        """``finished``, ``failed`` or ``not run`` (yet, or not to its end)."""
        return "finished" if self.training.result() is not None else "failed" if self.training.failure() else "not run"


def space_file(model: str) -> Path:
    """Find the file of a model's declared space.

    Raises:
        ValueError: none is declared.
    """
    try:
        return property_file(f"tuning/{model}.yaml")
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in property_file("tuning").glob("*.yaml")))
        raise ValueError(
            f"no space is declared for {model} (there are {known}); give one with --space FILE: lines 'property: [values]'"
        ) from None


def read_space(path: Path) -> dict[str, list[Any]]:
    """Read a space: property -> its values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form, a value twice, or more than ``BUDGET`` points.
    """
    space = read_yaml(path, "space")
    if not isinstance(space, dict) or not space:
        raise ValueError(f"{path} must hold lines 'property: [values]'")
    size = 1
    for key, values in space.items():
        if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
            raise ValueError(f"{path}: {key} is {values!r}; it must be a list of different values")
        size *= len(values)
    if size > BUDGET:
        raise ValueError(f"{path} has {size} points; {BUDGET} are allowed, as many as every other model gets")
    return space


def points(space: Mapping[str, Sequence[Any]], trials: int | None = None) -> list[Point]:
    """List the points of the grid in a shuffled order that is always the same; the first ``trials`` of them.

    Raises:
        ValueError: fewer than one trial.
    """
    if trials is not None and trials < 1:
        raise ValueError(f"--trials is {trials}; it must be at least 1")
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(SEED).shuffle(grid)
    return grid[:trials]


def find_model(name: str, suite: Suite, files: Sequence[str] = ()) -> ModelSpec:
    """Find the model of a suite; otherwise take the registered model of this name with its own defaults.

    Args:
        name: a model of the suite (its old name is accepted), or a registered model.
        suite: where models are looked for.
        files: property files in place of the model's.
    """
    by_name = {spec.name: spec for spec in suite.models}
    spec = by_name.get(name) or by_name.get(current_name(name)) or ModelSpec(name, name, _files_of(name))
    return replace(spec, files=tuple(str(Path(file).resolve()) for file in files)) if files else spec


def plan(
    row: ModelSpec,
    suite: Suite,
    grid: Sequence[Point],
    dataset: str,
    data_path: Path,
    output: Path,
    given: Mapping[str, Any],
) -> list[TuningTrial]:
    """Make a trial for every point; check all of them before any is run.

    Args:
        row: the model that is tuned.
        suite: its ``shared`` properties hold for every trial.
        grid: points in the order of running.
        dataset: name of the data set.
        data_path: folder that holds its folder.
        output: folder of all results.
        given: properties from the command line, for every trial.

    Raises:
        FileNotFoundError: the data set, or a property file, is missing.
        ValueError: a property of the space is set elsewhere or unknown; the data set has not what the row needs.
    """
    for key in ("metrics", "topk", "valid_metric"):
        if key in given:
            raise ValueError(
                f"{key} is set on the command line; trials are judged by NDCG@10 on validation, as all rows are"
            )
    for key in grid[0]:
        for place, settings in (("command line", given), (f"row {row.name}", row.settings), ("suite", suite.shared)):
            if key in settings:
                raise ValueError(f"{key} is in the space, and set by the {place}: leave it out of one of them")
    rows = []
    for point in grid:
        rows.append(
            replace(row, name=f"{row.name} ({format_properties(point)})", settings={**row.settings, **point}, tuned="")
        )
    made = suite_trials.plan_runs(
        replace(suite, models=tuple(rows), sweep=""), dataset, data_path, output, given, seeds=[SEED]
    )
    for name, reason in made.impossible.items():
        raise ValueError(f"{name} cannot be trained on {dataset}: it {reason}")
    _check(row, grid[0], made.trials[0])
    return [TuningTrial(point, training) for point, training in zip(grid, made.trials, strict=True)]


def best(trials: Sequence[TuningTrial]) -> TuningTrial | None:
    """Return the finished trial with the highest score, the earlier one of equals; ``None`` where none is finished."""
    finished = [trial for trial in trials if trial.score is not None]
    return max(finished, key=lambda trial: trial.score or 0.0, default=None)


def write(name: str, trials: Sequence[TuningTrial], output: Path, dataset: str, command: str) -> Path:
    """Write the chosen point as a property file, where suites look for it, and the trials beside it as JSON.

    Args:
        name: of the model; names the file.
        trials: all trials, at least one of them finished.
        output: folder of all results.
        dataset: name of the data set.
        command: the command line, for the header.

    Returns:
        The property file, ``<output>/tuned/<dataset>/<name>.yaml``.
    """
    chosen = best(trials)
    assert chosen is not None
    count = Counter(trial.state for trial in trials)
    rest = ", ".join(f"{count[state]} {state}" for state in ("failed", "not run") if count[state])
    path = output / "tuned" / dataset / f"{name}.yaml"
    lines = [
        f"Chosen for {name} on {dataset} out of {count['finished']} trials" + (f" ({rest})" if rest else ""),
        f"validation {METRIC} {chosen.score:.6f} with seed {SEED}; all trials: {name}.json",
        command.replace("\n", " "),
    ]
    write_json(
        path.with_suffix(".json"),
        [
            {
                "point": trial.point,
                METRIC: trial.score,
                "trial": trial.training.folder.relative_to(output.resolve()).as_posix(),
                "failed": (trial.training.failure() or {}).get("reason"),
            }
            for trial in trials
        ],
    )
    with atomic_write(path) as temporary:
        header = "".join(f"# {line}\n" for line in lines)
        temporary.write_text(header + yaml.safe_dump(chosen.point, sort_keys=False), encoding="utf-8")
    return path


def _files_of(model: str) -> tuple[str, ...]:
    """List the property files of a model that is in no suite; our own models have their defaults."""
    try:
        registry.known_properties(model)
    except KeyError:
        own = f"baseline/{model}.yaml"
        return ("baseline/common.yaml", *([own] if (property_file("baseline") / f"{model}.yaml").exists() else []))
    return ()


def _check(row: ModelSpec, point: Point, training: suite_trials.Trial) -> None:
    """Refuse, before hours of training, what would make them worthless.

    A property that the model does not read changes nothing, so all trials would be the same. Our own models refuse unknown
    properties by themselves; RecBole's accept any. The metric that judges trials must be measured, too.
    """
    files = [str(suite_trials.resolve_property_file(file)) for file in row.files]
    settings = {key: value for key, value in training.request["settings"].items() if key not in point}
    known = experiment.configure(
        row.model, training.request["dataset"], training.request["data_path"], settings, files
    ).final_config_dict
    for key in point:
        if key not in known:
            raise ValueError(f"{row.model} knows no property {key!r}{did_you_mean(key, known)}: it cannot be tuned")
    metrics, topk = [name.lower() for name in known["metrics"]], known["topk"]
    if "ndcg" not in metrics or 10 not in (topk if isinstance(topk, list) else [topk]):
        raise ValueError(f"metrics {known['metrics']} at {topk} do not hold NDCG@10, by which trials are judged")
