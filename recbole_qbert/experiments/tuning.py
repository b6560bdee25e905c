"""Tuning: a small declared space, the same number of trials for every model, chosen on validation.

A trial is a training of the suites (``experiments.suites.trials``): a process of its own, a result that is kept, nothing run
twice; and the trial that wins is the very training that a table needs with that seed. RecBole's HyperTuning keeps nothing
between calls and runs all trials in one process; Optuna's samplers learn from trials, for which nine are too few. A shuffled
grid is both: all of it with as many trials as points, a random search with fewer.
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
from recbole_qbert.experiments.suites.suite_spec import ModelSpec, Suite
from recbole_qbert.recbole_integration import experiment, registry
from recbole_qbert.utils.formatting import format_properties
from recbole_qbert.utils.io import atomic_write, write_json
from recbole_qbert.utils.spelling import did_you_mean

BUDGET = 9  # points of a space at most, so that no model gets more trials than another
SEED = 2026  # of every trial, and of the order of trials
METRIC = "ndcg@10"  # on validation, under the rule of evaluation under which the model is stopped early

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
    """The declared space of a model.

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
    """Property -> its values.

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
    """Points of the grid in a shuffled order that is always the same; the first ``trials`` of them.

    Raises:
        ValueError: fewer than one trial.
    """
    if trials is not None and trials < 1:
        raise ValueError(f"--trials is {trials}; it must be at least 1")
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(SEED).shuffle(grid)
    return grid[:trials]


def find_model(name: str, suite: Suite, files: Sequence[str] = ()) -> ModelSpec:
    """The row of the suite with this name; otherwise the model of this name with its own defaults.

    Args:
        name: a row of the suite, or a registered model.
        suite: where rows are looked for.
        files: property files in place of the row's.
    """
    found = next((row for row in suite.models if row.name == name), None) or ModelSpec(name, name, _files_of(name))
    return replace(found, files=tuple(str(Path(file).resolve()) for file in files)) if files else found


def plan(
    row: ModelSpec,
    suite: Suite,
    grid: Sequence[Point],
    dataset: str,
    data_path: Path,
    output: Path,
    given: Mapping[str, Any],
) -> list[TuningTrial]:
    """A training for every point; checks all of it before anything is run.

    Args:
        row: what is tuned.
        suite: its ``shared`` properties hold for every trial.
        grid: points in the order of running.
        dataset: name of the data set.
        data_path: folder that holds its folder.
        output: folder of all results.
        given: properties for every trial.

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
    """The finished trial with the highest score, the earlier one of equals; ``None`` where none is finished."""
    finished = [trial for trial in trials if trial.score is not None]
    return max(finished, key=lambda trial: trial.score or 0.0, default=None)


def write(name: str, trials: Sequence[TuningTrial], output: Path, dataset: str, command: str) -> Path:
    """Write the chosen point as a property file, where suites look for it, and the trials beside it as JSON.

    Args:
        name: of the row; names the file.
        trials: all that were asked for, at least one finished.
        output: folder of all results.
        dataset: name of the data set.
        command: that asked for them, for the header.

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
                "training": trial.training.folder.relative_to(output.resolve()).as_posix(),
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
    """What a model that stands in no suite is trained with; our own have their defaults."""
    try:
        registry.known_properties(model)
    except KeyError:
        own = f"baseline/{model}.yaml"
        return ("baseline/common.yaml", *([own] if (property_file("baseline") / f"{model}.yaml").exists() else []))
    return ()


def _check(row: ModelSpec, point: Point, training: suite_trials.Trial) -> None:
    """Refuse before hours of training what would make them worthless.

    A property that the model does not know changes nothing, so all trials would be one: our own models refuse unknown
    properties by themselves, RecBole's take any. And trials are judged by a metric that must be measured.
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
