"""Suite files (``properties/benchmark/*.yaml``): the models of a table or figure, and what all of them share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_qbert.config.property_files import property_file, read_yaml
from recbole_qbert.utils.spelling import did_you_mean

PUBLISHED = "published"  # benchmark/published.yaml holds the paper's figures and is no suite
KINDS = ("quality", "statistics", "cost", "embedding")
METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10")  # the paper's; NDCG@1 equals HR@1 with one relevant item
NEEDS = ("item_attributes", "image")
COOCCURRENCE = " + co-occurrence"  # suffix of a model's second table row, with the co-occurrence prior added
EVALUATIONS = {"plain": False, "history_excluded": True}  # name -> whether items of the history are ranked last

#: Names that models and table rows had before; still accepted on the command line.
RENAMED = {
    "default": "QBERT4Rec", "paper": "QBERT4Rec (paper)", "SASRec fast": "SASRec (ours)",
    "BERT4Rec corrected": "BERT4Rec (ours)",
    "VQ-Rec": "VQRec", "P5-CID": "P5CID",  # as the paper prints them
}  # fmt: skip
_RENAMED_KEYS = {"rows": "models", "against": "reference"}  # of a suite file

_Types = tuple[type, ...]
_SUITE: dict[str, _Types] = {
    "title": (str,), "paper": (str,), "kind": (str,), "metrics": (list,), "seeds": (list,), "reference": (str,),
    "shared": (dict, str), "sweep": (dict,), "lines": (str,), "transfer": (bool,), "options": (dict,), "models": (dict,),
}  # fmt: skip
_MODEL: dict[str, _Types] = {
    "model": (str,), "files": (list,), "settings": (dict,), "stages": (list,), "seeds": (int,), "note": (str,),
    "needs": (list,), "tuned": (bool, str), "prior": (bool,), "keep": (bool,), "sources": (int,),
}  # fmt: skip
_SWEEP: dict[str, _Types] = {"key": (str, list), "values": (list,), "label": (str,)}


@dataclass(frozen=True)
class ModelSpec:
    """A model of a suite and its settings.

    Attributes:
        name: in the table.
        model: a registered name, RecBole's or ours.
        files: property files under ``properties/``; later ones win.
        settings: properties that define this entry; they win over files, shared properties and the command line.
        stages: properties of consecutive trainings; ``checkpoint_as`` names the property that hands a stage's checkpoint to
            the next. A stage with ``on_sources: true`` runs on the union of ``--sources``.
        seeds: how many of the suite's seeds are run; ``None`` for all.
        note: printed under the table.
        needs: what the data set must have, of ``NEEDS``. ``item_attributes``: the column ``categories`` of its ``.item``,
            or else ``title``, whose words then serve. ``image``: vectors of pictures, or pictures.
        tuned: whose settings of the ``tune`` command are used where they exist; empty for none.
        prior: adds a second table row with the co-occurrence prior.
        keep: keep the checkpoint.
        sources: how many of the data sets of ``--sources`` it is pretrained on, the first ones; ``None`` for all.
    """

    name: str
    model: str
    files: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Mapping[str, Any], ...] = ()
    seeds: int | None = None
    note: str = ""
    needs: tuple[str, ...] = ()
    tuned: str = ""
    prior: bool = False
    keep: bool = False
    sources: int | None = None


@dataclass(frozen=True)
class Suite:
    """A suite file.

    Attributes:
        name: name of the file.
        title: title of the table.
        paper: the table or figure of the paper that it answers; empty for none.
        kind: what is made of the finished trials, of ``KINDS``.
        metrics: columns, of ``METRICS``.
        seeds: seeds of every model.
        reference: the table row that the paired tests compare all others with.
        shared: properties of every model: the evaluation protocol stands here, in one place.
        models: in the order of the table.
        sweep: label of the property that varies from model to model, if one does.
        lines: what varies between models that are named ``<value>, <line>``; each line is drawn over the values.
        transfer: models may be pretrained on other data sets (``--sources``).
        options: further options of the kind.
    """

    name: str
    title: str
    kind: str
    paper: str = ""
    metrics: tuple[str, ...] = METRICS
    seeds: tuple[int, ...] = (2026,)
    reference: str = ""
    shared: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[ModelSpec, ...] = ()
    sweep: str = ""
    lines: str = ""
    transfer: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def current_name(name: str) -> str:
    """Translate an old name of a model or table row.

    >>> current_name("SASRec fast + prior")
    'SASRec (ours) + co-occurrence'
    """
    model = name.removesuffix(" + prior")
    return RENAMED.get(model, model) + (COOCCURRENCE if model != name else "")


def table_rows(models: Iterable[ModelSpec]) -> dict[str, tuple[str, str]]:
    """Map each table row, in order, to its model's name and the prefix of its ranks and metrics."""
    rows = {}
    for spec in models:
        rows[spec.name] = (spec.name, "")
        if spec.prior:
            rows[spec.name + COOCCURRENCE] = (spec.name, "prior_")
    return rows


def names() -> list[str]:
    """List the suites of the package."""
    return sorted(path.stem for path in property_file("benchmark").glob("*.yaml") if path.stem != PUBLISHED)


def load(name: str) -> Suite:
    """Read a suite.

    Args:
        name: one of ``names()``, or the path of your own suite file (``*.yaml``).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: no suite has this name, or the file is wrong; names the file and the key.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        if name not in names():
            raise ValueError(f"no suite {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
        path = property_file(f"benchmark/{name}.yaml")
    content = _checked(_read(path), _SUITE, str(path), ("title", "kind"))
    for key, allowed in (("kind", KINDS), ("metrics", METRICS)):
        _check_choice(content.get(key, ()), allowed, f"{path}: {key}")
    if content.get("metrics", METRICS) == []:
        raise ValueError(f"{path}: metrics is empty; name some of {', '.join(METRICS)}, or leave the key out for all")
    seeds = content.get("seeds", [2026])
    if not seeds or not are_seeds(seeds):
        raise ValueError(f"{path}: seeds is {seeds}; it must list different whole numbers from 0 on")
    models = {str(name): _model(str(name), entry, path) for name, entry in content.get("models", {}).items()}
    if content["kind"] in ("quality", "embedding") and not models:
        raise ValueError(f"{path}: models is missing; a suite of kind {content['kind']} needs at least one")
    label, models = _swept(content.get("sweep"), models, path)
    reference = content.get("reference", "")
    if reference:
        reference = current_name(reference) if reference not in table_rows(models.values()) else reference
        _check_choice(reference, table_rows(models.values()), f"{path}: reference")
    shared = content.get("shared", {})
    if isinstance(shared, str):  # the shared properties of another suite, beside this one or of the package
        other = path.with_name(f"{shared}.yaml")
        other = other if other.exists() or shared not in names() else property_file(f"benchmark/{shared}.yaml")
        shared = _checked(_read(other), _SUITE, str(other), ("shared",))["shared"]
    copied = {key: content[key] for key in ("title", "kind", "paper", "lines", "transfer", "options") if key in content}
    metrics = tuple(content.get("metrics", METRICS))
    return Suite(
        path.stem, **copied, metrics=metrics, seeds=tuple(seeds), reference=reference, shared=shared,
        models=tuple(models.values()), sweep=label,
    )  # fmt: skip


def are_seeds(seeds: Sequence[Any]) -> bool:
    """Tell whether these are different whole numbers from 0 on."""
    return len(set(seeds)) == len(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)


def published(suite: str, dataset: str) -> dict[str, dict[str, float]]:
    """Return the paper's figures, model -> metric -> number; empty where it has none."""
    try:
        figures = _read(property_file(f"benchmark/{PUBLISHED}.yaml"))
    except FileNotFoundError:
        return {}
    return dict((figures.get(suite) or {}).get(dataset) or {})


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "suite")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}")
    return {_RENAMED_KEYS.get(str(key), str(key)): value for key, value in content.items()}


def _model(name: str, entry: Any, path: Path) -> ModelSpec:
    where = f"{path}: models.{name}"
    entry = _checked(entry, _MODEL, where, ("model",))
    _check_choice(entry.get("needs", ()), NEEDS, f"{where}: needs")
    if entry.get("seeds", 1) < 1:
        raise ValueError(f"{where}: seeds is {entry['seeds']}; it is how many of the suite's seeds are run, at least 1")
    stages = entry.get("stages", [])
    last = len(stages) - 1
    if any(not isinstance(stage, dict) or ("checkpoint_as" in stage) == (n == last) for n, stage in enumerate(stages)):
        raise ValueError(f"{where}: stages must be mappings of properties, with checkpoint_as in all but the last")
    tuned = entry.get("tuned", False)
    lists = {key: tuple(entry.get(key, ())) for key in ("files", "stages", "needs")}
    tuned = current_name(tuned) if isinstance(tuned, str) else name if tuned else ""
    return ModelSpec(name, **entry | lists | {"tuned": tuned})


def _swept(sweep: Any, models: dict[str, ModelSpec], path: Path) -> tuple[str, dict[str, ModelSpec]]:
    """Return the label of the property that varies, and one model per value, made from ``models.base``."""
    if sweep is None:
        return "", models
    sweep = _checked(sweep, _SWEEP, f"{path}: sweep", ("key", "values"))
    if list(models) != ["base"]:
        raise ValueError(f"{path}: with a sweep, models must hold base and nothing else, not {', '.join(models) or 'none'}")
    keys = [sweep["key"]] if isinstance(sweep["key"], str) else sweep["key"]
    label, base = sweep.get("label", keys[0]), vars(models["base"])
    values = {f"{label}={value}": value for value in sweep["values"]}
    made = {
        name: ModelSpec(**base | {"name": name, "settings": base["settings"] | dict.fromkeys(keys, value)})
        for name, value in values.items()
    }
    return label, made


def _checked(content: Any, types: Mapping[str, _Types], where: str, needed: Sequence[str]) -> dict[str, Any]:
    """Return a mapping whose keys are known and whose values have the right types."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping with {', '.join(needed)}, not {content!r}")
    for key, value in content.items():
        if key not in types:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(str(key), types)}; known are {', '.join(types)}")
        if type(value) not in types[key]:
            kinds = " or ".join(kind.__name__ for kind in types[key])
            raise ValueError(f"{where}: {key} is {value!r}, a {type(value).__name__}; it must be a {kinds}")
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    return content


def _check_choice(choices: str | Sequence[str], allowed: Collection[str], where: str) -> None:
    for choice in [choices] if isinstance(choices, str) else choices:
        if choice not in allowed:
            raise ValueError(f"{where} has {choice!r}{did_you_mean(str(choice), allowed)}; known are {', '.join(allowed)}")
