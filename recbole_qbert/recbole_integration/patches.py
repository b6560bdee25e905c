"""Patches of RecBole 1.2.1, one per upstream problem; :func:`apply` applies all.

* :func:`countable_metrics` - item coverage and similar metrics crash.
* :func:`log_every_run` - the log file of a process's second run stays empty.
* :func:`no_anomaly_detection` - importing RecBole's models turns on autograd's debugging mode.
* :func:`processes_without_gpu` - several processes need NCCL, and so a GPU each.
* :func:`folders_made_together` - processes that create the same folder at the same time fail.
* :func:`saved_loaders_follow_settings` - a data set in a file of loaders ignores changed settings.
* :func:`byte_order_marks` - a byte order mark becomes part of the first column's name.
* :func:`flops_of_one_row` - a data set of one row crashes before training.
* :func:`pickled_caches_only_when_asked` - pickles in ``checkpoint_dir`` are read though no property names them.
* :func:`arrays_without_pickle` - LDiffRec unpickles a file in the data set's folder.

Besides these, for callers: :func:`fresh_logging`, :func:`clean_argv`, :func:`unpickling_refused`, :class:`ConfigValues`.
``checkpoint_io`` patches the reading and writing of files, ``newer_libraries`` what newer versions of numpy, pandas and
scipy broke.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import logging
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import recbole.data.utils
import recbole.trainer
import recbole.utils
import recbole.utils.logger
import torch
from recbole.config import Config
from recbole.evaluator.collector import Collector

from recbole_qbert.data.atomic_files import ENCODING, real_encoding
from recbole_qbert.recbole_integration import newer_libraries
from recbole_qbert.utils.distributed import GROUP_TIMEOUT, close_group_at_exit, init_group, is_distributed

with newer_libraries.without_ray():
    quick_start = importlib.import_module("recbole.quick_start.quick_start")

__all__ = [
    "PICKLED_CACHES",
    "ConfigValues",
    "apply",
    "arrays_without_pickle",
    "byte_order_marks",
    "clean_argv",
    "countable_metrics",
    "flops_of_one_row",
    "folders_made_together",
    "fresh_logging",
    "log_every_run",
    "no_anomaly_detection",
    "pickled_caches_only_when_asked",
    "processes_without_gpu",
    "quick_start",
    "replace",
    "saved_loaders_follow_settings",
    "unpickling_refused",
]

log = logging.getLogger(__name__)
#: Properties of RecBole that enable pickles of data sets and loaders. Only a user may set them, never a checkpoint.
PICKLED_CACHES = frozenset({"dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders"})
_MARK = "_recbole_qbert"


def apply() -> None:
    """Apply every patch; a second call changes nothing."""
    newer_libraries.apply(replace)
    countable_metrics()
    log_every_run()
    no_anomaly_detection()
    processes_without_gpu()
    folders_made_together()
    saved_loaders_follow_settings()
    byte_order_marks()
    flops_of_one_row()
    pickled_caches_only_when_asked()


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Set ``owner.name`` to ``make(original)``; a second call changes nothing.

    Args:
        owner: object or module with the attribute.
        name: name of the attribute.
        make: function that takes the original and returns its replacement.
    """
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(make(original))
        setattr(wrapper, _MARK, True)
        setattr(owner, name, wrapper)


# ------------------------------------------------------------------------------------------------- evaluation
def countable_metrics() -> None:
    """Make ItemCoverage, GiniIndex, AveragePopularity and TailPercentage work.

    ``Collector.get_data_struct`` calls ``.cpu()`` on every collected value (evaluator/collector.py:227), but these metrics
    collect an int and a Counter.
    """
    replace(Collector, "get_data_struct", lambda _: _get_data_struct)


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
    """Remove RecBole's handlers from the root logger and close their files; other handlers stay."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        by_recbole = any(isinstance(item, recbole.utils.logger.RemoveColorFilter) for item in handler.filters)
        if handler in _handlers or by_recbole:
            root.removeHandler(handler)
            handler.close()


def log_every_run() -> None:
    """Give every run its own log file, and so its own folder for tensorboard.

    ``init_logger`` ends in ``logging.basicConfig`` (utils/logger.py:119), which does nothing if the root logger has
    handlers. The second run of a process, or any run of a program that logs, gets an empty file.
    """
    replace(quick_start, "init_logger", _init_logger)
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
                    root.removeHandler(handler)  # the program decides what the console shows
                else:
                    _handlers.add(handler)
                    if isinstance(handler, logging.FileHandler):
                        handler.handleError = partial(_fail_to_log, handler)  # type: ignore[method-assign]
            for handler in others:
                root.addHandler(handler)
        if unused := vars(config).get("unused_properties"):
            log.info("%s does not use the properties %s", config["model"], ", ".join(unused))

    return init_logger


def _fail_to_log(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Raise what happened while a record was written; ``logging`` would print a traceback a line and go on."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise OSError(error.errno, error.strerror, handler.baseFilename) from error
    logging.Handler.handleError(handler, record)


def no_anomaly_detection() -> None:
    """Turn off autograd's anomaly detection, which RecBole turns on.

    Importing any sequential model of RecBole runs ``torch.autograd.set_detect_anomaly(True)``
    (model/sequential_recommender/sine.py:25). Every operation of every model then records a stack trace, and every
    gradient is searched for NaN. RecBole's trainer checks the loss for NaN anyway.
    """
    importlib.import_module("recbole.model.sequential_recommender")  # now, or it would happen later
    torch.autograd.set_detect_anomaly(False)


def processes_without_gpu() -> None:
    """Make several processes work on CPUs, with gloo, and under torchrun.

    ``Config._init_device`` supports NCCL only (configurator.py:497) and opens a port that under torchrun is in use already.
    ``AbstractTrainer`` gives ``DistributedDataParallel`` the number of a GPU (trainer.py:59).
    """
    replace(Config, "_init_device", _init_device)
    replace(recbole.trainer.trainer.AbstractTrainer, "__init__", _init_trainer)


def _init_device(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def init_device(self: Any) -> None:
        final = self.final_config_dict
        cpu = not torch.cuda.is_available() or str(final["gpu_id"]) == "" or final["use_gpu"] is False
        torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if "local_rank" not in final or not (cpu or torchrun):
            original(self)
            if is_distributed():
                close_group_at_exit()
            return
        if not is_distributed():
            if torchrun:
                address: dict[str, Any] = {"init_method": "env://"}
            else:
                rank = final["local_rank"] + final["offset"]
                host = f"tcp://{final['ip']}:{final['port']}"
                address = {"init_method": host, "rank": rank, "world_size": final["world_size"]}
            init_group("gloo" if cpu else "nccl", timeout=GROUP_TIMEOUT, **address)
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
    """Make it safe for several processes to create the same folder.

    ``ensure_dir`` checks whether the folder exists before it creates it (utils/utils.py:44). If another process creates it
    in between, the call fails with FileExistsError.
    """
    for name in ("utils.logger", "trainer.trainer", "data.utils", "data.dataset.dataset"):
        replace(importlib.import_module(f"recbole.{name}"), "ensure_dir", lambda _: _ensure_dir)


def _ensure_dir(dir_path: str) -> None:
    os.makedirs(dir_path, exist_ok=True)


def saved_loaders_follow_settings() -> None:
    """Update the data sets in a file of loaders (property ``save_dataloaders``) to the current settings.

    ``load_split_dataloaders`` (data/utils.py:104) takes the file if the settings that RecBole's own data sets depend on are
    unchanged. Anything else that a data set has built stays that of the earlier run. A data set class may therefore have a
    method ``update_saved_parts(parts, config)``, which is called.
    """
    replace(recbole.data.utils, "load_split_dataloaders", _load_split_dataloaders)


def _load_split_dataloaders(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def load_split_dataloaders(config: Any) -> Any:
        loaders = _when_asked(original)(config)
        if loaders is not None:
            parts = [loader._dataset for loader in loaders]
            if update := getattr(parts[0], "update_saved_parts", None):
                update(parts, config)
        return loaders

    return load_split_dataloaders


def byte_order_marks() -> None:
    """Read atomic files that start with a byte order mark, as editors on Windows write them.

    ``Dataset._load_feat`` reads the header itself (dataset.py:475) and keeps the mark, which pandas drops from its names: no
    column is found. Without the property ``encoding`` the header is read in the encoding of the machine, and the rows in
    UTF-8; here both are UTF-8.
    """
    replace(importlib.import_module("recbole.data.dataset.dataset").Dataset, "_load_feat", _load_feat)


def _load_feat(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_feat(self: Any, filepath: str, source: Any) -> Any:
        given = self.config["encoding"]
        self.config["encoding"] = real_encoding(Path(filepath), given or ENCODING)
        try:
            return original(self, filepath, source)
        finally:
            self.config["encoding"] = given

    return load_feat


def flops_of_one_row() -> None:
    """Count the operations of a data set with one row by that row; ``get_flops`` takes row 1 (utils/utils.py:295)."""
    replace(quick_start, "get_flops", _get_flops)


def _get_flops(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_flops(model: Any, dataset: Any, *args: Any, **options: Any) -> Any:
        return original(model, _FirstRow(dataset) if len(dataset) == 1 else dataset, *args, **options)

    return get_flops


class _FirstRow:
    """A data set with one row, which it has for every index."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: torch.Tensor) -> Any:
        return self._dataset[torch.zeros_like(index)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


class ConfigValues(dict[str, Any]):
    """RecBole's Config as a mapping, since Config has no ``keys``. A missing key gives None, as in Config."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.final_config_dict)

    def __missing__(self, key: str) -> None:
        return None


@contextlib.contextmanager
def clean_argv() -> Iterator[None]:
    """Hide the command line from ``Config``, which reads it in every process (configurator.py:163)."""
    original = sys.argv
    sys.argv = original[:1] or [""]
    try:
        yield
    finally:
        sys.argv = original


def pickled_caches_only_when_asked() -> None:
    """Make RecBole read pickles of data sets and loaders only where a property of the user asks for them.

    ``create_dataset`` and ``load_split_dataloaders`` (data/utils.py:59, :119) unpickle a file in ``checkpoint_dir`` with the
    name of the data set, even if no property names it. Unpickling runs code, which anyone who can write there may choose.
    """
    replace(recbole.data.utils, "create_dataset", _when_asked)  # loaders: _load_split_dataloaders
    owners: tuple[Any, ...] = (recbole.data, quick_start)
    for module in owners:
        module.create_dataset = recbole.data.utils.create_dataset


def _when_asked(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(config: Any) -> Any:
        if any(config[key] for key in PICKLED_CACHES):
            return original(config)
        with _no_file_exists(recbole.data.utils):
            return original(config)

    return read


@contextlib.contextmanager
def _no_file_exists(module: Any) -> Iterator[None]:
    original = module.os
    module.os = SimpleNamespace(path=SimpleNamespace(join=original.path.join, exists=lambda _: False))
    try:
        yield
    finally:
        module.os = original


def arrays_without_pickle(model: type) -> None:
    """Make LDiffRec read its item vectors without unpickling (ldiffrec.py:232 passes ``allow_pickle=True``).

    Args:
        model: class of a model, as RecBole finds it by name; importing LDiffRec for a patch would import scikit-learn.
    """
    if model.__module__ == "recbole.model.general_recommender.ldiffrec":
        replace(model, "__init__", _without_pickle)


def _without_pickle(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any) -> None:
        with unpickling_refused():
            original(self, *args)

    return init


@contextlib.contextmanager
def unpickling_refused() -> Iterator[None]:
    """Refuse ``pickle.load``, and so pickled arrays of numpy, in this thread while the block runs.

    Raises:
        ValueError: something was to be unpickled.
    """
    original, thread = pickle.load, threading.get_ident()

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            name = getattr(file, "name", "a file")
            raise ValueError(
                f"{name} is a pickle, which can run code: it is not read for a file that is not trusted (trusted=True)"
            )
        return original(file, *args, **kwargs)

    pickle.load = load
    try:
        yield
    except pickle.UnpicklingError as error:  # of torch, which reads no other objects, and of numpy
        raise ValueError(f"a file is a pickle, or damaged ({error}); it is read only where you trust it") from error
    finally:
        pickle.load = original
