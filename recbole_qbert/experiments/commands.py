"""The commands ``benchmark`` and ``tune`` as functions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recbole_qbert.experiments import tuning
from recbole_qbert.experiments.suites import result_archive, runner, suite_kinds, suite_spec, trials
from recbole_qbert.experiments.suites.suite_spec import current_name
from recbole_qbert.utils.console import say
from recbole_qbert.utils.formatting import format_properties
from recbole_qbert.utils.spelling import did_you_mean

INTERRUPTED = 130  # exit code of a command that Ctrl-C or SIGTERM has stopped


def benchmark(
    suites: str | Sequence[str],
    dataset: str,
    data_path: str | Path,
    output: str | Path = "results",
    *,
    seeds: Sequence[int] = (),
    models: Sequence[str] = (),
    results_cache: str | Path | None = None,
    settings_from: str | None = None,
    reference: str | None = None,
    sources: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    time_limit: str | None = None,
    retry: bool = False,
    report: bool = False,
    properties: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the trials of suites that have no result yet, then write and print the tables.

    Args:
        suites: names of suites, or paths of suite files (``.yaml``).
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder for everything written; finished trials there are not run again.
        seeds: in place of the suite's.
        models: run only these models; others are in the tables if they have results.
        results_cache: folder, small enough for a repository, that finished trials are read from and added to, and tables.
        settings_from: use what ``tune`` chose on this data set; by default on ``dataset``.
        reference: table row that paired tests compare all others with, in place of the suite's.
        sources: data sets to pretrain on, with one vocabulary for them and ``dataset`` (table4).
        jobs: trainings at a time.
        threads: of each training; by default the cores divided by ``jobs``.
        time_limit: start no further training after ``2h``, ``30m``, ``1h30m``; ``0s`` starts none.
        retry: run again what failed before.
        report: write a report with plots, too.
        properties: RecBole's and ours, for every model.

    Returns:
        ``suites`` (name -> folder of its tables), ``left`` (trials that the time limit did not reach), ``failed`` (folder ->
        reason) and ``exit_code``: 0, 1 if a trial failed, or 130 if the run was interrupted (nothing else is there then).

    Raises:
        FileNotFoundError: a data set or file is missing.
        ValueError: a name, number or property is refused, before anything runs.
    """
    if report:
        from recbole_qbert.experiments.report import plots

        plots.require_matplotlib()  # not after hours of training
    paths, output, properties = [suites] if isinstance(suites, str) else suites, Path(output), dict(properties or {})
    cache = Path(results_cache) if results_cache else None
    seconds = runner.duration(time_limit) if time_limit else None
    _refuse_none_at_a_time(jobs=jobs, threads=threads)
    loaded = [suite_spec.load(path) for path in paths]
    models = _current_names(models, [spec.name for suite in loaded for spec in suite.models], "model")
    if reference:
        for suite in loaded:
            [reference] = _current_names([reference], list(suite_spec.table_rows(suite.models)), "table row")
        loaded = [replace(suite, reference=reference) for suite in loaded]
    if cache:
        result_archive.refuse(cache, output, [suite.kind for suite in loaded])
        result_archive.restore_tuned(cache, output)
    plans = [
        trials.plan_runs(
            suite, dataset, Path(data_path), output, properties,
            seeds=seeds, models=models, sources=sources, settings_from=settings_from,
        )
        for suite in loaded
    ]  # fmt: skip
    if cache:
        plans = _restored(cache, plans)
    try:
        outcome = runner.run(
            [trial for plan in plans for trial in plan.trials if trial.spec.name in plan.models],
            jobs=jobs, threads=threads, retry=retry, time_limit=seconds,
        )  # fmt: skip
    except runner.Interrupted as signal:
        say(f"stopped by {signal}; the same command goes on with what is not finished (results: {output})")
        return {"exit_code": INTERRUPTED}
    finally:
        if cache:
            result_archive.store(cache, output, [trial for plan in plans for trial in plan.trials])
    if threads:
        torch.set_num_threads(threads)  # for what is measured here: table6
    folders = {}
    for path, plan in zip(paths, plans, strict=True):
        say(f"\n{suite_kinds.make(plan)}")
        say(f"written to {plan.folder}")
        folders[plan.suite.name] = str(plan.folder)
        if cache and not (reference or seeds):  # only the suite's own question
            options = {
                "suite": path, "dataset": dataset, "sources": sources, "data_path": data_path,
                "results_cache": results_cache, "settings_from": settings_from,
            }  # fmt: skip
            result_archive.store_table(cache, plan, command_line("benchmark", options, properties))
        if report:
            from recbole_qbert.experiments.report import write

            say(f"report: {write(plan.folder, plan.data_path)}")
    failed = {str(folder): reason for folder, reason in outcome.failed.items()}
    return {"suites": folders, "left": len(outcome.left), "failed": failed, "exit_code": int(bool(failed))}


def tune(
    model: str,
    dataset: str,
    data_path: str | Path,
    output: str | Path = "results",
    *,
    suite: str = "table2",
    results_cache: str | Path | None = None,
    space: str | Path | None = None,
    max_trials: int | None = None,
    files: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    time_limit: str | None = None,
    retry: bool = False,
    properties: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the trials of a space that have no result yet, print all of them, and write the best.

    Args:
        model: a model of the suite (``SASRec``, ``QBERT4Rec``, ...), tuned with its settings there; or any registered model.
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of all results, as of ``benchmark``.
        suite: the suite of models and shared properties.
        results_cache: folder that finished trials are read from and added to, and the chosen settings.
        space: file of lines ``property: [values]``; by default ``properties/tuning/<model>.yaml``.
        max_trials: this many points of the space, drawn at random; by default all.
        files: property files in place of the model's.
        jobs: trials at a time.
        threads: of each trial; by default the cores divided by ``jobs``.
        time_limit: start no further trial after ``2h``, ``30m``, ``1h30m``.
        retry: run again what failed before.
        properties: RecBole's and ours, for every trial.

    Returns:
        ``model``, ``dataset``, ``file`` (of the chosen settings), ``chosen``, ``valid ndcg@10``, ``trials``, ``left`` and
        ``exit_code``: 0, 1 if a trial failed, or 130 if the run was interrupted (nothing else is there then).

    Raises:
        ValueError: the space, a name or a property is refused, or no trial has a result.
    """
    _refuse_none_at_a_time(jobs=jobs, threads=threads)
    output, properties = Path(output), dict(properties or {})
    cache = Path(results_cache) if results_cache else None
    seconds = runner.duration(time_limit) if time_limit else None
    loaded = suite_spec.load(suite)
    spec = tuning.find_model(model, loaded, files)
    grid = tuning.points(tuning.read_space(Path(space) if space else tuning.space_file(spec.model)), max_trials)
    if cache:
        result_archive.refuse(cache, output, [])
        result_archive.restore_tuned(cache, output)
    tuning_trials = tuning.plan(spec, loaded, grid, dataset, Path(data_path), output, properties)
    trainings = [trial.training for trial in tuning_trials]
    if cache:
        result_archive.restore(cache, dataset, trainings)
    try:
        outcome = runner.run(trainings, jobs=jobs, threads=threads, retry=retry, time_limit=seconds)
    except runner.Interrupted as signal:
        say(f"stopped by {signal}; the same command goes on with the trials that are not finished (results: {output})")
        return {"exit_code": INTERRUPTED}
    finally:
        if cache:
            result_archive.store(cache, output, trainings)
    chosen = tuning.best(tuning_trials)
    if chosen is None:
        reason = next(iter(outcome.failed.values()), f"the time limit of {time_limit}, before it was started")
        raise ValueError(f"no trial came to a result; the first one ended with: {reason}")
    _print(tuning_trials, chosen)
    options = {
        "model": model, "suite": suite, "dataset": dataset, "data_path": data_path, "output": output, "space": space,
        "trials": max_trials, "files": files,
    }  # fmt: skip
    command = f"python {command_line('tune', options, properties)}"
    path = tuning.write(spec.name, tuning_trials, output, dataset, command)
    say(f"written to {path}")
    if cache:
        result_archive.store(cache, output, [], [path])
    return {
        "model": spec.model, "dataset": dataset, "file": str(path), "chosen": chosen.point,
        f"valid {tuning.METRIC}": chosen.score, "trials": len(tuning_trials), "left": len(outcome.left),
        "exit_code": int(bool(outcome.failed)),
    }  # fmt: skip


def command_line(command: str, options: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Write the command line of a call.

    Args:
        command: name of the command.
        options: option -> value, a list of values, or something empty for an option that is left out.
        properties: RecBole's and ours.
    """
    words = ["run_recbole_qbert.py", command]
    for option, value in options.items():
        if value:
            words += [f"--{option}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join([*words, *(f"--{key}={value}" for key, value in properties.items())])


def _restored(cache: Path, plans: Sequence[trials.RunPlan]) -> list[trials.RunPlan]:
    """Read finished trials from the results cache, and the tables that it has."""
    restored, total = [], 0
    for plan in plans:
        count, outdated = result_archive.restore(cache, plan.dataset, plan.trials)
        total += count
        table = result_archive.previous_table(cache, plan)
        restored.append(replace(plan, previous_table=table, outdated=tuple(outdated)))
    if total:
        say(f"{total} finished trials taken from {cache}")
    return restored


def _current_names(names: Sequence[str], available: Sequence[str], what: str) -> list[str]:
    """Translate old names; refuse unknown ones."""
    translated = [name if name in available else current_name(name) for name in names]
    for name, current in zip(names, translated, strict=True):
        if current not in available:
            raise ValueError(f"no {what} {name!r}{did_you_mean(name, available)}; there are {', '.join(available)}")
    return translated


def _refuse_none_at_a_time(**options: int | None) -> None:
    for option, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{option} is {value}; it must be at least 1")


def _print(trials_of_space: Sequence[tuning.TuningTrial], chosen: tuning.TuningTrial) -> None:
    """Print one line per trial, in the order of running."""
    titles = [format_properties(trial.point) for trial in trials_of_space]
    width = max(map(len, titles))
    say(f"{'':<{width}}  validation {tuning.METRIC}")
    for title, trial in zip(titles, trials_of_space, strict=True):
        score = trial.state if trial.score is None else f"{trial.score:.4f}"
        say(f"{title:<{width}}  {score}{'  <- chosen' if trial is chosen else ''}")
