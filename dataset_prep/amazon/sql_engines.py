"""Run the same SQL with DuckDB on this machine or with PySpark on a cluster.

Both limit their memory and keep the rest in a folder. The SQL uses only what both interpret equally: joins, ``EXISTS``,
``IN``, grouping, and windows without ties.
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
from dataset_prep.amazon.staging import Task, stage, stage_or_error

MEMORY = "1GB"  # DuckDB's memory limit, beyond which it works on disk
FETCHED = 2_000  # rows in memory at a time while a result is read


class Engine(Protocol):
    """The operations that `interaction_steps` needs.

    Attributes:
        number: SQL expression that gives each row of a table a unique number, in any order.
        quote: quotation mark of column names.
        version: name and version of the engine, for the manifest.
    """

    number: str
    quote: str
    version: dict[str, str]

    def stage(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        """Stage raw files (`staging.stage`)."""

    def view(self, name: str, *paths: Path) -> None:
        """Make Parquet files available as the table `name`."""

    def table(self, name: str, sql: str) -> None:
        """Store the result of `sql` as the table `name`."""

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a result, with few in memory at a time."""

    def write_tsv(self, sql: str, path: Path) -> None:
        """Write an ordered result of ids and floats with its column names; floats are formatted as in Python."""

    def close(self) -> None:
        """Release all resources."""


class DuckDB:
    """DuckDB in this process.

    Args:
        folder: folder for data that do not fit into memory.
        threads: number of threads; None for one per core.
    """

    number = "row_number() OVER ()"
    quote = '"'

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.version = {"duckdb": duckdb.__version__}
        shutil.rmtree(folder, ignore_errors=True)  # files of a run that was killed
        self._config: dict[str, Any] = {"memory_limit": MEMORY, "temp_directory": str(folder)}
        self._config |= {"preserve_insertion_order": False}  # where the order matters the SQL has ORDER BY
        self._config |= {"threads": threads} if threads else {}

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(config=self._config)

    def stage(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        return [stage(task, progress) for task in tasks]

    def view(self, name: str, *paths: Path) -> None:
        self._run(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{', '.join(map(_quoted, paths))}])")

    def table(self, name: str, sql: str) -> None:
        self._run(f"CREATE TABLE {name} AS {sql}")

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.execute(sql)
        while rows := cursor.fetchmany(FETCHED):
            yield from rows

    def write_tsv(self, sql: str, path: Path) -> None:
        options = "FORMAT csv, DELIMITER '\t', QUOTE '', HEADER"  # ids have no tab; DuckDB would quote '#'
        self._run(f"COPY ({sql}) TO {_quoted(path)} ({options})")

    def close(self) -> None:
        if "_connection" in vars(self):  # it is opened at first use, often after an input is refused
            self._connection.close()

    def _run(self, sql: str) -> None:
        self._connection.execute(sql).fetchall()


class Spark:
    """PySpark: the active session, or a new one with Spark's own settings.

    Args:
        folder: folder for tables; executors must see it, and the raw files, under the same path.
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
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise Spark uses the first python3 of the PATH
        try:
            self._session = SparkSession.builder.appName("recbole_qbert prepare").getOrCreate().newSession()
        except (PySparkException, FileNotFoundError) as error:
            raise ValueError(
                f"engine='spark' could not start Spark ({str(error).splitlines()[0]}); it needs Java 17: install it, and "
                f"set JAVA_HOME (now {os.environ.get('JAVA_HOME', 'not set')!r})"
            ) from None

    def stage(self, tasks: Sequence[Task], progress: bool) -> list[LineCount]:
        """Stage each file in one Spark task, because gzip can only be read from its beginning."""
        package = Path(__file__).resolve().parents[1]
        archive = shutil.make_archive(str((self._folder / package.name).resolve()), "zip", package.parent, package.name)
        self._session.sparkContext.addPyFile(archive)  # so that the workers use the same code
        absolute = [replace(task, path=task.path.resolve(), folder=task.folder.resolve()) for task in tasks]
        counts = []
        for result in self._session.sparkContext.parallelize(absolute, len(absolute)).map(stage_or_error).collect():
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
        """Write one file, which RecBole needs; the rows are fetched partition by partition."""
        result = self._session.sql(sql)
        with open(path, "w", encoding="utf-8", newline="\n") as out:
            out.write("\t".join(result.columns) + "\n")
            out.writelines("\t".join(map(str, row)) + "\n" for row in result.toLocalIterator())

    def close(self) -> None:
        if self._started:
            self._session.stop()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
