"""Shards, resume, several processes and the final files, with an encoder whose answer is known."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset_prep.encoders import sharded_encoding, shards
from dataset_prep.encoders.distributed import ProcessGroup, pick_device
from dataset_prep.encoders.sharded_encoding import Job, encode
from dataset_prep.encoders.shards import Shard, Shards
from recbole_qbert.data import item_features as features
from recbole_qbert.utils import io
from tests.helpers import files
from tests.helpers_encoding import Journal, end, kill_me, killed_at, run, start, together

ITEMS = tuple(f"i{n}" for n in range(10))
TRUTH = np.arange(20, dtype=np.float32).reshape(10, 2)
TRUTH[4] = np.nan


def make_job(folder: Path, modality: str = "text", items: tuple[str, ...] = ITEMS, size: int = 3, **changes: Any) -> Job:
    settings = {"kind": "table", "weights": "0" * 64, **changes}
    return Job(folder, "toy", modality, items, settings, {"encoder": "a table"}, {"torch": "1"}, size)


class Table:
    """Looks vectors up, and writes down which."""

    def __init__(self, journal: Callable[[object], None] = lambda line: None, truth: np.ndarray = TRUTH) -> None:
        self.journal, self.truth = journal, truth

    def __call__(self) -> Any:
        self.journal("load")
        return self.encode

    def encode(self, rows: range, advance: Callable[[int], object]) -> Shard:
        self.journal(f"begin {rows.start}")
        advance(len(rows))
        missing = [f"{ITEMS[row]}: empty" for row in rows if np.isnan(self.truth[row]).all()]
        self.journal(f"end {rows.start}")
        return Shard(self.truth[rows.start : rows.stop], {"empty": len(missing), "seen": len(rows)}, missing)


def make(job: Job, table: Table | None = None, **options: Any) -> dict[str, Any]:
    return encode(job, table or Table(), progress=False, **options)


def without_folders(folder: Path) -> dict[str, bytes]:
    assert not [path for path in folder.iterdir() if path.is_dir()], "shards were left behind"
    return files(folder)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_matrix_items_and_record(tmp_path: Path, size: int) -> None:
    record = make(make_job(tmp_path, size=size))
    np.save(tmp_path / "expected.npy", TRUTH)
    assert (tmp_path / "toy.text.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert (tmp_path / "toy.items.txt").read_text().split() == list(ITEMS)
    assert json.loads((tmp_path / "toy.features.json").read_text()) == {"text": record}
    assert record["shape"] == [10, 2] and record["dtype"] == "float32" and record["coverage"] == 0.9
    assert record["counts"] == {"empty": 1, "seen": 10} and record["problems"] == ["i4: empty"]
    assert record["settings"]["items"] == hashlib.sha256((tmp_path / "toy.items.txt").read_bytes()).hexdigest()
    assert record["encoder"] == "a table" and record["versions"] == {"torch": "1"}
    assert record["sha256"] == hashlib.sha256((tmp_path / "toy.text.npy").read_bytes()).hexdigest()
    read = features.load(tmp_path, "toy", ["i9", "i4"], ["text"])
    assert read.vectors["text"][0, 0].tolist() == [18.0, 19.0] and not read.present["text"][1, 0]
    without_folders(tmp_path)


def test_several_vectors_an_item(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float16)
    truth[1, 1:], truth[2] = np.nan, np.nan
    record = make(make_job(tmp_path, "image"), Table(truth=truth))
    assert record["coverage"] == 0.9 and record["dtype"] == "float16"
    np.testing.assert_array_equal(np.load(tmp_path / "toy.image.npy"), truth)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path.parent / "journal")
    first = make(make_job(tmp_path), Table(journal))
    before = files(tmp_path)
    assert make(make_job(tmp_path, size=4), Table(journal)) == first  # the cut makes no difference to a finished matrix
    assert journal.lines().count("load") == 1 and files(tmp_path) == before
    make(make_job(tmp_path), Table(journal), rebuild=True)
    assert journal.lines().count("load") == 2 and without_folders(tmp_path) == before


def die_in_third_shard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Table, "encode", killed_at(3, Table.encode))


def die_between_notes_and_matrix(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shards, "write_array", killed_at(3, io.write_array))


def die_while_a_shard_is_renamed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "replace", killed_at(5, os.replace))  # description, notes, matrix, notes, matrix


def die_while_joining(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shards, "_header", kill_me)


def die_before_the_matrix_is_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shards, "join", lambda self, path: path.write_bytes(b"half") and kill_me())


def die_before_the_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sharded_encoding, "write_json", kill_me)


def die_before_the_shards_are_removed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shards, "remove", kill_me)


def die_while_the_shards_are_removed(patch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def half(path: Path, **options: Any) -> None:
        if path.name.endswith(".removed") and path.exists():
            next(path.glob("*.npy")).unlink()
            kill_me()
        remove(path, **options)

    patch.setattr(shutil, "rmtree", half)


@pytest.mark.process
@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize(
    "die",
    [
        die_in_third_shard,
        die_between_notes_and_matrix,
        die_while_a_shard_is_renamed,
        die_while_joining,
        die_before_the_matrix_is_in_place,
        die_before_the_record,
        die_before_the_shards_are_removed,
        die_while_the_shards_are_removed,
    ],
)
def test_killed_and_started_again(
    tmp_path: Path, die: Callable[[pytest.MonkeyPatch], None], rebuild: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files as without the kill, and no finished shard made twice."""
    calm, hit, journal = tmp_path / "calm", tmp_path / "hit", Journal(tmp_path / "journal")
    make(make_job(calm))
    if rebuild:
        make(make_job(hit, weights="1" * 64))

    def doomed() -> None:
        die(monkeypatch)
        make(make_job(hit), Table(journal), rebuild=rebuild)

    assert run(doomed) == -9
    finished = {line for line in journal.lines() if line.startswith("end")}
    # Half removed, the work is done, and to rebuild would be to do it all again.
    make(make_job(hit), Table(journal), rebuild=rebuild and die is not die_while_the_shards_are_removed)
    assert without_folders(hit) == without_folders(calm)
    again = [line for line in journal.lines() if line.startswith("begin")]
    lost = len(again) - 4  # of four shards
    assert 0 <= lost <= 1 and len(finished) >= 2


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_make_what_one_makes(tmp_path: Path, world: int) -> None:
    journals = [Journal(tmp_path / f"journal{rank}") for rank in range(world)]
    make(make_job(tmp_path / "one"))
    job = make_job(tmp_path / "many")
    works = [lambda journal=journal: journal(make(job, Table(journal))["sha256"]) for journal in journals]
    assert [end(process) for process in together(*works)] == [0] * world
    assert without_folders(tmp_path / "many") == without_folders(tmp_path / "one")
    begun = [[int(line.split()[1]) // 3 for line in journal.lines() if line.startswith("begin")] for journal in journals]
    assert begun == [list(range(4))[rank::world] for rank in range(world)]
    assert len({journal.lines()[-1] for journal in journals}) == 1  # all return the same record


def test_processes_can_work_together_twice(tmp_path: Path) -> None:
    def both() -> None:
        make(make_job(tmp_path, "text"))
        make(make_job(tmp_path, "image"))

    assert [end(process) for process in together(both, both)] == [0, 0]
    assert features.available(tmp_path, "toy") == ("text", "image")


@pytest.mark.process
def test_torchrun(tmp_path: Path) -> None:
    """The real launcher, in processes that know nothing of this one."""
    make(make_job(tmp_path / "one"))
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, numpy as np\nfrom dataset_prep.encoders.sharded_encoding import Job, encode\n"
        "from dataset_prep.encoders.shards import Shard\n"
        "truth = np.arange(20, dtype=np.float32).reshape(10, 2)\ntruth[4] = np.nan\n"
        "def encoder(rows, advance):\n    made = truth[rows.start : rows.stop]\n    empty = [4] if 4 in rows else []\n"
        "    return Shard(made, {'empty': len(empty), 'seen': len(made)}, [f'i{n}: empty' for n in empty])\n"
        f"settings = {{'kind': 'table', 'weights': {'0' * 64!r}}}\nitems = tuple(f'i{{n}}' for n in range(10))\n"
        f"folder = pathlib.Path({str(tmp_path / 'two')!r})\n"
        "job = Job(folder, 'toy', 'text', items, settings, {'encoder': 'a table'}, {'torch': '1'}, 3)\n"
        "encode(job, lambda: encoder, progress=False)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert without_folders(tmp_path / "two") == without_folders(tmp_path / "one")


def test_a_process_that_dies_stops_the_others_and_loses_nothing(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / f"journal{rank}") for rank in range(2)]
    folder = tmp_path / "out"

    def survivor() -> None:
        with pytest.raises(ValueError, match="another process"):
            make(make_job(folder), Table(journals[0]))

    def dies() -> None:
        Table.encode = killed_at(2, Table.encode)  # type: ignore[method-assign]
        make(make_job(folder), Table(journals[1]))

    assert [end(process) for process in together(survivor, dies)] == [0, -9]
    last = Journal(tmp_path / "last")
    make(make_job(folder), Table(last))
    assert [line for line in last.lines() if line.startswith("begin")] == ["begin 9"]  # the only shard that was not done
    make(make_job(tmp_path / "calm"))
    assert without_folders(folder) == without_folders(tmp_path / "calm")


def test_processes_that_would_make_different_things_refuse(tmp_path: Path) -> None:
    def refuse(weights: str) -> Callable[[], None]:
        def inside() -> None:
            with pytest.raises(ValueError, match=r"processes 0 and 1 .*toy\.text\.npy"):
                make(make_job(tmp_path, weights=weights))

        return inside

    assert [end(process) for process in together(refuse("1"), refuse("2"))] == [0, 0]
    assert not list(tmp_path.iterdir())


def test_a_refusal_reaches_every_process(tmp_path: Path) -> None:
    (tmp_path / "toy.text.npy").write_bytes(b"mine")

    def refused() -> None:
        with pytest.raises(ValueError, match=r"toy\.text\.npy.*toy\.features\.json"):
            make(make_job(tmp_path))

    assert [end(process) for process in together(refused, refused)] == [0, 0]
    assert files(tmp_path) == {"toy.text.npy": b"mine"}


def test_another_configuration_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    make(make_job(tmp_path))
    before = files(tmp_path)
    for job in (make_job(tmp_path, kind="other"), make_job(tmp_path, weights="1" * 64)):
        with pytest.raises(ValueError, match=r"toy\.text\.npy.* a table.*\((kind|weights): .+ before, .+ now\).* rebuild"):
            make(job)
    assert files(tmp_path) == before
    make(make_job(tmp_path, kind="other"), Table(truth=TRUTH * 2), rebuild=True)
    np.testing.assert_array_equal(np.load(tmp_path / "toy.text.npy"), TRUTH * 2)


def test_a_matrix_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    make(make_job(tmp_path))
    np.save(tmp_path / "toy.text.npy", TRUTH + 1)
    with pytest.raises(ValueError, match=r"toy\.text\.npy.*changed"):
        make(make_job(tmp_path))


def test_newer_libraries_leave_a_finished_matrix_valid(tmp_path: Path) -> None:
    make(make_job(tmp_path))
    newer = Job(**{**vars(make_job(tmp_path)), "versions": {"torch": "2"}})
    assert make(newer, Table(kill_me))["versions"] == {"torch": "1"}


@pytest.mark.parametrize("change", [{"kind": "other"}, {"versions": {"torch": "2"}}, {"size": 4}])
def test_unfinished_shards_of_another_configuration_are_never_mixed(tmp_path: Path, change: dict[str, Any]) -> None:
    def doomed() -> None:
        Table.encode = killed_at(3, Table.encode)  # type: ignore[method-assign]
        make(make_job(tmp_path), Table(truth=TRUTH - 50))

    assert run(doomed) == -9
    versions = change.pop("versions", {"torch": "1"})
    other = Job(**{**vars(make_job(tmp_path, **change)), "versions": versions})
    with pytest.raises(ValueError, match=r"\.toy\.text\.shards.* before, .* now"):
        make(other)
    make(other, rebuild=True)
    np.testing.assert_array_equal(np.load(tmp_path / "toy.text.npy"), TRUTH)
    without_folders(tmp_path)


def test_shards_of_two_configurations_do_not_meet_even_in_one_folder(tmp_path: Path) -> None:
    one, two = (Shards(tmp_path, 4, 2, {"weights": name}) for name in "ab")
    one.write(0, Shard(TRUTH[:2]))
    assert one.complete(0) and not two.complete(0)


def test_a_shard_cut_short_is_made_again(tmp_path: Path) -> None:
    kept = Shards(tmp_path, 10, 3, {})
    kept.write(0, Shard(TRUTH[:3]))
    path = next(tmp_path.glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-8])
    assert not kept.complete(0)


def test_text_and_image_share_the_item_list_and_the_record(tmp_path: Path) -> None:
    text = make(make_job(tmp_path, "text"))
    image = make(make_job(tmp_path, "image"))
    assert json.loads((tmp_path / "toy.features.json").read_text()) == {"text": text, "image": image}
    assert features.available(tmp_path, "toy") == ("text", "image")


def test_items_in_another_order_are_refused(tmp_path: Path) -> None:
    make(make_job(tmp_path, "text"))
    turned = ITEMS[:6] + ITEMS[:5:-1]
    with pytest.raises(ValueError, match=r"toy\.items\.txt.* 10 .* 10.* line 7 .*toy\.text\.npy"):
        make(make_job(tmp_path, "image", turned), rebuild=True)
    with pytest.raises(ValueError, match=r"toy\.items\.txt.*rebuild"):
        make(make_job(tmp_path, "text", turned))
    make(make_job(tmp_path, "text", turned), rebuild=True)
    assert (tmp_path / "toy.items.txt").read_text().split() == list(turned)


def test_a_broken_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.features.json").write_text("[1")
    with pytest.raises(ValueError, match=r"toy\.features\.json.*JSON"):
        make(make_job(tmp_path))


def test_the_record_is_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one encoder adds to it, another would have to wait: neither entry is lost."""
    write, locked = io.write_json, []

    def look(path: Path, value: Any) -> None:
        handle = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        locked.append(path.name)
        write(path, value)

    monkeypatch.setattr(sharded_encoding, "write_json", look)
    make(make_job(tmp_path))
    assert locked == ["toy.features.json"]


def test_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    for bad in (np.inf, np.nan):
        truth = TRUTH.copy()
        truth[5, 1] = bad
        with pytest.raises(ValueError, match=r"item i5\b"):
            make(make_job(tmp_path), Table(truth=truth), rebuild=True)


def test_too_little_memory_says_what_to_do(tmp_path: Path) -> None:
    def full(rows: range, advance: Callable[[int], object]) -> Shard:
        raise torch.OutOfMemoryError("CUDA out of memory.\nand more")

    with pytest.raises(ValueError, match=r"CUDA out of memory.*batches"):
        encode(make_job(tmp_path), lambda: full, progress=False)


@pytest.mark.process
def test_joining_holds_one_shard_at_a_time(tmp_path: Path) -> None:
    """A matrix of 160 MB in shards of 4 MB."""
    kept = Shards(tmp_path / "shards", 40_000, 1000, {})
    shard = Shard(np.ones((1000, 1000), np.float32))
    for number in range(len(kept)):
        kept.write(number, shard)
    journal = Journal(tmp_path / "journal")

    def measured() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept.join(tmp_path / "matrix.npy")
        journal(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    assert run(measured) == 0
    assert int(journal.lines()[0]) < 40_000  # KB
    assert np.load(tmp_path / "matrix.npy", mmap_mode="r").shape == (40_000, 1000)


def test_shards_that_do_not_appear_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"4 of 4 shards.*{tmp_path}"):
        Shards(tmp_path, 10, 3, {}).wait_for_all(0)


def test_bad_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="shard_size is 0"):
        make(make_job(tmp_path, size=0))
    with pytest.raises(ValueError, match="device 'gpu'"):
        pick_device("gpu")
    for rank, world, why in (("2", "2", "RANK is 2"), ("x", "2", "RANK is 'x'"), ("0", "2", "process 0 of 2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(ValueError, match=why):
            ProcessGroup.join()


def test_a_process_alone_needs_no_others() -> None:
    journal: list[str] = []
    process = start(lambda: ProcessGroup.join().wait())
    assert ProcessGroup.join().run_on_first(lambda: journal.append("done")) is None and journal == ["done"]
    assert end(process) == 0


@pytest.mark.process
def test_the_process_group_is_closed_before_the_interpreter_ends() -> None:
    """Left open, gloo's threads abort one finished process in eight."""
    script = (
        "import atexit, torch.distributed as dist\nfrom recbole_qbert.utils.distributed import init_group\n"
        "atexit.register(lambda: print('open' if dist.is_initialized() else 'closed'))\n"
        "init_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\nassert dist.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "closed"), done.stderr
