"""recbole_qbert.utils.io: files are whole or absent; a stage runs again exactly when it has to."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_qbert.utils import atomic
from recbole_qbert.utils.atomic import run_lock
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import atomic_write, digest, read_json, sha256, write_array, write_json

ROOT = Path(__file__).resolve().parents[1]


# -------------------------------------------------------------------------------- writing


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_is_removed_by_the_next_one_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    killed = "import os, sys; from recbole_qbert.utils.io import atomic_write; from pathlib import Path\n"
    killed += "with atomic_write(Path(sys.argv[1])) as part:\n    part.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", killed, str(path)], cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    atomic._abandoned.clear()  # as in a process that starts now
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_only_abandoned_parts_of_ours_are_removed(tmp_path):
    with atomic_write(tmp_path / "live.txt") as live:  # locked, as by another process
        live.write_text("whole")
        own = os.getpid()  # the number of a process that runs and is not the writer
        left = [tmp_path / f".a.sid.{number}.part" for number in (999999, own, 99999999999999)]
        left += [tmp_path / "inner" / ".b.txt.999999-1.part"]
        (tmp_path / "inner").mkdir()
        (tmp_path / "folder").mkdir()
        others = [tmp_path / name for name in ("a.1.part", ".a.part", ".a.x.part", ".1.part", ".a.txt.1.parts")]
        (tmp_path / ".c.1.part").symlink_to(tmp_path / "folder")
        for file in (*left, *others):
            file.write_text("half")
        atomic.remove_abandoned(tmp_path)
        assert not any(file.exists() for file in left)
        assert live.exists() and all(file.exists() for file in others) and (tmp_path / ".c.1.part").is_symlink()
    assert (tmp_path / "live.txt").read_text() == "whole"


def test_where_locks_do_not_work_the_process_and_a_day_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_lock", lambda handle, wait=False: None)
    names = {f".a.{os.getpid()}.part": True, ".a.999999.part": False, ".b.999999.part": True}
    for name in names:
        (tmp_path / name).write_text("half")
    for name in (f".a.{os.getpid()}.part", ".a.999999.part"):
        os.utime(tmp_path / name, (0, 0))
    atomic.remove_abandoned(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_part_of_this_process_number_is_written_anew(tmp_path):
    (tmp_path / f".a.txt.{os.getpid()}.part").write_text("what a longer half of an earlier container left")
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.open("r+").write("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_threads_write_one_file(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as one, atomic_write(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys, time
from pathlib import Path
from recbole_qbert.utils.atomic import run_lock
with run_lock(Path(sys.argv[1]), "command"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.process
def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        who = rf"{re.escape(str(tmp_path))} \(process {first.pid} "
        with pytest.raises(ValueError, match=who), run_lock(tmp_path, "command"):
            pass
    finally:
        first.kill()
        first.wait()
    (tmp_path / ".T.sid.999999.part").write_text("half")
    with run_lock(tmp_path, "command"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_without_locks_the_process_in_the_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_lock", lambda handle, wait=False: None)
    here = socket.gethostname()
    for content, free in ((f"999999 {here}", True), (f"1 {here}", False), ("999999 elsewhere", False), ("", True)):
        (tmp_path / ".lock").write_text(content)
        if free:
            with run_lock(tmp_path, "command"):
                pass
            assert not list(tmp_path.iterdir())
        else:
            with pytest.raises(ValueError, match=content.split()[0]), run_lock(tmp_path, "command"):
                pass


def test_until_the_end_of_a_write_the_old_file_stands(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path  # a rename across disks would not be atomic
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"ü": 1})
    assert json.loads((tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8")) == {"ü": 1}


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_an_object_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json", "write it again") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b'{"a": 1', "JSON"), (b"\xff{}", "JSON"), (b"", "JSON"), (b"[1]", "list")],
)
def test_a_damaged_file_is_named_with_what_is_wrong_and_the_way_out(tmp_path, content, wrong):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json.*{wrong}.*write it again"):
        read_json(tmp_path / "a.json", "write it again")


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json", "write it again")


def test_arrays_keep_their_name_and_content(tmp_path):
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_array(tmp_path / "a.fused.npy", array)
    back = np.load(tmp_path / "a.fused.npy")
    assert back.dtype == np.float16
    assert np.array_equal(back, array)


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 10_000  # several parts
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.pipeline
@given(st.dictionaries(st.text(max_size=3), st.integers() | st.lists(st.text(max_size=2), max_size=3), min_size=1))
def test_a_digest_depends_on_content_and_not_on_the_order_of_keys(value):
    assert digest(dict(reversed(value.items()))) == digest(value)
    key = next(iter(value))
    assert digest({**value, key: "something else"}) != digest(value)


# -------------------------------------------------------------------------------- stages


class Step:
    """A stage that writes one file, counts its runs and can be interrupted half way."""

    def __init__(self, folder, inputs, content="out", fails=False):
        self.output, self.runs, self.content, self.fails = folder / "out.txt", 0, content, fails
        self.stage = CachedStep(folder, "step", inputs, [self.output])

    def run(self, **options):
        return self.stage.run(self.build, **options)

    def build(self):
        self.runs += 1
        self.output.write_text(self.content)
        if self.fails:
            raise RuntimeError("interrupted")
        return {"written": len(self.content), "list": [1, 2.5, None]}


SETTINGS = {"inputs": "abc", "settings": {"epochs": 3, "sizes": (1, 2)}, "seed": 1}


def test_the_first_run_builds_and_the_second_reuses(tmp_path):
    first, second = Step(tmp_path, SETTINGS), Step(tmp_path, SETTINGS)
    report, reason = first.run()
    assert reason == "not built yet"
    assert second.run() == (report, None)
    assert (first.runs, second.runs) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": "abd"}, "inputs changed"),
        ({"seed": 2}, "seed changed"),
        ({"settings": {"epochs": 4, "sizes": (1, 2)}}, "settings changed"),
        ({"settings": {"epochs": 3, "sizes": (1, 3)}}, "settings changed"),
        ({"a new key": 0}, "a new key changed"),
        ({"inputs": "x", "seed": 2}, "inputs, seed changed"),
    ],
)
def test_a_change_of_what_it_is_made_from_runs_it_again(tmp_path, changes, reason):
    Step(tmp_path, SETTINGS).run()
    step = Step(tmp_path, {**SETTINGS, **changes})
    assert step.run()[1] == reason
    assert step.runs == 1
    assert Step(tmp_path, {**SETTINGS, **changes}).run()[1] is None


def test_a_key_that_is_gone_runs_it_again(tmp_path):
    Step(tmp_path, SETTINGS).run()
    assert Step(tmp_path, {"inputs": "abc", "seed": 1}).stage.invalidation_reason() == "settings changed"


def test_an_output_that_changed_or_vanished_runs_it_again(tmp_path):
    Step(tmp_path, SETTINGS).run()
    (tmp_path / "out.txt").write_text("by hand")
    step = Step(tmp_path, SETTINGS)
    assert step.run()[1] == "out.txt is not what was written"
    assert step.output.read_text() == "out"
    step.output.unlink()
    assert step.run()[1] == "out.txt is missing"
    assert step.run()[1] is None


def test_a_manifest_that_is_not_what_was_written_runs_it_again(tmp_path):
    Step(tmp_path, SETTINGS).run()
    manifest = Step(tmp_path, SETTINGS).stage.manifest
    content = json.loads(manifest.read_text())
    content["report"]["more"] = 1
    manifest.write_text(json.dumps(content))
    assert Step(tmp_path, SETTINGS).run()[1] == f"{manifest} is not what was written"
    content = json.loads(manifest.read_text())
    del content["manifest_sha256"]  # before version 0.2
    manifest.write_text(json.dumps(content))
    assert Step(tmp_path, SETTINGS).run()[1] is None


def test_another_output_file_runs_it_again(tmp_path):
    Step(tmp_path, SETTINGS).run()
    (tmp_path / "second.txt").write_text("there by chance")
    stage = CachedStep(tmp_path, "step", SETTINGS, [tmp_path / "out.txt", tmp_path / "second.txt"])
    assert stage.invalidation_reason() is not None


def test_an_interrupted_build_counts_as_not_built(tmp_path):
    Step(tmp_path, SETTINGS).run()
    with pytest.raises(RuntimeError):
        Step(tmp_path, SETTINGS, fails=True).run(rebuild=True)
    # Same settings and the very bytes of the first run: nothing but the missing manifest tells.
    step = Step(tmp_path, SETTINGS)
    assert step.run()[1] == "not built yet"
    assert step.runs == 1


def test_rebuild_runs_it_in_any_case(tmp_path):
    Step(tmp_path, SETTINGS).run()
    step = Step(tmp_path, SETTINGS)
    assert step.run(rebuild=True)[1] == "rebuild was asked for"
    assert step.runs == 1


@pytest.mark.parametrize("content", ["{", "", "[]", "null", '{"inputs": 3}', '{"é": 1}'])
def test_a_broken_manifest_runs_it_again(tmp_path, content):
    Step(tmp_path, SETTINGS).run()
    (tmp_path / "step.manifest.json").write_bytes(content.encode("latin-1"))
    step = Step(tmp_path, SETTINGS)
    assert step.run()[1] is not None
    assert step.runs == 1
    assert step.run()[1] is None


def test_the_order_of_keys_and_tuples_for_lists_are_no_change(tmp_path):
    Step(tmp_path, SETTINGS).run()
    again = {"seed": 1, "settings": {"sizes": [1, 2], "epochs": 3}, "inputs": "abc"}
    assert Step(tmp_path, again).run()[1] is None
