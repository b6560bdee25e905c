"""What RecBole 1.2.1 needs on today's torch: one shim per upstream problem; :func:`apply` runs all.

* :func:`plain_checkpoints` - checkpoints that ``torch.load`` reads with its safe default.
* :func:`readable_checkpoints` - :func:`load_data_and_model` in RecBole's place.
* :func:`countable_metrics` - item coverage and its like crash.
* :func:`log_every_run` - the second run of a process logs nowhere.
* :func:`no_anomaly_detection` - importing RecBole's models turns on autograd's debugging mode.
* :func:`processes_without_gpu` - several processes need NCCL, and so a GPU each.
* :func:`folders_made_together` - several processes that make the same folder fail.

Beside them, for callers: :func:`load_checkpoint`, :func:`fresh_logging`, :func:`clean_argv`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import logging
import os
import pickle
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import recbole.trainer
import recbole.utils
import recbole.utils.logger
import torch
from recbole.config import Config
from recbole.evaluator.collector import Collector
from recbole.model.abstract_recommender import AbstractRecommender
from scipy import sparse

from recbole_qbert.processes import PATIENCE, close_at_exit, open_group, rank, together

with warnings.catch_warnings():  # ray 2.6.3, which this module imports, still uses pkg_resources and says so
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    quick_start = importlib.import_module("recbole.quick_start.quick_start")

__all__ = [
    "UntrustedCheckpointError",
    "apply",
    "checkpoint_state",
    "clean_argv",
    "countable_metrics",
    "folders_made_together",
    "fresh_logging",
    "load_checkpoint",
    "load_data_and_model",
    "log_every_run",
    "no_anomaly_detection",
    "plain_checkpoints",
    "processes_without_gpu",
    "quick_start",
    "readable_checkpoints",
    "write_checkpoint",
]

FORMAT = 1
#: Keys that ``run(nproc=2)`` adds (quick_start.py:57, :174). A Config that has them joins a process group.
_DDP_KEYS = frozenset({"local_rank", "world_size", "nproc", "ip", "port", "offset"})
_MARK = "_recbole_qbert"
_KIND = "__recbole_qbert_kind__"
#: What ``torch.load(weights_only=True)`` reads beside tensors; exact types, since an IntEnum is an int, too.
_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})


class UntrustedCheckpointError(ValueError):
    """A file that can only be read by running code stored in it."""


def apply() -> None:
    """Apply every shim; a second call changes nothing."""
    plain_checkpoints()
    readable_checkpoints()
    countable_metrics()
    log_every_run()
    no_anomaly_detection()
    processes_without_gpu()
    folders_made_together()


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Set ``owner.name`` to ``make(original)``, once."""
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(make(original))
        setattr(wrapper, _MARK, True)
        setattr(owner, name, wrapper)


# ---------------------------------------------------------------------------------------- writing checkpoints
def plain_checkpoints() -> None:
    """Write checkpoints of tensors and plain values only.

    RecBole stores its whole Config, with pickle protocol 4 (trainer/trainer.py:289, and :755 for
    pretraining). torch 2.6 made ``weights_only=True`` the default of ``torch.load``, which refuses both;
    RecBole calls it without a word about it (trainer.py:323 and :583, s3rec.py:120), so every run fails when
    it loads its best epoch. FDSA, SASRecF, GRU4RecF, DIN and DIEN even store the Dataset, inside a module in
    ``other_parameter`` (fdsa.py:108); the module's weights are in ``state_dict`` already. Written plainly,
    RecBole's own code reads all of them.
    """
    _replace(recbole.trainer.Trainer, "_save_checkpoint", lambda _: _save_checkpoint)
    _replace(recbole.trainer.PretrainTrainer, "save_pretrained_model", lambda _: _save_pretrained_model)
    _replace(AbstractRecommender, "load_other_parameter", _load_other_parameter)


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
    """What a checkpoint holds: RecBole's keys, with plain values.

    ``config`` is ``{"model", "dataset", "external"}``, the last being what the user set, from which a Config
    can be built anew anywhere (the final settings cannot: ``data_path`` has the data set's name joined to it
    by then). The settings of a process group are left out, so that one process can read what many wrote.
    ``module`` is what must be imported before RecBole can find the model.

    A value that cannot be made plain is kept as it is, with a warning: the file then needs ``trusted=True``.
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
    """Write under a temporary name, then rename, so that a crash leaves the earlier file whole."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        torch.save(dict(state), temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any, name: str, foreign: list[str]) -> Any:
    """``value`` with numpy and scipy objects as tensors; what cannot be is kept and named in ``foreign``."""
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
    """The reverse of :func:`_plain`, with tensors on ``device``."""
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


# ---------------------------------------------------------------------------------------- reading checkpoints
def load_checkpoint(path: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running anything that may be hidden in it.

    Args:
        path: a file written by :func:`write_checkpoint`, or by ``torch.save``.
        trusted: whether a file that holds other objects than tensors and plain values, such as a checkpoint
            of stock RecBole, may be unpickled, which runs whatever code its author put there.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedCheckpointError: the file needs ``trusted=True``.
        ValueError: the file is damaged, or is no checkpoint.
    """
    try:
        with warnings.catch_warnings():  # torch asks to file an issue about what is refused here a moment later
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trusted:
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {found.group(1)}" if found else "a kind of pickle that stock RecBole writes, too"
            raise UntrustedCheckpointError(
                f"{os.fspath(path)} is more than tensors and plain values ({reason}), and reading it can run "
                "code hidden in it. If you wrote the file, or trust who did, pass trusted=True."
            ) from error
        state = torch.load(path, map_location="cpu", weights_only=False)
    except OSError:
        raise
    except Exception as error:  # torch's reader of pickles fails in many ways on bytes that are none
        raise ValueError(f"{os.fspath(path)} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{os.fspath(path)} is no checkpoint: it holds a {type(state).__name__}, not a dict")
    return state


def readable_checkpoints() -> None:
    """Let ``recbole.quick_start.load_data_and_model`` be ours.

    RecBole's (quick_start.py:230) cannot read any file since torch 2.6, and expects a pickled Config in it;
    one that was written under DDP ends in "Default process group has not been initialized", since the Config
    says so.
    """
    for module in (importlib.import_module("recbole.quick_start"), quick_start):
        module.load_data_and_model = load_data_and_model  # type: ignore[attr-defined]


def load_data_and_model(
    model_file: str | os.PathLike[str], trusted: bool = False
) -> tuple[Config, AbstractRecommender, Any, Any, Any, Any]:
    """Load a checkpoint, and with it everything to evaluate its model.

    The command line is not read: the settings are those that the model was trained with. Paths among them are
    taken as they are, so a relative ``data_path`` is looked for from the current folder.

    Args:
        model_file: the checkpoint; the argument has RecBole's name.
        trusted: see :func:`load_checkpoint`; needed for the files of stock RecBole.

    Returns:
        config, model, dataset, train_data, valid_data, test_data.

    Raises:
        UntrustedCheckpointError: the file needs ``trusted=True``.
        ImportError: the model's class comes from a module of your own, which you must import first.
        ValueError: the file is no checkpoint of RecBole.
    """
    checkpoint = load_checkpoint(model_file, trusted)
    config = _rebuild_config(checkpoint, os.fspath(model_file))
    quick_start.init_seed(config["seed"], config["reproducibility"])
    quick_start.init_logger(config)
    logging.getLogger().info(config)
    dataset = quick_start.create_dataset(config)
    logging.getLogger().info(dataset)
    train_data, valid_data, test_data = quick_start.data_preparation(config, dataset)
    quick_start.init_seed(config["seed"], config["reproducibility"])
    model = quick_start.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(_revive(checkpoint.get("other_parameter"), config["device"]))
    return config, model, dataset, train_data, valid_data, test_data


def _rebuild_config(checkpoint: Mapping[str, Any], path: str) -> Config:
    """A Config from what the user set when the checkpoint was written, for this process alone."""
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
        if key not in _DDP_KEYS
    }
    with clean_argv():
        return Config(model=model, dataset=dataset, config_dict=settings)


def _import_home(module: str, model: str, path: str) -> None:
    """Import the package that registers the model, if RecBole or ours: a file must not choose others."""
    root = module.partition(".")[0]
    if root in ("recbole", "recbole_qbert"):
        importlib.import_module(root)
    elif module not in sys.modules:
        raise ImportError(
            f"{path} holds a {model} of module {module!r}. Only recbole and recbole_qbert are imported for a "
            f"file: import {module} (which must register {model}) yourself, then load again."
        )


# ------------------------------------------------------------------------------------------------- evaluation
def countable_metrics() -> None:
    """Let ItemCoverage, GiniIndex, AveragePopularity and TailPercentage run.

    ``Collector.get_data_struct`` calls ``.cpu()`` on everything collected (evaluator/collector.py:227), and
    these metrics need an int and a Counter.
    """
    _replace(Collector, "get_data_struct", lambda _: _get_data_struct)


def _get_data_struct(self: Any) -> Any:
    collected = self.data_struct._data_dict
    for key, value in collected.items():
        if isinstance(value, torch.Tensor):
            collected[key] = value.cpu()
    returned = copy.deepcopy(self.data_struct)
    for key in ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label"):
        collected.pop(key, None)
    return returned


# --------------------------------------------------------------------------------------- logging and argument
_handlers: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


def fresh_logging() -> None:
    """Take RecBole's handlers off the root logger and close their files; other handlers stay."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        by_recbole = any(isinstance(item, recbole.utils.logger.RemoveColorFilter) for item in handler.filters)
        if handler in _handlers or by_recbole:
            root.removeHandler(handler)
            handler.close()


def log_every_run() -> None:
    """Give every run its own log file, and so its own folder for tensorboard.

    ``init_logger`` ends in ``logging.basicConfig`` (utils/logger.py:119), which does nothing when the root
    logger has
    handlers: the second run of a process, or any run of a program that logs, gets an empty file.
    """
    _replace(quick_start, "init_logger", _init_logger)
    for module in (recbole.utils, recbole.utils.logger):
        module.init_logger = quick_start.init_logger


def _init_logger(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def init_logger(config: Any) -> None:
        fresh_logging()
        root = logging.getLogger()
        others = root.handlers[:]
        for handler in others:
            root.removeHandler(handler)
        try:
            original(config)
        finally:
            for handler in root.handlers[:]:
                if others and not isinstance(handler, logging.FileHandler):
                    root.removeHandler(handler)  # the program has its own idea of what the console shows
                else:
                    _handlers.add(handler)
            for handler in others:
                root.addHandler(handler)

    return init_logger


def no_anomaly_detection() -> None:
    """Turn autograd's anomaly detection off again.

    Importing any sequential model of RecBole runs ``torch.autograd.set_detect_anomaly(True)``
    (model/sequential_recommender/sine.py:25): every operation of every model then records a stack trace and every
    gradient is searched for NaN. RecBole's trainer checks the loss for NaN anyway.
    """
    importlib.import_module("recbole.model.sequential_recommender")  # now, or it would happen later
    torch.autograd.set_detect_anomaly(False)


def processes_without_gpu() -> None:
    """Let several processes run on CPUs, with gloo, and under torchrun.

    ``Config._init_device`` knows NCCL only (configurator.py:497) and opens a port of its own, which under torchrun is taken;
    ``AbstractTrainer`` names a GPU to ``DistributedDataParallel`` (trainer.py:59).
    """
    _replace(Config, "_init_device", _init_device)
    _replace(recbole.trainer.trainer.AbstractTrainer, "__init__", _init_trainer)


def _init_device(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def init_device(self: Any) -> None:
        final = self.final_config_dict
        cpu = not torch.cuda.is_available() or str(final["gpu_id"]) == "" or final["use_gpu"] is False
        torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if "local_rank" not in final or not (cpu or torchrun):
            original(self)
            if together():
                close_at_exit()
            return
        if not together():
            if torchrun:
                address: dict[str, Any] = {"init_method": "env://"}
            else:
                rank = final["local_rank"] + final["offset"]
                host = f"tcp://{final['ip']}:{final['port']}"
                address = {"init_method": host, "rank": rank, "world_size": final["world_size"]}
            open_group("gloo" if cpu else "nccl", timeout=PATIENCE, **address)
        final["device"] = torch.device("cpu") if cpu else torch.device("cuda", final["local_rank"])
        if not cpu:
            torch.cuda.set_device(final["local_rank"])
        final["single_spec"] = False
        if final["local_rank"] != 0:
            final |= {"state": "error", "show_progress": False, "verbose": False}

    return init_device


def _init_trainer(original: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    def init_trainer(self: Any, config: Any, model: Any) -> None:
        if config["single_spec"] or config["device"].type != "cpu":
            original(self, config, model)
            return
        self.config, self.model = config, model
        self.distributed_model = torch.nn.parallel.DistributedDataParallel(model)

    return init_trainer


def folders_made_together() -> None:
    """Let several processes make the same folder.

    ``ensure_dir`` looks first and makes the folder then (utils/utils.py:44): of two processes that start together, one finds
    that the other was quicker, and ends with FileExistsError.
    """
    for name in ("utils.logger", "trainer.trainer", "data.utils", "data.dataset.dataset"):
        _replace(importlib.import_module(f"recbole.{name}"), "ensure_dir", lambda _: _ensure_dir)


def _ensure_dir(dir_path: str) -> None:
    os.makedirs(dir_path, exist_ok=True)


class ConfigValues(dict[str, Any]):
    """RecBole's Config as a mapping: Config has no ``keys`` of its own. A missing key gives None, as Config does."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.final_config_dict)

    def __missing__(self, key: str) -> None:
        return None


@contextlib.contextmanager
def clean_argv() -> Iterator[None]:
    """Hide the command line from ``Config``, which reads it in every process (configurator.py:163)."""
    kept = sys.argv
    sys.argv = kept[:1] or [""]
    try:
        yield
    finally:
        sys.argv = kept
