"""What earlier commands left: manifests that no longer match, caches older than the data, imports cut short, images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from dataset_prep.checks.findings import Finding
from dataset_prep.checks.interactions import Seen
from recbole_qbert.data import item_features as features
from recbole_qbert.data.builtin_encoders import IMAGE_ENDINGS
from recbole_qbert.utils.cached_step import read_manifest
from recbole_qbert.utils.io import digest, sha256


def _read(path: Path) -> dict[str, Any] | None:
    """An object, or ``None`` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


# ---------------------------------------------------------------------------------------------- stages
def stages(folder: Path, dataset: str, output: Path, items: Sequence[str]) -> Iterator[Finding]:
    """The kept output of stages 1 and 2: is each file what was written, and from what there is now?

    Args:
        folder: of the data set.
        dataset: its name.
        output: folder with the manifests.
        items: tokens of the items, in the order in which they first occur.
    """
    for path in sorted(output.glob(f"{escape(dataset)}.*.manifest.json")):
        try:
            inputs, outputs = read_manifest(path)
        except (OSError, ValueError):
            what, to_do = "is no manifest of a stage", "remove it; the stage runs again"
            yield Finding("warning", str(path), what, to_do)
            continue
        changed = [name for name, known in outputs.items() if _hash(output / Path(name).name) != known]
        stale = list(_stale(inputs, folder, dataset, output, items))
        if changed:
            yield Finding(
                "warning",
                str(output / changed[0]),
                f"is not what its stage wrote ({path.name}); {len(changed)} of {len(outputs)} files differ or are gone",
                "nothing: the next run builds it again; to keep it, copy it beside the data or give semantic_id_file",
            )
        if stale:
            yield Finding(
                "warning",
                str(path),
                f"is stale: {', '.join(stale)} changed since the stage ran",
                "nothing: the next run builds it again; but figures from before are about the data as they were",
            )
        if not changed and not stale:
            yield Finding("ok", str(path), "matches its files and the data")


def _stale(inputs: dict[str, Any], folder: Path, dataset: str, output: Path, items: Sequence[str]) -> Iterator[str]:
    if inputs.get("items") != digest(items):
        yield "the list of items"
    known = inputs.get("features")
    if isinstance(known, dict) and known:
        own = (folder / f"{dataset}.items.txt").exists() or features.available(folder, dataset)
        where = folder if own else output
        names = {"items": "items.txt", "manifest": "features.json"}
        for name, value in sorted(known.items()):
            path = where / f"{dataset}.{names.get(name, f'{name}.npy')}"
            if _hash(path) != value:
                yield path.name
    fused = inputs.get("fused")
    if fused is not None and _hash(output / f"{dataset}.fused.npy") != fused:
        yield f"{dataset}.fused.npy"


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def caches(inter: Path, dataset: str, output: Path) -> Iterator[Finding]:
    """RecBole's saved data sets and loaders, which it takes whatever has become of the data."""
    for path in sorted(output.rglob(f"{escape(dataset)}-*.pth")):
        if path.stat().st_mtime < inter.stat().st_mtime:
            yield Finding(
                "warning",
                str(path),
                f"is older than {inter.name}, and RecBole uses such a file without a look at the data",
                "remove it",
            )


# ---------------------------------------------------------------------------------------------- preparation
def preparation(folder: Path, seen: Seen) -> Iterator[Finding]:
    """Counts in ``prepare.json`` and ``import.json`` against the files, and files against ``import.json``."""
    counts = {"users": seen.users, "items": len(seen.items), "interactions": seen.rows}
    for name in ("prepare.json", "import.json"):
        path = folder / name
        if not path.exists():
            continue
        content = _read(path)
        if content is None:
            yield Finding("warning", str(path), "is not JSON", "prepare or import the data again")
            continue
        told = content
        if name == "import.json":
            yield from _import(path, content)
            entries = content.get("imports")
            told = entries[-1] if isinstance(entries, list) and entries and isinstance(entries[-1], dict) else {}
        differing = [
            f"{told[key]:,} {key} (there are {count:,})"
            for key, count in counts.items()
            if isinstance(told.get(key), int) and told[key] != count
        ]
        if differing:
            to_do = "prepare or import the data again, or remove the file if they were changed on purpose"
            yield Finding("warning", str(path), f"tells of {', '.join(differing)}: the data were changed since", to_do)
        else:
            yield Finding("ok", str(path), "counts match")


def _import(path: Path, content: dict[str, Any]) -> Iterator[Finding]:
    if content.get("complete") is not True:
        yield Finding("error", str(path), "an import was interrupted while it wrote", "run the same import again")
        return
    outputs = content.get("outputs")
    changed = [name for name, known in (outputs or {}).items() if _hash(path.with_name(Path(name).name)) != known]
    if changed:
        yield Finding(
            "warning",
            str(path.with_name(Path(changed[0]).name)),
            f"is not what the import wrote; {len(changed)} files differ or are gone",
            "import again if that was not on purpose",
        )


# ---------------------------------------------------------------------------------------------- images
def images(folder: Path, items: Sequence[str]) -> Iterator[Finding]:
    """Which items have a picture, and why the others have none."""
    pictures, manifest = folder / "images", folder / "images.jsonl"
    if pictures.is_dir():
        having = {entry.name for entry in os.scandir(pictures) if entry.is_dir() and _has_image(entry.path)}
        count = sum(item in having for item in items)
        strange = len(having - set(items))
        spare = f"; {strange:,} folders are of other items" if strange else ""
        what = f"{count:,} of {len(items):,} items have a picture{spare}"
        if count:
            yield Finding("ok", str(pictures), what)
        else:
            to_do = "a picture lies in images/<item_id>/; see the spelling of the ids"
            yield Finding("warning", str(pictures), what, to_do)
    if not manifest.exists():
        return
    last: dict[int, str | None] = {}  # of several lines of one image the last one counts
    with open(manifest, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(line)
                last[hash((row["item"], row["n"]))] = None if row["status"] == "ok" else str(row["reason"])
            except (ValueError, KeyError, TypeError):
                where = f"{manifest}:{number}"
                yield Finding("warning", where, "is no row of an image", "remove the line and fetch the images again")
    missed = Counter(reason for reason in last.values() if reason is not None)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in missed.most_common(5))
    if missed:
        what = f"{missed.total():,} of {len(last):,} images could not be had: {reasons}"
        to_do = "fetch the images again for those that may come; the items count as without picture"
        yield Finding("warning", str(manifest), what, to_do)
    elif last:
        yield Finding("ok", str(manifest), f"all {len(last):,} images are there")


def _has_image(folder: str) -> bool:
    return any(entry.name.lower().endswith(IMAGE_ENDINGS) for entry in os.scandir(folder))
