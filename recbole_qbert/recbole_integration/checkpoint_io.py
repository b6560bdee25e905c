"""Read and write checkpoints of tensors and plain values only, which RecBole and torch 2.6 or later can read.

RecBole 1.2.1 pickles whole objects, which ``torch.load`` refuses since torch 2.6. :func:`apply` makes RecBole use this
module.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import recbole.trainer
import recbole.utils
import torch
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from scipy import sparse

from recbole_qbert.recbole_integration import registry
from recbole_qbert.recbole_integration.patches import (
    PICKLED_CACHES,
    clean_argv,
    quick_start,
    replace,
    without_pickled_caches,
)
from recbole_qbert.utils.distributed import rank
from recbole_qbert.utils.io import atomic_write
from recbole_qbert.utils.resume_file import save_tensors

FORMAT = 1
#: Keys that ``run(nproc=2)`` adds (quick_start.py:57, :174). A Config that has them joins a process group.
_DDP_KEYS = frozenset({"local_rank", "world_size", "nproc", "ip", "port", "offset"})
_KIND = "__recbole_qbert_kind__"
#: Types that ``torch.load(weights_only=True)`` reads besides tensors; exact types, since an IntEnum is an int, too.
_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})


class UntrustedCheckpointError(ValueError):
    """A file that can only be read by running code stored in it."""


def apply() -> None:
    """Make RecBole write and read checkpoints with this module; a second call changes nothing."""
    plain_checkpoints()
    readable_checkpoints()


# ---------------------------------------------------------------------------------------------------- writing
def plain_checkpoints() -> None:
    """Make RecBole write checkpoints of tensors and plain values only.

    RecBole stores its whole Config, with pickle protocol 4 (trainer/trainer.py:289, and :755 for pretraining). torch 2.6
    made ``weights_only=True`` the default of ``torch.load``, which refuses both. RecBole does not set the argument
    (trainer.py:323 and :583, s3rec.py:120), so every run fails when it loads its best epoch. FDSA, SASRecF, GRU4RecF, DIN
    and DIEN even store the Dataset, inside a module in ``other_parameter`` (fdsa.py:108). The module's weights are in
    ``state_dict`` already. RecBole's own code reads all of these files when they hold plain values.
    """
    replace(recbole.trainer.Trainer, "_save_checkpoint", lambda _: _save_checkpoint)
    replace(recbole.trainer.PretrainTrainer, "save_pretrained_model", lambda _: _save_pretrained_model)
    replace(AbstractRecommender, "load_other_parameter", _load_other_parameter)


def _save_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    if not self.config["single_spec"] and (self.config["local_rank"] != 0 or rank() != 0):
        return
    saved_model_file = kwargs.pop("saved_model_file", self.saved_model_file)
    write_checkpoint(checkpoint_state(self, epoch), saved_model_file)
    if verbose:
        self.logger.info(recbole.utils.set_color("Saving current", "blue") + f": {saved_model_file}")


def _save_pretrained_model(self: Any, epoch: int, saved_model_file: str) -> None:
    write_checkpoint(checkpoint_state(self, epoch), saved_model_file)
    self.saved_model_file = saved_model_file


def _load_other_parameter(original: Callable[..., None]) -> Callable[..., None]:
    def load(self: Any, para: Mapping[str, Any] | None) -> None:
        original(self, _revive(para))

    return load


def checkpoint_state(trainer: Any, epoch: int) -> dict[str, Any]:
    """Return the content of a checkpoint: RecBole's keys, with plain values.

    ``config`` is ``{"model", "dataset", "external"}``. The last holds the settings of the user, from which a Config can be
    built anywhere. The final settings would not do, because there the data set's name is joined to ``data_path``. The
    settings of a process group are left out, so that one process can read the file of several. ``module`` must be imported
    before RecBole can find the model.

    A value that cannot be made plain stays as it is, with a warning: the file then needs ``trusted=True``.
    """
    config, model = trainer.config, trainer.model
    external = {key: value for key, value in config.external_config_dict.items() if key not in _DDP_KEYS}
    owned = {id(module) for module in model.modules()}
    other = {key: value for key, value in model.other_parameter().items() if id(value) not in owned}
    foreign: list[str] = []
    state = {
        "format": FORMAT,
        "module": type(model).__module__,
        "config": {
            "model": config["model"],
            "dataset": config["dataset"],
            "external": _plain(external, "config", foreign),
        },
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "state_dict": model.state_dict(),
        "other_parameter": _plain(other, "other_parameter", foreign),
        "optimizer": _plain(trainer.optimizer.state_dict(), "optimizer", foreign),
    }
    if foreign:
        trainer.logger.warning(
            f"The checkpoint of {config['model']} holds {', '.join(foreign)}. torch.load refuses "
            "such objects unless told to trust the file, and so will RecBole's evaluate() and "
            "resume_checkpoint(): pass saved=False, or read the file with recbole_qbert's "
            "load_data_and_model(file, trusted=True)."
        )
    return state


def write_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the file atomically."""
    with atomic_write(Path(path)) as temporary:
        save_tensors(dict(state), temporary)


def _plain(value: Any, name: str, foreign: list[str]) -> Any:
    """Return ``value`` with numpy and scipy objects as tensors. Other objects stay, and ``foreign`` gets their names."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor) or type(value) in _LEAVES:
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, dict):
        return {
            key.item() if isinstance(key, np.generic) else key: _plain(item, f"{name}[{key!r}]", foreign)
            for key, item in value.items()
        }
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{name}[...]", foreign) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        kind = "matrix" if isinstance(value, np.matrix) else "array"  # EASE computes with np.matrix (ease.py:59)
        return {_KIND: kind, "data": torch.from_numpy(np.array(value))}
    if sparse.issparse(value):
        rows = value.tocsr()
        parts = {part: torch.from_numpy(np.array(getattr(rows, part))) for part in ("data", "indices", "indptr")}
        return {_KIND: value.format, "shape": tuple(int(length) for length in rows.shape), **parts}
    foreign.append(f"{name} ({type(value).__module__}.{type(value).__qualname__})")
    return value


def _revive(value: Any, device: torch.device | None = None) -> Any:
    """Reverse :func:`_plain`, with tensors on ``device``."""
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device)
    if type(value) in (list, tuple, set):
        return type(value)(_revive(item, device) for item in value)
    if type(value) is not dict:
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: _revive(item, device) for key, item in value.items()}
    if kind in ("array", "matrix"):
        array = value["data"].cpu().numpy()
        return np.asmatrix(array) if kind == "matrix" else array
    parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=value["shape"]).asformat(kind)


# ---------------------------------------------------------------------------------------------------- reading
def load_checkpoint(path: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code that may be hidden in it.

    Args:
        path: a file written by :func:`write_checkpoint` or ``torch.save``.
        trusted: whether to unpickle a file that holds other objects than tensors and plain values, such as a checkpoint of
            stock RecBole. Unpickling runs any code that its author put there.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedCheckpointError: the file needs ``trusted=True``.
        ValueError: the file is damaged, or is no checkpoint.
    """
    try:
        with warnings.catch_warnings():  # of torch, about files that are refused here anyway
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trusted:
            name = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {name.group(1)}" if name else "a kind of pickle that stock RecBole writes, too"
            raise UntrustedCheckpointError(
                f"{os.fspath(path)} is more than tensors and plain values ({reason}), and reading it can run "
                "code hidden in it. If you wrote the file, or trust who did, pass trusted=True."
            ) from error
        state = torch.load(path, map_location="cpu", weights_only=False)
    except OSError:
        raise
    except Exception as error:  # torch's reader of pickles fails in many ways on bytes that are no pickle
        raise ValueError(f"{os.fspath(path)} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{os.fspath(path)} is no checkpoint: it holds a {type(state).__name__}, not a dict")
    _upgrade(state)
    return state


def _upgrade(state: dict[str, Any]) -> None:
    """Rename the parts of a QBERT4Rec checkpoint that was written before version 0.2."""
    for part, old, new in (
        ("state_dict", "network.rows", "network.item_embedding"),
        ("other_parameter", "catalogue", "catalog"),
    ):
        values = state.get(part)
        if isinstance(values, dict) and old in values:
            values[new] = values.pop(old)


def readable_checkpoints() -> None:
    """Replace ``recbole.quick_start.load_data_and_model`` by the function of this module.

    RecBole's function (quick_start.py:230) cannot read any file since torch 2.6, and expects a pickled Config in it. With
    a file written under DDP it fails with "Default process group has not been initialized", because that Config joins one.
    """
    for module in (importlib.import_module("recbole.quick_start"), quick_start):
        module.load_data_and_model = load_data_and_model  # type: ignore[attr-defined]


def load_data_and_model(
    model_file: str | os.PathLike[str], trusted: bool = False
) -> tuple[Config, AbstractRecommender, Any, Any, Any, Any]:
    """Load a checkpoint and everything that is needed to evaluate its model.

    The command line is not read: the settings are those that the model was trained with. A relative ``data_path`` among
    them starts at the current folder.

    Args:
        model_file: the checkpoint.
        trusted: see :func:`load_checkpoint`; needed for the files of stock RecBole.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``.

    Raises:
        UntrustedCheckpointError: the file needs ``trusted=True``.
        ImportError: the model's class is in a module of your own, which you must import first.
        ValueError: the file is no checkpoint of RecBole.
    """
    checkpoint = load_checkpoint(model_file, trusted)
    config = _rebuild_config(checkpoint, os.fspath(model_file))
    quick_start.init_seed(config["seed"], config["reproducibility"])
    quick_start.init_logger(config)
    logging.getLogger().info(config)
    with without_pickled_caches():
        dataset = quick_start.create_dataset(config)
        logging.getLogger().info(dataset)
        train_data, valid_data, test_data = quick_start.data_preparation(config, dataset)
    quick_start.init_seed(config["seed"], config["reproducibility"])
    model = quick_start.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(_revive(checkpoint.get("other_parameter"), config["device"]))
    return config, model, dataset, train_data, valid_data, test_data


def _rebuild_config(checkpoint: Mapping[str, Any], path: str) -> Config:
    """Build a Config from the user's settings in a checkpoint, for this process alone."""
    stored = checkpoint.get("config")
    if isinstance(stored, Config):  # stock RecBole, trusted
        model, dataset, external = stored["model"], stored["dataset"], stored.external_config_dict
    elif isinstance(stored, dict) and {"model", "dataset", "external"} <= stored.keys():
        _import_home(str(checkpoint.get("module")), stored["model"], path)
        model, dataset, external = stored["model"], stored["dataset"], _revive(stored["external"])
    else:
        raise ValueError(f"{path} is no checkpoint of a RecBole model: its 'config' is {type(stored)}")
    settings = {
        # Config evaluates the strings of a config_dict (configurator.py:127): "[5,10]" would become a list.
        key: repr(value) if isinstance(value, str) else copy.deepcopy(value)
        for key, value in external.items()
        if key not in _DDP_KEYS | PICKLED_CACHES
    }
    settings |= registry.settings_for_loading(model)
    with clean_argv():
        return Config(model=model, dataset=dataset, config_dict=settings)


def _import_home(module: str, model: str, path: str) -> None:
    """Import the package that registers the model. A file may choose only RecBole and this package."""
    root = module.partition(".")[0]
    if root in ("recbole", "recbole_qbert"):
        importlib.import_module(root)
    elif module not in sys.modules:
        raise ImportError(
            f"{path} holds a {model} of module {module!r}. Only recbole and recbole_qbert are imported for a "
            f"file: import {module} (which must register {model}) yourself, then load again."
        )
