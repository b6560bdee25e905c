"""Report of a suite: one HTML file that needs nothing else, and its plots as PNG files beside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from recbole_qbert.experiments.report import figures, plots, sections
from recbole_qbert.experiments.report.html import join, tag
from recbole_qbert.experiments.report.html_tables import notes
from recbole_qbert.experiments.report.main_table import own_table
from recbole_qbert.experiments.report.page import Section, document, gallery
from recbole_qbert.experiments.report.suite_reader import Suite, read
from recbole_qbert.utils.io import atomic_write

__all__ = ["write"]


def write(results: Path, data_path: Path | None = None) -> Path:
    """Write ``report.html`` and its plots into the folder of a suite's results.

    Args:
        results: ``<output>/suites/<suite>/<dataset>``, with ``suite.json``.
        data_path: folder that holds the data set's folder, for titles and pictures; by default where the suite found it.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: ``results`` is no folder of a suite.
        ImportError: matplotlib is not installed.
        ValueError: a file in it cannot be read.
    """
    plots.require_matplotlib()
    suite = read(results)
    if data_path is None and suite.about.get("data_path"):
        data_path = Path(suite.about["data_path"])
    drawn = {made.__name__: made(suite) for made in figures.ALL}
    explorer, style, missing = sections.explorer(suite, data_path)
    parts = [
        Section("results", "Results", "Results", own_table(suite)),
        Section("embeddings", "Embeddings", "Item vectors in one plane", sections.embeddings(suite, drawn["embeddings"])),
        Section("sweep", "Sweep", f"What {suite.spec['sweep']} changes", gallery(drawn["sweep"])),
        Section("lines", "Lines", f"Results over {suite.spec.get('lines')}", gallery(drawn["lines"])),
        Section("seeds", "Seeds", "Every seed", gallery(drawn["seeds"])),
        Section("curves", "Learning", "Learning curves", gallery(drawn["curves"])),
        Section("depth", "Fusion depth", "Layers of fusion", sections.depth(suite, drawn["depth"])),
        Section("tokenizer", "Tokenizer", "Health of the semantic IDs", sections.health(suite)),
        Section("ids", "Semantic IDs", "What the codes mean", explorer),
        Section("cost", "Cost", "Time, memory and size", sections.cost(suite)),
        Section("environment", "Environment", "Where it was run", sections.environment(suite)),
    ]
    missing = [*suite.unfinished, *_absent(suite, parts), *missing]
    parts.append(Section("missing", "Missing", "What is missing or left out here", notes(missing)))
    paper = f"{suite.spec['paper']} of the paper · " if suite.spec["paper"] else ""
    trials = f" · {len(suite.trials)} of {len(suite.about['trials'])} trials finished" if suite.about["trials"] else ""
    what = tag("a", f"missing or left out: {len(missing)}", href="#missing") if missing else "complete"
    subtitle = join(f"{paper}{suite.dataset}{trials} · ", what)
    foot = "One file without outside parts. All of it works without scripts, except the search among semantic IDs."
    shown = [section for section in parts if section.content]
    text = document(f"{suite.spec['title']}: {suite.dataset}", subtitle, shown, foot, style)
    for plot in itertools.chain(*drawn.values()):
        with atomic_write(suite.folder / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.light)
    with atomic_write(suite.folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return suite.folder / "report.html"


def _absent(suite: Suite, parts: Sequence[Section]) -> list[str]:
    """Name each part of the report that this suite should have and does not."""
    empty = {section.anchor for section in parts if not section.content}
    expected = {"results": "results: table.json is missing, or of a kind that is not known here; run the suite again"}
    if suite.about["trials"]:
        expected |= {
            "curves": "learning curves: no finished trial has one",
            "tokenizer": "tokenizer health: no finished trial has semantic IDs of its own",
            "depth": "layers of fusion: no finished trial has a stage 1",
        }
    if suite.spec["sweep"]:
        expected["sweep"] = f"figure over {suite.spec['sweep']}: no row has a result"
    if suite.spec["kind"] == "embedding":
        del expected["results"]
        expected["embeddings"] = "item vectors in one plane: embedding.json is missing or holds none"
    reasons = [f"item vectors of {row}: {known['reason']}" for row, known in suite.embedding.items() if "reason" in known]
    return [text for anchor, text in expected.items() if anchor in empty] + reasons
