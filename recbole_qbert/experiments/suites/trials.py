"""Cells: one model, trained with one configuration and seed on one data set; where its result lies and what it is of.

A cell knows nothing of suites: rows of several suites that ask for the same training share one cell.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.config.property_files import property_file as properties
from recbole_qbert.config.property_files import read_yaml
from recbole_qbert.config.schema import MODEL, RENAMED_PROPERTIES, RUNTIME_PROPERTIES
from recbole_qbert.experiments.suites.suite_spec import ModelSpec, Suite, are_seeds
from recbole_qbert.recbole_integration import experiment, patches, registry
from recbole_qbert.utils.io import digest, read_json, sha256
from recbole_qbert.utils.spelling import did_you_mean

FORMAT = 1
TITLE_WORDS = "baseline/title_words.yaml"  # item attributes where there are no categories
_NOT_ASKED = RUNTIME_PROPERTIES | {"seed"}  # seeds of one configuration lie together
_FILES = ("semantic_id_file", "pretrained", "pre_model_path")  # properties that name files: their content counts


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        row: the suite's row that asks for it.
        seed: of everything random.
        folder: ``<output>/cells/<data set>/<model>-<12 digits of the key>/seed-<seed>``.
        asked: what ``config.json`` says.
        with_ids: only a result will do whose semantic IDs lie beside it; those of an archive do not.
    """

    row: ModelSpec
    seed: int
    folder: Path
    asked: Mapping[str, Any]
    with_ids: bool = False

    def result(self) -> dict[str, Any] | None:
        """``cell.json``; ``None`` while it is not there, or without the checkpoint or the IDs that are wanted."""
        found = _read_json(self.folder / "cell.json")
        return found if found and is_reusable(found, self.row.keep, self.with_ids) else None

    def failure(self) -> dict[str, Any] | None:
        """``failed.json``: ``reason`` and the end of the ``log``."""
        return _read_json(self.folder / "failed.json")

    def ranks(self) -> dict[str, np.ndarray]:
        """Rank of every user's test item by setting, ``[U]`` int32 each, and the ``users`` (RecBole's ids)."""
        with np.load(self.folder / "ranks.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def is_reusable(result: Mapping[str, Any], keep: bool, with_ids: bool) -> bool:
    """Whether a result has the checkpoint, and the IDs beside it, if they are wanted."""
    return not (keep and not result["checkpoint"]) and not (with_ids and result.get("archived"))


@dataclass(frozen=True)
class RunPlan:
    """A suite on a data set.

    Attributes:
        suite: the suite.
        dataset: name of the data set.
        data_path: folder that holds its folder.
        output: folder of all results.
        cells: of all rows, in the order of running: all rows with the first seed, then with the second.
        impossible: row -> why it cannot be run on this data set.
        rows: the rows to run; others are in the tables if they were run before.
        given: properties from the command line, for every row.
        sources: data sets to pretrain on.
        earlier: the suite's table of an archive, whose lines stand for rows that lack seeds; empty for none.
    """

    suite: Suite
    dataset: str
    data_path: Path
    output: Path
    cells: tuple[Trial, ...]
    impossible: Mapping[str, str]
    rows: tuple[str, ...]
    given: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    earlier: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> list[Trial]:
        """Cells to run, and those of other rows that have a result."""
        return [cell for cell in self.cells if cell.row.name in self.rows or cell.result() is not None]

    @property
    def folder(self) -> Path:
        """Where the suite's tables go."""
        return self.output / "suites" / self.suite.name / self.dataset


def plan_runs(
    suite: Suite,
    dataset: str,
    data_path: Path,
    output: Path,
    given: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    sources: Sequence[str] = (),
    tuned_on: str | None = None,
) -> RunPlan:
    """What has to be run for a suite; checks all of it before anything is.

    Args:
        suite: the suite.
        dataset: name of the data set.
        data_path: folder that holds its folder.
        output: folder of all results.
        given: properties for every row, over the suite's shared ones.
        seeds: in place of the suite's.
        rows: run only these.
        sources: data sets to pretrain on.
        tuned_on: the data set whose tuned settings are used; by default this one.

    Raises:
        FileNotFoundError: the data set, a property file or every tuned setting of ``tuned_on`` is missing.
        ValueError: an unknown model or property, one that a suite varies, a seed twice, or ``sources`` for no purpose.
    """
    data_path, output = data_path.resolve(), output.resolve()
    if sources and not suite.transfer:
        raise ValueError(f"suite {suite.name} does not pretrain on other data sets: leave out --sources")
    _refuse_seeds(seeds, given)
    if suite.sweep and (fixed := [key for key in suite.rows[0].settings if key in given]):
        raise ValueError(f"--{fixed[0]} is what suite {suite.name} varies: leave it out")
    tuned = output / "tuned" / (tuned_on or dataset)
    if tuned_on and not tuned.is_dir():
        raise FileNotFoundError(f"{tuned} is missing: nothing was tuned on {tuned_on}; run tune --dataset {tuned_on} first")
    fitted = [_fitted(row, data_path / dataset / dataset) for row in suite.rows]
    suite = replace(suite, rows=tuple(row for row, _ in fitted))
    impossible = {row.name: reason for row, reason in fitted if reason}
    asked: dict[str, dict[str, Any]] = {}
    understood: set[str] = set()
    for row in suite.rows:
        if row.name not in impossible:
            with _named(row, suite):
                known = _known_properties(row, suite, dataset, data_path)
                common = {key: value for key, value in {**suite.shared, **given}.items() if key in known}
                asked[row.name] = _asked(row, common, dataset, data_path, output, sources, tuned)
                asked[row.name]["unknown"] = [key for key in given if key not in known]
            understood |= known
    if not suite.rows:
        understood = set(registry.known_properties(MODEL))
    if understood and (strange := [key for key in given if key not in understood]):
        raise ValueError(
            f"no row of suite {suite.name} knows the property {strange[0]!r}{did_you_mean(strange[0], understood)}"
        )
    cells = []
    all_seeds = tuple(seeds) or suite.seeds
    for number, seed in enumerate(all_seeds):
        for row in suite.rows:
            if row.name in asked and number < (row.seeds or len(all_seeds)):
                folder = output / "cells" / dataset / f"{row.model}-{asked[row.name]['key'][:12]}" / f"seed-{seed}"
                cells.append(Trial(row, seed, folder, asked[row.name] | {"seed": seed}, suite.kind == "embedding"))
    return RunPlan(suite, dataset, data_path, output, tuple(cells), impossible, tuple(rows or asked), given, tuple(sources))


def resolve_property_file(name: str) -> Path:
    """A property file of the package, or one that is named by its whole path."""
    return Path(name) if Path(name).is_absolute() else properties(name)


@functools.lru_cache
def fingerprint(data_path: Path, dataset: str) -> str:
    """Digest of what a model can learn from a data set: interactions, items, features, identifiers, pictures."""
    folder = data_path / dataset
    ends = (".inter", ".item", ".items.txt", ".npy", ".sid")
    files = [path for path in sorted(folder.glob(f"{dataset}.*")) if path.name.endswith(ends)]
    pictures = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in (folder / "images").glob("*/*"))
    return digest([{path.name: sha256(path) for path in files}, pictures])


def identity(config: Any) -> dict[str, Any]:
    """Of RecBole's configuration, what a training depends on besides data and seed; of files their content."""
    final = patches.ConfigValues(config)
    first_name = {now: before for before, now in RENAMED_PROPERTIES.items()}  # with which archived trials were hashed
    resolved = {first_name.get(key, key): value for key, value in final.items() if key not in _NOT_ASKED}
    return resolved | {key: sha256(Path(final[key])) for key in _FILES if final[key]}


def validation_protocol(config: Any) -> str:
    """The evaluation, of ``spec.EVALUATIONS``, by which epochs, trials and the prior of a model are chosen on validation.

    A model that learns that users do not repeat items is judged as it ranks; for one that cannot, the history is left out:
    it is chosen under the rule under which it is compared.
    """
    return "plain" if config["repeat_penalty"] in ("learned", "exclude") else "history_excluded"


@contextmanager
def _named(row: ModelSpec, suite: Suite) -> Iterator[None]:
    """What is wrong with a row names it."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"row {row.name} of suite {suite.name}: {error}") from None


def _asked(
    row: ModelSpec,
    common: Mapping[str, Any],
    dataset: str,
    data_path: Path,
    output: Path,
    sources: Sequence[str],
    tuned_settings: Path,
) -> dict[str, Any]:
    """``config.json`` of a row's cells, without the seed."""
    if sources and row.model != MODEL:
        raise ValueError(f"only {MODEL} is pretrained on --sources, not {row.model}")
    tuned = tuned_settings / f"{row.tuned}.yaml"
    tunes = bool(row.tuned) and tuned.exists()
    files = [*row.files, *([str(tuned)] if tunes else [])]
    settings = {**common, **row.settings}
    settings |= {key: str(Path(settings[key]).resolve()) for key in _FILES if settings.get(key)}
    paths = [str(resolve_property_file(file)) for file in files]
    config = experiment.configure(row.model, dataset, data_path, settings, paths)
    resolved = identity(config)
    data = [fingerprint(data_path, name) for name in (dataset, *sources)]
    return {
        "format": FORMAT,
        "key": digest([FORMAT, data, resolved, row.stages]),
        "dataset": dataset,
        "data_path": str(data_path),
        "sources": list(sources),
        "model": row.model,
        "files": files,
        "settings": settings,
        "stages": [dict(stage) for stage in row.stages],
        "tuned": str(tuned.relative_to(output)) if tunes else None,
        "overridden": [k for k, v in read_yaml(tuned, "property").items() if settings.get(k, v) != v] if tunes else [],
        "validated": validation_protocol(config),
        "prior_inside": config["structural_prior"] == "cooccurrence",
        "most_epochs": (row.stages[-1] if row.stages else {}).get("epochs", config["epochs"]),
        "vocabularies": str(output / "vocabularies" / dataset),
        "pretrained": str(output / "pretrained" / dataset),
        "keep": row.keep,
    }


def _refuse_seeds(seeds: Sequence[int], given: Mapping[str, Any]) -> None:
    if not are_seeds(seeds):
        raise ValueError(f"--seeds is {' '.join(map(str, seeds))}; it must list different whole numbers from 0 on")
    if "seed" in given:
        raise ValueError("--seed is of no use here: cells have the seeds of --seeds, trials of tune all have the same")


def _known_properties(row: ModelSpec, suite: Suite, dataset: str, data_path: Path) -> frozenset[str]:
    """Properties that mean something to a row's model."""
    try:
        return registry.known_properties(row.model)
    except KeyError:  # RecBole's own: what its configuration holds by itself, and RecBole's common properties
        files = [str(resolve_property_file(file)) for file in row.files]
        own = experiment.configure(row.model, dataset, data_path, {**suite.shared, **row.settings}, files).final_config_dict
        ours = read_yaml(properties(f"model/{MODEL}.yaml"), "property")
        return registry.known_properties(MODEL).difference(ours).union(own)


def _fitted(row: ModelSpec, stem: Path) -> tuple[ModelSpec, str | None]:
    """A row for a data set (``<folder>/<name>`` of its files), and why it is impossible there, if it is."""
    if "item_attributes" not in row.needs:
        return row, None
    items = stem.with_name(f"{stem.name}.item")
    header = items.open(encoding="utf-8").readline() if items.exists() else ""
    columns = [column.split(":")[0] for column in header.rstrip("\n").split("\t")]
    if "categories" in columns:
        return row, None
    if "title" in columns:
        note = f"{row.note} Its item attributes are the words of titles: the data set has no categories.".lstrip()
        return replace(row, files=(*row.files, TITLE_WORDS), note=note), None
    return row, f"needs item attributes: {items.name} has no column categories or title"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, "delete it, and the same command runs the cell anew")
    except FileNotFoundError:
        return None
