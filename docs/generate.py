"""Pages of the site that are made from the code, so that nothing is written twice; a hook of MkDocs (``mkdocs.yml``).

* ``index.md`` from README.md, ``contributing.md`` from CONTRIBUTING.md, ``changelog.md`` from CHANGELOG.md
* ``properties.md`` from the comments in properties/model/QBERT4Rec.yaml
* ``command-line.md`` from the parser of the command line
* ``api/<package>.md`` for every package, filled from docstrings by mkdocstrings
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES = "properties/model/QBERT4Rec.yaml"
COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of the folder."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return name and Markdown of every generated page."""
    made = {target: _of_root((ROOT / source).read_text(encoding="utf-8")) for source, target in COPIED.items()}
    made["properties.md"] = properties((ROOT / PROPERTIES).read_text(encoding="utf-8"))
    made["command-line.md"] = command_line()
    return made | api()


def _of_root(text: str) -> str:
    """Let links of a document at the top of the repository lead to pages; files that are no pages are only named."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        if path in COPIED:
            return f"{picture}[{words}]({COPIED[path]}{hash_sign}{anchor})"
        if path.startswith("docs/"):
            return f"{picture}[{words}]({path.removeprefix('docs/')}{hash_sign}{anchor})"
        return words

    return _LINK.sub(link, text)


def properties(source: str) -> str:
    """Make the reference of the properties: a table for each section, a row for each key with its default and comment."""
    rows: list[list[str]] = []
    lines = ["# Properties", ""]

    def flush() -> None:
        if rows:
            lines.extend(["| property | default | meaning |", "|---|---|---|"])
            lines.extend(f"| `{key}` | `{value}` | {note} |" for key, value, note in rows)
            lines.append("")
            rows.clear()

    for line in source.splitlines():
        if section := re.match(r"# -+ (.*?) -+$", line):
            flush()
            lines.extend([f"## {section[1][:1].upper()}{section[1][1:]}", ""])
        elif line.startswith("# "):
            lines.append(line[2:])
            continue
        elif match := re.match(r"(\s*)([\w]+|\s):\s*(.*?)\s*(?:#\s*(.*))?$", line):
            indent, key, value, note = match.groups()
            note = _cell(note or "")
            if indent:
                rows[-1][1] = f"{rows[-1][1]} {key}: {value}".strip()
                rows[-1][2] = f"{rows[-1][2]} {note}".strip()
            else:
                rows.append([key, "" if value == "~" else value, note])
        elif comment := re.match(r"\s+#\s*(.*)", line):
            rows[-1][2] += f" {_cell(comment[1])}"
        elif not line.strip():
            lines.append("")
    flush()
    return "\n".join(lines).replace("| `` |", "| |") + "\n"


def command_line() -> str:
    """Make the reference of the command line from its parser."""
    sys.path.insert(0, str(ROOT))
    try:
        from recbole_qbert.cli import build_parser
    finally:
        sys.path.remove(str(ROOT))
    lines = [
        "# Command line",
        "",
        "`python run_recbole_qbert.py COMMAND [options] [--property=value ...]`; installed, the program is `recbole-qbert`.",
        "Any [property](properties.md) can follow a command that trains.",
        "",
    ]
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                lines += [f"## {name}", "", f"{_cell(parser.description or '')}", "", "| option | meaning |", "|---|---|"]
                lines += [
                    _option(option)
                    for option in parser._actions
                    if option.dest != "help" and option.help != argparse.SUPPRESS
                ]
                lines.append("")
    return "\n".join(lines)


def _option(option: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in option.option_strings) or f"`{option.dest}`"
    value = option.metavar or (option.dest.upper() if option.nargs != 0 and not option.choices else "")
    if option.choices:
        value = "{" + ",".join(map(str, option.choices)) + "}"
    required = " (required)" if option.required else ""
    return f"| {names}{f' `{value}`' if value else ''}{required} | {_cell(option.help or '')} |"


def _cell(text: str) -> str:
    """Text as it may stand in a cell of a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def api() -> dict[str, str]:
    """Make a page for each package, which mkdocstrings fills."""
    made = {}
    for package in sorted((ROOT / "recbole_qbert").iterdir()):
        if not (package / "__init__.py").exists():
            continue
        lines = [f"# recbole_qbert.{package.name}", ""]
        for module in sorted(package.rglob("*.py")):
            name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
            if not module.stem.startswith("_"):
                lines += [f"## {name.removeprefix('recbole_qbert.')}", "", f"::: {name}", ""]
        if len(lines) > 2:
            made[f"api/{package.name}.md"] = "\n".join(lines)
    return made
