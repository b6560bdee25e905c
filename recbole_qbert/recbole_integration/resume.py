"""Trainings that resume after an interruption, and their log."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_qbert.config.schema import RUNTIME_PROPERTIES
from recbole_qbert.recbole_integration import checkpoint_io
from recbole_qbert.utils.distributed import rank
from recbole_qbert.utils.io import atomic_write, digest, json_lines
from recbole_qbert.utils.resume_file import ResumeFile

Callback = Callable[[int, float], Any]

# Properties that may differ between a run and its continuation. Files count by their content (``fingerprint``).
_VOLATILE = RUNTIME_PROPERTIES | {"pretrained", "semantic_id_file", "epochs"}


class TrainingState:
    """State of one training in ``<checkpoint>.progress``, and its log in ``<checkpoint>.jsonl``, one line per epoch.

    The state of another run (other settings, another ``start``, other validation rows) is replaced.

    Args:
        checkpoint: file of the best weights.
        config: RecBole's configuration.
        start: digest of the data and weights that training starts from.
        order: generator of the order of the rows. With it the random states are stored, too. RecBole's own trainers need
            them to resume.
    """

    def __init__(self, checkpoint: Path, config: Any, start: str, order: torch.Generator | None = None) -> None:
        self.order = order
        self.checkpoint = checkpoint
        self.log = checkpoint.with_suffix(".jsonl")
        settings = {k: str(v) for k, v in config.final_config_dict.items() if k not in _VOLATILE}
        self.start = digest([settings, start])
        self.file = ResumeFile(checkpoint.with_suffix(".progress"), self.start)
        self.started = time.perf_counter()

    def fit(
        self, trainer: Any, fit: Callable[[Callback], Any], train_data: Any, valid_data: Any, callback: Callback | None
    ) -> Any:
        """Train, starting from the saved state if there is one.

        Args:
            trainer: RecBole's trainer, not yet trained.
            fit: its training, which calls back after every validation.
            train_data: loader of the training rows.
            valid_data: loader of the validation rows, which choose the epoch; ``None`` without a validation.
            callback: called after every validation, too.

        Returns:
            The result of ``fit``: best score and metrics on validation; those of the state if nothing is left to do.
        """
        if valid_data:
            self.file.run = digest([self.start, hash_rows(valid_data._dataset)])
        if self.load(trainer):
            finished = trainer.cur_step > trainer.stopping_step or trainer.start_epoch >= trainer.epochs
            what = "finished" if finished else "resuming"
            trainer.logger.info(f"{self.file.path}: {what} at epoch {trainer.start_epoch}")
            if finished:
                trainer.eval_collector.data_collect(train_data)
                return trainer.best_valid_score, trainer.best_valid_result
        elif rank() == 0:
            self.log.unlink(missing_ok=True)

        def after_validation(epoch: int, score: float) -> None:
            if rank() == 0:
                self.save(trainer, epoch, score)
            if callback:
                callback(epoch, score)

        return fit(after_validation)

    def load(self, trainer: Any) -> bool:
        """Set a trainer to the saved state; return whether there is one that fits.

        Without a whole checkpoint of the same training the state does not count: its best weights would be missing.
        """
        state = self.file.load() if self.checkpoint.exists() else None
        if state is None or not self._checkpoint_is_ours(trainer):
            return False
        before = copy.deepcopy(trainer.model.state_dict())
        try:
            trainer.model.load_state_dict(state["state_dict"])
            trainer.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            trainer.model.load_state_dict(before)  # the weights that fitted were taken over before the error
            trainer.logger.warning(f"{self.file.path} was written by another version, starting anew: {error}")
            return False
        trainer.start_epoch, trainer.cur_step = state["epoch"] + 1, state["cur_step"]
        trainer.best_valid_score, trainer.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        trainer.train_loss_dict = state["losses"]
        trainer.annealing = state.get("annealing", False)
        if self.order is not None:
            _set_random_state(state["random"], self.order)
        self._cut_log(state["epoch"])
        return True

    def _checkpoint_is_ours(self, trainer: Any) -> bool:
        """Return whether the checkpoint is whole and of this training; if not, say in the log what is wrong with it."""
        try:
            checkpoint = checkpoint_io.load_checkpoint(self.checkpoint)
            checkpoint_io.weights_of(checkpoint, self.checkpoint)
        except ValueError as error:
            trainer.logger.warning(f"{error}: starting anew")
            return False
        run = checkpoint.get("run")
        if run not in (None, self.start):  # None: before version 0.2
            trainer.logger.warning(f"{self.checkpoint} is of another training: starting anew")
            return False
        return True

    def save(self, trainer: Any, epoch: int, score: float | None = None) -> None:
        """Write the state after an epoch and, with a score, add its line to the log.

        RecBole wrote the best weights to its own checkpoint just before. A kill between the two repeats an epoch.

        Args:
            trainer: RecBole's trainer.
            epoch: number of the epoch, from 0.
            score: its score on validation.
        """
        self.file.path.parent.mkdir(parents=True, exist_ok=True)
        if score is not None:
            line = {"epoch": epoch, "loss": trainer.train_loss_dict[epoch], trainer.valid_metric: float(score)}
            line |= {"seconds": round(time.perf_counter() - self.started, 3), "best": float(trainer.best_valid_score)}
            with open(self.log, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        state = {
            "epoch": epoch,
            "cur_step": trainer.cur_step,
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": {k: float(v) for k, v in (trainer.best_valid_result or {}).items()},
            "annealing": getattr(trainer, "annealing", False),
            "losses": {int(k): float(v) for k, v in trainer.train_loss_dict.items()},
            "state_dict": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "random": None if self.order is None else _random_state(self.order),
        }
        self.file.save(state)

    def _cut_log(self, last: int) -> None:
        """Drop the lines of epochs that are run again."""
        lines = [line for line in json_lines(self.log) if line.get("epoch", last) <= last]
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the SHA-256 of the content of each tensor."""
    return {name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest() for name, value in tensors.items()}


def hash_rows(dataset: Any) -> dict[str, str]:
    """Return the SHA-256 of every column of a RecBole data set."""
    return hash_tensors({name: dataset.inter_feat[name] for name in dataset.inter_feat})


def _random_state(order: torch.Generator) -> dict[str, Any]:
    """Return the random states of RecBole as plain values: masks (Python), negatives (numpy), dropout (torch), row order."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": (version, list(words), gauss),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "order": order.get_state(),
    }


def _set_random_state(state: dict[str, Any], order: torch.Generator) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    order.set_state(state["order"])
