"""The scripts in ``examples/`` run from an empty folder and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK = {"minimal_qbert4rec.py", "own_features.py", "new_items.py", "serve_without_recbole.py"}
pytestmark = pytest.mark.process
NUMBER = r"(\d\.\d+)"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern.replace("NUMBER", NUMBER), text)
    assert found, text
    return float(found[1])


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == QUICK | {"quick_start.py"}


def test_minimal_qbert4rec():
    shown = run("minimal_qbert4rec.py")
    assert shown.count("<a_") == 5
    assert number("untrained NUMBER", shown) < 0.4 < number(r"\ntest NDCG@10 NUMBER", shown)


def test_own_features(tmp_path):
    assert number("'ndcg@10': NUMBER", run("own_features.py", str(tmp_path / "data"))) > 0.1


def test_new_items(tmp_path):
    shown = run("new_items.py", str(tmp_path / "data")).splitlines()[-10:]
    assert {line.split()[1] for line in shown} & {"new0", "new1"}, shown
    assert all(line.split()[2].startswith("<a_") for line in shown)


def test_serve_without_recbole(tmp_path):
    shown = run("serve_without_recbole.py", str(tmp_path / "data")).splitlines()[-2:]
    assert all(line.count("Toy number") == 3 for line in shown), shown


@pytest.mark.slow
def test_quick_start():
    assert number("'ndcg@10': NUMBER", run("quick_start.py")) > 0.08  # RecBole's Pop has .040
