"""An archive of finished cells, small enough for a repository: with it a suite goes on, and tables are made, anywhere.

A cell is there with its result and its ranks, without logs and weights; a table with its Markdown; and what ``tune`` chose::

    <archive>/cells/<data set>/<model>-<key>/seed-<seed>/cell.json, ranks.npz
    <archive>/tuned/<data set>/<row>.yaml, .json
    <archive>/<suite>-<data set>.json, .md
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_qbert.artifacts import whole, write_json
from recbole_qbert.suites.cells import Cell, Plan

RESULT, RANKS = "cell.json", "ranks.npz"


def take(archive: Path, output: Path, dataset: str) -> int:
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


def keep(archive: Path, output: Path, cells: Iterable[Cell], tuned: Iterable[Path] = ()) -> None:
    """Put the cells that have a result into the archive, and files of tuned settings."""
    output = output.resolve()
    for cell in cells:
        result = cell.result()
        if result is not None and (cell.folder / RANKS).exists():
            folder = archive / cell.folder.relative_to(output)
            _copy(cell.folder / RANKS, folder / RANKS)
            write_json(folder / RESULT, _portable(result) | {"sid": None, "checkpoint": None})
    for file in tuned:
        _copy(file, archive / file.resolve().relative_to(output))


def keep_table(archive: Path, plan: Plan, command: str) -> None:
    """Put a suite's table into the archive, under the command that makes it."""
    name = f"{plan.suite.name}-{plan.dataset}"
    _copy(plan.folder / "table.json", archive / f"{name}.json")
    with whole(archive / f"{name}.md") as temporary:
        table = (plan.folder / "table.md").read_text(encoding="utf-8")
        temporary.write_text(f"<!-- {command} -->\n{table}", encoding="utf-8")


def earlier(archive: Path, suite: str, dataset: str) -> dict[str, Any]:
    """The table of the archive as it is; empty where there is none.

    Raises:
        ValueError: names the file, which is not JSON.
    """
    path = archive / f"{suite}-{dataset}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it, and the same command writes it anew") from error


def _portable(value: Any) -> Any:
    """JSON without the folders of the machine that wrote it: of a whole path the name is left."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _copy(source: Path, target: Path) -> None:
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)
