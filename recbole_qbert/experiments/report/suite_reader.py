"""Read the folder of a suite and its trials for a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_qbert.utils.io import read_json

# What the paper's tables call an evaluation of every model; the fairer one first.
SETTINGS = {"history_excluded": "history left out", "plain": "as RecBole evaluates"}


@dataclass(frozen=True)
class FinishedTrial:
    """Finished training: the model's name, seed, folder and ``cell.json``."""

    row: str
    seed: int
    folder: Path
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """A suite on a data set.

    Attributes:
        folder: ``<output>/suites/<suite>/<dataset>``.
        about: ``suite.json``.
        table: ``table.json``; empty where there is none.
        embedding: ``embedding.json`` (figure 6); empty where there is none.
        trials: the finished ones, in the order of rows and seeds.
        unfinished: what is expected and not there, one line each.
    """

    folder: Path
    about: Mapping[str, Any]
    table: Mapping[str, Any]
    embedding: Mapping[str, Any]
    trials: tuple[FinishedTrial, ...]
    unfinished: tuple[str, ...]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The suite file, resolved."""
        return self.about["suite"]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.about["dataset"])

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """Rows of a comparison; none of another kind of table."""
        return self.table.get("rows") or []

    @property
    def output(self) -> Path:
        """The folder of all results."""
        return self.folder.parents[2]

    def by_row(self) -> Iterator[tuple[str, list[FinishedTrial]]]:
        """Iterate over models that have finished trials, with these."""
        for row in dict.fromkeys(trial.row for trial in self.trials):
            yield row, [trial for trial in self.trials if trial.row == row]


def read(folder: Path) -> Suite:
    """Read the folder of a suite.

    Raises:
        FileNotFoundError: no ``suite.json`` there; names the folders that have one.
        ValueError: a file is damaged, or is no ``suite.json``.
    """
    folder = folder.resolve()
    if not (folder / "suite.json").exists():
        near = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("suites/*/*/suite.json"))
        hint = f"it holds {', '.join(near)}: name one of these" if near else "run a benchmark suite first"
        raise FileNotFoundError(f"{folder} has no suite.json, so it is no folder of a suite's results; {hint}")
    about = _json(folder / "suite.json")
    if not {"suite", "dataset", "trials"} <= set(about):
        raise ValueError(f"{folder / 'suite.json'} lacks suite, dataset or trials; run the suite again to write it anew")
    order = {row["name"]: number for number, row in enumerate(about["suite"].get("models", ()))}
    trials, unfinished = [], []
    for entry in sorted(about["trials"], key=lambda entry: (order.get(entry["model"], len(order)), entry["seed"])):
        at = folder.parents[2] / entry["path"]
        if (at / "cell.json").exists():
            trials.append(FinishedTrial(entry["model"], entry["seed"], at, _json(at / "cell.json")))
            continue
        failed = _json(at / "failed.json") if (at / "failed.json").exists() else None
        reason = f"failed: {failed['reason']} (log: {entry['path']}/log.txt)" if failed else "not run yet"
        unfinished.append(f"{entry['model']}, seed {entry['seed']}: {reason}")
    unfinished += [f"{row}: not possible on this data set: {reason}" for row, reason in about.get("impossible", {}).items()]
    optional = {name: folder / f"{name}.json" for name in ("table", "embedding")}
    content = {name: _json(path) if path.exists() else {} for name, path in optional.items()}
    return Suite(folder, about, content["table"], content["embedding"], tuple(trials), tuple(unfinished))


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "run the suite again to write it anew")
