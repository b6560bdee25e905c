"""Property files as users write them: what is no YAML mapping is refused with the file's name, everywhere they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_qbert import cli
from recbole_qbert.config.property_files import LARGEST, parse_yaml, read_properties
from recbole_qbert.experiments import tuning
from recbole_qbert.experiments.suites import suite_spec
from recbole_qbert.recbole_integration import experiment
from tests.helpers_recbole import QUICK, write_dataset

LAUGHS = b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(9)
)
BAD = {
    "syntax": b"epochs: [1\nrq_codes: 3\n", "latin1": b"epochs: 1 # caf\xe9\n", "utf16": "epochs: 1".encode("utf-16"),
    "list": b"- a\n- b\n", "text": b"hello\n", "tab": b"eval_args:\n\tmode: full\n", "repeated": b"a: 1\nb: 2\na: 3\n",
    "repeated within": b"eval_args: {mode: full, mode: uni20}\n", "deep": b"epochs: " + b"[" * 5000, "laughs": LAUGHS,
    "part of itself": b"epochs: &a [*a]\n", "NUL": b"epochs: \0\n", "no date": b"epochs: 2020-13-45\n",
    "code": b"epochs: !!python/object/apply:os.getcwd []\n", "two documents": b"epochs: 1\n---\nseed: 1\n",
    "number": b"1: 2\n", "no key": b"~: 2\n", "list as key": b"? [a]\n: 1\n", "digits": b"epochs: " + b"9" * 5000 + b"\n",
    "no such alias": b"epochs: *x\n", "no truth value": b"use_gpu: !!bool x\n", "large": b"#" * (LARGEST + 1),
}  # fmt: skip
GOOD = {
    "empty": (b"", {}), "comment": (b"# nothing\n", {}), "mark": (b"\xef\xbb\xbfepochs: 1e2\r\n", {"epochs": 100.0}),
    "alias": (b"a: &x {b: 1}\nc: {<<: *x, b: 2}\n", {"a": {"b": 1}, "c": {"b": 2}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_dataset(tmp_path_factory.mktemp("data"), "Tiny")


def write(folder: Path, content: bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("reader", [read_properties, lambda path: suite_spec.load(str(path)), tuning.read_space])
def test_a_bad_file_is_refused_by_name(kind: str, reader: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        reader(write(tmp_path, BAD[kind]))


@pytest.mark.parametrize("kind", ["syntax", "list", "repeated", "laughs"])
@pytest.mark.parametrize("model", ["QBERT4Rec", "SASRec"])
def test_recbole_reads_files_the_same_way(kind: str, model: str, tmp_path: Path, data: Any) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        experiment.configure(model, "Tiny", data, QUICK[model], [str(write(tmp_path, BAD[kind]))])


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_file_is_read(kind: str, tmp_path: Path) -> None:
    content, properties = GOOD[kind]
    assert read_properties(write(tmp_path, content)) == properties


def test_the_line_of_an_error_is_named(tmp_path: Path) -> None:
    for kind, line in {"syntax": 2, "tab": 2, "repeated": 3, "latin1": 1}.items():
        with pytest.raises(ValueError, match=rf"mine\.yaml:{line} "):
            read_properties(write(tmp_path, BAD[kind]))


@pytest.mark.parametrize("kind", ["latin1", "list", "missing", "folder"])
@pytest.mark.parametrize("command", ["features", None])
def test_the_command_line_names_the_file(kind: str, command: str | None, tmp_path: Path, data: Any, capsys: Any) -> None:
    path = tmp_path / "mine.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        write(tmp_path, BAD[kind])
    where = ["--dataset", "Tiny", f"--data_path={data}", "--config_files", str(path)]
    assert cli.main([command, *where, "--output", str(tmp_path / "out")] if command else ["--model=QBERT4Rec", *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "mine.yaml" in error


def test_an_empty_file_is_one_without_settings(tmp_path: Path, data: Any) -> None:
    config = experiment.configure("QBERT4Rec", "Tiny", data, QUICK["QBERT4Rec"], [str(write(tmp_path, b""))])
    assert config["epochs"] == QUICK["QBERT4Rec"]["epochs"]


def test_values_of_the_command_line_are_read_alike() -> None:
    assert parse_yaml("[1e-3]") == [0.001]
    for argument in ("--a=[1", "--a={b: 1, b: 2}", "--a=" + "[" * 5000, "--a=2020-13-45"):
        with pytest.raises(ValueError, match="--a="):
            cli.parse_properties([argument])
    assert cli.parse_properties(["--a=1", "--a=2"]) == {"a": 2}
