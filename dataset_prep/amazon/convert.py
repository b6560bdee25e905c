"""Raw Amazon reviews and metadata to RecBole atomic files.

`convert` reads the files of one category as users download them, of the 2014, 2018 or 2023 edition or RecBole's own, and
writes a dataset folder::

    <output>/<dataset>/<dataset>.inter          user_id:token item_id:token rating:float timestamp:float
    <output>/<dataset>/<dataset>.item           item_id:token title:token_seq brand:token categories:token_seq
                                                description:token_seq price:float image_urls:token_seq
    <output>/<dataset>/prepare.rejected.jsonl   the lines that were left out; only if there are any
    <output>/<dataset>/prepare.json             what was read, dropped and written, and from which files

Memory is bounded whatever the size of the files: lines are read in blocks (`lines`, `editions`) and spilled as Parquet
(`spill`); what is done to the tables (`tables`) is SQL that works on disk where it must (`engines`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from tqdm import tqdm

from dataset_prep.amazon import interaction_steps
from dataset_prep.amazon.cleaning import ITEM_HEADER, Metadata, item_cells
from dataset_prep.amazon.interaction_steps import Size
from dataset_prep.amazon.line_reader import AmazonFormatError, LineCount
from dataset_prep.amazon.options import ConvertOptions, metadata_files, unix_seconds
from dataset_prep.amazon.sql_engines import DuckDB, Engine, Spark
from dataset_prep.amazon.work_directory import publish, work_directory

__all__ = ["FORMAT_VERSION", "AmazonFormatError", "PrepareReport", "convert"]

REJECTED = "prepare.rejected.jsonl"
FORMAT_VERSION = 2  # of the written files; raise it when the same input gives other bytes


@dataclass(frozen=True)
class PrepareReport:
    """What `convert` did; `prepare.json` holds the same.

    Attributes:
        dataset: its name.
        format_version: `FORMAT_VERSION`.
        options: what `convert` was asked for.
        versions: of Python and the engine.
        reviews: what the review file held.
        metadata: what each metadata file held; those first in the list come first.
        steps: the size of the data after each step, with the columns of the usual table of data sets.
        metadata_duplicates: further metadata records of the items written; the first of each was taken.
        items_without: how many items lack what.
        cells_cut: cells that were longer than RecBole's reader accepts.
        users, items, interactions, sparsity, average_length: of what was written, as in the last step.
    """

    dataset: str
    format_version: int
    options: dict[str, Any]
    versions: dict[str, str]
    reviews: LineCount
    metadata: list[LineCount]
    steps: list[Size]
    metadata_duplicates: int
    items_without: dict[str, int]
    cells_cut: int
    users: int
    items: int
    interactions: int
    sparsity: float
    average_length: float


def convert(
    reviews: str | Path,
    metadata: str | Path | None,
    dataset: str,
    output: str | Path,
    *,
    engine: str = "local",
    edition: str | None = None,
    min_user_interactions: int = 5,
    min_item_interactions: int = 5,
    require_image: bool = False,
    images: str | Path | None = None,
    after: str | float | None = None,
    before: str | float | None = None,
    max_bad_lines: float = 0.001,
    threads: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Convert one category of the Amazon data to `<output>/<dataset>/`.

    In this order:

    * Lines that cannot be read (not JSON, a key missing or of the wrong kind, longer than 16 MiB) are left out and listed,
      up to `max_bad_lines`. Damaged gzip data are always an error, and so are ids that RecBole would read as missing or
      take apart: dropping these would change the data unseen.
    * The time window is cut out first: what lies outside of it does not count for anything that follows.
    * Of several reviews of one item by one user the first in time is kept, of equal times the first in the file.
    * With `require_image`, items without an image go.
    * Users and items with too few interactions go, repeatedly, until all left have enough (k-core).
    * Rows stand in the order of time, equal times in file order, and times are written as they are (2023: milliseconds as
      fractions of a second). RecBole narrows them to float32, which makes times within 128 s equal, but rounding never
      reverses two times and its sort is stable (`np.argsort(kind="stable")` in `Interaction.sort`), so the order of rows
      survives. Only `rm_dup_inter` would sort with an unstable sort first; it is off by default and there is nothing left
      for it to remove.
    * Each item left has exactly one `.item` row, without metadata an empty one: RecBole would drop the interactions of
      items without a row, and rank items with a row that nobody can choose. Text is cleaned by `cleaning.clean_text`,
      categories by `cleaning.clean_categories`. Of several metadata records of an item the first is kept.

    A run that was killed is taken up where it was: files that were read are not read again, and the result is the same.

    Args:
        reviews: plain or gzip; what a line means is in `editions`. Of a RecBole `X.inter`, an `X.item` beside it gives the
            rows of items that `metadata` does not have.
        metadata: likewise; None leaves all cells but the id empty.
        dataset: name of the dataset, its folder and its files.
        output: folder of datasets (RecBole's `data_path`).
        engine: ``local`` (DuckDB) or ``spark`` (PySpark 4.0; its workers must see the files under the same paths, and a file
            is read by one task). The same bytes either way.
        edition: 2014, 2018, 2023 or recbole, for both files; None to tell each by its content.
        min_user_interactions: interactions a user must have (1 keeps all).
        min_item_interactions: interactions an item must have (1 keeps all).
        require_image: drop items without an image before the k-core.
        images: folder with `<item>/<any file>`; an item then has an image if it has a file there, otherwise
            if the metadata list an image URL.
        after: keep interactions at or after this time: seconds, or an ISO date or time (UTC unless it says otherwise).
        before: keep interactions before this time.
        max_bad_lines: of each file. Below 1: their largest share among the lines read so far, ten being let pass in any
            case; from 1 on: their number. 0 stops at the first.
        threads: of the local engine; None for as many as there are cores.
        progress: show a bar over the bytes read.

    Returns:
        What was read, dropped and written; also in `prepare.json`.

    Raises:
        FileNotFoundError: an input file or the `images` folder is not there.
        AmazonFormatError: a damaged gzip, too many bad lines, an id RecBole cannot read, or nothing is left.
        ValueError: `dataset` is no plain name, an option makes no sense, PySpark or Java is missing for `engine="spark"`, or
            another process is preparing the same data set.
    """
    plan = ConvertOptions(
        reviews=Path(reviews),
        metadata=metadata_files(Path(reviews), metadata),
        dataset=dataset,
        engine=engine,
        edition=edition,
        min_user=min_user_interactions,
        min_item=min_item_interactions,
        require_image=require_image,
        images=None if images is None else Path(images),
        after=unix_seconds("after", after),
        before=unix_seconds("before", before),
        max_bad_lines=max_bad_lines,
        threads=threads,
    )
    with work_directory(Path(output), dataset) as work:
        tasks, files = plan.tasks(work), work / "files"
        with closing(Spark(work / "tables") if engine == "spark" else DuckDB(work / "tables", threads)) as running:
            counts = running.spill(tasks, progress)
            result = _transform(running, plan, [task.folder for task in tasks], files, progress)
        report = PrepareReport(
            dataset=dataset,
            format_version=FORMAT_VERSION,
            options=plan.options(),
            versions={"python": platform.python_version(), **running.version},
            reviews=counts[0],
            metadata=counts[1:],
            **result,
        )
        with open(files / REJECTED, "wb") as rejected:
            for task in tasks:
                with open(task.folder / "rejected.jsonl", "rb") as part:
                    shutil.copyfileobj(part, rejected)
        manifest = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
        (files / "prepare.json").write_text(manifest, encoding="utf-8")
        publish(files, Path(output) / dataset, [f"{dataset}.inter", f"{dataset}.item", REJECTED, "prepare.json"])
    return report


def _transform(engine: Engine, plan: ConvertOptions, spilled: list[Path], files: Path, progress: bool) -> dict[str, Any]:
    """Every step after reading; writes `.inter` and `.item` into `files` and returns what the report says about them."""
    shutil.rmtree(files, ignore_errors=True)  # of a run that was killed
    files.mkdir()
    with tqdm(desc="numbering ids", unit=" steps", disable=not progress) as bar:

        def phase(name: str) -> None:
            bar.update()
            bar.set_description(name)

        engine.view("reviews", spilled[0] / "part.parquet")
        if plan.metadata:
            engine.view("metadata", *(folder / "part.parquet" for folder in spilled[1:]))
        steps = [interaction_steps.code_ids(engine)]
        table = "coded"
        if plan.windowed:
            phase("cutting the time window")
            table = interaction_steps.in_window(engine, table, plan.after, plan.before)
            steps.append(interaction_steps.count(engine, "window", table))
        phase("removing repeats")
        table, repeats = interaction_steps.without_repeats(engine, table)
        steps.append(interaction_steps.size("distinct", steps[-1].users, steps[-1].items, steps[-1].interactions - repeats))
        if plan.images is not None:
            _list_pictured(plan.images, files.parent / "pictured.parquet")
            engine.view("pictured", files.parent / "pictured.parquet")
        elif plan.require_image:
            interaction_steps.find_pictured(engine)
        if plan.require_image:
            phase("removing items without image")
            table = interaction_steps.with_image(engine, table)
            steps.append(interaction_steps.count(engine, "image", table))
        phase("k-core")
        table, rounds = interaction_steps.k_core(engine, table, plan.min_user, plan.min_item)
        steps += rounds
        if not steps[-1].interactions:
            raise AmazonFormatError(_nothing_left(plan, steps))
        phase("writing interactions")
        interaction_steps.write_interactions(engine, table, files / f"{plan.dataset}.inter")
        phase("writing items")
        interaction_steps.order_items(engine, table)
        repeated = interaction_steps.join_metadata(engine) if plan.metadata else 0
        rows = engine.rows(interaction_steps.item_rows(engine, bool(plan.metadata), plan.images is not None))
        without, cut = _write_items(rows, files / f"{plan.dataset}.item", plan.images is not None)
    final = {key: value for key, value in asdict(steps[-1]).items() if key != "step"}
    return {"steps": steps, "metadata_duplicates": repeated, "items_without": without, "cells_cut": cut, **final}


def _nothing_left(plan: ConvertOptions, steps: list[Size]) -> str:
    told = ", ".join(f"{step.interactions:,} after '{step.step}'" for step in steps[1:])
    return (
        f"{plan.reviews}: of {steps[0].interactions:,} interactions none is left ({told}). "
        "Lower min_user_interactions or min_item_interactions"
        + (", widen the time window" if plan.windowed else "")
        + (", or drop require_image." if plan.require_image else ".")
    )


def _list_pictured(images: Path, path: Path) -> None:
    """The names of the folders in `images` with a file in them. The folders say which items, never an id which folder."""
    names = []
    with os.scandir(images) as folders:
        for folder in folders:
            if folder.is_dir() and folder.name.isprintable():
                with os.scandir(folder) as entries:
                    if any(entry.is_file() for entry in entries):
                        names.append(folder.name)
    pq.write_table(pa.table({"item_id": pa.array(names, pa.string())}), path)


def _write_items(rows: Iterator[tuple[Any, ...]], path: Path, by_folder: bool) -> tuple[dict[str, int], int]:
    """The `.item` file from (item, JSON of its metadata, whether it has an image file).

    Returns:
        How many items lack what, and how many cells were cut.
    """
    columns = [name.split(":")[0] for name in ITEM_HEADER]
    without = dict.fromkeys(["metadata", *columns[1:6], "image"], 0)
    read = msgspec.json.Decoder(Metadata).decode
    cut = 0
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write("\t".join(ITEM_HEADER) + "\n")
        for item, fields, has_file in rows:
            cells, long = item_cells(item, Metadata() if fields is None else read(fields))
            out.write("\t".join(cells) + "\n")
            cut += long
            without["metadata"] += fields is None
            without["image"] += not (has_file if by_folder else cells[6])
            for name, cell in zip(columns[1:6], cells[1:6], strict=True):
                without[name] += not cell
    return without, cut
