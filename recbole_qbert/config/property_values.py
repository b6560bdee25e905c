"""What each property may be: those of RecBole, and those of our models (``properties/model/``).

Ranges are wide. They end where a value can only be a slip, or where a library fails later and less clearly.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from recbole_qbert.config.generative_values import OF_GENERATIVE
from recbole_qbert.config.value_checks import (
    Check,
    check,
    either,
    flag,
    list_of,
    mapping,
    number,
    one_of,
    optional,
    text,
    whole,
)  # fmt: skip

MANY = 1_000_000_000
WIDEST = 65_536
_GPUS = re.compile(r"|-1|[\w-]+( *, *[\w-]+)*")  # none, numbers, or names as GPU-8932f937
_COUNT, _SIZE, _WIDTH = whole(0, MANY), whole(1, MANY), whole(1, WIDEST)
_RATE, _DECAY, _SHARE = number(0, 100), number(0, 1000), number(0, 0.99)
_MODE = re.compile(r"full|labeled|(uni|pop)[1-9]\d{0,8}")
_NAMES = list_of(text(), different=True)
_COLUMNS = optional(mapping(others=optional(either(one_of("*"), _NAMES))))
_FILE = optional(text())


def _gpu_id(value: Any) -> str | None:
    numbers = [value] if not isinstance(value, list | tuple) else value
    if isinstance(value, str) and _GPUS.fullmatch(value):
        return None
    right = bool(numbers) and all(type(one) is int and -1 <= one < 1024 for one in numbers)
    return None if right else "the number of a GPU, several with commas, or '' for none"


def _mode(value: Any) -> str | None:
    return None if isinstance(value, str) and _MODE.fullmatch(value) else "full, labeled, uni<number> or pop<number>"


def _ratios(value: Any) -> str | None:
    right = isinstance(value, list | tuple) and len(value) > 0 and all(number(0, MANY)(part) is None for part in value)
    return None if right and sum(value) > 0 else "a list of numbers, of which one is above 0"


_SPLIT = mapping({"LS": one_of("valid_and_test", "valid_only", "test_only"), "RS": _ratios})
#: Properties that RecBole reads for every model.
OF_RECBOLE: Mapping[str, Check] = {
    # environment
    "gpu_id": _gpu_id,
    "use_gpu": flag(),
    "worker": whole(0, 1024),
    "seed": whole(0, 2**32 - 1),
    "state": optional(one_of("debug", "info", "warning", "error", "critical", any_case=True)),
    "reproducibility": flag(),
    "data_path": text(),
    "checkpoint_dir": text(),
    "show_progress": flag(),
    "save_dataset": flag(),
    "dataset_save_path": _FILE,
    "save_dataloaders": flag(),
    "dataloaders_save_path": _FILE,
    "log_wandb": flag(),
    "shuffle": flag(),
    # training
    "epochs": _COUNT,
    "train_batch_size": _SIZE,
    "learner": one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam", any_case=True),
    "learning_rate": _RATE,
    "train_neg_sample_args": optional(
        either(
            one_of("None"),
            mapping(
                {
                    "distribution": optional(one_of("uniform", "popularity", "none", "None")),
                    "sample_num": _SIZE,
                    "alpha": number(0, 1000),
                    "dynamic": flag(),
                    "candidate_num": _COUNT,
                }
            ),
        )
    ),
    "eval_step": whole(-1, MANY),
    "stopping_step": _COUNT,
    "clip_grad_norm": optional(
        mapping(
            {
                "max_norm": number(0, float("inf"), above=True),
                "norm_type": number(0, float("inf"), above=True),
                "error_if_nonfinite": flag(),
                "foreach": optional(flag()),
            }
        )
    ),
    "weight_decay": _DECAY,
    "loss_decimal_place": whole(0, 15),
    "enable_amp": flag(),
    "enable_scaler": flag(),
    # evaluation
    "eval_args": mapping(
        {
            "split": _SPLIT,
            "order": one_of("RO", "TO"),
            "group_by": optional(one_of("user", "none")),
            "mode": either(_mode, mapping({"valid": _mode, "test": _mode})),
        }
    ),
    "repeatable": flag(),
    "metrics": either(text(), list_of(text(), least=1)),
    "topk": either(_SIZE, list_of(_SIZE, least=1)),
    "valid_metric": text(),
    "eval_batch_size": _SIZE,
    "metric_decimal_place": whole(0, 15),
    # data
    "field_separator": text(),
    "seq_separator": text(),
    "USER_ID_FIELD": text(),
    "ITEM_ID_FIELD": text(),
    "TIME_FIELD": text(),
    "load_col": _COLUMNS,
    "unload_col": _COLUMNS,
    "unused_col": _COLUMNS,
    "filter_inter_by_user_or_item": flag(),
    "user_inter_num_interval": optional(text()),
    "item_inter_num_interval": optional(text()),
    "MAX_ITEM_LIST_LENGTH": whole(1, 100_000),
}

#: Properties that the models of this package read besides.
OF_OUR_MODELS: Mapping[str, Check] = {
    # training
    "train_stage": one_of("pretrain", "finetune"),
    "pretrained": _FILE,
    "pretrained_parts": list_of(one_of("encoder", "codebook", "item_embedding", "mask_vector", "repeat_penalty"), least=1),
    "train_users": number(0, 1, above=True),
    "teachers": whole(0, 64),
    "teacher_weight": number(0, 1000),
    "freeze": list_of(one_of("encoder", "codebook", "item_embedding", "mask_vector", "repeat_penalty", "rows")),
    "checkpoint_file": _FILE,
    "domains": optional(list_of(text(), least=1, different=True)),
    "domain_sampling": one_of("proportional", "balanced"),
    "adam_betas": list_of(number(0, 0.9999999), least=2, most=2),
    "warmup_steps": _COUNT,
    "annealing": number(0, 1),
    "matmul_precision": one_of("highest", "high", "medium"),
    "pretrain_epochs": _COUNT,
    "pretrain_learning_rate": _RATE,
    "pretrain_batch_size": _SIZE,
    # sequence model
    "hidden_size": _WIDTH,
    "n_layers": whole(1, 1000),
    "n_heads": _WIDTH,
    "inner_size": _WIDTH,
    "hidden_dropout_prob": number(0, 0.95),
    "attn_dropout_prob": number(0, 0.95),
    "initializer_range": number(0, 10),
    "code_init": one_of("content", "random"),
    "views": list_of(one_of("causal", "masked"), least=1, different=True),
    "score_views": optional(
        either(one_of("auto"), list_of(one_of("auto", "causal", "masked"), least=1, different=True)),
    ),
    "view_schedule": one_of("alternate", "joint"),
    "loss": one_of("item", "sampled", "code"),
    "sampled_items": _COUNT,
    "use_item_embedding": flag(),
    "repeat_penalty": one_of("learned", "exclude", "none"),
    "structural_prior": one_of("none", "cooccurrence"),
    "pretrain_masks": list_of(one_of("random", "span", "multi_region", "tail"), least=1, different=True),
    "mask_ratio": _SHARE,
    "span_ratio": _SHARE,
    "multi_region_ratio": _SHARE,
    "tail_ratio": _SHARE,
    # semantic IDs
    "semantic_ids": one_of("auto", "fused", "per_modality", "both", "none"),
    "semantic_id_file": _FILE,
    "semantic_id_dir": _FILE,
    "rebuild": flag(),
    "fusion": one_of("concatenation", "injection"),
    "missing_features": one_of("error", "mask"),
    "text_fields": either(text(), list_of(text(), least=1, different=True)),
    "text_vectors": one_of("joined", "by_column"),
    "builtin_width": _WIDTH,
    # stage 1
    "injection_modalities": _NAMES,
    "injection_query": one_of("concatenation", "structural", "random"),
    "injection_attention": one_of("every_vector", "aligned"),
    "injection_dim": _WIDTH,
    "injection_layers": whole(1, 100),
    "injection_heads": _WIDTH,
    "injection_dropout": number(0, 0.95),
    "injection_gate": one_of("auto", "dynamic", "common", "paper", "none"),
    "injection_temperature": number(0, 1e6, above=True),
    "injection_contrast_temperature": number(0, 1e6, above=True),
    "injection_consistency": number(0, 1e6),
    "injection_reconstruction": number(0, 1e6),
    "injection_depth_cost": number(0, 1e6),
    "injection_id_dropout": number(0, 1),
    "injection_learning_rate": _RATE,
    "injection_weight_decay": _DECAY,
    "injection_batch_size": _SIZE,
    "injection_epochs": _COUNT,
    "injection_patience": _COUNT,
    "injection_holdout": number(0, 0.5),
    # stage 2
    "quantizer": one_of("residual_kmeans", "rqvae"),
    "rq_levels": whole(1, 26),
    "rq_codes": either(one_of("auto"), whole(2, 32_000)),
    "rq_dim": _WIDTH,
    "rq_hidden": list_of(_WIDTH),
    "rq_learning_rate": _RATE,
    "rq_weight_decay": _DECAY,
    "rq_batch_size": _SIZE,
    "rq_axes": _WIDTH,
    "rq_warmup_steps": _COUNT,
    "rq_steps": _COUNT,
    "rq_warmup_epochs": optional(_COUNT),
    "rq_epochs": optional(_COUNT),
    "rq_beta": number(0, 1e6),
    "rq_kmeans_iterations": _COUNT,
    "rq_kmeans_sample": _SIZE,
    # CooccurrenceKNN
    "shrink": number(0, 1e12),
    "decay": number(0, 1, above=True),
    "content_weight": number(0, 1e12),
    **OF_GENERATIVE,
}

#: Properties that VQRec and MISSRec read besides those above.
OF_BASELINES: Mapping[str, Check] = {
    "modalities": list_of(text(), least=1, different=True),
    "layer_norm_eps": number(0, 1, above=True),
    "temperature": number(-1e6, 1e6),
    # VQRec
    "opq_groups": whole(1, 4096),
    "opq_codes": whole(2, 32_000),
    "opq_rounds": _COUNT,
    "opq_sample": _SIZE,
    "fake_ratio": number(0, 1),
    "reassign": one_of("learned", "random", "none"),
    "reassign_epochs": _COUNT,
    "sinkhorn_iterations": whole(1, 10_000),
    "sinkhorn_temperature": number(0, 1e6, above=True),
    # MISSRec
    "interest_ratio": number(0, 1, above=True),
    "interest_weight": number(0, 1e6),
    "score_fusion": one_of("shared", "item", "mean"),
}


def check_value(key: str, value: Any) -> None:
    """Refuse a value that a property of our models cannot have; other properties may be anything.

    Raises:
        ValueError: names the key, the value, and what it must be.
    """
    must_be = OF_OUR_MODELS.get(key) or OF_BASELINES.get(key) or OF_RECBOLE.get(key)
    if must_be:
        check(key, value, must_be)


def check_evaluation(values: Mapping[str, Any], known: Collection[str], without_k: Collection[str]) -> None:
    """Refuse unknown metrics, and a ``valid_metric`` that an evaluation would not compute.

    Args:
        values: all properties.
        known: names of all metrics, in lower case.
        without_k: names of those that are not cut at ``topk``.

    Raises:
        ValueError: names the key and the value.
    """
    metrics = [values["metrics"]] if isinstance(values["metrics"], str) else values["metrics"]
    for metric in metrics:
        check("metrics", metric, one_of(*sorted(known), any_case=True))
    cuts = [values["topk"]] if isinstance(values["topk"], int) else values["topk"]
    names = [metric.lower() for metric in metrics]
    computed = [name if name in without_k else f"{name}@{k}" for name in names for k in cuts]
    check("valid_metric", values["valid_metric"], one_of(*dict.fromkeys(computed), any_case=True))
