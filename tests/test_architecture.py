"""The map of the rooms in CONTRIBUTING.md is true: who may import RecBole, and that property files know their keys."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest
import yaml

import recbole_qbert  # noqa: F401  registers the model
from recbole_qbert import plugin

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(
    path
    for room in ("recbole_qbert", "dataset_prep")
    for path in (ROOT / room).rglob("*.py")
    if "\n    >>> " in path.read_text(encoding="utf-8")
)
HOSTED = {
    "plugin.py",
    "compat.py",
    "checkpoints.py",
    "dataset.py",
    "trainer.py",
    "runs.py",
    "models/qbert4rec.py",
    "models/cooccurrence_knn.py",
    "attributes.py",
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_are_true(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_recbole_is_imported_in_few_rooms_only():
    package = ROOT / "recbole_qbert"
    hosted = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(name.split(".")[0] == "recbole" for name in imported(path))
    }
    assert hosted == HOSTED


SHARED = {
    "artifacts",
    "builtin_features",
    "config",
    "features",
    "processes",
    "semantic_ids",
}  # files, their formats, who writes
ENCODERS = {"clip_models", "encoding", "image_encoder", "model_files", "ranks", "shards", "text_encoder", "torchvision_ops"}


def test_data_preparation_knows_the_files_of_the_package_and_not_its_models():
    for path in (ROOT / "dataset_prep").rglob("*.py"):
        names = list(imported(path))
        first = {name.split(".")[0] for name in names}
        assert "recbole" not in first, path
        assert "torch" not in first or path.stem in ENCODERS, path
        assert {name.split(".")[1] for name in names if name.startswith("recbole_qbert.")} <= SHARED, path


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
