"""The engine `spark` gives the bytes of the engine `local`; where Spark cannot run, the message says what is missing."""

from __future__ import annotations

import builtins
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_prep.amazon.convert import AmazonFormatError, convert
from dataset_prep.amazon.sql_engines import Spark


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A small Spark that says little, as a user would make one before calling `convert`."""
    pytest.importorskip("pyspark")
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.local.dir", str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.config("spark.sql.warehouse.dir", str(folder / "warehouse")).getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()


@pytest.mark.pipeline
def test_the_same_bytes_on_gift_cards(session: Any, shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "raw_amazon2018"
    written = {}
    for engine in ("local", "spark"):
        convert(
            raw / "Gift_Cards_5.json.gz", raw / "meta_Gift_Cards.json.gz", "GC", tmp_path / engine, engine=engine,
            require_image=True, after="2010-01-01", before="2018-01-01", progress=False,
        )  # fmt: skip
        written[engine] = {path.name: path.read_bytes() for path in (tmp_path / engine / "GC").glob("GC.*")}
    assert written["spark"] == written["local"]
    assert written["local"]["GC.inter"].count(b"\n") > 1000
    assert session.sql("SELECT 1").collect()  # a session that was there before is left running


@pytest.mark.slow
def test_the_same_bytes_and_refusals_on_odd_data(session: Any, tmp_path: Path) -> None:
    """Fractions of a second, ties, repeats, bad lines and images in folders."""
    draw = random.Random(1)
    lines = [
        f'{{"user_id": "U{draw.randrange(30)}", "parent_asin": "I{draw.randrange(20)}", '
        f'"rating": {draw.choice([1, 2.5, 5])}, "timestamp": {1_500_000_000_000 + draw.randrange(300)}}}\n'
        for _ in range(400)
    ]
    (tmp_path / "r.jsonl").write_text("".join(lines) + "bad\n")
    (tmp_path / "m.jsonl").write_text("".join(f'{{"parent_asin": "I{n}", "title": "é \\"{n}\\""}}\n' for n in range(15)))
    for n in range(12):
        (tmp_path / "images" / f"I{n}").mkdir(parents=True)
        (tmp_path / "images" / f"I{n}" / "0.jpg").write_bytes(b"x")
    options: dict[str, Any] = {"images": tmp_path / "images", "require_image": True, "progress": False}
    reports, written = [], []
    for engine in ("local", "spark"):
        reports.append(convert(tmp_path / "r.jsonl", tmp_path / "m.jsonl", "X", tmp_path / engine, engine=engine, **options))
        folder = tmp_path / engine / "X"
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name != "prepare.json"})
    assert written[0] == written[1]
    assert reports[0].steps == reports[1].steps
    assert (reports[0].reviews, reports[0].metadata) == (reports[1].reviews, reports[1].metadata)
    with pytest.raises(AmazonFormatError, match=r"r\.jsonl:401: "):
        convert(tmp_path / "r.jsonl", None, "X", tmp_path / "no", engine="spark", max_bad_lines=0, progress=False)
    assert not (tmp_path / "no").exists()


def test_without_pyspark_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyspark"):
            raise ImportError("No module named 'pyspark'")
        return plain_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"No module named 'pyspark'.*'pyspark>=4,<4\.1'"):
        Spark(tmp_path)


def test_without_java_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyspark = pytest.importorskip("pyspark")
    if pyspark.SparkContext._active_spark_context is not None:
        pytest.skip("a Spark is running already")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no java"))
    with pytest.raises(ValueError, match=r"Java 17.*JAVA_HOME"):
        Spark(tmp_path / "tables")
