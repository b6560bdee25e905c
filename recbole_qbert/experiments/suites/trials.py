"""Trials: one model, trained with one configuration and seed on one data set; its request, its result, its folder.

A trial does not depend on suites: models of several suites with the same configuration share one trial.
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
from recbole_qbert.config.property_files import read_properties
from recbole_qbert.config.schema import MODEL, RENAMED_PROPERTIES, RUNTIME_PROPERTIES, codes_for
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.item_features import available
from recbole_qbert.data.multi_domain import CODE_TABLES
from recbole_qbert.experiments.suites.suite_spec import RENAMED, ModelSpec, Suite, are_seeds
from recbole_qbert.recbole_integration import experiment, patches, registry
from recbole_qbert.utils.io import digest, read_json, sha256
from recbole_qbert.utils.spelling import did_you_mean

FORMAT = 1
TITLE_WORDS = "baseline/title_words.yaml"  # item attributes where there are no categories
_NOT_HASHED = RUNTIME_PROPERTIES | {"seed"}  # trials of one configuration lie together, whatever their seed
_FILES = ("semantic_id_file", "pretrained", "pre_model_path")  # properties that name files: their content is hashed
#: Properties of after the first published trials, with the value that those trials had without them. With that value a
#: property does not enter the key: a new property makes no trial anew.
LATER_PROPERTIES: Mapping[str, Any] = {
    "annealing": 0,
    "code_init": "random",
    "train_users": 1.0,
    "pretrained_parts": ["encoder", "codebook", "item_embedding", "mask_vector", "repeat_penalty"],
    "text_vectors": "joined",
    "sampled_items": 4096,
}
#: Properties of the network of stage 1, with the value that they have in the key where it is not run; ``None``: in no key.
_OF_NETWORK = {
    "injection_query": "structural",
    "injection_gate": "dynamic",
    "injection_attention": None,
    "injection_reconstruction": None,
}
_OF_FEATURES = ("VQRec", "MISSRec", "VIP5")  # models that read item features besides QBERT4Rec
_INTERACTION_FILES = (".inter", ".item")
_DATA_FILES = (*_INTERACTION_FILES, ".items.txt", ".npy", ".sid")


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        spec: the model of the suite.
        seed: of everything random.
        folder: ``<output>/cells/<data set>/<model>-<12 digits of the key>/seed-<seed>``.
        request: the content of ``config.json``.
        with_ids: only a result with its semantic IDs beside it is accepted; results of a results cache have none.
    """

    spec: ModelSpec
    seed: int
    folder: Path
    request: Mapping[str, Any]
    with_ids: bool = False

    def result(self) -> dict[str, Any] | None:
        """Read ``cell.json``; ``None`` while it is missing, or lacks the checkpoint or the IDs that are needed."""
        result = _read_json(self.folder / "cell.json")
        return result if result and is_reusable(result, self.spec.keep, self.with_ids) else None

    def failure(self) -> dict[str, Any] | None:
        """Read ``failed.json``: ``reason`` and the end of the ``log``."""
        return _read_json(self.folder / "failed.json")

    def ranks(self) -> dict[str, np.ndarray]:
        """Read the rank of every user's test item by evaluation, ``[U]`` int32 each, and the ``users`` (RecBole's ids)."""
        with np.load(self.folder / "ranks.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def is_reusable(result: Mapping[str, Any], keep: bool, with_ids: bool) -> bool:
    """Tell whether a result has what a trial needs.

    Args:
        result: the content of ``cell.json``.
        keep: the checkpoint is needed.
        with_ids: the semantic IDs beside it are needed.
    """
    return not (keep and not result["checkpoint"]) and not (with_ids and result.get("archived"))


@dataclass(frozen=True)
class RunPlan:
    """A suite on a data set.

    Attributes:
        suite: the suite.
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of all results.
        trials: of all models, in the order of running: all models with the first seed, then with the second.
        impossible: model -> why it cannot be trained on this data set.
        models: the models to run; others are in the tables if they were run before.
        overrides: properties from the command line, for every model.
        sources: data sets to pretrain on.
        previous_table: the suite's table in a results cache; its rows stand for models that lack seeds. Empty for none.
        outdated: finished trials of ``trials`` that were made with other item features than the data set has now.
    """

    suite: Suite
    dataset: str
    data_path: Path
    output: Path
    trials: tuple[Trial, ...]
    impossible: Mapping[str, str]
    models: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    previous_table: Mapping[str, Any] = field(default_factory=dict)
    outdated: tuple[Trial, ...] = ()

    @property
    def shown(self) -> list[Trial]:
        """Trials of the tables: those to run, and those of other models that have a result.

        As long as more seeds of a model are finished with other item features than today's, these stand for it.
        """
        by_model: dict[str, list[Trial]] = {}
        for trial in self.trials:
            by_model.setdefault(trial.spec.name, []).append(trial)
        shown: list[Trial] = []
        for name, trials in by_model.items():
            outdated = [trial for trial in self.outdated if trial.spec.name == name]
            finished = [trial for trial in trials if trial.result() is not None]
            shown += outdated if len(outdated) > len(finished) else trials if name in self.models else finished
        return shown

    @property
    def folder(self) -> Path:
        """Folder of the suite's tables."""
        return self.output / "suites" / self.suite.name / self.dataset


def plan_runs(
    suite: Suite,
    dataset: str,
    data_path: Path,
    output: Path,
    overrides: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (),
    models: Sequence[str] = (),
    sources: Sequence[str] = (),
    settings_from: str | None = None,
) -> RunPlan:
    """List the trials of a suite; check all of them before any is run.

    Args:
        suite: the suite.
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of all results.
        overrides: properties for every model, over the suite's shared ones.
        seeds: in place of the suite's.
        models: run only these.
        sources: data sets to pretrain on.
        settings_from: the data set whose tuned settings are used; by default this one.

    Raises:
        FileNotFoundError: the data set, a property file or every tuned setting of ``settings_from`` is missing.
        ValueError: a model or property is unknown, a property is what the suite varies, a seed is given twice, the suite
            does not use ``sources``, or these hold the data set or one twice.
    """
    data_path, output = data_path.resolve(), output.resolve()
    _refuse_sources(suite, dataset, sources)
    _refuse_seeds(seeds, overrides)
    if suite.sweep and (fixed := [key for key in suite.models[0].settings if key in overrides]):
        raise ValueError(f"--{fixed[0]} is what suite {suite.name} varies: leave it out")
    tuned = output / "tuned" / (settings_from or dataset)
    if settings_from and not tuned.is_dir():
        raise FileNotFoundError(
            f"{tuned} is missing: nothing was tuned on {settings_from}; run tune --dataset {settings_from} first"
        )
    form = AtomicFormat.from_config({**suite.shared, **overrides})
    fitted = [_fitted(spec, data_path / dataset / f"{dataset}.item", form) for spec in suite.models]
    suite = replace(suite, models=tuple(spec for spec, _ in fitted))
    impossible = {spec.name: reason for spec, reason in fitted if reason}
    if unfit := _unfit_sources(data_path, sources):
        impossible |= {spec.name: unfit for spec in suite.models if pretrains_on_sources(spec)}
    requests: dict[str, dict[str, Any]] = {}
    understood: set[str] = set()
    for spec in suite.models:
        if spec.name not in impossible:
            with _named(spec, suite):
                properties_of_model = _known_properties(spec, suite, dataset, data_path)
                common = {key: value for key, value in {**suite.shared, **overrides}.items() if key in properties_of_model}
                requests[spec.name] = _request(spec, common, dataset, data_path, output, sources, tuned)
                requests[spec.name]["unknown"] = [key for key in overrides if key not in properties_of_model]
            understood |= properties_of_model
    if not suite.models:
        understood = set(registry.known_properties(MODEL))
    if understood and (strange := [key for key in overrides if key not in understood]):
        raise ValueError(
            f"no model of suite {suite.name} knows the property {strange[0]!r}{did_you_mean(strange[0], understood)}"
        )
    trials = []
    all_seeds = tuple(seeds) or suite.seeds
    for number, seed in enumerate(all_seeds):
        for spec in suite.models:
            if spec.name in requests and number < (spec.seeds or len(all_seeds)):
                request = requests[spec.name] | {"seed": seed}
                folder = output / "cells" / dataset / folder_name(request) / f"seed-{seed}"
                trials.append(Trial(spec, seed, folder, request, suite.kind == "embedding"))
    return RunPlan(
        suite, dataset, data_path, output, tuple(trials), impossible, tuple(models or requests), overrides, tuple(sources)
    )


def folder_name(trial: Mapping[str, Any]) -> str:
    """Name the folder of a request or result, for all its seeds: ``<model>-<12 digits of the key>``."""
    return f"{trial['model']}-{trial['key'][:12]}"


def resolve_property_file(name: str) -> Path:
    """Find a property file of the package, or one that is named by its whole path."""
    return Path(name) if Path(name).is_absolute() else properties(name)


@functools.lru_cache
def fingerprint(data_path: Path, dataset: str) -> str:
    """Hash what a model can learn from a data set: interactions, items, features, semantic IDs, pictures."""
    folder = data_path / dataset
    pictures = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in (folder / "images").glob("*/*"))
    return digest([_hashes(data_path, dataset, _DATA_FILES), pictures])


@functools.lru_cache
def interactions_fingerprint(data_path: Path, dataset: str) -> str:
    """Hash what a model without item features can learn from a data set."""
    return digest(_hashes(data_path, dataset, _INTERACTION_FILES))


@functools.lru_cache
def _hashes(data_path: Path, dataset: str, endings: tuple[str, ...]) -> dict[str, str]:
    paths = sorted((data_path / dataset).glob(f"{dataset}.*"))
    return {path.name: sha256(path) for path in paths if path.name.endswith(endings)}


@functools.lru_cache
def _item_count(path: Path, form: AtomicFormat) -> int:
    """Count the different items of an ``.inter`` file."""
    return len({item for _, (item,) in form.rows(path, [form.item_field])})


def identity(config: Any, sources: Sequence[str] = ()) -> dict[str, Any]:
    """Return the part of RecBole's configuration that a training depends on besides data and seed.

    Of files their content is returned, of ``rq_codes: auto`` the number that it means.

    Args:
        config: RecBole's configuration.
        sources: data sets beside that of ``config`` whose items get semantic IDs, too.
    """
    final = patches.ConfigValues(config)
    first_name = {now: before for before, now in RENAMED_PROPERTIES.items()}  # with which archived trials were hashed
    resolved = {
        first_name.get(key, key): value
        for key, value in final.items()
        if key not in _NOT_HASHED and not (key in LATER_PROPERTIES and value == LATER_PROPERTIES[key])
    }
    if final["fusion"] == "concatenation":
        resolved = {key: value for key, value in resolved.items() if key not in _OF_NETWORK}
        resolved |= {key: value for key, value in _OF_NETWORK.items() if value is not None}
    if final["semantic_ids"] == "none":  # in the key as in that of archived trials: without IDs neither changes anything
        resolved.pop("code_init", None)
        if final["rq_codes"] == "auto":
            resolved["rq_codes"] = 256
    elif final["rq_codes"] == "auto":
        form, folder = AtomicFormat.from_config(config), Path(final["data_path"])
        names = [folder / f"{final['dataset']}.inter", *(folder.parent / name / f"{name}.inter" for name in sources)]
        items = sum(_item_count(path, form) for path in names)
        resolved["rq_codes"] = codes_for(items, int(final["rq_levels"]))
    if final["ids"] in ("auto", "given"):  # of a generative model, which may read codes from tables
        tables = sorted(Path(final["data_path"]).glob(f"{final['dataset']}.*_codes.tsv"))
        resolved["code_tables"] = {path.name: sha256(path) for path in tables}
    return resolved | {key: sha256(Path(final[key])) for key in _FILES if final[key]}


def reads_features(config: Any) -> bool:
    """Tell whether a model reads the item features of its data set: one with semantic IDs, VQRec, MISSRec, VIP5."""
    return config["model"] in _OF_FEATURES or config["semantic_ids"] not in (None, "none")


def validation_protocol(config: Any) -> str:
    """Name the evaluation, of ``suite_spec.EVALUATIONS``, that chooses epochs, settings and the prior on validation.

    A model that learns that users do not repeat items is judged as it ranks. For one that cannot learn it, the history is
    excluded: it is chosen under the protocol under which it is compared.
    """
    return "plain" if config["repeat_penalty"] in ("learned", "exclude") else "history_excluded"


@contextmanager
def _named(spec: ModelSpec, suite: Suite) -> Iterator[None]:
    """Put the model and the suite before an error's message."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"model {spec.name} of suite {suite.name}: {error}") from None


def _request(
    spec: ModelSpec,
    common: Mapping[str, Any],
    dataset: str,
    data_path: Path,
    output: Path,
    sources: Sequence[str],
    tuned_settings: Path,
) -> dict[str, Any]:
    """Return ``config.json`` of a model's trials, without the seed."""
    sources = sources[: spec.sources] if spec.model == MODEL or pretrains_on_sources(spec) else ()
    old_name = next((old for old, name in RENAMED.items() if name == spec.tuned), spec.tuned)
    candidates = [tuned_settings / f"{name}.yaml" for name in (spec.tuned, old_name)]
    tuned = next(filter(Path.exists, candidates), candidates[0])
    tunes = bool(spec.tuned) and tuned.exists()
    files = [*spec.files, *([str(tuned)] if tunes else [])]
    settings = {**common, **spec.settings}
    settings |= {key: str(Path(settings[key]).resolve()) for key in _FILES if settings.get(key)}
    paths = [str(resolve_property_file(file)) for file in files]
    config = experiment.configure(spec.model, dataset, data_path, settings, paths)
    resolved = identity(config, sources)
    datasets = (dataset, *sources)
    features = digest([fingerprint(data_path, name) for name in datasets]) if reads_features(config) else None
    return {
        "format": FORMAT,
        "key": digest([FORMAT, [fingerprint(data_path, name) for name in datasets], resolved, spec.stages]),
        # With these a results cache finds trials of a data set whose item features have changed.
        "settings_key": digest([FORMAT, resolved, spec.stages]),
        "interactions": digest([interactions_fingerprint(data_path, name) for name in datasets]),
        "features": features and f"with the fingerprint {features[:12]}",
        "dataset": dataset,
        "data_path": str(data_path),
        "sources": list(sources),
        "model": spec.model,
        "files": files,
        "settings": settings,
        "stages": [dict(stage) for stage in spec.stages],
        "tuned": str(tuned.relative_to(output)) if tunes else None,
        "overridden": [k for k, v in read_properties(tuned).items() if settings.get(k, v) != v] if tunes else [],
        "validated": validation_protocol(config),
        "prior_inside": config["structural_prior"] == "cooccurrence",
        "most_epochs": (spec.stages[-1] if spec.stages else {}).get("epochs", config["epochs"]),
        "vocabularies": str(output / "vocabularies" / dataset),
        "pretrained": str(output / "pretrained" / dataset),
        "keep": spec.keep,
    }


def pretrains_on_sources(spec: ModelSpec) -> bool:
    """Tell whether a stage of a model runs on the union of ``--sources``."""
    return any(stage.get("on_sources") for stage in spec.stages)


def _unfit_sources(data_path: Path, sources: Sequence[str]) -> str | None:
    """Return why no model can be pretrained on the union of the sources with given codes; ``None`` if one can."""
    if not sources:
        return "is pretrained on other data sets: name them by --sources"
    files = {name: [data_path / name / f"{name}{ending}" for ending in (".inter", *CODE_TABLES)] for name in sources}
    missing = [str(interactions) for interactions, *_ in files.values() if not interactions.exists()]
    if missing:
        return f"is pretrained on --sources, of which {missing[0]} is missing"
    columns = zip(*(tables for _, *tables in files.values()), strict=True)
    if not any(all(table.exists() for table in column) for column in columns):
        endings = " or ".join(f"X{ending}" for ending in CODE_TABLES)
        return f"is pretrained on --sources with given codes, and not every one of {', '.join(sources)} has {endings}"
    return None


def _refuse_sources(suite: Suite, dataset: str, sources: Sequence[str]) -> None:
    if sources and not suite.transfer:
        raise ValueError(f"suite {suite.name} does not pretrain on other data sets: leave out --sources")
    if dataset in sources or len(set(sources)) != len(sources):
        raise ValueError(f"--sources is {' '.join(sources)}; it must name data sets other than {dataset}, each once")


def _refuse_seeds(seeds: Sequence[int], overrides: Mapping[str, Any]) -> None:
    if not are_seeds(seeds):
        raise ValueError(f"--seeds is {' '.join(map(str, seeds))}; it must list different whole numbers from 0 on")
    if "seed" in overrides:
        raise ValueError("--seed is of no use here: a suite has the seeds of --seeds, all trials of tune have the same seed")


def _known_properties(spec: ModelSpec, suite: Suite, dataset: str, data_path: Path) -> frozenset[str]:
    """Return the properties that a model reads."""
    try:
        return registry.known_properties(spec.model)
    except KeyError:  # RecBole's own: what its configuration holds by itself, and RecBole's common properties
        files = [str(resolve_property_file(file)) for file in spec.files]
        own = experiment.configure(
            spec.model, dataset, data_path, {**suite.shared, **spec.settings}, files
        ).final_config_dict
        ours = read_properties(properties(f"model/{MODEL}.yaml"))
        return registry.known_properties(MODEL).difference(ours).union(own)


def _fitted(spec: ModelSpec, items: Path, form: AtomicFormat) -> tuple[ModelSpec, str | None]:
    """Adapt a model to a data set, given its ``.item`` file; also return why it is impossible there, if it is."""
    folder, dataset = items.parent, items.name.removesuffix(".item")
    if "image" in spec.needs and "image" not in available(folder, dataset) and not (folder / "images").is_dir():
        return spec, f"needs pictures: there is neither {dataset}.image.npy nor a folder images"
    if "item_attributes" not in spec.needs:
        return spec, None
    columns = form.header(items).names if items.exists() else ()
    if "categories" in columns:
        return spec, None
    if "title" in columns:
        note = f"{spec.note} Its item attributes are the words of titles: the data set has no categories.".lstrip()
        return replace(spec, files=(*spec.files, TITLE_WORDS), note=note), None
    return spec, f"needs item attributes: {items.name} has no column categories or title"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, "delete it, and the same command runs the trial anew")
    except FileNotFoundError:
        return None
