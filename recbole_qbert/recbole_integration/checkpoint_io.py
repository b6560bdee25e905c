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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
from recbole_qbert.recbole_integration.file_settings import settings_from_file
from recbole_qbert.recbole_integration.patches import (
    PICKLED_CACHES,
    clean_argv,
    quick_start,
    replace,
    unpickling_refused,
)
from recbole_qbert.utils.distributed import rank
from recbole_qbert.utils.tensor_file import load_tensors, load_weights, require_numbers, save_tensors

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
        "run": progress.start if (progress := getattr(trainer, "progress", None)) else None,
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
    """Write the file atomically, with a digest of its content."""
    save_tensors(state, Path(path))


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
        ValueError: the file is damaged (its content is not that of its digest), or is no checkpoint.
    """
    try:
        state = load_tensors(path)
    except pickle.UnpicklingError as error:
        if not trusted:
            name = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {name.group(1)}" if name else "a kind of pickle that stock RecBole writes, too"
            raise UntrustedCheckpointError(
                f"{os.fspath(path)} is more than tensors and plain values ({reason}), and reading it can run "
                "code hidden in it. If you wrote the file, or trust who did, pass trusted=True."
            ) from error
        state = load_tensors(path, trusted=True)
    _upgrade(state)
    return state


@dataclass(frozen=True)
class Contents:
    """The parts of a checkpoint, checked to be what they have to be.

    Attributes:
        model: name of the model.
        dataset: name of the data set.
        settings: what the user set for the training.
        weights: name -> tensor, without NaN.
        other: other parameters of the model.
    """

    model: str
    dataset: str
    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    other: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> Contents:
        """Check the parts of a checkpoint.

        Args:
            checkpoint: what :func:`load_checkpoint` returned.
            path: its file, for errors.

        Raises:
            ValueError: a part is missing or of another type; names the file and the key.
        """
        config = checkpoint.get("config")
        if isinstance(config, Config):  # stock RecBole, trusted
            config = {"model": config["model"], "dataset": config["dataset"], "external": config.external_config_dict}
        config = _mapping(config, "'config'", path)
        for key in ("model", "dataset"):
            if not isinstance(config.get(key), str):
                raise _refusal(path, f"config[{key!r}]", config.get(key), "a name")
        external = _mapping(config.get("external"), "config['external']", path)
        return cls(config["model"], config["dataset"], external, weights_of(checkpoint, path), other_of(checkpoint, path))


def weights_of(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint.

    Args:
        checkpoint: what :func:`load_checkpoint` returned.
        path: its file, for errors.

    Raises:
        ValueError: there are none, or one is no tensor or holds NaN; names the file and the key.
    """
    weights = _mapping(checkpoint.get("state_dict"), "'state_dict'", path)
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise _refusal(path, f"state_dict[{name!r}]", value, "a tensor")
        require_numbers(name, value, os.fspath(path))
    return weights


def other_of(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the other parameters of the model in a checkpoint.

    Args:
        checkpoint: what :func:`load_checkpoint` returned.
        path: its file, for errors.

    Raises:
        ValueError: they are no dictionary; names the file and the key.
    """
    other = checkpoint.get("other_parameter")
    return {} if other is None else _mapping(other, "'other_parameter'", path)


def load_into(model: AbstractRecommender, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Set the weights and other parameters of a model to those of a checkpoint, and return the checkpoint.

    Raises:
        UntrustedCheckpointError: the file needs ``trusted=True``.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no checkpoint, or does not fit the model.
    """
    checkpoint = load_checkpoint(path)
    load_weights(model, weights_of(checkpoint, path), os.fspath(path))
    model.load_other_parameter(other_of(checkpoint, path) or None)
    return checkpoint


def _mapping(value: Any, key: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _refusal(path, key, value, "a dictionary with names as keys")
    return dict(value)


def _refusal(path: str | os.PathLike[str], key: str, value: Any, wanted: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} is no checkpoint of a RecBole model: its {key} is of {type(value)}, not {wanted}; finetune and "
        "train write a checkpoint"
    )


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
    contents = Contents.of(checkpoint, model_file)
    if not isinstance(checkpoint["config"], Config):
        _import_home(str(checkpoint.get("module")), contents.model, os.fspath(model_file))
    config = _rebuild_config(contents, os.fspath(model_file), trusted)
    quick_start.init_seed(config["seed"], config["reproducibility"])
    quick_start.init_logger(config)
    logging.getLogger().info(config)
    with nullcontext() if trusted else unpickling_refused(), _refusing_settings(os.fspath(model_file)):
        dataset = quick_start.create_dataset(config)
        logging.getLogger().info(dataset)
        train_data, valid_data, test_data = quick_start.data_preparation(config, dataset)
        quick_start.init_seed(config["seed"], config["reproducibility"])
        model = quick_start.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    load_weights(model, contents.weights, os.fspath(model_file))
    model.load_other_parameter(_revive(contents.other or None, config["device"]))
    return config, model, dataset, train_data, valid_data, test_data


def _rebuild_config(contents: Contents, path: str, trusted: bool) -> Config:
    """Build a Config from the user's settings in a checkpoint, for this process alone."""
    model = contents.model
    external = _revive(contents.settings)
    if not trusted:
        external = settings_from_file(model, external, path)
    settings = {
        # Config evaluates the strings of a config_dict (configurator.py:127): "[5,10]" would become a list.
        key: repr(value) if isinstance(value, str) else copy.deepcopy(value)
        for key, value in external.items()
        if key not in _DDP_KEYS | PICKLED_CACHES
    }
    settings |= registry.settings_for_loading(model)
    with clean_argv(), _refusing_settings(path):
        return Config(model=model, dataset=contents.dataset, config_dict=settings)


@contextmanager
def _refusing_settings(path: str) -> Iterator[None]:
    """Name the checkpoint in the errors that RecBole ends in on settings of another form, which it does not check."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: the settings in its config['external'] are refused: {error}") from error
    except (AttributeError, AssertionError, IndexError, KeyError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{path}: RecBole cannot use the settings in its config['external']: {error!r}") from error


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
