"""The map of the rooms in CONTRIBUTING.md is true: who may import RecBole, and that property files know their keys."""

import ast
from pathlib import Path

import pytest
import yaml

import recbole_qbert  # noqa: F401  registers the model
from recbole_qbert import plugin

ROOT = Path(__file__).resolve().parent.parent
HOSTED = {"plugin.py", "compat.py", "dataset.py", "trainer.py", "runs.py", "models/qbert4rec.py"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_recbole_is_imported_in_few_rooms_only():
    package = ROOT / "recbole_qbert"
    hosted = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(name.split(".")[0] == "recbole" for name in imported(path))
    }
    assert hosted == HOSTED


def test_data_preparation_stands_alone():
    for path in (ROOT / "dataset_prep").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"recbole", "torch", "recbole_qbert"}, path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "properties").rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_property_files_hold_known_keys(path):
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name in ("paper", "dataset"):
        plugin.check_keys(keys, plugin.known_properties("QBERT4Rec"), str(path))
    assert keys


def test_every_default_says_where_it_comes_from():
    """A comment stands at every key of the model's property file, or at the block it opens."""
    block = ""
    for line in (ROOT / "properties/model/QBERT4Rec.yaml").read_text(encoding="utf-8").splitlines():
        block = line if line and not line.startswith((" ", "#")) else block
        if line and not line.startswith("#"):
            assert "#" in (line if not line.startswith(" ") else block), line
