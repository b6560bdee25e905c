"""Settings that train a generative model on a tiny data set in a second, and a tiny T5 with its tokenizer in a folder."""

import pytest

from recbole_qbert.recbole_integration import experiment

NAME = "Tiny"
QUICK = {
    "epochs": 2, "train_batch_size": 64, "eval_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "seed": 2026, "state": "ERROR", "d_model": 16, "d_ff": 32, "d_kv": 4, "num_heads": 2, "num_layers": 1,
    "num_decoder_layers": 1, "learning_rate": 0.005, "beams": 10,
}  # fmt: skip
OWN = {
    "TIGER": {"user_tokens": 7},
    "MQL4GRec": {},
    "P5CID": {"cid_clusters": 3, "cid_leaf": 6},
    "VIP5": {"draws": 4},
}
CODES = {"rq_levels": 2, "rq_codes": 8, "rq_dim": 8, "rq_hidden": [16], "rq_warmup_epochs": 2, "rq_epochs": 4}


def configure(data, folder, model, **settings):
    """Configure a model on the data set ``Tiny``; ``settings`` come last."""
    own = OWN[model] | (CODES if model in ("TIGER", "MQL4GRec") else {})
    return experiment.configure(model, NAME, data, {**QUICK, "checkpoint_dir": str(folder / "saved"), **own, **settings})


def train(data, folder, model, **settings):
    """Train a model in a folder; of two processes of one folder the second finds the IDs of the first."""
    folder.mkdir(exist_ok=True)
    with experiment.working_directory(folder):
        return experiment.train(configure(data, folder, model, **settings))


#: Sizes of a tiny T5. Heads times their width is not the width of the model.
T5_SIZES = {
    "vocab_size": 60, "d_model": 20, "d_ff": 36, "d_kv": 6, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
}  # fmt: skip


def import_transformers():
    """Return the module ``transformers``; a test that needs it is skipped where it is not installed."""
    try:
        from dataset_prep.encoders import torchvision_ops

        torchvision_ops.make_importable()
        import transformers
    except ImportError:
        pytest.skip("transformers is not installed")
    return transformers


def write_t5(folder, tokenizer=True, **config):
    """Write a random T5, and a SentencePiece tokenizer with the pieces of some words, as ``save_pretrained`` does."""
    import torch

    transformers = import_transformers()
    torch.manual_seed(5)
    made = transformers.T5Config(**{**T5_SIZES, "dropout_rate": 0.0, **config})
    transformers.T5ForConditionalGeneration(made).save_pretrained(folder)
    if tokenizer:
        pieces = ["▁item", "▁user", "_", "▁", ",", "▁buys", "▁has", "▁after", *"0123456789", "▁1", "▁2", "▁12", "12"]
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0 - len(piece)) for piece in pieces)]
        vocabulary.append(("<extra_id_0>", 0.0))
        transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    return folder
