"""``X.sid``: a readable file, one different ID for each item with interactions, of this data set and of its manifest."""

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
    """Look at a ``.sid`` file.

    Args:
        path: the file.
        items: tokens of the items with interactions.
    """
    try:
        ids = semantic_ids.load(path)
    except ValueError as error:  # of another encoding, too
        return [refused(error, path)]
    found = [*_codes(path, ids), *_order(path, ids)]
    there = set(ids.items)
    absent = [item for item in items if item not in there]
    if absent:
        other = len(absent) * 2 > len(items)
        found.append(
            Finding(
                "error",
                str(path),
                f"{len(absent):,} of {len(items):,} items with interactions have no ID (first: {absent[0]}): "
                + ("it belongs to another data set" if other else "it is older than the data"),
                "remove it, and 'quantize' builds a new one; or point semantic_id_file to the right one",
            )
        )
    idle = len(there - set(items))
    spare = f", and {idle:,} of other items" if idle else ""
    found.append(Finding("ok", str(path), f"{len(ids.items):,} different IDs of {len(ids.prefixes)} levels{spare}"))
    return found


def _codes(path: Path, ids: SemanticIDs) -> list[Finding]:
    """Codes within the codebooks that the manifest names, and code sets that an item has whole or not at all."""
    found = []
    sets: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for place, prefix in enumerate(ids.prefixes):
        sets[prefix.isupper(), prefix[1:]].append(place)  # as semantic_ids.prefixes_of names them
    for places in sets.values():
        has = ids.codes[:, places] >= 0
        torn = np.flatnonzero(has.any(1) & ~has.all(1))
        if len(torn):
            letters = " ".join(ids.prefixes[place] for place in places)
            found.append(
                Finding(
                    "error",
                    f"{path}:{torn[0] + 2}",
                    f"{len(torn):,} items have some of the levels {letters} only (first: {ids.items[torn[0]]})",
                    "an item has all levels of a code set or none; build the IDs again",
                )
            )
    limit = _codes_per_level(path)
    if limit is not None and ids.size > limit:
        row = int(np.flatnonzero(ids.codes.max(1) >= limit)[0])
        found.append(
            Finding(
                "error",
                f"{path}:{row + 2}",
                f"code {int(ids.codes[row].max())} is beyond the {limit} codes a level that its manifest names",
                "build the IDs again with 'quantize'",
            )
        )
    return found


def _codes_per_level(path: Path) -> int | None:
    manifest = path.with_name(f"{path.name}.manifest.json")
    try:
        codes = read_manifest(manifest)[0]["settings"]["codes"]
    except (OSError, ValueError, KeyError, TypeError):  # leftovers.py says what is wrong with it
        return None
    return codes if isinstance(codes, int) else None


def _order(path: Path, ids: SemanticIDs) -> list[Finding]:
    """Tokens of a line in the order of their levels: readers that go by position would take one for another."""
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
                        f"levels stand in the order {' '.join(letters)}, which should be {' '.join(expected)}",
                        "write the tokens of every ID in the order of the levels",
                    )
                ]
    return []
