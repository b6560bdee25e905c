"""Failures of inputs and of the system end in one line and exit code 2; bugs in a traceback; nothing is half-written."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.lib  # type: ignore[import-untyped]
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from recbole_qbert import cli
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.utils.failures import describe, reading, require_writable
from recbole_qbert.utils.io import atomic_write, read_json, write_array
from recbole_qbert.utils.tensor_file import save_tensors
from tests.helpers_recbole import QUICK, write_dataset

ROOT = Path(__file__).resolve().parents[1]


def doctor(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run a command that ends in this error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("dataset_prep.checks.check", fail)
    return cli.main(["doctor", "--dataset=D", "--data_path=d"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.inter:3: bad"), "a.inter:3: bad"),
        (PermissionError(13, "Permission denied", "a.inter"), "a.inter: Permission denied"),
        (IsADirectoryError(21, "Is a directory", b"a.inter"), "a.inter: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.npy"), "a.npy: No space left on device; free"),
        (FileNotFoundError("a.yaml is missing"), "a.yaml is missing"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "9 bytes"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory"),
        (zipfile.BadZipFile("File is not a zip file"), "zip"),
        (EOFError("Compressed file ended"), "Compressed file ended"),
        (pyarrow.lib.ArrowNotImplementedError("no such type"), "no such type"),
        (duckdb.IOException("Could not write file x.tsv"), "x.tsv"),
        (safetensors.SafetensorError("header too small"), "header too small"),
    ],
)
def test_a_failure_is_told_in_one_line(error: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert doctor(monkeypatch, error) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and said in printed and printed.count("\n") == 1
    monkeypatch.setenv("RECBOLE_QBERT_DEBUG", "1")
    doctor(monkeypatch, error)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bug",
    [KeyError("x"), TypeError("x"), AttributeError("x"), RecursionError(), RuntimeError("x"), duckdb.BinderException("x")],
)
def test_a_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe(bug) is None
    with pytest.raises(type(bug)):
        doctor(monkeypatch, bug)


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert doctor(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("option", ["--json", "--output"])
@pytest.mark.parametrize("command", ["features", "recommend", "export"])
def test_what_cannot_be_written_is_refused_before_the_work(
    option: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    given = {
        "features": ["--dataset=D", "--data_path=d"],
        "recommend": ["--model=m", "--items", "a"],
        "export": ["--checkpoint=c"],
    }
    more = ["--output", str(tmp_path / "out")] if command == "export" and option == "--json" else []
    for place in (
        tmp_path / "file" / "below",
        tmp_path if option == "--json" or command == "recommend" else tmp_path / "file",
    ):
        assert cli.main([command, *given[command], *more, option, str(place)]) == 2
        assert f"error: {option} {place}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"--json .*permission"):
        require_writable(tmp_path / "a" / "b.json", "--json")


def test_a_checkpoint_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "Tiny")
    (tmp_path / "file").write_text("")
    for key, place in (("checkpoint_dir", tmp_path / "file"), ("checkpoint_file", tmp_path / "file" / "a.pth")):
        config = experiment.configure("QBERT4Rec", "Tiny", data, {**QUICK["QBERT4Rec"], key: str(place)})
        with pytest.raises(ValueError, match=key), experiment.working_directory(tmp_path):
            experiment.train(config)


WRITERS: dict[str, Any] = {
    "text": lambda path: path.write_text("x" * 100_000),
    "tensors": lambda path: save_tensors({"a": torch.zeros(100_000)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "array": lambda path: np.save(open(path, "wb"), np.zeros(100_000)),  # noqa: SIM115
}


@pytest.mark.process
@pytest.mark.parametrize("writer", [*WRITERS, "small array"])
def test_a_file_that_does_not_fit_is_named_and_not_half_written(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "a.out"

    def child() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            if writer == "small array":  # all of it in the buffer that C writes at the end
                write_array(path, np.zeros(300, np.float32))
            else:
                with atomic_write(path) as temporary:
                    WRITERS[writer](temporary)
        except OSError as error:
            return f"{error.errno in (errno.EFBIG, errno.ENOSPC)} {error.filename}"
        except BaseException as error:
            return repr(error)
        return "written"

    reader, writer_end = os.pipe()
    if not (process := os.fork()):
        os.write(writer_end, child().encode())
        os._exit(0)
    os.waitpid(process, 0)
    assert os.read(reader, 10_000).decode() == f"True {path}"
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_and_bugs_pass_through(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file", "other"), KeyError("x"), ValueError("x"), RuntimeError("x")):
        with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "a"):
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for error in (EOFError("ended"), zipfile.BadZipFile("x"), pyarrow.lib.ArrowKeyError("x"), RecursionError()):
        with pytest.raises(ValueError, match=r"a\.gz"), reading(path):
            raise error
    with pytest.raises(ValueError, match=r"a\.gz .*0xff"), reading(path):
        b"a\xff".decode("utf-8")
    with pytest.raises(KeyError), reading(path):
        raise KeyError("x")
    for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.gz"):
            read_json(path, "write it again")


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_dataset(tmp_path / "data", "Tiny")
    patches.quick_start.init_logger(experiment.configure("QBERT4Rec", "Tiny", data, QUICK["QBERT4Rec"]))
    handler = next(handler for handler in patches._handlers if isinstance(handler, logging.FileHandler))
    monkeypatch.setattr(handler, "stream", FullDisk())
    with pytest.raises(OSError, match="No space") as raised:
        handler.handle(logging.makeLogRecord({"msg": "x", "levelno": logging.ERROR}))
    assert raised.value.filename == handler.baseFilename
    monkeypatch.undo()
    patches.fresh_logging()


@pytest.mark.process
@pytest.mark.parametrize("output", ["full", "closed"])
def test_output_that_nobody_can_receive(output: str, tmp_path: Path) -> None:
    # Not --help: newer versions of argparse ignore that it cannot be written.
    command = [sys.executable, str(ROOT / "run_recbole_qbert.py"), "doctor", "--dataset=X", f"--data_path={tmp_path}"]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if output == "full" else os.dup(writer), "w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
