"""What is installed is what is in the checkout: files, versions, the command, and nothing heavy on import."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("recbole_qbert", "dataset_prep")
PROPERTY_FILES = sorted((ROOT / "properties").rglob("*.yaml"))
NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info"),
    *("build", "dist", "runs", "saved", "log", "log_tensorboard"),
)
OFFLINE = ("-q", "--no-deps", "--no-index", "--disable-pip-version-check")
LOAD_PATHS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("paths", sys.argv[1])
paths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paths)
print(paths.property_file("model/QBERT4Rec.yaml"))
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Output of ``python command``; the error with all it printed if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built, offline, from the source archive built from a copy of the checkout."""
    work = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, work / "copy", ignore=NOT_COPIED)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run("-c", build, work, cwd=work / "copy")
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        extraction: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
        files.extractall(work / "source", **extraction)
    (source,) = (work / "source").iterdir()
    run("-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", work, source)
    (found,) = work.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def dist_info(wheel: Path, name: str) -> str:
    archive = zipfile.ZipFile(wheel)
    (path,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
    return archive.read(path).decode()


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[Requirement]:
    metadata = HeaderParser().parsestr(dist_info(wheel, "METADATA"))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def pins(python: str) -> dict[str, Requirement]:
    """The lines of constraints.txt that apply to a Python version; no name twice."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    all_pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    applying = [pin for pin in all_pins if pin.marker is None or pin.marker.evaluate(environment(python))]
    names = [canonicalize_name(pin.name) for pin in applying]
    assert len(set(names)) == len(names)
    return dict(zip(names, applying, strict=True))


def environment(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}


def source_version() -> str:
    text = (ROOT / "recbole_qbert" / "version.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


# -------------------------------------------------------------------------------------------------- the wheel
@pytest.mark.process
def test_every_module_and_property_file_is_in_the_wheel_and_nothing_else(contents: set[str]) -> None:
    expected = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    expected |= {f"recbole_qbert/{p.relative_to(ROOT).as_posix()}" for p in PROPERTY_FILES}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "recbole_qbert").rglob("page.*")}
    assert "recbole_qbert/properties/model/QBERT4Rec.yaml" in expected
    assert "recbole_qbert/models/qbert4rec.py" in expected
    installed = {name for name in contents if ".dist-info/" not in name and not name.endswith("py.typed")}
    assert installed == expected


@pytest.mark.process
def test_version_and_command(wheel: Path) -> None:
    metadata = HeaderParser().parsestr(dist_info(wheel, "METADATA"))
    assert metadata["Name"] == "recbole-qbert"
    assert metadata["Version"] == source_version()
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.10,<3.15")
    assert "recbole-qbert = recbole_qbert.cli:main" in dist_info(wheel, "entry_points.txt")
    assert "MIT License" in dist_info(wheel, "licenses/LICENSE")
    assert callable(importlib.import_module("recbole_qbert.cli").main)


@pytest.mark.process
def test_property_files_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", *OFFLINE, "--no-compile", "--target", site, wheel)
    found = run("-I", "-c", LOAD_PATHS, site / "recbole_qbert" / "config" / "property_files.py", cwd=elsewhere).strip()
    assert Path(found) == (site / "recbole_qbert" / "properties" / "model" / "QBERT4Rec.yaml").resolve()
    assert Path(found).read_bytes() == (ROOT / "properties" / "model" / "QBERT4Rec.yaml").read_bytes()
    assert (site / "bin" / "recbole-qbert").is_file()


@pytest.mark.process
def test_property_files_are_found_in_a_checkout(tmp_path: Path) -> None:
    found = run("-I", "-c", LOAD_PATHS, ROOT / "recbole_qbert" / "config" / "property_files.py", cwd=tmp_path).strip()
    assert Path(found) == ROOT / "properties" / "model" / "QBERT4Rec.yaml"


# ----------------------------------------------------------------------------------------------- requirements
@pytest.mark.process
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_tested_set_satisfies_every_requirement(requirements: list[Requirement], python: str) -> None:
    constraints, checked = pins(python), set()
    for requirement in requirements:
        if (
            requirement.marker
            and not requirement.marker.evaluate(environment(python))
            and "extra" not in str(requirement.marker)
        ):
            continue
        pin = constraints.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is required in setup.py, but not in constraints.txt"
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), f"{requirement} does not allow {pin}"
        checked.add(requirement.name)
    assert {"torch", "numpy", "pandas"} <= checked and ("recbole" in checked) == (python == "3.11")


def test_recbole_without_ray_has_all_that_it_needs(requirements: list[Requirement]) -> None:
    """From Python 3.12 on RecBole is installed without its requirements; ours must name them."""
    metadata = importlib.metadata.requires("recbole") or []
    all_needs = [Requirement(line) for line in metadata]
    needed = {canonicalize_name(r.name) for r in all_needs if not r.marker or r.marker.evaluate(environment("3.13"))} - {
        "ray"
    }
    ours = {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate(environment("3.13"))}
    assert needed <= ours


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="RecBole alone needs ray; the plugin comes first")
def test_import_brings_no_encoder_and_no_more_than_recbole_does() -> None:
    loaded = run(
        "-W",
        "ignore",
        "-c",
        "import sys, recbole.quick_start, recbole.trainer\n"
        "before = set(sys.modules)\n"
        "import recbole_qbert\n"
        "print(recbole_qbert.version.__version__, *{name.split('.')[0] for name in set(sys.modules) - before})\n"
        "print(*{name.split('.')[0] for name in sys.modules})",
    )
    added, everything = (set(line.split()) for line in loaded.splitlines()[-2:])
    assert source_version() in added
    assert not everything & {"transformers", "open_clip", "torchvision", "PIL"}
    assert not added & {"sklearn", "safetensors", "tensorboard", "hyperopt"}, "RecBole itself loads scikit-learn"


@pytest.mark.process
def test_the_script_is_the_command(tmp_path: Path) -> None:
    assert "usage:" in run(ROOT / "run_recbole_qbert.py", "--help", cwd=tmp_path)


# -------------------------------------------------------------------------------------------- property files
@pytest.mark.parametrize("path", PROPERTY_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_property_files_parse_and_name_no_key_twice(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    keys = [key.value for key, _ in yaml.compose(text).value]
    assert sorted(keys) == sorted(set(keys)), "PyYAML would take the last one without a word"


def test_every_default_is_explained() -> None:
    """Each key of the model's defaults has a comment on its line or right above it, or stands in docs/."""
    text = (ROOT / "properties" / "model" / "QBERT4Rec.yaml").read_text(encoding="utf-8")
    lines = ["", *text.splitlines()]
    documents = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md"))
    silent = [
        key.value
        for key, _ in yaml.compose(text).value
        if " # " not in lines[key.start_mark.line + 1]
        and not re.match(r"# (?!---)", lines[key.start_mark.line])
        and f"`{key.value}`" not in documents
    ]
    assert silent == []
