"""Build an imported data set folder whose new files appear together or are marked unfinished; report the import."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset_prep.amazon import cleaning
from recbole_qbert.utils.io import read_json, sha256, write_json

FORMAT_VERSION = 1  # of the written files; raise it when the same source gives other bytes
MANIFEST = "import.json"


@dataclass(frozen=True)
class FeatureReport:
    """One imported matrix.

    Attributes:
        source: name of the file it came from.
        shape: shape of the written matrix; its rows are the lines of ``X.items.txt``.
        dtype: type of the written matrix.
        coverage: share of the items with interactions that have a vector.
        missing: number of rows of NaN, that is of items without a vector.
        zeros: number of these that were rows of zeros in the source.
        repeats: number of rows equal to the row before them, bit by bit.
        extra: number of rows of the source that belong to no item of the data set and are not written.
    """

    source: str
    shape: tuple[int, ...]
    dtype: str
    coverage: float
    missing: int
    zeros: int = 0
    repeats: int = 0
    extra: int = 0


@dataclass(frozen=True)
class ImportReport:
    """Counts and sources of an import; ``import.json`` holds the same.

    Attributes:
        kind: ``mql4grec``, ``unisrec`` or ``arrays``.
        dataset: name of the written data set.
        users: users with at least one interaction.
        items: items with at least one interaction.
        interactions: rows of ``X.inter``.
        timestamps: meaning of the timestamps in ``X.inter``.
        sources: name of each file read -> its sha256.
        items_unused: items of the source without interactions; they get no row in ``X.item`` and ``X.sid``.
        texts: items with a text.
        features: modality -> report of the written matrix.
        semantic_ids: counts of ``X.sid``, or ``None`` if it was not written.
        missing: optional files that the folder does not hold.
        ignored: name of each file that was not used -> the reason.
        warnings: facts that a person should know before using the data.
    """

    kind: str
    dataset: str
    users: int
    items: int
    interactions: int
    timestamps: str
    sources: dict[str, str]
    items_unused: int = 0
    texts: int = 0
    features: dict[str, FeatureReport] = field(default_factory=dict)
    semantic_ids: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Build:
    """Write the files of a data set folder: into a hidden folder first, renamed together at the end.

    During the renaming the manifest says ``complete: false``. An interruption therefore leaves the folder either unchanged
    or marked; the same import again completes it. Files of an earlier import that this one does not write are removed.

    Args:
        folder: folder of the data set; created if it does not exist.
        name: name of the data set.
        merge: add to a folder of any origin, and keep the files of earlier imports.

    Raises:
        ValueError: the name cannot name a folder, or the folder holds files of this data set that no import wrote (unless
            ``merge``).
    """

    def __init__(self, folder: Path, name: str, *, merge: bool = False) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"data set {name!r} cannot name a folder; use letters, digits, '_', '-' and '.'")
        self.folder, self.name, self.merge = folder, name, merge
        self.before = read_manifest(folder)
        foreign = sorted({path.name for path in folder.glob(f"{name}.*")} - set(self.before["outputs"]))
        if foreign and not merge:
            raise ValueError(
                f"{folder} holds files that no import wrote ({', '.join(foreign[:5])}); import under another name, or move "
                "them away"
            )
        self.staging = folder / ".import.part"
        self.new: list[str] = []

    def __enter__(self) -> Build:
        self.made = not self.folder.exists()
        shutil.rmtree(self.staging, ignore_errors=True)  # of an import that was killed
        self.staging.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        if self.made and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def path(self, ending: str) -> Path:
        """Return the temporary path of ``X.<ending>``."""
        self.new.append(f"{self.name}.{ending}")
        return self.staging / self.new[-1]

    def finish(self, report: ImportReport) -> ImportReport:
        """Move the files to their final names, write the manifest and return the report."""
        old = self.before["outputs"]
        outputs = {name: sha256(self.staging / name) for name in sorted(self.new)}
        retained = {name: value for name, value in old.items() if self.merge and name not in outputs}
        earlier = [entry for entry in self.before["imports"] if self.merge and not _replaces(report, entry)]
        content = {"format_version": FORMAT_VERSION, "imports": [*earlier, asdict(report)]}
        manifest = self.folder / MANIFEST
        # Old and new names: after an interruption, every file that remains is still listed as one of an import.
        write_json(manifest, {"complete": False, **content, "outputs": {**old, **outputs}})
        for name in outputs:
            os.replace(self.staging / name, self.folder / name)
        for name in set(old) - set(outputs) - set(retained):
            (self.folder / name).unlink(missing_ok=True)
        write_json(manifest, {"complete": True, **content, "outputs": {**retained, **outputs}})
        return report


def _replaces(report: ImportReport, entry: Mapping[str, Any]) -> bool:
    return entry.get("kind") == report.kind and set(entry.get("features", ())) <= set(report.features)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the ``import.json`` of a folder; return an empty manifest if there is none.

    Raises:
        ValueError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {"complete": True, "imports": [], "outputs": {}}
    way_out = "remove it and the files it lists, and import again"
    manifest = read_json(path, way_out)
    if not (
        isinstance(manifest.get("outputs"), dict)
        and isinstance(manifest.get("imports"), list)
        and all(isinstance(entry, dict) for entry in manifest["imports"])
    ):
        raise ValueError(f"{path} is not the manifest of an import; {way_out}")
    manifest["complete"] = manifest.get("complete") is True
    manifest["outputs"] = {name: value for name, value in manifest["outputs"].items() if Path(name).name == name}
    return manifest


def check_id(token: str, where: str, kind: str) -> None:
    """Refuse an id that RecBole would lose or split.

    Args:
        token: the id.
        where: file and line of the id, for the error.
        kind: what the id is, for the error.

    Raises:
        ValueError: such an id; the message names it and its line.
    """
    try:
        cleaning.check_id(kind, token)
    except cleaning.BadIdError as error:
        raise ValueError(f"{where}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line, without its line end.

    Raises:
        ValueError: a line is not UTF-8.
    """
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield number, line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file") from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write text, one entry per line."""
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{line}\n" for line in lines)
