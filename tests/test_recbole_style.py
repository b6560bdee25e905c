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
def test_two_processes_give_the_metrics_of_one(data: Path) -> None:
    arguments = ["-m", "QBERT4Rec", "-d", NAME, f"--config_files={write_properties('QBERT4Rec', data)}"]
    arguments += ["--hidden_dropout_prob=0", "--attn_dropout_prob=0"]
    one = recbole_style.run(arguments)["test_result"]
    command = [sys.executable, str(ROOT / "run_recbole_qbert.py"), *arguments, "--nproc=2"]
    command += [f"--port={20000 + os.getpid() % 20000}"]
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
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], named: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, f"--data_path={data}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert all(word in error for word in named), error
