"""Suite files (``properties/benchmark/*.yaml``): what stands in a table or figure, row by row, and what all rows share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_qbert.config.property_files import property_file, read_yaml
from recbole_qbert.utils.spelling import did_you_mean

PUBLISHED = "published"  # benchmark/published.yaml holds the paper's figures, and is no suite
KINDS = ("quality", "statistics", "cost", "embedding")
METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10")  # those of the paper; NDCG@1 is HR@1, one item being right
NEEDS = ("item_attributes",)
PRIOR = " + prior"  # behind a row's name: its line with the co-occurrence prior added
EVALUATIONS = {"plain": False, "history_excluded": True}  # name -> whether items of the history are put last

_Types = tuple[type, ...]
_SUITE: dict[str, _Types] = {
    "title": (str,), "paper": (str,), "kind": (str,), "metrics": (list,), "seeds": (list,), "against": (str,),
    "shared": (dict, str), "sweep": (dict,), "transfer": (bool,), "options": (dict,), "rows": (dict,),
}  # fmt: skip
_ROW: dict[str, _Types] = {
    "model": (str,), "files": (list,), "settings": (dict,), "stages": (list,), "seeds": (int,), "note": (str,),
    "needs": (list,), "tuned": (bool, str), "prior": (bool,), "keep": (bool,),
}  # fmt: skip
_SWEEP: dict[str, _Types] = {"key": (str, list), "values": (list,), "label": (str,)}


@dataclass(frozen=True)
class ModelSpec:
    """A line of a table: a model and what it is trained with.

    Attributes:
        name: as the table prints it.
        model: a registered name, RecBole's or ours.
        files: property files under ``properties/``, later ones win.
        settings: properties that make the row what it is; they win over files, shared ones and the command line.
        stages: properties of trainings one after the other; ``checkpoint_as`` names the property that hands a stage's
            checkpoint to the next.
        seeds: only the first so many of the suite's; ``None`` for all.
        note: printed under the table.
        needs: what a data set must have for the row to be possible, of ``NEEDS``. ``item_attributes``: the column
            ``categories`` of its ``.item``, or else ``title``, whose words then serve.
        tuned: the row whose file of the ``tune`` command is used where it exists; empty for none.
        prior: show a second line with the co-occurrence prior.
        keep: keep the checkpoint.
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


@dataclass(frozen=True)
class Suite:
    """A suite file.

    Attributes:
        name: of the file.
        title: of the table.
        paper: which table or figure of the paper it answers; empty for none.
        kind: what is made of the finished cells, of ``KINDS``.
        metrics: columns, of ``METRICS``.
        seeds: of every row.
        against: the line (a row, or a row + prior) that the paired tests compare all others with.
        shared: properties of every row: fairness is here, in one place.
        rows: in the order of the table.
        sweep: label of what varies from row to row, where that is one property.
        transfer: rows may be pretrained on other data sets (``--sources``).
        options: what the kind wants to know besides.
    """

    name: str
    title: str
    kind: str
    paper: str = ""
    metrics: tuple[str, ...] = METRICS
    seeds: tuple[int, ...] = (2026,)
    against: str = ""
    shared: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[ModelSpec, ...] = ()
    sweep: str = ""
    transfer: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def lines(rows: Iterable[ModelSpec]) -> dict[str, tuple[str, str]]:
    """Lines of a table in their order: name -> row, and what stands before the names of its ranks and figures."""
    found = {}
    for row in rows:
        found[row.name] = (row.name, "")
        if row.prior:
            found[row.name + PRIOR] = (row.name, "prior_")
    return found


def names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in property_file("benchmark").glob("*.yaml") if path.stem != PUBLISHED)


def load(name: str) -> Suite:
    """Read a suite.

    Args:
        name: one of ``names()``, or the path of a suite file of one's own (``*.yaml``).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: no suite of this name; or names the file, the key and what is wrong with it.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        if name not in names():
            raise ValueError(f"no suite {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
        path = property_file(f"benchmark/{name}.yaml")
    given = _checked(_read(path), _SUITE, str(path), ("title", "kind"))
    for key, known in (("kind", KINDS), ("metrics", METRICS)):
        _known(given.get(key, ()), known, f"{path}: {key}")
    if given.get("metrics", METRICS) == []:
        raise ValueError(f"{path}: metrics is empty; name some of {', '.join(METRICS)}, or leave the key out for all")
    seeds = given.get("seeds", [2026])
    if not seeds or not are_seeds(seeds):
        raise ValueError(f"{path}: seeds is {seeds}; it must list different whole numbers from 0 on")
    rows = {str(name): _row(str(name), row, path) for name, row in given.get("rows", {}).items()}
    if given["kind"] in ("quality", "embedding") and not rows:
        raise ValueError(f"{path}: rows is missing; a suite of kind {given['kind']} needs at least one")
    label, rows = _swept(given.get("sweep"), rows, path)
    against = given.get("against", "")
    if against:
        _known(against, lines(rows.values()), f"{path}: against")
    shared = given.get("shared", {})
    if isinstance(shared, str):  # as in that suite, which lies beside this one or is the package's
        other = path.with_name(f"{shared}.yaml")
        other = other if other.exists() or shared not in names() else property_file(f"benchmark/{shared}.yaml")
        shared = _checked(_read(other), _SUITE, str(other), ("shared",))["shared"]
    taken = {key: given[key] for key in ("title", "kind", "paper", "transfer", "options") if key in given}
    metrics = tuple(given.get("metrics", METRICS))
    return Suite(
        path.stem, **taken, metrics=metrics, seeds=tuple(seeds), against=against, shared=shared, rows=tuple(rows.values()),
        sweep=label,
    )  # fmt: skip


def are_seeds(seeds: Sequence[Any]) -> bool:
    """Whether they are different whole numbers from 0 on."""
    return len(set(seeds)) == len(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)


def published(suite: str, dataset: str) -> dict[str, dict[str, float]]:
    """The paper's figures for a suite and a data set: row -> metric -> number; empty where it has none."""
    try:
        known = _read(property_file(f"benchmark/{PUBLISHED}.yaml"))
    except FileNotFoundError:
        return {}
    return dict((known.get(suite) or {}).get(dataset) or {})


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "suite")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}")
    return content


def _row(name: str, given: Any, path: Path) -> ModelSpec:
    where = f"{path}: rows.{name}"
    given = _checked(given, _ROW, where, ("model",))
    _known(given.get("needs", ()), NEEDS, f"{where}: needs")
    if given.get("seeds", 1) < 1:
        raise ValueError(f"{where}: seeds is {given['seeds']}; it is how many of the suite's seeds are run, at least 1")
    stages = given.get("stages", [])
    last = len(stages) - 1
    if any(not isinstance(stage, dict) or ("checkpoint_as" in stage) == (n == last) for n, stage in enumerate(stages)):
        raise ValueError(
            f"{where}: stages must be mappings of properties, all but the last with checkpoint_as, that without"
        )
    tuned = given.get("tuned", False)
    lists = {key: tuple(given.get(key, ())) for key in ("files", "stages", "needs")}
    given |= {**lists, "tuned": tuned if isinstance(tuned, str) else name if tuned else ""}
    return ModelSpec(name, **given)


def _swept(sweep: Any, rows: dict[str, ModelSpec], path: Path) -> tuple[str, dict[str, ModelSpec]]:
    """The label of what varies, and a row a value, made from ``rows.base``."""
    if sweep is None:
        return "", rows
    sweep = _checked(sweep, _SWEEP, f"{path}: sweep", ("key", "values"))
    if list(rows) != ["base"]:
        raise ValueError(f"{path}: with a sweep, rows must hold base and nothing else; found {', '.join(rows) or 'none'}")
    keys = [sweep["key"]] if isinstance(sweep["key"], str) else sweep["key"]
    label, base = sweep.get("label", keys[0]), vars(rows["base"])
    values = {f"{label}={value}": value for value in sweep["values"]}
    made = {
        name: ModelSpec(**base | {"name": name, "settings": base["settings"] | dict.fromkeys(keys, value)})
        for name, value in values.items()
    }
    return label, made


def _checked(given: Any, known: Mapping[str, _Types], where: str, needed: Sequence[str]) -> dict[str, Any]:
    """A mapping of known keys with values of the right types."""
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping with {', '.join(needed)}; found {given!r}")
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}; known are {', '.join(known)}")
        if type(value) not in known[key]:
            kinds = " or ".join(kind.__name__ for kind in known[key])
            raise ValueError(f"{where}: {key} is {value!r}, a {type(value).__name__}; it must be a {kinds}")
    missing = [key for key in needed if key not in given]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    return given


def _known(given: str | Sequence[str], known: Collection[str], where: str) -> None:
    for word in [given] if isinstance(given, str) else given:
        if word not in known:
            raise ValueError(f"{where} has {word!r}{did_you_mean(str(word), known)}; known are {', '.join(known)}")
