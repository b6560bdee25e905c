"""Make the data set of the golden tests, a few kilobytes: ``python tests/golden/make_data.py``.

Users walk along a ring of items. An item's text and image vectors say where it stands on the ring, with noise; one item has
no picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

USERS, ITEMS = 64, 24


def write(folder: Path) -> None:
    """Write the data set ``folder.name``; the same files on every machine."""
    random, name = np.random.default_rng(7), folder.name
    folder.mkdir(parents=True, exist_ok=True)
    lines, used = ["user_id:token\titem_id:token\ttimestamp:float"], set()
    for user in range(USERS):
        item = int(random.integers(ITEMS))
        for time in range(int(random.integers(5, 12))):
            lines.append(f"u{user}\ti{item}\t{time}")
            used.add(item)
            item = (item + int(random.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))) % ITEMS
    items = sorted(used)
    angle = 2 * np.pi * np.array(items) / ITEMS
    ring = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], 1)
    matrices = {}
    for modality, width in (("text", 6), ("image", 5)):
        matrices[modality] = ring @ random.normal(size=(4, width)) + 0.1 * random.normal(size=(len(items), width))
    matrices["image"][3] = np.nan
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{name}.items.txt").write_text("".join(f"i{item}\n" for item in items), encoding="utf-8")
    for modality, matrix in matrices.items():
        np.save(folder / f"{name}.{modality}.npy", matrix.astype(np.float16))
    (folder / f"{name}.features.json").write_text(json.dumps({"made": "tests/golden/make_data.py"}) + "\n")


if __name__ == "__main__":
    write(Path(__file__).parent / "Tiny")
