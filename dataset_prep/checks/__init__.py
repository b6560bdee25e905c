"""Checks a data set folder before time is spent on it: what RecBole would misread, lose or refuse, and what to do.

Nothing is loaded through RecBole, and memory does not grow with the number of interactions.
"""

from __future__ import annotations

from pathlib import Path

from dataset_prep.checks import identifiers, interactions, items, leftovers, vectors
from dataset_prep.checks.findings import Finding, as_text, worst
from recbole_qbert.utils.spelling import did_you_mean

__all__ = ["Finding", "as_text", "check", "worst"]


def check(data_path: Path, dataset: str, *, output: Path | None = None, progress: bool = False) -> list[Finding]:
    """Look at everything there is of a data set.

    Args:
        data_path: folder that holds the data set's folder.
        dataset: its name.
        output: folder that the commands write into (``runs``), for what they left in ``<output>/<dataset>``; ``None`` leaves
            it aside.
        progress: show a bar over the interactions.

    Returns:
        Findings, in the order of the checks. Broken data are findings; nothing is raised for them.
    """
    folder = Path(data_path) / dataset
    if not folder.is_dir():
        there = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        what = f"no such folder{did_you_mean(dataset, there)}"
        return [Finding("error", str(folder), what, "data_path is the folder above the data set's own; see both names")]
    inter = folder / f"{dataset}.inter"
    if not inter.is_file():
        to_do = f"name it {inter.name}, like its folder; 'prepare' makes it from raw files, 'import' from published folders"
        others = [path.name for path in folder.glob("*.inter")]
        return [Finding("error", str(inter), f"no such file{did_you_mean(inter.name, others)}", to_do)]
    seen, found = interactions.check(inter, progress)
    if seen is None or not seen.rows:
        return found
    tokens = seen.tokens()
    if (folder / f"{dataset}.item").is_file():
        found += items.check(folder / f"{dataset}.item", seen)
    found += vectors.check(folder, dataset, tokens)
    if (folder / f"{dataset}.sid").is_file():
        found += identifiers.check(folder / f"{dataset}.sid", tokens)
    found += [*leftovers.preparation(folder, seen), *leftovers.images(folder, tokens)]
    written = Path(output) / dataset if output is not None else None
    if written is not None and written.is_dir():
        if (written / f"{dataset}.items.txt").exists():  # of the built-in encoders
            found += vectors.check(written, dataset, tokens)
        if (written / f"{dataset}.sid").is_file():
            found += identifiers.check(written / f"{dataset}.sid", tokens)
        found += [*leftovers.stages(folder, dataset, written, tokens), *leftovers.caches(inter, dataset, written)]
    return found
