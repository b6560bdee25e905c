"""Files of recommendations: one row each in ``.tsv``, ``.csv`` and ``.parquet``, one line a history in ``.jsonl``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_qbert.data.histories import PYARROW
from recbole_qbert.serving.recommender import Recommendation
from recbole_qbert.utils.io import atomic_write

COLUMNS = ("user_id", "rank", "item_id", "score", "semantic_id", "title")
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
#: Writes the recommendations of a block of users.
Write = Callable[[Sequence[str], Sequence[Sequence[Recommendation]]], None]


@contextmanager
def recommendation_file(path: Path) -> Iterator[Write]:
    """Open a file for writing recommendations in blocks; it appears when the ``with`` block ends without an error.

    Raises:
        ValueError: an unknown suffix, or parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}; recommendations are written to {', '.join(SUFFIXES)}")
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            with _parquet(temporary, path) as write:
                yield write
        else:
            with open(temporary, "w", encoding="utf-8", newline="") as handle:
                yield _lines(handle) if path.suffix == ".jsonl" else _table(handle, path.suffix)


def _rows(users: Sequence[str], recommendations: Sequence[Sequence[Recommendation]]) -> Iterator[tuple[Any, ...]]:
    for user, items in zip(users, recommendations, strict=True):
        for rank, (item, score, title, semantic_id) in enumerate(items, 1):
            yield user, rank, item, round(score, 6), semantic_id, title


def _table(handle: Any, suffix: str) -> Write:
    table = csv.writer(handle, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
    table.writerow(COLUMNS)
    return lambda users, recommendations: table.writerows(_rows(users, recommendations))


def _lines(handle: Any) -> Write:
    def write(users: Sequence[str], recommendations: Sequence[Sequence[Recommendation]]) -> None:
        for user, items in zip(users, recommendations, strict=True):
            named = [dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in _rows([user], [items])]
            line = {"user_id": user, "recommendations": named}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


@contextmanager
def _parquet(temporary: Path, path: Path) -> Iterator[Write]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path} is a parquet file, and writing it requires pyarrow ({error}): {PYARROW}") from None
    types = (pa.string(), pa.int32(), pa.string(), pa.float32(), pa.string(), pa.string())
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))

    def write(users: Sequence[str], recommendations: Sequence[Sequence[Recommendation]]) -> None:
        columns = list(zip(*_rows(users, recommendations), strict=True)) or [()] * len(COLUMNS)
        table.write_table(pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], schema=schema))

    with pq.ParquetWriter(temporary, schema) as table:
        yield write
