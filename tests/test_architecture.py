"""Docstring examples are true, and property files hold known keys. What may import what stands in pyproject.toml."""

import doctest
import importlib
from pathlib import Path

import pytest
import yaml

import recbole_qbert  # noqa: F401  registers the model
from recbole_qbert.recbole_integration import registry

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(
    path
    for package in ("recbole_qbert", "dataset_prep")
    for path in (ROOT / package).rglob("*.py")
    if "\n    >>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_are_true(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@pytest.mark.parametrize(
    "path", sorted((ROOT / "properties").rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_property_files_hold_known_keys(path):
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name in ("paper", "dataset"):
        registry.check_keys(keys, registry.known_properties("QBERT4Rec"), str(path))
    assert keys


def test_every_default_says_where_it_comes_from():
    """A comment stands at every key of the model's property file, or at the block it opens."""
    block = ""
    for line in (ROOT / "properties/model/QBERT4Rec.yaml").read_text(encoding="utf-8").splitlines():
        block = line if line and not line.startswith((" ", "#")) else block
        if line and not line.startswith("#"):
            assert "#" in (line if not line.startswith(" ") else block), line
