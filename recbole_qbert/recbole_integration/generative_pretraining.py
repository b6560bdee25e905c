"""Weights of a generative model that was trained on other data sets, with codes of one quantizer."""

from __future__ import annotations

from typing import Any

from recbole_qbert.generative.vocabulary import FIRST
from recbole_qbert.recbole_integration import checkpoint_io
from recbole_qbert.utils.tensor_file import load_weights

_TABLE = "embedding"  # of the tokens


def start_from(model: Any, path: str) -> None:
    """Load pretrained weights: all but the token table, and its rows of padding, end mark and codes that both models have.

    A code means the same in both if one quantizer made them; that cannot be seen from the codes. Rows of prompts, of codes
    that the other model lacks, and of unused tokens start anew (paper silent on prompts; its pretraining has none).

    Args:
        model: a ``CodeRecommender`` with ``code_rows``.
        path: checkpoint of the same model.

    Raises:
        ValueError: the checkpoint is of another model or of other sizes, or shares no level of codes.
    """
    checkpoint = checkpoint_io.load_checkpoint(path)
    weights = {
        name.removeprefix("network."): value
        for name, value in checkpoint_io.weights_of(checkpoint, path).items()
        if name.startswith("network.")
    }
    rows = checkpoint_io.other_of(checkpoint, path).get("code_rows")
    if rows is None or _TABLE not in weights:
        raise ValueError(f"{path} holds no weights of {type(model).__name__}: it has no code_rows")
    own = model.network.state_dict()
    for name, value in own.items():
        theirs = tuple(weights[name].shape) if name in weights else "nothing"
        if name != _TABLE and theirs != tuple(value.shape):
            raise ValueError(
                f"{path} does not fit this model ({name}: {theirs} there, {tuple(value.shape)} here): it was trained with "
                "other sizes (d_model, d_ff, d_kv, num_heads, num_layers, num_decoder_layers); set them as they were"
            )
    table, pretrained = own[_TABLE].clone(), weights[_TABLE]
    if pretrained.shape[1] != table.shape[1]:
        raise ValueError(f"{path} has tokens of width {pretrained.shape[1]}; set d_model to it, not to {table.shape[1]}")
    shared = [level for level in model.code_rows if level in rows]
    if not shared:
        raise ValueError(f"{path} has codes of {', '.join(rows)}, and this data set of {', '.join(model.code_rows)}")
    table[:FIRST] = pretrained[:FIRST]
    for level in shared:
        (start, size), (other, others) = model.code_rows[level], rows[level]
        count = min(size, others)
        table[start : start + count] = pretrained[other : other + count]
    load_weights(model.network, {**weights, _TABLE: table}, path)
    anew = ", ".join(level for level in model.code_rows if level not in rows) or "no level"
    model.logger.info(f"pretrained: {path}; codes of {', '.join(shared)} taken from it, {anew} and prompts started anew")
