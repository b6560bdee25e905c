"""A small RecBole data set with planted structure, and settings that train on it in about a second."""

import numpy as np

from recbole_qbert.data import item_features as features

_SHARED = {
    "epochs": 4, "train_batch_size": 32, "eval_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "hidden_size": 16, "n_heads": 2, "inner_size": 32, "seed": 2026, "state": "ERROR",
}  # fmt: skip
QUICK = {
    "QBERT4Rec": {
        **_SHARED,
        "semantic_ids": "both", "fusion": "injection", "quantizer": "rqvae",
        "rq_levels": 2, "rq_codes": 16, "rq_dim": 8, "rq_hidden": [16], "rq_epochs": 6, "rq_warmup_epochs": 3,
        "injection_dim": 16, "injection_layers": 3, "injection_heads": 2, "injection_epochs": 3, "warmup_steps": 4,
    },
    "SASRec": {
        **_SHARED, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "loss_type": "CE", "metrics": ["Hit", "NDCG"],
        "train_neg_sample_args": None, "topk": [1, 5, 10], "valid_metric": "NDCG@10", "metric_decimal_place": 6,
    },
}  # fmt: skip


def write_dataset(folder, name, users=60, items=40, seed=0):
    """Users walk along a ring of items with jumps; features place an item on the ring. Returns ``folder``."""
    random = np.random.default_rng(seed)
    path = folder / name
    path.mkdir(parents=True)
    lengths = np.r_[[2, 3, 4], random.integers(5, 14, users - 3)]
    rows = []
    for user, length in enumerate(lengths):
        item = random.integers(items)
        for step in range(length):
            rows.append((f"u{user}", f"i{item}", step))
            item = (item + random.choice([1, 2, 3, 7])) % items
    used = sorted({row[1] for row in rows})
    lines = "".join(f"{user}\t{item}\t{step}\n" for user, item, step in rows)
    (path / f"{name}.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + lines)
    angle = 2 * np.pi * np.array([int(item[1:]) for item in used]) / items
    ring = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], 1)
    text = ring @ random.normal(size=(4, 12)) + 0.05 * random.normal(size=(len(used), 12))
    image = ring @ random.normal(size=(4, 10)) + 0.05 * random.normal(size=(len(used), 10))
    image[3] = np.nan  # an item without a picture
    features.save(
        path, name, used, {"text": text.astype(np.float32), "image": image.astype(np.float16)}, {"made": "by test"}
    )
    return folder
