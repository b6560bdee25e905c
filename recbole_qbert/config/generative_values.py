"""What each property of the generative models may be; part of ``property_values``."""

from __future__ import annotations

from collections.abc import Mapping

from recbole_qbert.config.value_checks import Check, flag, list_of, number, one_of, optional, text, whole

_COUNT, _WIDTH = whole(0, 1_000_000_000), whole(1, 65_536)

#: Properties of TIGER, MQL4GRec, P5CID and VIP5.
OF_GENERATIVE: Mapping[str, Check] = {
    "ids": one_of("auto", "given", "trained"),
    "collisions": one_of("reallocate", "digit", "keep"),
    "d_model": _WIDTH,
    "d_ff": _WIDTH,
    "d_kv": _WIDTH,
    "num_heads": whole(1, 1024),
    "num_layers": whole(1, 1000),
    "num_decoder_layers": whole(1, 1000),
    "dropout_rate": number(0, 0.95),
    "unused_tokens": whole(0, 10_000_000),
    "user_tokens": whole(0, 10_000_000),
    "prompt_tokens": whole(0, 1000),
    "tasks": list_of(one_of("seqrec", "seqimage", "item2image", "image2item", "fusionseqrec"), least=1, different=True),
    "fuse": one_of("lists", "text", "image"),
    "ensemble_bonus": number(0, 1e6),
    "lr_schedule": one_of("constant", "linear", "cosine", "inverse_sqrt"),
    "warmup_ratio": number(0, 1),
    "adam_eps": number(0, 1, above=True),
    "ranking": one_of("cutoff", "exact", "beam"),
    "beams": whole(1, 100_000),
    "valid_users": _COUNT,
    # P5CID and VIP5
    "backbone": optional(text()),
    "new_rows": one_of("unit", "table"),
    "whole_words": _COUNT,
    "test_prompt": whole(1, 1000),
    "score_end": one_of("auto", "always"),
    "target_draw": one_of("every", "random", "last"),
    "draws": whole(1, 10_000),
    "cid_clusters": whole(2, 32_000),
    "cid_leaf": whole(2, 10_000_000),
    "cid_levels": whole(1, 1000),
    "item_numbers": one_of("random", "training"),
    "image_features": text(),
    "visual_tokens": whole(0, 1000),
    "missing_image": one_of("learned", "skip"),
    "adapter_reduction": _WIDTH,
    "freeze_backbone": flag(),
    "train_tables": flag(),
}
