"""RecBole's own arguments: what ``run_recbole.py`` takes, for our models and RecBole's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recbole_qbert import cli
from recbole_qbert.cli import recbole_style
from tests.helpers_recbole import QUICK, write_dataset

ROOT = Path(__file__).resolve().parents[1]
NAME = "Tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


def write_properties(model: str, data: Path) -> str:
    """Two property files of a small model; the second one wins."""
    Path("a.yaml").write_text(yaml.safe_dump({**QUICK[model], "epochs": 1, "data_path": str(data)}))
    Path("b.yaml").write_text("epochs: 2\nstate: INFO\n")
    return "a.yaml b.yaml"


@pytest.mark.pipeline
@pytest.mark.parametrize(("model", "flags"), [("QBERT4Rec", ("--model={}", "--dataset={}")), ("SASRec", ("-m{}", "-d{}"))])
def test_a_model_is_trained_and_tested(model: str, flags: tuple[str, str], data: Path) -> None:
    files = write_properties(model, data)
    named = [flag.format(name) for flag, name in zip(flags, (model, NAME), strict=True)]
    result = recbole_style.run([*named, f"--config_files={files}"])
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    (log,) = Path(f"log/{model}").glob("*.log")
    assert log.read_text().count("training [time") == 2, "the last file wins"
    log.unlink()
    recbole_style.run([*named, f"--config_files={files}", "--epochs=1"])
    (log,) = Path(f"log/{model}").glob("*.log")
    assert log.read_text().count("training [time") == 1, "the command line wins over files"


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["--nproc", "torchrun"])
def test_two_processes_give_the_metrics_of_one(launcher: str, data: Path) -> None:
    arguments = ["-m", "QBERT4Rec", "-d", NAME, f"--config_files={write_properties('QBERT4Rec', data)}"]
    arguments += ["--hidden_dropout_prob=0", "--attn_dropout_prob=0"]
    one = recbole_style.run(arguments)["test_result"]
    command = [str(ROOT / "run_recbole_qbert.py"), *arguments]
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command]
    else:
        command += ["--nproc=2", f"--port={20000 + os.getpid() % 20000}"]
    command = [sys.executable, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "test result" in line]
    two = {name: float(value) for name, value in re.findall(r"'(\S+)', ([\d.]+)", line)}
    assert two == pytest.approx(one, abs=1e-6) and "ndcg@10" in two


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model=SASRecc", f"--dataset={NAME}"], ["SASRecc", "'SASRec'"]),
        (["-m", "QBERT4Rec", "-d", "Tinny"], ["Tinny", "'Tiny'", "--data_path"]),
        (["--model=QBERT4Rec", f"--dataset={NAME}", "--config_files=none.yaml"], ["none.yaml"]),
        (["--model=QBERT4Rec", f"--dataset={NAME}", "--learning_rat=1"], ["learning_rat", "'learning_rate'"]),
        (["--model=QBERT4Rec", f"--dataset={NAME}", "stray"], ["stray"]),
        (["--model=QBERT4Rec", f"--dataset={NAME}", "--epochs", "3"], ["--epochs"]),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], named: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, f"--data_path={data}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert all(word in error for word in named), error


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_the_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "QBERT4Rec", option]) == 0
    out = capsys.readouterr().out
    assert "--config_files" in out and "--nproc" in out


def test_torchrun_and_nproc_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match=r"--nproc=2"):
        recbole_style.run(["-m", "QBERT4Rec", "--nproc=2"])


@pytest.mark.process
def test_an_error_in_a_started_process_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_properties("QBERT4Rec", data)
    arguments = [f"--config_files={files}", "--rq_levels=1", "--rq_codes=4", "--nproc=2"]
    assert cli.main(["-mQBERT4Rec", f"-d{NAME}", *arguments, f"--port={20000 + os.getpid() % 20000}"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and "rq_levels" in error[-1] and not any("Traceback" in line for line in error)
