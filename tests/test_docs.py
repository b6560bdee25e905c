"""Documents hold: their Python runs, their commands parse, their links lead somewhere, and the site builds strictly."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_qbert.cli import build_parser, parse_properties

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:^(<!-- not run:.*?-->)\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _load_generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load_generate()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


def blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """Marker, or '', and text of the fenced blocks of a language."""
    found = _BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(marker, text) for marker, kind, text in found if kind == language]


def commands(path: Path) -> list[list[str]]:
    """Words of every command in the shell blocks of a document."""
    text = "\n".join(text for _, text in blocks(path, "bash")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [words for words in lines if words]


# --------------------------------------------------------------------------------------------------------- what is run


WITH_PYTHON = [path for path in DOCUMENTS if any(not marker for marker, _ in blocks(path, "python"))]


def _run(path: Path, change: tuple[str, str] = ("", "")) -> str:
    source = "\n".join(text for marker, text in blocks(path, "python") if not marker)
    Path("docs").symlink_to(ROOT / "docs")
    done = subprocess.run(
        [sys.executable, "-c", source.replace(*change)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.name)
def test_python_runs(path):
    printed = _run(path, ('"epochs": 10', '"epochs": 1'))
    assert re.search(r"ndcg@10|rank", printed)


@pytest.mark.slow
@pytest.mark.process
def test_the_readmes_example_prints_what_the_readme_shows():
    shown = [text for _, text in blocks(ROOT / "README.md", "text") if "ndcg@10" in text]
    number = re.compile(r"'ndcg@10': ([\d.]+)")
    printed = _run(ROOT / "README.md").splitlines()[-1]
    assert float(number.findall(printed)[0]) == pytest.approx(float(number.findall(shown[0])[0]), abs=0.01)


def test_what_is_not_run_says_why():
    for path in DOCUMENTS:
        for marker, _ in blocks(path, "python"):
            assert not marker or len(marker) > len("<!-- not run: -->") + 10, (path, marker)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_those_of_the_command_line(path, capsys):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(path):
        if "run_recbole_qbert.py" in words:
            given = words[words.index("run_recbole_qbert.py") + 1 :]
            try:
                rest = given if given[0].startswith("-") else build_parser().parse_known_args(given)[1]
            except SystemExit:
                pytest.fail(f"{path.name}: {shlex.join(words)}\n{capsys.readouterr().err}")
            parse_properties(rest)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{path.name}: make {words[1]}"


# --------------------------------------------------------------------------------------------------- what is generated


def test_every_property_stands_in_the_reference(pages):
    given = yaml.safe_load((ROOT / generate.PROPERTIES).read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*) \|$", pages["properties.md"], re.MULTILINE)
    assert [name for name, _, _ in rows] == list(given)
    shown = {name: default for name, default, _ in rows}
    assert shown["hidden_size"] == "`64`"
    assert shown["pretrained"] == ""
    assert "split: {LS: valid_and_test}" in shown["eval_args"]


def test_every_command_and_option_stands_in_the_reference(pages):
    actions = build_parser()._actions
    choices = next(action.choices for action in actions if isinstance(action.choices, dict))
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["command-line.md"], re.DOTALL | re.MULTILINE))
    assert list(sections) == list(choices)
    assert "`--checkpoint` `FILE` (required)" in sections["export"]
    assert "`--baselines`" in sections["train"]


def test_every_package_has_a_page(pages):
    assert "::: recbole_qbert.quantization.rqvae\n" in pages["api/quantization.md"]
    assert {"api/injection.md", "api/sequence.md", "api/serving.md"} <= set(pages)


# ---------------------------------------------------------------------------------------------------- what is linked to


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path, pages):
    for target in _LINK.findall(re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)):
        file = target.partition("#")[0]
        if "://" in target or not file:
            continue
        assert (path.parent / file).exists() or file in pages, f"{path.name}: {target}"


def test_the_menu_names_pages_that_exist(pages):
    def names(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in names(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {name for name in names(nav) if name not in pages and not (ROOT / "docs" / name).exists()} == set()
    flat = {path.name for path in (ROOT / "docs").glob("*.md") if not path.name.startswith("_")}
    assert flat <= set(names(nav)), "a page that the menu does not name"


@pytest.mark.process
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install mkdocs-material 'mkdocstrings[python]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "injection" / "index.html").stat().st_size > 10_000


def test_figures_of_the_readme_are_those_of_the_results():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results")[1].split("**Honestly")[0]
    figures = re.findall(r"\.\d{4}(?: \(\.\d{4}\))?", table)
    tables = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("<!-- end -->")[:2]
    results = "".join(tables).replace("*", "")
    assert len(figures) == 26
    assert [figure for figure in figures if figure not in results] == []
