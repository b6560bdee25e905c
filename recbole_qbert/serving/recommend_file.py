"""Recommend items for the histories of a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.histories import Histories
from recbole_qbert.serving.recommendation_files import Write, recommendation_file
from recbole_qbert.serving.recommender import Recommender, Skipped

PathLike = str | os.PathLike[str]
BLOCK = 8  # number of batches that are read, ranked and written at a time
History = tuple[str, Sequence[str]]


def recommend(
    model: PathLike,
    histories: PathLike | Sequence[Sequence[str]],
    output: PathLike | Write,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    batch_size: int = 512,
    limit: int | None = None,
    data_path: PathLike | None = None,
    semantic_ids: PathLike | None = None,
    progress: bool = False,
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[PathLike] = (),
) -> dict[str, Any]:
    """Recommend items for many histories.

    Args:
        model: folder of ``export``, or a checkpoint.
        histories: a file (``data.histories``), or histories as lists of item tokens, oldest first.
        output: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` file to write, or a function that takes users and their
            recommendations, block by block.
        k: number of items per history.
        exclude_seen: do not recommend items of the history.
        batch_size: number of histories that are ranked at a time.
        limit: recommend for the first ``limit`` histories only.
        data_path: for a checkpoint, the folder that holds the data set's folder.
        semantic_ids: ``.sid`` file with the IDs of the model and, after them, of new items.
        progress: show a bar.
        properties: properties that override those of the training (``Recommender.load``), such as the names of columns.
        config_files: property files, likewise.

    Returns:
        Numbers of histories (``histories``, of ``total_histories``), and of items and histories that were skipped,
        ``seconds``, and the arguments that matter.

    Raises:
        FileNotFoundError: a file is missing.
        TypeError: ``histories`` is a list of items, not of histories.
        ValueError: a file cannot be read, or the model knows no item of any history. No file is written then.
    """
    started = time.perf_counter()
    recommender = Recommender.load(
        model, data_path=data_path, semantic_ids=semantic_ids, properties=properties, config_files=config_files
    )
    loaded = time.perf_counter()
    total, source = _open(histories, recommender.form)
    count = total if limit is None else min(total, limit)
    target: AbstractContextManager[Write] = nullcontext(output) if callable(output) else recommendation_file(Path(output))
    answered, skipped = 0, Skipped()
    bar = tqdm(total=count, desc="histories", ncols=100, unit="", disable=not progress, leave=False)
    with target as write, bar:
        for block in _blocks(islice(source, count), BLOCK * max(batch_size, 1)):
            tokens = [history for _, history in block]
            ranked = recommender.recommend_arrays(tokens, k, exclude_seen=exclude_seen, batch_size=batch_size)
            write([user for user, _ in block], recommender.named(ranked))
            answered, skipped = answered + len(block), skipped + ranked.skipped
            bar.update(len(block))
        if skipped.histories == answered:  # before the file gets its name
            raise ValueError(_nothing_known(model, histories, answered, skipped))
    return {
        "model": str(model),
        "items": len(recommender.items),
        "histories": answered,
        "total_histories": total,
        "histories_without_answer": skipped.histories,
        "skipped_items": skipped.items,
        "first_unknown_items": list(skipped.first),
        "notes": skipped.lines(),
        "k": k,
        "seconds": {"loading": loaded - started, "recommending": time.perf_counter() - loaded},
        "output": None if callable(output) else str(output),
    }


def _open(histories: PathLike | Sequence[Sequence[str]], form: AtomicFormat) -> tuple[int, Iterable[History]]:
    if isinstance(histories, (str, os.PathLike)):
        file = Histories(Path(histories), form)
        return file.count, file
    if any(isinstance(history, str) for history in histories):
        raise TypeError(
            f"histories holds the item {histories[0]!r}; it must be a list of histories, for example [['a', 'b']]"
        )
    names = ["history"] if len(histories) == 1 else [str(number) for number in range(1, len(histories) + 1)]
    return len(histories), list(zip(names, histories, strict=True))


def _blocks(histories: Iterable[History], size: int) -> Iterator[list[History]]:
    each = iter(histories)
    while block := list(islice(each, size)):
        yield block


def _nothing_known(model: PathLike, histories: object, count: int, skipped: Skipped) -> str:
    where = histories if isinstance(histories, (str, os.PathLike)) else "the histories"
    if not count or not skipped.first:
        return f"{where}: there is no item in {count} histories"
    return (
        f"{where}: the model {model} knows no item of {count} histories (first: {', '.join(skipped.first)}); they are of "
        "another data set, or new items, whose semantic IDs come with --sid"
    )
