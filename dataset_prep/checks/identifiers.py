"""Check ``X.sid``: it is readable, gives each item with interactions an ID of its own, and fits its manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_prep.checks.findings import Finding, refused
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.cached_step import read_manifest


def check(path: Path, items: Sequence[str]) -> list[Finding]:
    """Check a ``.sid`` file.

    Args:
        path: the file.
        items: tokens of the items with interactions.
    """
    try:
        ids = semantic_ids.load(path)
    except ValueError as error:  # also if the file is not UTF-8
        return [refused(error, path)]
    findings = [*_codes(path, ids), *_order(path, ids)]
    identified = set(ids.items)
    missing = [item for item in items if item not in identified]
    if missing:
        other = len(missing) * 2 > len(items)
        findings.append(
            Finding(
                "error",
                str(path),
                f"{len(missing):,} of {len(items):,} items with interactions have no ID (first: {missing[0]}): "
                + ("it belongs to another data set" if other else "it is older than the data"),
                "remove it, and 'quantize' builds a new one; or set semantic_id_file to the right file",
            )
        )
    unused = len(identified - set(items))
    others = f", and {unused:,} of other items" if unused else ""
    findings.append(Finding("ok", str(path), f"{len(ids.items):,} different IDs of {len(ids.prefixes)} levels{others}"))
    return findings


def _codes(path: Path, ids: SemanticIDs) -> list[Finding]:
    """Check that codes are within the codebooks of the manifest, and that an item has all or none of a code set."""
    findings = []
    sets: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for level, prefix in enumerate(ids.prefixes):
        sets[prefix.isupper(), prefix[1:]].append(level)  # as semantic_ids.prefixes_of names them
    for levels in sets.values():
        has = ids.codes[:, levels] >= 0
        incomplete = np.flatnonzero(has.any(1) & ~has.all(1))
        if len(incomplete):
            letters = " ".join(ids.prefixes[level] for level in levels)
            findings.append(
                Finding(
                    "error",
                    f"{path}:{incomplete[0] + 2}",
                    f"{len(incomplete):,} items have only some of the levels {letters} (first: {ids.items[incomplete[0]]})",
                    "give an item all levels of a code set or none; build the IDs again",
                )
            )
    limit = _codes_per_level(path)
    if limit is not None and ids.size > limit:
        row = int(np.flatnonzero(ids.codes.max(1) >= limit)[0])
        findings.append(
            Finding(
                "error",
                f"{path}:{row + 2}",
                f"code {int(ids.codes[row].max())} is beyond the {limit} codes per level that its manifest names",
                "build the IDs again with 'quantize'",
            )
        )
    return findings


def _codes_per_level(path: Path) -> int | None:
    manifest = path.with_name(f"{path.name}.manifest.json")
    try:
        codes = read_manifest(manifest)[0]["settings"]["codes"]
    except (OSError, ValueError, KeyError, TypeError):  # leftovers.py reports what is wrong with it
        return None
    return codes if isinstance(codes, int) else None


def _order(path: Path, ids: SemanticIDs) -> list[Finding]:
    """Check that the tokens of a line are in the order of their levels, because some readers go by position."""
    with open(path, encoding="utf-8") as handle:
        next(handle)
        for number, line in enumerate(handle, 2):
            letters = [token[1:].partition("_")[0] for token in line.partition("\t")[2].split()]
            expected = [letter for letter in ids.prefixes if letter in letters]
            if letters != expected:
                return [
                    Finding(
                        "warning",
                        f"{path}:{number}",
                        f"the order of the levels is {' '.join(letters)}, and should be {' '.join(expected)}",
                        "write the tokens of every ID in the order of the levels",
                    )
                ]
    return []
