"""Choose which settings of a checkpoint are used: those that are values, never those that name code or files of code.

A checkpoint may come from anyone. RecBole unpickles files that some settings name (``dataset_save_path``), reads weights
from others (``pre_model_path``), and evaluates one as Python (``teacher`` of KD_DAGFM, kd_dagfm.py:44). So only the settings
listed here, and the properties of the model itself that name no file, are taken from a checkpoint.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from recbole_qbert.config.schema import RUNTIME_PROPERTIES, with_current_names
from recbole_qbert.recbole_integration import registry

log = logging.getLogger(__name__)

#: Properties of RecBole's common code that are values: what the data are, how they are read, split and evaluated.
VALUES = frozenset(
    """USER_ID_FIELD ITEM_ID_FIELD RATING_FIELD TIME_FIELD LABEL_FIELD HEAD_ENTITY_ID_FIELD TAIL_ENTITY_ID_FIELD
    RELATION_ID_FIELD ENTITY_ID_FIELD ITEM_LIST_LENGTH_FIELD LIST_SUFFIX MAX_ITEM_LIST_LENGTH NEG_PREFIX POSITION_FIELD
    field_separator seq_separator encoding seq_len threshold load_col unload_col unused_col additional_feat_suffix
    benchmark_filename rm_dup_inter val_interval filter_inter_by_user_or_item user_inter_num_interval
    item_inter_num_interval alias_of_user_id alias_of_item_id alias_of_entity_id alias_of_relation_id preload_weight
    normalize_field normalize_all discretization numerical_features kg_reverse_r entity_kg_num_interval
    relation_kg_num_interval transform mask_ratio ft_ratio eta beta
    epochs train_batch_size learner learning_rate weight_decay clip_grad_norm eval_step stopping_step loss_decimal_place
    train_neg_sample_args training_neg_sample_num neg_sampling shuffle require_pow enable_amp enable_scaler
    eval_args repeatable metrics topk valid_metric valid_metric_bigger eval_batch_size metric_decimal_place
    valid_neg_sample_args test_neg_sample_args tail_ratio
    seed reproducibility gpu_id use_gpu state show_progress verbose""".split()
)
#: Properties that name where the data and the semantic IDs lie. These files are read as text and arrays only.
PLACES = frozenset({"data_path", "checkpoint_dir", "semantic_id_dir", "semantic_id_file"})
#: Properties of models that their YAML files do not list (autoint.py, fearec.py, hrm.py).
_UNLISTED = frozenset({"has_residual", "tau", "sim", "contrast", "use_filter", "reg_weight"})
#: Properties of models that name a file, or are evaluated, though their names do not tell.
_NO_VALUES = frozenset({"pretrained", "warm_up", "xgb_model", "teacher"})
_NAMES_A_FILE = re.compile(r"(^|_)(path|paths|file|files|dir|dirs|folder)(_|$)", re.IGNORECASE)
#: Classes that may be the value of ``teacher``.
_TEACHERS = frozenset({"DAGFM", "CrossNet", "CIN"})


def taken_settings(model: str) -> frozenset[str]:
    """Return the properties of a model that are taken from a checkpoint."""
    own = {name for name in registry.own_properties(model) if name not in _NO_VALUES and not _NAMES_A_FILE.search(name)}
    return VALUES | PLACES | _UNLISTED | own - registry.common_properties()


def settings_from_file(model: str, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of a checkpoint that are used; the others are named in the log.

    A model that starts from the weights of another file (``pre_model_path``) gets the checkpoint itself in its place,
    because it holds all weights.

    Args:
        model: name of the model.
        settings: what the user set for the training.
        path: the checkpoint.

    Raises:
        ValueError: a name of a file or folder is no string.
    """
    allowed, current = taken_settings(model), with_current_names(settings)
    taken = {name: value for name, value in current.items() if name in allowed}
    if current.get("teacher") in _TEACHERS:
        taken["teacher"] = current["teacher"]
    for name in PLACES & taken.keys():
        if not isinstance(taken[name], (str, type(None))):
            raise ValueError(
                f"{path}: {name} in its config['external'] is {taken[name]!r}, not the name of a file or folder"
            )
    expected = RUNTIME_PROPERTIES | {"pretrained"}  # of every training, and without a use here
    if left := sorted(name for name, value in current.items() if name not in taken.keys() | expected and value):
        log.info("%s: settings that are not taken from a file: %s", path, ", ".join(left))
    return taken | _start_at_itself(model, current, path)


def _start_at_itself(model: str, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the settings that stand for weights to start from."""
    if model in ("S3Rec", "RaCT") and settings.get("pre_model_path"):
        return {"pre_model_path": path}
    if model == "KD_DAGFM" and settings.get("warm_up"):
        return {"warm_up": path}
    if model == "NeuMF" and settings.get("use_pretrain"):
        return {"use_pretrain": False}
    if model == "ConvNCF" and settings.get("train_method"):
        return {"train_method": "no_pretrain"}
    return {}
