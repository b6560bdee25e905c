"""The results cache: finished trials, tuned settings and tables, small enough for a repository.

With it a suite goes on, and its tables are made, on any machine::

    <cache>/<data set>.parquet                  finished trials of a data set: every user's rank, every trial's record
    <cache>/tuned/<data set>/<model>.yaml, .json
    <cache>/<suite>-<data set>.json, .md        tables

A row of the Parquet file is one rank: ``trial`` (the folder's name), ``seed``, ``evaluation``, ``user`` (RecBole's id),
``rank`` and ``record`` (the trial's ``cell.json``, the same in all rows of a trial). Ranks above ``EXACT_RANKS`` are stored
as ``EXACT_RANKS + 1``: no metric here looks further, and exact ranks of the tail take four fifths of the space.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from recbole_qbert.config.property_files import read_properties
from recbole_qbert.experiments.suites.trials import RunPlan, Trial, folder_name
from recbole_qbert.utils.console import say
from recbole_qbert.utils.io import atomic_write, file_lock, read_json, write_json

RESULT, RANKS = "cell.json", "ranks.npz"
EXACT_RANKS = 100
_ORDER = ["user", "trial", "seed", "evaluation"]  # found by trying: in this order zstd makes the smallest file
_COLUMNS = ["trial", "seed", "evaluation", "user", "rank", "record"]
_REPEATED = ["trial", "seed", "evaluation", "record"]
_HASHES = ("settings_key", "interactions", "features")
_LARGE_PAGE = 2**26  # bytes; a file of one page a column is the smallest


def restore_tuned(cache: Path, output: Path) -> None:
    """Copy the tuned settings of all data sets that the output lacks."""
    for source in sorted((cache / "tuned").glob("*/*")):
        if not (target := output / source.relative_to(cache)).exists():
            _copy(source, target)


def restore(cache: Path, dataset: str, trials: Sequence[Trial]) -> tuple[int, list[Trial]]:
    """Write the results of finished trials into the folders of those trials that have none.

    A trial is found by its key, the hash of data and settings. A trial that reads no item features is also found when only
    the features of its data set have changed since.

    Args:
        cache: folder of the results cache.
        dataset: name of the data set.
        trials: those that are needed.

    Returns:
        How many results were written, and the finished trials that were made with other item features than the data set
        has now; these lie in the folders of their own keys.

    Raises:
        ValueError: the file of the data set is damaged.
    """
    count, outdated = 0, []
    table = _read(cache / f"{dataset}.parquet")
    by_key, by_settings = {}, {}
    for (_, seed), text in table.groupby(["trial", "seed"], observed=True).record.first().items():
        record = json.loads(text)
        by_key[record["key"], seed] = record
        by_settings[record["settings_key"], record["interactions"], seed] = record
    for trial in trials:
        request = trial.request
        record = by_key.get((request["key"], trial.seed))
        changed = by_settings.get((request["settings_key"], request["interactions"], trial.seed)) if record is None else None
        folder = trial.folder
        if changed and changed["features"]:
            folder = folder.parent.parent / folder_name(changed) / folder.name
            outdated.append(replace(trial, folder=folder, request={**request, "key": changed["key"]}))
        record = record or changed
        if record and not (folder / RESULT).exists():
            rows = table[(table.trial == folder_name(record)) & (table.seed == trial.seed)]
            ranks = {name: part["rank"].to_numpy() for name, part in rows.groupby("evaluation", observed=True)}
            users = rows.user[rows.evaluation == next(iter(ranks))].to_numpy()
            with atomic_write(folder / RANKS) as temporary, open(temporary, "wb") as handle:
                np.savez_compressed(handle, users=users, **ranks)
            write_json(folder / RESULT, record)  # last: with it the trial is finished
            count += 1
    return count, outdated


def store(cache: Path, output: Path, trials: Iterable[Trial], tuned: Iterable[Path] = ()) -> None:
    """Add finished trials to the results cache, and the tuned settings (``.yaml``, ``.json``) that they name.

    What the cache has stays as it is: to replace a trial, remove its rows. Only ``tuned`` overwrites.

    Args:
        cache: folder of the results cache.
        output: folder of all results.
        trials: those without a result are left out.
        tuned: settings that were chosen just now.
    """
    output, new_settings = output.resolve(), {file.resolve() for file in tuned}
    settings = set(new_settings)
    by_dataset: dict[str, list[tuple[Trial, dict[str, Any]]]] = {}
    for trial in trials:
        result = trial.result()
        if result is None or not (trial.folder / RANKS).exists():
            continue
        by_dataset.setdefault(result["dataset"], []).append((trial, result))
        if trial.request["tuned"]:
            settings.add(output / trial.request["tuned"])
    for dataset, finished in by_dataset.items():
        _add(cache, dataset, finished)
    for file in sorted(settings):
        target = cache / file.relative_to(output)
        if file not in new_settings and target.exists():
            if read_properties(target) != read_properties(file):
                say(f"{target} stays as it is, and trials were run with other settings: those of {file}")
            continue
        for part in filter(Path.exists, (file, file.with_suffix(".json"))):
            _copy(part, cache / part.relative_to(output))


def store_table(cache: Path, plan: RunPlan, command: str) -> None:
    """Put a suite's table into the results cache.

    Args:
        cache: folder of the results cache.
        plan: what was run.
        command: what makes the table; stands in its first line.
    """
    for ending, head in ((".json", ""), (".md", f"<!-- {command} -->\n")):
        table = (plan.folder / f"table{ending}").read_text(encoding="utf-8")
        for folder in (plan.output, plan.data_path):  # which reasons of failures may name
            table = table.replace(f"{folder}/", "")
        with atomic_write(cache / f"{plan.suite.name}-{plan.dataset}{ending}") as temporary:
            temporary.write_text(head + table, encoding="utf-8")


def refuse(cache: Path, output: Path, kinds: Iterable[str]) -> None:
    """Refuse what a results cache cannot serve, before anything runs.

    Args:
        cache: folder of the results cache.
        output: folder of all results.
        kinds: of the suites.

    Raises:
        ValueError: the cache is the output, or a suite needs more than results and ranks.
    """
    if cache.resolve() == output.resolve():
        raise ValueError(f"--results_cache and --output are both {cache}: the cache holds less, so it is another folder")
    for kind in kinds:
        if kind != "quality":
            raise ValueError(f"--results_cache serves suites of kind quality; kind {kind} needs more than results and ranks")


def previous_table(cache: Path, plan: RunPlan) -> dict[str, Any]:
    """Read the cache's table of a suite; empty where there is none.

    Raises:
        ValueError: the file is damaged, or of other properties or sources, or lacks one of the metrics.
    """
    path = cache / f"{plan.suite.name}-{plan.dataset}.json"
    if not path.exists():
        return {}
    table = read_json(path, "delete it, and the same command writes it anew")
    now: dict[str, Any] = {
        "overrides": dict(plan.overrides), "sources": list(plan.sources), "metrics": list(plan.suite.metrics)
    }  # fmt: skip
    if set(now["metrics"]) <= set(table.get("metrics") or ()):
        del now["metrics"]  # the table may have more of them
    for name, value in now.items():
        if table.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {table.get(name)}, and this is {value}: its rows cannot stand beside these. "
                "Use the same again, or another --results_cache"
            )
    return table


def _read(path: Path) -> pd.DataFrame:
    """Read the trials of a data set; no rows where there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return pd.DataFrame({name: [] for name in _COLUMNS})
    try:
        return pq.read_table(path, columns=_COLUMNS, read_dictionary=_REPEATED).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no results cache ({error}); restore it from the repository, or delete it") from None


def _add(cache: Path, dataset: str, finished: Iterable[tuple[Trial, dict[str, Any]]]) -> None:
    """Write trials behind those that the file of a data set has; the file is replaced at once."""
    path = cache / f"{dataset}.parquet"
    with file_lock(cache):
        table = _read(path)
        in_cache = set(table.groupby(["trial", "seed"], observed=True).groups)
        parts = [table]
        for trial, result in finished:
            name = folder_name(result)
            if (name, trial.seed) in in_cache:
                continue
            in_cache.add((name, trial.seed))
            hashes = {key: trial.request[key] for key in _HASHES}  # results of earlier versions have only the key
            record = json.dumps(hashes | _portable(result) | {"sid": None, "checkpoint": None, "archived": True})
            ranks = trial.ranks()
            users = ranks.pop("users")
            parts += [
                pd.DataFrame(
                    {"trial": name, "seed": trial.seed, "evaluation": evaluation, "user": users,
                     "rank": values.clip(max=EXACT_RANKS + 1), "record": record}
                )
                for evaluation, values in ranks.items()
            ]  # fmt: skip
        if len(parts) > 1:
            _write(path, pd.concat([part.astype({key: object for key in _REPEATED}) for part in parts if len(part)]))


def _write(path: Path, table: pd.DataFrame) -> None:
    types = {"seed": "int32", "user": "int32", "rank": "int32"} | dict.fromkeys(
        ("trial", "evaluation", "record"), "category"
    )
    table = table.astype(types).sort_values(_ORDER, ignore_index=True)
    with atomic_write(path) as temporary:
        pq.write_table(
            pa.Table.from_pandas(table, preserve_index=False), temporary, compression="zstd", compression_level=22,
            use_dictionary=_REPEATED, column_encoding={"user": "DELTA_BINARY_PACKED", "rank": "BYTE_STREAM_SPLIT"},
            dictionary_pagesize_limit=_LARGE_PAGE, data_page_size=_LARGE_PAGE, row_group_size=_LARGE_PAGE,
            write_statistics=False,
        )  # fmt: skip


def _portable(value: Any) -> Any:
    """Return JSON without the folders of the machine that wrote it: of a whole path the name is left."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
