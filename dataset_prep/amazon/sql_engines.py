"""Two engines for one SQL text: DuckDB on this machine, PySpark on a cluster.

Neither holds more in memory than it is allowed to; the rest lies in a folder. The text keeps to what both read and mean
alike: joins, ``EXISTS``, ``IN``, grouping, and windows in which no two rows tie.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import duckdb

from dataset_prep.amazon.line_reader import LineCount
from dataset_prep.amazon.staging import Task, outcome, stage

MEMORY = "1GB"  # DuckDB's own limit; beyond it DuckDB works on disk
FETCHED = 2_000  # rows held at a time while a result is read


class Engine(Protocol):
    """What the steps in `tables` need.

    Attributes:
        number: an SQL expression that gives each row of a table a number of its own; which one does not matter.
        quote: stands around a column name that is no plain word.
        version: name and version, for the manifest.
    """

    number: str
    quote: str
    version: dict[str, str]

    def spill(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        """Read raw files (`spill.spill`)."""

    def view(self, name: str, *paths: Path) -> None:
        """Call Parquet files `name`."""

    def table(self, name: str, sql: str) -> None:
        """Carry out `sql`, keep the result, call it `name`."""

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a result, a few at a time."""

    def write_tsv(self, sql: str, path: Path) -> None:
        """Write an ordered result of ids and floats with its column names; floats look as in Python."""

    def close(self) -> None:
        """Free what is held."""


class DuckDB:
    """DuckDB in this process.

    Args:
        folder: for what does not fit into memory.
        threads: None: as many as there are cores.
    """

    number = "row_number() OVER ()"
    quote = '"'

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.version = {"duckdb": duckdb.__version__}
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        self._config: dict[str, Any] = {"memory_limit": MEMORY, "temp_directory": str(folder)}
        self._config |= {"preserve_insertion_order": False}  # where order matters the text says ORDER BY
        self._config |= {"threads": threads} if threads else {}

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(config=self._config)

    def spill(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        return [stage(task, progress) for task in tasks]

    def view(self, name: str, *paths: Path) -> None:
        self._run(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{', '.join(map(_quoted, paths))}])")

    def table(self, name: str, sql: str) -> None:
        self._run(f"CREATE TABLE {name} AS {sql}")

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.execute(sql)
        while some := cursor.fetchmany(FETCHED):
            yield from some

    def write_tsv(self, sql: str, path: Path) -> None:
        options = "FORMAT csv, DELIMITER '\t', QUOTE '', HEADER"  # ids hold no tab; '#' is quoted unless quoting is off
        self._run(f"COPY ({sql}) TO {_quoted(path)} ({options})")

    def close(self) -> None:
        if "_connection" in vars(self):  # made at first use: an input is often refused before
            self._connection.close()

    def _run(self, sql: str) -> None:
        self._connection.execute(sql).fetchall()


class Spark:
    """PySpark: the session that is there, or a new one with Spark's own settings.

    Args:
        folder: for tables; executors must see it, and the raw files, under the same path.
    """

    number = "monotonically_increasing_id()"
    quote = "`"

    def __init__(self, folder: Path) -> None:
        try:
            import pyspark
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ValueError(f"engine='spark' needs PySpark ({error}): pip install 'pyspark>=4,<4.1'") from None
        self._folder = folder
        self.version = {"pyspark": pyspark.__version__}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._started = SparkSession.getActiveSession() is None
        if self._started:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise the first python3 of the PATH
        try:
            self._session = SparkSession.builder.appName("recbole_qbert prepare").getOrCreate().newSession()
        except (PySparkException, FileNotFoundError) as error:
            raise ValueError(
                "engine='spark' could not start Spark. It needs Java 17: install it, and set JAVA_HOME "
                f"(now {os.environ.get('JAVA_HOME', 'not set')!r}). Spark says: {str(error).splitlines()[0]}"
            ) from None

    def spill(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        """One Spark task a file: gzip can only be read from its beginning."""
        here = Path(__file__).resolve().parents[1]
        archive = shutil.make_archive(str((self._folder / here.name).resolve()), "zip", here.parent, here.name)
        self._session.sparkContext.addPyFile(archive)  # the workers' code is then this one
        absolute = [replace(task, path=task.path.resolve(), folder=task.folder.resolve()) for task in tasks]
        counts = []
        for result in self._session.sparkContext.parallelize(absolute, len(absolute)).map(outcome).collect():
            if isinstance(result, Exception):
                raise result
            counts.append(result)
        return counts

    def view(self, name: str, *paths: Path) -> None:
        self._session.read.parquet(*(str(path.resolve()) for path in paths)).createOrReplaceTempView(name)

    def table(self, name: str, sql: str) -> None:
        path = (self._folder / name).resolve()
        self._session.sql(sql).write.parquet(str(path))
        self.view(name, path)

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        return map(tuple, self._session.sql(sql).toLocalIterator())

    def write_tsv(self, sql: str, path: Path) -> None:
        """RecBole needs one file, so the rows come here partition by partition."""
        result = self._session.sql(sql)
        with open(path, "w", encoding="utf-8", newline="\n") as out:
            out.write("\t".join(result.columns) + "\n")
            out.writelines("\t".join(map(str, row)) + "\n" for row in result.toLocalIterator())

    def close(self) -> None:
        if self._started:
            self._session.stop()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
