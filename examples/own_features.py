"""Train on a data set of your own, with item features of your own.

    python examples/own_features.py [folder]

A data set is a folder of RecBole's atomic files. Features are one matrix a modality, whose rows are named in a text file;
any encoder can make them. A row of NaN says that the item has no such modality. See docs/file-formats.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

USERS, ITEMS = 200, 60
QUICK = {
    "epochs": 5,
    "pretrain_epochs": 1,
    "hidden_size": 32,
    "inner_size": 64,
    "rq_codes": 16,
    "injection_epochs": 10,
    "show_progress": False,
}


def make_data(folder: Path) -> Path:
    """Write the data set ``folder/Toys``; users walk along a ring of items. Returns ``folder``."""
    random, path = np.random.default_rng(0), folder / "Toys"
    path.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        item = random.integers(ITEMS)
        for time in range(random.integers(5, 12)):
            lines.append(f"u{user}\tt{item:03}\t{time}")
            item = (item + random.choice([1, 2, 5])) % ITEMS
    (path / "Toys.inter").write_text("\n".join(lines) + "\n")
    items = sorted({line.split("\t")[1] for line in lines[1:]})
    titles = "".join(f"{item}\tToy number {item}\n" for item in items)
    (path / "Toys.item").write_text("item_id:token\ttitle:token_seq\n" + titles)

    # Here stands your encoder. These vectors say where an item is on the ring.
    angle = 2 * np.pi * np.array([int(item[1:]) for item in items]) / ITEMS
    ring = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], 1)
    text, image = ring @ random.normal(size=(4, 24)), ring @ random.normal(size=(4, 32))
    image[0] = np.nan  # this item has no picture
    (path / "Toys.items.txt").write_text("".join(f"{item}\n" for item in items))
    np.save(path / "Toys.text.npy", text.astype(np.float32))
    np.save(path / "Toys.image.npy", image.astype(np.float16))
    return folder


if __name__ == "__main__":
    from recbole.quick_start import run_recbole

    import recbole_qbert  # noqa: F401

    folder = make_data(Path(sys.argv.pop(1) if len(sys.argv) > 1 else "example_data"))
    result = run_recbole(model="QBERT4Rec", dataset="Toys", config_dict={**QUICK, "data_path": str(folder)})
    print(dict(result["test_result"]))
