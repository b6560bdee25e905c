"""Check a data set folder: report what RecBole would misread, lose or refuse, and what to do about it.

RecBole itself is not used: it reads most of these faults without an error (`tests/test_doctor.py` repeats some). Memory
does not grow with the number of interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataset_prep.checks import identifiers, interactions, items, leftovers, vectors
from dataset_prep.checks.findings import Finding, as_text, worst
from dataset_prep.checks.fix import fix
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.utils.spelling import did_you_mean

__all__ = ["Finding", "as_text", "check", "fix", "worst"]


def check(
    data_path: Path,
    dataset: str,
    *,
    output: Path | None = None,
    progress: bool = False,
    form: AtomicFormat | None = None,
    text_fields: Sequence[str] | None = None,
) -> list[Finding]:
    """Check all files of a data set.

    Args:
        data_path: folder that holds the data set's folder.
        dataset: name of the data set.
        output: folder that the commands write into (``runs``), to check ``<output>/<dataset>`` as well; ``None`` skips it.
        progress: show a bar over the interactions.
        form: how the atomic files are written; default: as RecBole's defaults say.
        text_fields: columns that the built-in encoder reads; default: those that it knows by name.

    Returns:
        Findings, in the order of the checks. Broken data give findings, not exceptions.
    """
    form = form or AtomicFormat()
    folder = Path(data_path) / dataset
    if not folder.is_dir():
        folders = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        problem = f"no such folder{did_you_mean(dataset, folders)}"
        return [Finding("error", str(folder), problem, "data_path is the parent of the data set's folder; check both names")]
    inter = folder / f"{dataset}.inter"
    if not inter.is_file():
        way_out = f"name it {inter.name}, like its folder; 'prepare' writes it from raw files, 'import' from published ones"
        others = [path.name for path in folder.glob("*.inter")]
        return [Finding("error", str(inter), f"no such file{did_you_mean(inter.name, others)}", way_out)]
    summary, findings = interactions.check(inter, progress, form)
    if summary is None or not summary.rows:
        return findings
    tokens = summary.tokens()
    if (folder / f"{dataset}.item").is_file():
        findings += items.check(folder / f"{dataset}.item", summary, form, text_fields)
    findings += vectors.check(folder, dataset, tokens)
    if (folder / f"{dataset}.sid").is_file():
        findings += identifiers.check(folder / f"{dataset}.sid", tokens)
    findings += [*leftovers.preparation(folder, summary), *leftovers.images(folder, tokens)]
    findings += leftovers.interrupted(folder)
    written = Path(output) / dataset if output is not None else None
    if written is not None and written.is_dir():
        if (written / f"{dataset}.items.txt").exists():  # of the built-in encoders
            findings += vectors.check(written, dataset, tokens)
        if (written / f"{dataset}.sid").is_file():
            findings += identifiers.check(written / f"{dataset}.sid", tokens)
        findings += [*leftovers.stages(folder, dataset, written, tokens), *leftovers.caches(inter, dataset, written)]
        findings += [*leftovers.interrupted(written), *leftovers.checkpoints(written, dataset)]
    return findings
