"""Every property times bad values: a value is accepted because it means something, or refused by key and value at once."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from recbole.config import Config

from recbole_qbert.config import property_values, schema
from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.recbole_integration import experiment, patches, registry
from recbole_qbert.recbole_integration.registry import known_properties
from tests.helpers_recbole import QUICK, write_dataset

DEFAULTS = yaml.safe_load(property_file("model/QBERT4Rec.yaml").read_text(encoding="utf-8"))
RECBOLE = (
    "seed", "gpu_id", "use_gpu", "worker", "state", "reproducibility", "show_progress", "eval_step", "loss_decimal_place",
    "enable_amp", "enable_scaler", "repeatable", "shuffle", "checkpoint_dir", "log_wandb", "save_dataset",
)  # fmt: skip
KEYS = sorted({*DEFAULTS, *RECBOLE})
BAD = {
    "negative": -1, "far below": -(10**30), "zero": 0, "NaN": math.nan, "inf": math.inf, "minus inf": -math.inf,
    "text": "no such value", "empty text": "", "NUL": "a\0b", "list": [1, "x"], "empty list": [], "nested": [[[]]],
    "list of text": ["no such value"], "twice": ["x", "x"], "mapping": {"no such key": 1}, "empty mapping": {},
    "true": True, "nothing": None, "huge": 10**30, "huge number": 1e300, "fraction": 2.5, "complex": 1j,
    "too long": 10**5000, "object": object(), "bytes": b"x",
}  # fmt: skip
# What a bad value means for some keys; every other pair must be refused.
FREE_TEXT = {"text_fields", "pretrained", "checkpoint_file", "semantic_id_file", "semantic_id_dir", "checkpoint_dir"}
MAPPINGS = {"load_col", "eval_args", "clip_grad_norm", "train_neg_sample_args"}
NUMBERS = {key for key, value in DEFAULTS.items() if type(value) is float} | {"weight_decay"}
ABOVE_ZERO = {"injection_temperature", "injection_contrast_temperature"}
NOTHING = (
    FREE_TEXT - {"checkpoint_dir", "text_fields"}
    | {"rq_epochs", "rq_warmup_epochs", "score_views"}
    | {"domains", "clip_grad_norm", "load_col", "state", "train_neg_sample_args"}
)
SIZES = {key for key in KEYS if key.endswith(("batch_size", "width", "_dim"))}
SIZES |= {"hidden_size", "n_layers", "n_heads", "inner_size", "MAX_ITEM_LIST_LENGTH", "rq_levels", "rq_codes"}
SIZES |= {"injection_layers", "injection_heads", "topk"}
WHOLE = {key for key, value in DEFAULTS.items() if type(value) is int} | {
    "seed", "worker", "eval_step", "loss_decimal_place", "stopping_step", "rq_epochs", "rq_warmup_epochs",
}  # fmt: skip
FLAGS = {key for key, value in DEFAULTS.items() if type(value) is bool} | {
    "use_gpu", "reproducibility", "show_progress", "enable_amp", "enable_scaler", "repeatable", "shuffle", "log_wandb",
    "save_dataset",
}  # fmt: skip


def means_something(key: str, kind: str) -> bool:
    value = BAD[kind]
    if value is None:
        return key in NOTHING
    return {
        "negative": key in ("eval_step", "gpu_id"),
        "zero": key == "gpu_id" or key in WHOLE - SIZES or key in NUMBERS - ABOVE_ZERO,
        "true": key in FLAGS,
        "fraction": key in NUMBERS and not key.endswith(("_ratio", "_prob", "dropout", "holdout")),
        "text": key in FREE_TEXT,
        "empty text": key == "gpu_id",
        "empty list": key in ("freeze", "injection_modalities", "rq_hidden"),
        "list of text": key in ("injection_modalities", "domains", "text_fields"),
        "empty mapping": key in MAPPINGS,
    }.get(kind, False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_dataset(tmp_path_factory.mktemp("data"), "Tiny")


def configure(key: str, value: Any, data: Any) -> Any:
    return experiment.configure("QBERT4Rec", "Tiny", data, {**QUICK["QBERT4Rec"], key: value})


def run_recbole_config(key: str, value: Any, data: Any) -> Any:
    given = {**QUICK["QBERT4Rec"], "data_path": str(data), key: value}
    with patches.clean_argv():
        return Config(model="QBERT4Rec", dataset="Tiny", config_dict=given)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_means_something_or_is_refused_by_key_and_value(key: str, data: Any) -> None:
    made = configure("seed", 1, data)
    config = SimpleNamespace(internal_config_dict=made.internal_config_dict | made.external_config_dict)
    wrong = []
    for kind, value in BAD.items():
        if means_something(key, kind):
            continue
        try:
            config.external_config_dict = {key: value}
            registry._check_values(config, registry._registered["QBERT4Rec"])
        except ValueError as error:
            if key not in str(error):
                wrong.append(f"{kind}: {error}")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{kind} was accepted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("make", [configure, run_recbole_config])
@pytest.mark.parametrize("key", ["n_heads", "metrics", "valid_metric", "topk", "eval_args", "gpu_id", "load_col", "views"])
@pytest.mark.parametrize("kind", ["nested", "object", "NaN"])
def test_values_are_refused_wherever_they_are_set(key: str, kind: str, make: Any, data: Any) -> None:
    with pytest.raises(ValueError, match=key):
        make(key, BAD[kind], data)


def test_every_default_is_accepted_and_every_property_has_a_kind(data: Any) -> None:
    kinds = {**property_values.OF_RECBOLE, **property_values.OF_OUR_MODELS}
    assert set(DEFAULTS) <= set(kinds)
    models = ("QBERT4Rec", "CooccurrenceKNN", "TIGER", "MQL4GRec", "P5CID", "VIP5")
    assert set(kinds) <= frozenset().union(*map(known_properties, models))
    for path in sorted(property_file("paper").parent.glob("**/QBERT4Rec.yaml")):
        if path.parent.name != "tuning":
            schema.check_all({**DEFAULTS, **read_properties(path)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", np.int64(32)), ("topk", 5), ("views", ("causal",)),
        ("metrics", "NDCG"), ("gpu_id", "0,1"), ("gpu_id", (0, 1)), ("gpu_id", -1),
        ("load_col", {"inter": "*"}), ("load_col", {"inter": ["user_id", "item_id", "timestamp"], "item": None}),
        ("learner", "AdamW"), ("state", "DEBUG"), ("clip_grad_norm", {"max_norm": 1, "norm_type": math.inf}),
        ("eval_args", {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "uni20", "test": "full"}}),
        ("epochs", 0), ("weight_decay", 0), ("adam_betas", (0.9, 0.99)), ("rq_hidden", []), ("freeze", ["rows"]),
    ],
)  # fmt: skip
def test_other_spellings_are_accepted(key: str, value: Any, data: Any) -> None:
    more = {"valid_metric": "NDCG@5"} if key == "topk" else {}
    assert (
        experiment.configure("QBERT4Rec", "Tiny", data, {**QUICK["QBERT4Rec"], **more, key: value})["model"] == "QBERT4Rec"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"valid_metric": "NDCG@7"}, "valid_metric is 'NDCG@7'"),
        ({"valid_metric": "MRR@10"}, "valid_metric is 'MRR@10'"),
        ({"metrics": ["Hit", "NDGC"]}, "metrics is 'NDGC'; it must be one of .*did you mean 'ndcg'"),
        ({"hidden_size": 10, "n_heads": 4}, "hidden_size 10"),
        ({"injection_dim": 10, "injection_heads": 4}, "injection_dim 10"),
        ({"loss": "code"}, "loss is 'code'"),
        ({"mask_ratio": 0}, "finetune"),
        ({"eval_args": {"splitt": 1}}, "eval_args is .*split, order"),
        ({"eval_args": {"mode": "uni"}}, "eval_args is .*uni<number>"),
        ({"clip_grad_norm": {"max_norm": math.nan}}, "clip_grad_norm is .*max_norm"),
        ({"loss": "cod"}, "did you mean 'code'"),
        ({"loss": "sampled", "learner": "adam"}, "loss is sampled and learner is adam.*learner: adamw or loss: item"),
        ({"loss": "sampled", "domain_sampling": "balanced", "domains": ["A", "B"]}, "domain_sampling is balanced"),
        ({"semantic_ids": "none", "use_item_embedding": False}, "semantic_ids is none.*use_item_embedding: true"),
        ({"semantic_ids": "auto", "train_stage": "pretrain"}, "semantic_ids is auto.*name the kind"),
        ({"teachers": 2, "views": ["masked"]}, "teachers is 2.*views to causal or both"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, Any], named: str, data: Any) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.configure("QBERT4Rec", "Tiny", data, {**QUICK["QBERT4Rec"], **settings})


@pytest.mark.parametrize(("key", "value"), [("epochs", "many"), ("learning_rate", -1), ("seed", 2.5), ("topk", [0])])
def test_properties_of_recbole_are_checked_for_its_own_models_too(key: str, value: Any, data: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} is "):
        experiment.configure("SASRec", "Tiny", data, {**QUICK["SASRec"], key: value})


@pytest.mark.parametrize("value", ["1/0", "().x", "'\\0' * (-1) + chr(-1)", "(" * 500, "2 ** ''.x"])
def test_text_that_cannot_be_evaluated_is_refused_by_its_key(value: str, data: Any) -> None:
    """RecBole evaluates text of the command line and of config_dict as Python."""
    with pytest.raises(ValueError, match="learning_rate is "):
        run_recbole_config("learning_rate", value, data)


def test_a_missing_pretrained_file_is_refused_before_the_stages(data: Any, tmp_path: Any) -> None:
    settings = {**QUICK["QBERT4Rec"], "pretrained": str(tmp_path / "gone.pth"), "checkpoint_dir": str(tmp_path / "saved")}
    with pytest.raises(FileNotFoundError, match=r"pretrained is .*gone\.pth"), experiment.working_directory(tmp_path):
        experiment.train(experiment.configure("QBERT4Rec", "Tiny", data, settings))
    assert not (tmp_path / "saved").exists()
