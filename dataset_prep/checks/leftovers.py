"""Check files of earlier commands: outdated manifests, caches older than the data, interrupted imports, images."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from dataset_prep.checks.findings import Finding
from dataset_prep.checks.interactions import InteractionSummary
from recbole_qbert.data import item_features as features
from recbole_qbert.data.builtin_encoders import IMAGE_ENDINGS
from recbole_qbert.utils.cached_step import read_manifest
from recbole_qbert.utils.io import digest, sha256


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; ``None`` if the file is anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


# ---------------------------------------------------------------------------------------------- stages
def stages(folder: Path, dataset: str, output: Path, items: Sequence[str]) -> Iterator[Finding]:
    """Check that each output of stages 1 and 2 is what the stage wrote, and that its inputs have not changed.

    Args:
        folder: folder of the data set.
        dataset: name of the data set.
        output: folder with the manifests.
        items: tokens of the items, in the order in which they first occur.
    """
    for path in sorted(output.glob(f"{escape(dataset)}.*.manifest.json")):
        try:
            inputs, outputs = read_manifest(path)
        except (OSError, ValueError):
            yield Finding("warning", str(path), "is not the manifest of a stage", "remove it; the stage runs again")
            continue
        changed = [name for name, expected in outputs.items() if _hash(output / Path(name).name) != expected]
        stale = list(_stale(inputs, folder, dataset, output, items))
        if changed:
            yield Finding(
                "warning",
                str(output / changed[0]),
                f"is not what its stage wrote ({path.name}); {len(changed)} of {len(outputs)} files differ or are missing",
                "nothing: the next run builds it again; to keep it, copy it beside the data or set semantic_id_file",
            )
        if stale:
            yield Finding(
                "warning",
                str(path),
                f"is outdated: {', '.join(stale)} changed since the stage ran",
                "nothing: the next run builds it again; earlier metrics are of the data before the change",
            )
        if not changed and not stale:
            yield Finding("ok", str(path), "matches its files and the data")


def _stale(inputs: dict[str, Any], folder: Path, dataset: str, output: Path, items: Sequence[str]) -> Iterator[str]:
    if inputs.get("items") != digest(items):
        yield "the list of items"
    hashes = inputs.get("features")
    if isinstance(hashes, dict) and hashes:
        own = (folder / f"{dataset}.items.txt").exists() or features.available(folder, dataset)
        names = {"items": "items.txt", "manifest": "features.json"}
        for name, value in sorted(hashes.items()):
            path = (folder if own else output) / f"{dataset}.{names.get(name, f'{name}.npy')}"
            if _hash(path) != value:
                yield path.name
    fused = inputs.get("fused")
    if fused is not None and _hash(output / f"{dataset}.fused.npy") != fused:
        yield f"{dataset}.fused.npy"


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def caches(inter: Path, dataset: str, output: Path) -> Iterator[Finding]:
    """Check that RecBole's saved data sets are newer than the data, because RecBole reuses them without a check.

    Args:
        inter: the ``.inter`` file.
        dataset: name of the data set.
        output: folder searched for ``<dataset>-*.pth``.
    """
    for path in sorted(output.rglob(f"{escape(dataset)}-*.pth")):
        if path.stat().st_mtime < inter.stat().st_mtime:
            yield Finding(
                "warning",
                str(path),
                f"is older than {inter.name}, and RecBole uses such a file without checking the data",
                "remove it",
            )


# ---------------------------------------------------------------------------------------------- interrupted writes
def interrupted(folder: Path) -> Iterator[Finding]:
    """Name the half-written files of processes that ended before they were done (`utils.io.atomic_write`).

    Args:
        folder: folder of the data set, or of its output.
    """
    for path in sorted(folder.rglob(".*.part")):
        process = path.name.removesuffix(".part").rpartition(".")[2]
        if process.isdecimal() and not _runs(int(process)):
            way_out = "remove it; the command that wrote it writes the file again"
            yield Finding("warning", str(path), "is half of a file, left by a process that was killed", way_out)


def _runs(process: int) -> bool:
    """Tell whether a process may be running; always true where this cannot be asked without harm."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def checkpoints(output: Path, dataset: str) -> Iterator[Finding]:
    """Name the checkpoints that are no archives of ``torch.save``, because they were cut off.

    Args:
        output: folder of the data set's output.
        dataset: name of the data set; ``<dataset>-*.pth`` are RecBole's caches, which are no checkpoints.
    """
    for path in sorted(output.rglob("*.pth")):
        if not path.name.startswith(f"{dataset}-") and not zipfile.is_zipfile(path):
            yield Finding("error", str(path), "is not a whole checkpoint", "remove it and train again, or copy it again")


# ---------------------------------------------------------------------------------------------- preparation
def preparation(folder: Path, summary: InteractionSummary) -> Iterator[Finding]:
    """Compare the counts in ``prepare.json`` and ``import.json`` with the data, and the files with ``import.json``."""
    counts = {"users": summary.users, "items": len(summary.items), "interactions": summary.rows}
    for name in ("prepare.json", "import.json"):
        path = folder / name
        if not path.exists():
            continue
        content = _read(path)
        if content is None:
            yield Finding("warning", str(path), "is not JSON", "prepare or import the data again")
            continue
        report = content
        if name == "import.json":
            yield from _import(path, content)
            entries = content.get("imports")
            report = entries[-1] if isinstance(entries, list) and entries and isinstance(entries[-1], dict) else {}
        differing = [
            f"{report[key]:,} {key} (the data have {count:,})"
            for key, count in counts.items()
            if isinstance(report.get(key), int) and report[key] != count
        ]
        if differing:
            way_out = "prepare or import the data again, or remove the file if the data were changed on purpose"
            yield Finding("warning", str(path), f"reports {', '.join(differing)}: the data have changed since", way_out)
        else:
            yield Finding("ok", str(path), "counts match")


def _import(path: Path, content: dict[str, Any]) -> Iterator[Finding]:
    if content.get("complete") is not True:
        yield Finding("error", str(path), "an import was interrupted while it wrote", "run the same import again")
        return
    outputs = content.get("outputs")
    hashes = (outputs or {}).items()
    changed = [name for name, expected in hashes if _hash(path.with_name(Path(name).name)) != expected]
    if changed:
        yield Finding(
            "warning",
            str(path.with_name(Path(changed[0]).name)),
            f"is not what the import wrote; {len(changed)} files differ or are missing",
            "import again, unless they were changed on purpose",
        )


# ---------------------------------------------------------------------------------------------- images
def images(folder: Path, items: Sequence[str]) -> Iterator[Finding]:
    """Count the items with a picture, and the reasons why others have none."""
    pictures, manifest = folder / "images", folder / "images.jsonl"
    if pictures.is_dir():
        pictured = {entry.name for entry in os.scandir(pictures) if entry.is_dir() and _has_image(entry.path)}
        count = sum(item in pictured for item in items)
        others = len(pictured - set(items))
        text = f"{count:,} of {len(items):,} items have a picture"
        text += f"; {others:,} folders are of other items" if others else ""
        if count:
            yield Finding("ok", str(pictures), text)
        else:
            way_out = "put pictures into images/<item_id>/; check the spelling of the ids"
            yield Finding("warning", str(pictures), text, way_out)
    if not manifest.exists():
        return
    reason_of: dict[int, str | None] = {}  # of several lines of one image the last one counts
    with open(manifest, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(line)
                reason_of[hash((row["item"], row["n"]))] = None if row["status"] == "ok" else str(row["reason"])
            except (ValueError, KeyError, TypeError):
                where = f"{manifest}:{number}"
                yield Finding("warning", where, "is not a row of an image", "remove the line and fetch the images again")
    misses = Counter(reason for reason in reason_of.values() if reason is not None)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in misses.most_common(5))
    if misses:
        text = f"{misses.total():,} of {len(reason_of):,} images could not be fetched: {reasons}"
        way_out = "fetch the images again, since some failures are temporary; these items count as without picture"
        yield Finding("warning", str(manifest), text, way_out)
    elif reason_of:
        yield Finding("ok", str(manifest), f"all {len(reason_of):,} images exist")


def _has_image(folder: str) -> bool:
    return any(entry.name.lower().endswith(IMAGE_ENDINGS) for entry in os.scandir(folder))
