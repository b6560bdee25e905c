"""An archive of finished cells, small enough for a repository: with it a suite goes on, and tables are made, anywhere.

A cell is there with its result and its ranks, without logs and weights; a table with its Markdown; and what ``tune`` chose::

    <archive>/cells/<data set>/<model>-<key>/seed-<seed>/cell.json, ranks.npz
    <archive>/tuned/<data set>/<row>.yaml, .json
    <archive>/<suite>-<data set>.json, .md
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_qbert.config.property_files import read_yaml
from recbole_qbert.experiments.suites.trials import RunPlan, Trial
from recbole_qbert.utils.console import say
from recbole_qbert.utils.io import atomic_write, read_json, write_json

RESULT, RANKS = "cell.json", "ranks.npz"


def restore(archive: Path, output: Path, dataset: str) -> int:
    """Copy what the output lacks of a data set's cells and of all tuned settings; returns the number of cells.

    Settings may have been tuned on another data set than the one they are used on.
    """
    taken = 0
    for known in sorted((archive / "cells" / dataset).glob(f"*/*/{RESULT}")):
        folder = output / known.parent.relative_to(archive)
        if not (folder / RESULT).exists():
            _copy(known.with_name(RANKS), folder / RANKS)
            _copy(known, folder / RESULT)  # last: with it the cell is done
            taken += 1
    for known in sorted((archive / "tuned").glob("*/*")):
        if not (chosen := output / known.relative_to(archive)).exists():
            _copy(known, chosen)
    return taken


def store(archive: Path, output: Path, cells: Iterable[Trial], tuned: Iterable[Path] = ()) -> None:
    """Put the cells that have a result into the archive, and the tuned settings (``.yaml``, ``.json``) that they name.

    What is there stays as it is: to have another cell in its place, delete it. Only ``tuned``, what was chosen just now, is
    written over what was chosen before.
    """
    output, new = output.resolve(), {file.resolve() for file in tuned}
    settings = set(new)
    for cell in cells:
        result = cell.result()
        folder = archive / cell.folder.relative_to(output)
        if result is None or not (cell.folder / RANKS).exists():
            continue
        if cell.asked["tuned"]:
            settings.add(output / cell.asked["tuned"])
        if not (folder / RESULT).exists():
            _copy(cell.folder / RANKS, folder / RANKS)
            write_json(folder / RESULT, _portable(result) | {"sid": None, "checkpoint": None, "archived": True})
    for file in sorted(settings):
        there = archive / file.relative_to(output)
        if file not in new and there.exists():
            if read_yaml(there, "property") != read_yaml(file, "property"):
                say(f"{there} stays as it is, and cells were run with other settings: those of {file}")
            continue
        for part in filter(Path.exists, (file, file.with_suffix(".json"))):
            _copy(part, archive / part.relative_to(output))


def store_table(archive: Path, plan: RunPlan, command: str) -> None:
    """Put a suite's table into the archive, under the command that makes it."""
    for end, head in ((".json", ""), (".md", f"<!-- {command} -->\n")):
        table = (plan.folder / f"table{end}").read_text(encoding="utf-8")
        for place in (plan.output, plan.data_path):  # which reasons of failures may name
            table = table.replace(f"{place}/", "")
        with atomic_write(archive / f"{plan.suite.name}-{plan.dataset}{end}") as temporary:
            temporary.write_text(head + table, encoding="utf-8")


def refuse(archive: Path, output: Path, kinds: Iterable[str]) -> None:
    """Refuse what an archive cannot serve, before anything runs.

    Raises:
        ValueError: the archive is the output, or a suite is not made of cells alone.
    """
    if archive.resolve() == output.resolve():
        raise ValueError(
            f"--archive and --output are both {archive}: an archive keeps less than the output, so it is another folder"
        )
    for kind in kinds:
        if kind != "quality":
            raise ValueError(
                f"--archive serves suites of kind quality; one of kind {kind} needs more than results and ranks"
            )


def earlier(archive: Path, plan: RunPlan) -> dict[str, Any]:
    """The archive's table of a suite; empty where there is none.

    Raises:
        ValueError: the file is damaged, or of other properties or sources, or lacks one of the metrics.
    """
    path = archive / f"{plan.suite.name}-{plan.dataset}.json"
    if not path.exists():
        return {}
    known = read_json(path, "delete it, and the same command writes it anew")
    now: dict[str, Any] = {"given": dict(plan.given), "sources": list(plan.sources), "metrics": list(plan.suite.metrics)}
    if set(now["metrics"]) <= set(known.get("metrics") or ()):
        del now["metrics"]  # it may have more of them
    for name, value in now.items():
        if known.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {known.get(name)}, and this is {value}: its lines cannot stand beside these. "
                "Ask as then, or use another --archive"
            )
    return known


def _portable(value: Any) -> Any:
    """JSON without the folders of the machine that wrote it: of a whole path the name is left."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
