"""Convert raw Amazon reviews and metadata to RecBole's atomic files.

`convert` reads the files of one category as they are downloaded (2014, 2018 or 2023 edition, or RecBole's own) and writes a
dataset folder::

    <output>/<dataset>/<dataset>.inter          user_id:token item_id:token rating:float timestamp:float
                                                (no rating:float if the source has no ratings)
    <output>/<dataset>/<dataset>.item           item_id:token title:token_seq brand:token categories:token_seq
                                                description:token_seq price:float image_urls:token_seq
    <output>/<dataset>/prepare.rejected.jsonl   the lines that were left out, if any
    <output>/<dataset>/prepare.json             counts of what was read, dropped and written, and the source files

Memory is bounded for files of any size: lines are read in blocks (`line_reader`, `editions`) and staged as Parquet
(`staging`). The steps on the tables (`interaction_steps`) are SQL, whose engines work on disk where necessary
(`sql_engines`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
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
from dataset_prep.amazon.file_kinds import AmazonFormatError
from dataset_prep.amazon.interaction_steps import Size
from dataset_prep.amazon.line_reader import LineCount
from dataset_prep.amazon.options import ConvertOptions, field_names, metadata_files, unix_seconds
from dataset_prep.amazon.sql_engines import DuckDB, Engine, Spark
from dataset_prep.amazon.work_directory import publish, work_directory

__all__ = ["FORMAT_VERSION", "AmazonFormatError", "PrepareReport", "convert"]

REJECTED = "prepare.rejected.jsonl"
FORMAT_VERSION = 3  # of the written files; raise it when the same input gives other bytes


@dataclass(frozen=True)
class PrepareReport:
    """Counts and sources of a conversion; `prepare.json` holds the same.

    Attributes:
        dataset: name of the data set.
        format_version: `FORMAT_VERSION`.
        options: options of `convert`.
        versions: versions of Python and the engine.
        reviews: line counts of the review file.
        metadata: line counts of each metadata file, in the order of precedence.
        steps: the size of the data after each step, with the columns of the usual table of data sets.
        metadata_duplicates: number of further metadata records of the items written; the first of each was used.
        items_without: name of a field -> number of items without it.
        cells_cut: number of cells that were longer than RecBole's reader accepts.
        users, items, interactions, sparsity, average_length: size of the written data, as in the last step.
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
    fields: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Convert one category of the Amazon data to `<output>/<dataset>/`.

    The steps, in this order:

    * Read the lines. Lines that cannot be read (not JSON, a key missing or of the wrong kind, longer than 16 MiB) are left
      out and listed, up to `max_bad_lines`. Damaged files are always an error, and so are ids that RecBole would read as
      missing or split, because dropping them would silently change the data.
    * Apply the time window; later steps do not see interactions outside it.
    * Of several reviews of one item by one user keep the first in time, of equal times the first in the file.
    * With `require_image`, drop items without an image.
    * Drop users and items with too few interactions, repeatedly, until all others have enough (k-core).
    * Write the rows in the order of time, equal times in file order. Times are written exactly (2023: milliseconds as
      fractions of a second). RecBole rounds them to float32, which makes times within 128 s equal; but rounding never
      reverses two times and RecBole's sort is stable (`np.argsort(kind="stable")` in `Interaction.sort`), so the order of
      rows is preserved. Only `rm_dup_inter` would first sort with an unstable sort; it is off by default, and no duplicates
      are left for it.
    * Write exactly one `.item` row per item, an empty one without metadata: RecBole would drop the interactions of items
      without a row, and would rank items that have only a row. Text is cleaned by `cleaning.clean_text`, categories by
      `cleaning.clean_categories`. Of several metadata records of an item the first is used.

    A killed run can be resumed: files that were read completely are not read again, and the result is the same.

    Args:
        reviews: the file; `editions` describes its lines. It may be plain text, packed, a JSON array or a table
            (`line_reader`). For a RecBole `X.inter`, an `X.item` beside it gives the
            rows of items that `metadata` does not have.
        metadata: the file, of any of these kinds; None leaves all cells but the id empty.
        dataset: name of the dataset, its folder and its files.
        output: folder of datasets (RecBole's `data_path`).
        engine: ``local`` (DuckDB) or ``spark`` (PySpark 4.0; its workers must see the files under the same paths, and one
            task reads a file). Both write the same bytes.
        edition: 2014, 2018, 2023 or recbole, for both files; None detects the edition of each file.
        min_user_interactions: least interactions per user (1 keeps all).
        min_item_interactions: least interactions per item (1 keeps all).
        require_image: drop items without an image before the k-core.
        images: folder with `<item>/<any file>`: an item has an image if it has a file there. Without it, an item has an
            image if the metadata list an image URL.
        after: keep interactions at or after this time: seconds, or an ISO date or time (UTC without a time zone).
        before: keep interactions before this time.
        max_bad_lines: limit of bad lines per file. Below 1 it is a share of the lines read so far, and ten lines are always
            accepted; from 1 on it is a number. 0 accepts none.
        fields: ``USER_ID_FIELD``, ``ITEM_ID_FIELD``, ``RATING_FIELD`` or ``TIME_FIELD`` -> column of RecBole files and of
            tables that have other names than RecBole's defaults. The written files have the defaults.
        threads: threads of the local engine; None for one per core.
        progress: show a bar over the bytes read.

    Returns:
        Counts of what was read, dropped and written; also in `prepare.json`.

    Raises:
        FileNotFoundError: an input file or the `images` folder does not exist.
        AmazonFormatError: a file is damaged or of another kind, there are too many bad lines, RecBole cannot read an id, or
            no interactions are left.
        ValueError: `dataset` cannot name a folder, an option is out of range, PySpark or Java is missing for
            `engine="spark"`, or another process prepares the same data set.
    """
    options = ConvertOptions(
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
        fields=field_names(fields or {}),
    )
    with work_directory(Path(output), dataset) as work:
        tasks, files = options.tasks(work), work / "files"
        with closing(Spark(work / "tables") if engine == "spark" else DuckDB(work / "tables", threads)) as sql_engine:
            counts = sql_engine.stage(tasks, progress)
            result = _transform(sql_engine, options, [task.folder for task in tasks], files, counts[0].rated, progress)
        report = PrepareReport(
            dataset=dataset,
            format_version=FORMAT_VERSION,
            options=options.as_dict(),
            versions={"python": platform.python_version(), **sql_engine.version},
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


def _transform(
    engine: Engine, options: ConvertOptions, staged: list[Path], files: Path, rated: bool, progress: bool
) -> dict[str, Any]:
    """Carry out the steps after reading, write `.inter` and `.item` into `files`, and return fields of the report."""
    shutil.rmtree(files, ignore_errors=True)  # files of a run that was killed
    files.mkdir()
    with tqdm(desc="numbering ids", unit=" steps", disable=not progress) as bar:

        def phase(name: str) -> None:
            bar.update()
            bar.set_description(name)

        engine.view("reviews", staged[0] / "part.parquet")
        if options.metadata:
            engine.view("metadata", *(folder / "part.parquet" for folder in staged[1:]))
        steps = [interaction_steps.code_ids(engine)]
        table = "coded"
        if options.windowed:
            phase("cutting the time window")
            table = interaction_steps.apply_window(engine, table, options.after, options.before)
            steps.append(interaction_steps.count(engine, "window", table))
        phase("removing repeats")
        table, repeats = interaction_steps.drop_repeats(engine, table)
        steps.append(interaction_steps.size("distinct", steps[-1].users, steps[-1].items, steps[-1].interactions - repeats))
        if options.images is not None:
            _list_pictured(options.images, files.parent / "pictured.parquet")
            engine.view("pictured", files.parent / "pictured.parquet")
        elif options.require_image:
            interaction_steps.find_pictured(engine)
        if options.require_image:
            phase("removing items without image")
            table = interaction_steps.drop_without_image(engine, table)
            steps.append(interaction_steps.count(engine, "image", table))
        phase("k-core")
        table, rounds = interaction_steps.k_core(engine, table, options.min_user, options.min_item)
        steps += rounds
        if not steps[-1].interactions:
            raise AmazonFormatError(_nothing_left(options, steps))
        phase("writing interactions")
        interaction_steps.write_interactions(engine, table, files / f"{options.dataset}.inter", rated)
        phase("writing items")
        interaction_steps.order_items(engine, table)
        repeated = interaction_steps.join_metadata(engine) if options.metadata else 0
        rows = engine.rows(interaction_steps.item_rows(engine, bool(options.metadata), options.images is not None))
        without, cut = _write_items(rows, files / f"{options.dataset}.item", options.images is not None)
    final = {key: value for key, value in asdict(steps[-1]).items() if key != "step"}
    return {"steps": steps, "metadata_duplicates": repeated, "items_without": without, "cells_cut": cut, **final}


def _nothing_left(options: ConvertOptions, steps: list[Size]) -> str:
    counts = ", ".join(f"{step.interactions:,} after '{step.step}'" for step in steps[1:])
    return (
        f"{options.reviews}: none of {steps[0].interactions:,} interactions is left ({counts}); lower "
        "min_user_interactions or "
        "min_item_interactions"
        + (", widen the time window" if options.windowed else "")
        + (", or omit require_image" if options.require_image else "")
    )


def _list_pictured(images: Path, path: Path) -> None:
    """Write the names of the folders in `images` that hold a file. Folders give the ids; no path is made from an id."""
    names = []
    with os.scandir(images) as folders:
        for folder in folders:
            if folder.is_dir() and folder.name.isprintable():
                with os.scandir(folder) as entries:
                    if any(entry.is_file() for entry in entries):
                        names.append(folder.name)
    pq.write_table(pa.table({"item_id": pa.array(names, pa.string())}), path)


def _write_items(rows: Iterator[tuple[Any, ...]], path: Path, by_folder: bool) -> tuple[dict[str, int], int]:
    """Write the `.item` file from rows of (item, JSON of its metadata, whether it has an image file).

    Returns:
        Name of a field -> number of items without it, and the number of cells that were cut.
    """
    columns = [name.split(":")[0] for name in ITEM_HEADER]
    without = dict.fromkeys(["metadata", *columns[1:6], "image"], 0)
    decode = msgspec.json.Decoder(Metadata).decode
    cut = 0
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write("\t".join(ITEM_HEADER) + "\n")
        for item, fields, has_file in rows:
            cells, cut_here = item_cells(item, Metadata() if fields is None else decode(fields))
            out.write("\t".join(cells) + "\n")
            cut += cut_here
            without["metadata"] += fields is None
            without["image"] += not (has_file if by_folder else cells[6])
            for name, cell in zip(columns[1:6], cells[1:6], strict=True):
                without[name] += not cell
    return without, cut
