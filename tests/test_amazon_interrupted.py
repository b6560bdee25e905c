"""kill -9 anywhere in `convert`: nothing half-written is seen, and the same command again gives the same files."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset_prep.amazon import line_reader, staging
from dataset_prep.amazon.convert import convert

# Runs `convert` and dies of SIGKILL just before the n-th thing that is done to a file or table; prints how many there were.
SCRIPT = """
import os, pathlib, shutil, signal, sys
import pyarrow.parquet
from dataset_prep.amazon import convert, line_reader, sql_engines, staging

done, deadly = 0, int(sys.argv[1])
line_reader.BLOCK, staging.ROWS = 5000, 100

def counted(owner, name):
    original = getattr(owner, name)
    def count(*args, **options):
        global done
        done += 1
        if done == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    setattr(owner, name, count)

for owner, names in [(sql_engines.DuckDB, "_run rows"), (os, "replace"), (shutil, "rmtree"), (pathlib.Path, "rename mkdir"),
                     (pyarrow.parquet.ParquetWriter, "write_table close")]:
    for name in names.split():
        counted(owner, name)
convert.convert("r.json", "m.json", "X", "out", min_user_interactions=4, min_item_interactions=6, threads=1, progress=False)
print(done)
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(folder: Path, deadly: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(deadly)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], int]:
    """A folder with raw files, what comes out of them, and how many things are done on the way."""
    folder, draw = tmp_path_factory.mktemp("raw"), random.Random(5)
    reviews: list[Any] = [
        {
            "reviewerID": f"U{draw.randrange(40)}",
            "asin": f"I{draw.randrange(30)}",
            "overall": 5,
            "unixReviewTime": draw.randrange(99),
        }
        for _ in range(900)
    ]
    products = [{"asin": f"I{n}", "title": f"t{n}"} for n in range(30)]
    for name, records in (("r.json", reviews), ("m.json", products)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records) + "bad\n")
    ended = run(folder, 0)
    return folder, files(folder / "out"), int(ended.stdout)


@pytest.mark.process
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.97, 1.0])
def test_killed_and_run_again(
    raw: tuple[Path, dict[str, bytes], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    folder, whole, things = raw
    for name in ("r.json", "m.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert run(tmp_path, round(share * things)).returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert (out / ".X.preparing").exists()
    if (out / "X" / "prepare.json").exists():
        assert files(out / "X") == {name.removeprefix("X/"): content for name, content in whole.items()}
    kept = {path.parent.name for path in (out / ".X.preparing").glob("*/done.json")}
    assert bool(kept) == (share > 0.4)
    read: list[str] = []
    original = staging._stage

    def noted(task: staging.Task, *rest: Any) -> line_reader.LineCount:
        read.append(task.folder.name)
        return original(task, *rest)

    monkeypatch.setattr(staging, "_stage", noted)
    monkeypatch.setattr(line_reader, "BLOCK", 5000)
    options: dict[str, Any] = {"min_user_interactions": 4, "min_item_interactions": 6, "progress": False}
    convert(tmp_path / "r.json", tmp_path / "m.json", "X", out, **options)
    assert files(out) == whole
    assert {*read} == {"reviews", "metadata-0"} - kept


@pytest.mark.process
def test_what_was_read_of_another_file_is_not_used(raw: tuple[Path, dict[str, bytes], int], tmp_path: Path) -> None:
    folder, whole, things = raw
    for name in ("r.json", "m.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes().replace(b'"t1"', b'"other"').replace(b"U1", b"V1"))
    run(tmp_path, round(0.7 * things))
    for name in ("r.json", "m.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert run(tmp_path, 0).returncode == 0
    assert files(tmp_path / "out") == whole
